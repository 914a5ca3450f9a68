"""DeepSpeed's words, one table for both ways; what it removed, and what it swallows without a word."""

from __future__ import annotations

from planner.plans import Plan
from planner.stacks.said import Settings
from planner.stacks.words import Facts, Word, flag, number
from profiles.errors import InputError

STACK = "deepspeed"
STAGE = "zero_optimization.stage"
OFFLOAD = "zero_optimization.offload_optimizer.device"
OFFLOAD_WEIGHTS = "zero_optimization.offload_param.device"
OVERLAP, BUCKET = "zero_optimization.overlap_comm", "zero_optimization.reduce_bucket_size"
BATCH, MICRO, STEPS = "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"
STAGES = "pipeline.stages"
CHECKPOINTS = "activation_checkpointing.number_checkpoints"
WORDS = (
    number(BATCH, "samples"),
    number(MICRO, "micro_batch_size"),
    number(STEPS, "num_microbatches"),
    number(STAGE, "zero_stage", 0),
    Word(key=OFFLOAD, fact="offload", words={"optimizer": "cpu"}, also={"none": None, "nvme": "optimizer"}),
    Word(key=OVERLAP, fact="overlaps", words={True: True, False: False}),
    flag("zero_optimization.cpu_offload", "offload", "optimizer", is_old=True),
    flag("bf16.enabled", "bf16", "bf16"),
    flag("bfloat16.enabled", "bf16", "bf16", is_old=True),
    flag("fp16.enabled", "fp16", "fp16"),
    number(STAGES, "stages"),
    number("tensor_parallel.autotp_size", "tensor_parallel", 0, is_old=True),
    number("sequence_parallel_size", "context_parallel", is_old=True),
    number(CHECKPOINTS, "recomputed", 0),
)
# A plan clips nothing, and 0.19 clips to 1 where this is left out.
UNCLIPPED = {"gradient_clipping": 0.0}
# Sections and keys that DeepSpeed reads, and that change no price here.
UNPRICED = (
    "optimizer.*", "scheduler.*", "gradient_clipping", "steps_per_print", "wall_clock_breakdown", "memory_breakdown",
    "dump_state", "log_level", "prescale_gradients", "gradient_predivide_factor", "gradient_allreduce_op",
    "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer", "disable_allgather", "disable_python_gc",
    "dataloader_drop_last", "data_efficiency.*", "flops_profiler.*", "tensorboard.*", "wandb.*", "csv_monitor.*",
    "comet.*", "comms_logger.*", "autotuning.*", "aio.*", "checkpoint.*", "timers.*", "monitor_config.*",
    "managed_gradient_accumulation", "use_data_before_expert_parallelism", "datastates.*", "hybrid_engine.*",
    "vocabulary_size", "check_overflow",
    "bf16.*", "bfloat16.*", "fp16.*",
    "pipeline.partition", "pipeline.seed_layers", "pipeline.activation_checkpoint_interval",
    "pipeline.pipe_partitioned", "pipeline.grad_partitioned",
    "activation_checkpointing.profile", "activation_checkpointing.synchronize_checkpoint_boundary",
    "activation_checkpointing.partition_activations", "activation_checkpointing.contiguous_memory_optimization",
    "activation_checkpointing.cpu_checkpointing",
    *(f"zero_optimization.{key}" for key in (
        "contiguous_gradients", "reduce_scatter", "reduce_bucket_size", "allgather_partitions", "allgather_bucket_size",
        "use_multi_rank_bucket_allreduce", "compute_grad_norm", "load_from_fp32_weights", "elastic_checkpoint",
        "sub_group_size", "prefetch_bucket_size", "param_persistence_threshold", "model_persistence_threshold",
        "max_live_parameters", "max_reuse_distance", "gather_16bit_weights_on_model_save",
        "stage3_prefetch_bucket_size",
        "stage3_param_persistence_threshold", "stage3_model_persistence_threshold", "stage3_max_live_parameters",
        "stage3_max_reuse_distance", "stage3_gather_16bit_weights_on_model_save", "stage3_module_granularity_threshold",
        "stage3_gather_fp16_weights_on_model_save", "stage3_use_all_reduce_for_fetch_params",
        "stage3_allgather_sequential", "ignore_unused_parameters", "legacy_stage1", "round_robin_gradients",
        "parameter_alignment", "memory_efficient_linear", "pipeline_loading_checkpoint", "override_module_apply",
        "log_trace_cache_warnings", "enable_sanity_checks", "cpu_offload_use_pin_memory",
        "offload_optimizer.pin_memory", "offload_optimizer.buffer_count", "offload_optimizer.fast_init",
        "offload_optimizer.pipeline_read", "offload_optimizer.pipeline_write", "offload_param.pin_memory",
        "offload_param.buffer_count", "offload_param.buffer_size", "offload_param.max_in_cpu", "leaf_module.*",
    )),
)  # fmt: skip
# Top-level keys that 0.19.8 reads; it swallows all others.
TOP_LEVEL = frozenset(
    key.partition(".")[0] for key in (*UNPRICED, *(word.key for word in WORDS))
) | {
    "communication_data_type", "seq_parallel_communication_data_type", "data_types", "compile", "tensor_parallel",
    "expert_parallel", "torch_autocast", "weight_quantization", "sequence_parallel_size",
}  # fmt: skip
REMOVED = (
    "nebula", "compression_training", "amp", "quantize_training", "sparse_gradients", "eigenvalue", "sparse_attention",
    "elasticity", "graph_harvesting", "curriculum_learning", "progressive_layer_drop",
    "zero_optimization.mics_shard_size", "zero_optimization.mics_hierarchical_params_gather",
    "zero_optimization.zeropp_loco_param",
)  # fmt: skip

SHARDED = "stage 0 in bf16: its pipelines shard the states over replicas anyway (BF16_Optimizer)"


def facts_of(plan: Plan) -> Facts:
    """What DeepSpeed is told of a plan, whoever builds its model: nothing of stages, messages or recomputation."""
    return {
        "samples": plan.global_batch_size,
        "micro_batch_size": plan.micro_batch_size,
        "num_microbatches": plan.num_microbatches,
        # What is offloaded has to be sharded, be it over one rank.
        "zero_stage": max(plan.zero_stage, 1) if plan.offload == "optimizer" else plan.zero_stage,
        "offload": plan.offload,
        "bf16": plan.precision,
        "fp16": plan.precision,
    }


def shards_anyway(plan: Plan) -> bool:
    """Whether DeepSpeed shards the states of a plan that does not say so."""
    is_piped = plan.pipeline_parallel > 1 and plan.data_parallel > 1
    return is_piped and plan.zero_stage == 0 and plan.precision == "bf16"


def check(settings: Settings) -> None:
    """Check what DeepSpeed 0.19.8 swallows or has removed: keys that it does not read, offload at the wrong stage.

    Raises: InputError that names the line.
    """
    for key in REMOVED:
        if settings.has(key):
            raise InputError(f"{settings.path}: {key}: DeepSpeed 0.19.8 no longer has it: leave it out")
    for key in unknown_keys(settings):
        raise settings.contradiction((key,), "DeepSpeed silently ignores this key: leave it out")
    check_offload(settings)


def unknown_keys(settings: Settings) -> list[str]:
    """Settings whose top-level key DeepSpeed does not read."""
    return [key for key in settings.names if key.partition(".")[0] not in TOP_LEVEL and not key.startswith("_")]


def check_offload(settings: Settings) -> None:
    """Check that what is offloaded is sharded.

    Raises: InputError that names both lines.
    """
    stage = settings.take(STAGE, 0)
    offloaded, weights = settings.take(OFFLOAD, "none"), settings.take(OFFLOAD_WEIGHTS, "none")
    if offloaded not in ("none", "auto") and stage == 0:
        raise settings.contradiction((OFFLOAD, STAGE), "states are offloaded at ZeRO stages 1 to 3 only")
    if weights not in ("none", "auto") and stage not in (3, "auto"):
        raise settings.contradiction((OFFLOAD_WEIGHTS, STAGE), "weights are offloaded at ZeRO stage 3 only")

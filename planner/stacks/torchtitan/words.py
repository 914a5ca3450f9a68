"""torchtitan's words, one table for Python, flags, TOML and logs, in both ways."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from planner.stacks.said import Setting
from planner.stacks.words import Word, flag, number

STACK = "torchtitan"
LOCAL, GLOBAL, LENGTH = "training.local_batch_size", "training.global_batch_size", "training.seq_len"
SHARDS, REPLICAS = "parallelism.data_parallel_shard_degree", "parallelism.data_parallel_replicate_degree"
STAGES, SCHEDULE = "parallelism.pipeline_parallel_degree", "parallelism.pipeline_parallel_schedule"
PIECE = "parallelism.pipeline_parallel_microbatch_size"
MODULES = "parallelism.module_fqns_per_model_part"
SPLITS = "parallelism.pipeline_parallel_split_points"
LAYERS_PER_STAGE = "parallelism.pipeline_parallel_layers_per_stage"
FIRST_FEWER = "parallelism.pipeline_parallel_first_stage_less_layers"
LAST_FEWER = "parallelism.pipeline_parallel_last_stage_less_layers"
RECOMPUTE, RECOMPUTE_OPTION = "activation_checkpoint.mode", "activation_checkpoint.selective_ac_option"
COMPILE = "compile.enable"
LOW = "model_spec.fp8"
SCHEDULES = {
    "gpipe": "GPipe", "1f1b": "1F1B", "interleaved-1f1b": "Interleaved1F1B", "interleaved-zb": "InterleavedZeroBubble",
    "zbv": "ZBVZeroBubble", "dualpipev": "DualPipeV",
}  # fmt: skip
WORDS = (
    number(LOCAL, "local_batch"),
    number(GLOBAL, "samples", -1),
    number(LENGTH, "sequence_length"),
    Word(key="training.mixed_precision_param", fact="precision", words={"fp32": "float32", "bf16": "bfloat16"}),
    number(REPLICAS, "replicas"),
    number(SHARDS, "shards", -1),
    number("parallelism.tensor_parallel_degree", "tensor_parallel"),
    Word(key="parallelism.enable_sequence_parallel", fact="sequence_parallel", words={True: True, False: False}),
    flag("parallelism.disable_loss_parallel", "whole_loss", is_old=True),
    number("parallelism.context_parallel_degree", "context_parallel"),
    number("parallelism.expert_parallel_degree", "expert_parallel"),
    number(STAGES, "pipeline_parallel"),
    Word(key=SCHEDULE, fact="schedule", words=SCHEDULES),
    number(PIECE, "piece"),
    Word(key=MODULES, fact="modules", kind=list),
    Word(
        key="parallelism.fsdp_reshard_after_forward", fact="zero_stage", words={3: "always", 2: "never"},
        also={"default": None},
    ),
    Word(
        key=RECOMPUTE, fact="recompute", words={"none": "None", "selective": "SelectiveAC", "full": "FullAC"},
        also={
            "none": "none", "selective": "selective", "full": "full", "SelectiveAC.Config": "selective",
            "FullAC.Config": "full",
        },
    ),
    flag(COMPILE, "compiled"),
    flag("training.compile", "compiled", is_old=True),
    flag(LOW, "fp8"),
    Word(
        key="model_spec.attention", fact="attention",
        words={"flex": "flex", "flash2": "varlen", "flash3": "flex_flash"},
    ),
    flag("compile.enable_async_tensor_parallel", "overlaps_tensor", is_old=True),
    flag("parallelism.enable_async_tensor_parallel", "overlaps_tensor", is_old=True),
    flag("experimental.enable_async_tensor_parallel", "overlaps_tensor", is_old=True),
    number("parallelism.expert_tensor_parallel_degree", "expert_tensor", is_old=True),
    Word(key="training.dtype", fact="dtype", words={"fp32": "float32", "bf16": "bfloat16"}, is_old=True),
)  # fmt: skip
# What a section is called where it is a call in Python.
OWNERS = {
    "ParallelismConfig": "parallelism", "TrainingConfig": "training", "CompileConfig": "compile",
    "Trainer.Config": "", "model_spec": "model_spec", "MetricsProcessor.Config": "metrics", "CommConfig": "comm",
    "HuggingFaceTextDataLoader.Config": "dataloader", "CheckpointManager.Config": "checkpoint",
    "Checkpoint.Config": "checkpoint", "Profiler.Config": "profiler", "DebugConfig": "debug",
    "LRSchedulersContainer.Config": "lr_scheduler", "Validator.Config": "validator", "default_adamw": "optimizer",
    "OptimizersContainer.Config": "optimizer", "SelectiveAC.Config": "activation_checkpoint",
    "FullAC.Config": "activation_checkpoint", "ActivationCheckpointConfig": "activation_checkpoint",
    "CrossEntropyLoss.Config": "loss", "ChunkedLossWrapper.Config": "loss",
}  # fmt: skip
# Older names of the same settings.
RENAMED = {
    "activation_checkpoint": RECOMPUTE, "training.batch_size": LOCAL,
    "training.data_parallel_degree": SHARDS, "training.data_parallel_shard_degree": SHARDS,
    "training.data_parallel_replicate_degree": REPLICAS,
    "training.tensor_parallel_degree": "parallelism.tensor_parallel_degree",
    "experimental.pipeline_parallel_degree": STAGES, "experimental.pipeline_parallel_schedule": SCHEDULE,
    "experimental.pipeline_parallel_microbatch_size": PIECE, "experimental.pipeline_parallel_split_points": SPLITS,
    "experimental.context_parallel_degree": "parallelism.context_parallel_degree",
}  # fmt: skip
UNPRICED = (
    "job.*", "metrics.*", "profiler.*", "profiling.*", "checkpoint.*", "optimizer.*", "lr_scheduler.*", "validator.*",
    "validation.*", "dataloader.*", "tokenizer.*", "comm.*", "debug.*", "fault_tolerance.*", "loss.*", "dump_folder",
    "hf_assets_path", "experimental.custom_import", "experimental.custom_args_module", "override.*",
    "training.steps", "training.max_norm", "training.gc_freq", "training.gc_debug", "training.dataset",
    "training.dataset_path", "training.seed", "training.deterministic", "training.warmup_steps",
    "training.mixed_precision_reduce", "training.disable_cuda_graphs", "training.tensor_parallel_mode",
    "compile.components", "compile.backend", "model.hf_assets_path", "model.tokenizer_path",
    "model.print_after_conversion", "model.norm_type", "parallelism.context_parallel_load_balancer",
    "parallelism.context_parallel_rotate_method", "parallelism.spmd_backend",
    "parallelism.enable_compiled_autograd", "parallelism.enable_fsdp_symm_mem", "activation_checkpoint.*",
    "training", "parallelism", "compile", "optimizer", "lr_scheduler", "metrics", "checkpoint", "dataloader", "loss",
    "validator", "profiler", "debug", "comm", "model_spec", "NGPU", "LOG_RANK", "CONFIG_FILE", "MODULE", "CONFIG",
    "TRAIN_FILE", "nproc_per_node", "nproc-per-node", "nnodes", "rdzv_backend", "rdzv-backend", "rdzv_endpoint",
    "rdzv-endpoint", "local-ranks-filter", "local_ranks_filter", "role", "tee", "standalone",
    "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF",
)  # fmt: skip
# Shipped models by the name and the flavor that torchtitan has for their sizes.
FLAVORS = {
    ("llama3", "8b"): "llama-3.1-8b", ("llama3", "70b"): "llama-3.1-70b", ("llama3", "405b"): "llama-3.1-405b",
    ("llama3", "1b"): "llama-3.2-1b", ("qwen3", "8b"): "qwen3-8b", ("qwen3", "235b-a22b"): "qwen3-235b-a22b",
    ("deepseek_v3", "671b"): "deepseek-v3",
}  # fmt: skip


def canonical(settings: Iterable[Setting]) -> Iterator[Setting]:
    """Settings by the names that flags have, whatever Python calls their section, and older ones by those of today."""
    for setting in settings:
        owner, _, last = setting.key.rpartition(".")
        section = OWNERS.get(owner, owner)
        key = f"{section}.{last}" if section else last
        key = RENAMED.get(key, key)
        # Python's None is a choice here, and not a setting that is left out.
        value = "None" if key == RECOMPUTE and setting.value is None else setting.value
        yield Setting(key, value, setting.line)

"""Words of Accelerate's YAML and of transformers' TrainingArguments, one table each for both ways."""

from __future__ import annotations

from planner.stacks.words import Word, flag, number

STACK = "accelerate"
PROCESSES, KIND, MIXED = "num_processes", "distributed_type", "mixed_precision"
RESHARD = "fsdp_config.fsdp_reshard_after_forward"
STRATEGY = "fsdp_config.fsdp_sharding_strategy"
RECOMPUTE = "fsdp_config.fsdp_activation_checkpointing"
AXES = "parallelism_config.parallelism_config_"
PRECISIONS = {"fp32": "no", "bf16": "bf16", "fp16": "fp16", "fp8": "fp8"}
# How FSDP1 calls ZeRO's stages, by name and by number; HYBRID ones shard within a node.
STRATEGIES = {
    "FULL_SHARD": 3, "SHARD_GRAD_OP": 2, "NO_SHARD": 0, "HYBRID_SHARD": 3, "HYBRID_SHARD_ZERO2": 2,
    "1": 3, "2": 2, "3": 0, "4": 3, "5": 2, 1: 3, 2: 2, 3: 0, 4: 3, 5: 2,
}  # fmt: skip
HYBRID = ("HYBRID_SHARD", "HYBRID_SHARD_ZERO2", "4", "5", 4, 5)
YAML_WORDS = (
    number(PROCESSES, "devices"),
    number("num_machines", "nodes"),
    Word(
        key=KIND, fact="kind", words={"fsdp": "FSDP", "replicas": "MULTI_GPU", "one": "NO"},
        also={"DEEPSPEED": "deepspeed", "MULTI_CPU": "replicas", "MULTI_XPU": "replicas", "MULTI_NPU": "replicas"},
    ),
    Word(key=MIXED, fact="precision", words=PRECISIONS, also={False: "fp32"}),
    number("fsdp_config.fsdp_version", "fsdp_version"),
    Word(key=RESHARD, fact="zero_stage", words={3: True, 2: False}, also={"true": 3, "false": 2, **STRATEGIES}),
    Word(key=STRATEGY, fact="zero_stage", also=STRATEGIES, is_old=True),
    flag(RECOMPUTE, "recompute", "full"),
    flag("fsdp_config.fsdp_offload_params", "offload", "optimizer", is_old=True),
    number(f"{AXES}dp_replicate_size", "replicas"),
    number(f"{AXES}dp_shard_size", "shards"),
    number(f"{AXES}cp_size", "context_parallel"),
    number(f"{AXES}tp_size", "tensor_parallel", is_old=True),
    number(f"{AXES}sp_size", "ulysses", is_old=True),
    number("deepspeed_config.zero_stage", "zero_stage", 0, is_old=True),
    number("deepspeed_config.gradient_accumulation_steps", "num_microbatches", is_old=True),
    Word(
        key="deepspeed_config.offload_optimizer_device", fact="offload",
        also={"cpu": "optimizer", "nvme": "optimizer", "none": None}, is_old=True,
    ),
)  # fmt: skip
ARGUMENT_WORDS = (
    number("per_device_train_batch_size", "micro_batch_size"),
    number("gradient_accumulation_steps", "num_microbatches"),
    flag("bf16", "bf16", "bf16"),
    flag("fp16", "fp16", "fp16"),
    flag("gradient_checkpointing", "recompute_replicas", "full"),
    flag("torch_compile", "compiled", True, is_old=True),
)
BATCH = ("--global-batch", "per_device_train_batch_size", "gradient_accumulation_steps")
YAML_UNPRICED = (
    "compute_environment", "debug", "machine_rank", "main_process_ip", "main_process_port", "rdzv_backend",
    "same_network", "main_training_function", "enable_cpu_affinity", "downcast_bf16", "tpu_env", "tpu_use_cluster",
    "tpu_use_sudo", "tpu_vm", "tpu_name", "tpu_zone", "gpu_ids", "use_cpu", "command_file", "commands", "fp16",
    "use_parallelism_config",
    *(f"fsdp_config.fsdp_{key}" for key in (
        "auto_wrap_policy", "transformer_layer_cls_to_wrap", "backward_prefetch", "backward_prefetch_policy",
        "cpu_ram_efficient_loading", "forward_prefetch", "min_num_params", "state_dict_type", "sync_module_states",
        "use_orig_params",
    )),
    *(f"deepspeed_config.{key}" for key in (
        "gradient_clipping", "zero3_init_flag", "zero3_save_16bit_model", "deepspeed_multinode_launcher",
        "deepspeed_hostfile", "deepspeed_exclusion_filter", "deepspeed_inclusion_filter",
    )),
    f"{AXES}cp_backend", f"{AXES}sp_backend", "fsdp_config", "deepspeed_config", "parallelism_config",
    "megatron_lm_config", "dynamo_config", "fp8_config", "mpirun_config",
)  # fmt: skip
# Arguments of transformers' Trainer that say how long, how often, how fast it learns or where it writes.
ARGUMENTS_UNPRICED = (
    "output_dir", "overwrite_output_dir", "do_train", "do_eval", "do_predict", "eval_strategy", "evaluation_strategy",
    "per_device_eval_batch_size", "eval_accumulation_steps", "eval_steps", "eval_delay", "learning_rate",
    "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "num_train_epochs", "max_steps",
    "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_ratio", "warmup_steps", "log_level", "logging_dir",
    "logging_strategy", "logging_first_step", "logging_steps", "logging_nan_inf_filter", "save_strategy", "save_steps",
    "save_total_limit", "save_only_model", "seed", "data_seed", "bf16_full_eval", "tf32", "run_name", "disable_tqdm",
    "remove_unused_columns", "label_names", "load_best_model_at_end", "metric_for_best_model", "greater_is_better",
    "ignore_data_skip", "report_to", "ddp_timeout", "ddp_find_unused_parameters", "ddp_bucket_cap_mb",
    "dataloader_num_workers", "dataloader_pin_memory", "dataloader_drop_last", "dataloader_persistent_workers",
    "dataloader_prefetch_factor", "push_to_hub", "hub_model_id", "hub_token", "hub_strategy", "hub_private_repo",
    "resume_from_checkpoint", "gradient_checkpointing_kwargs", "include_tokens_per_second", "group_by_length",
    "length_column_name", "prediction_loss_only", "local_rank", "use_cpu", "full_determinism", "optim_args",
    "average_tokens_across_devices", "skip_memory_metrics", "include_num_input_tokens_seen", "accelerator_config",
    "train_sampling_strategy", "project", "trackio_space_id",
)  # fmt: skip

"""Attributes that Megatron's logs show whatever was set: those that change no price, and the usual values of others."""

from __future__ import annotations

# Derived from other settings, or without a price, whatever their value.
SILENT = frozenset(
    """
    _is_global_batch_size_explicitly_specified activation_offload_fraction align_grad_reduce align_param_gather
    apply_rope_fusion barrier_with_L1_time batch_invariant_backend bias_dropout_fusion bias_gelu_fusion
    bias_swiglu_fusion biencoder_projection_dim biencoder_shared_query_context_model
    clone_scatter_output_in_embedding consumed_train_bins cuda_graph_warmup_steps data_per_class_fraction
    data_sharding delta_offload_bytes_across_pp_ranks enable_one_logger expert_tensor_parallel_num_weight_shards
    gradient_reduce_div_fusion layernorm_zero_centered_gamma mamba_inference_conv_states_dtype
    mamba_inference_ssm_states_dtype masked_softmax_fusion mid_level_dataset_surplus min_offloaded_tensor_size
    mlp_chunks_for_prefill mlp_chunks_for_training mmap_bin_files moe_upcycling_granularity mup_attn_scale_power
    mup_embedding_mult mup_output_mult mup_width_mult null_tokenizer_pad_id num_layers_at_end_in_bf16
    num_layers_at_start_in_bf16 offset_sampling_seed_by_dp_rank optimizer_offload_fraction params_dtype
    perform_initialization pin_cpu_grads pin_cpu_params skipped_train_samples strict_fsdp_dtensor_load
    tensor_parallel_num_weight_shards transformer_pipeline_model_parallel_size use_gloo_process_groups
    use_layer_wise_param_layout use_mamba_mem_eff_path use_tokenizer_model_from_checkpoint_args
    """.split()  # noqa: SIM905
)
# What stands in every log of a job that has nothing to do with it.
USUAL = frozenset(
    """
    cp_comm_type=['p2p'] cpu_offloading_num_layers=0 dsa_indexer_rotate_activation=True
    dsa_indexer_scoring_relu=True dsa_indexer_skip_topk_offset=0 dsa_indexer_topk_freq=1 exp_avg_dtype=torch.float32
    exp_avg_sq_dtype=torch.float32 expert_gtp_weight_remat_size=1 expert_tensor_parallel_num_weight_shards=1
    fp4_recipe=nvfp4 fp8_wgrad=True gdp_num_chunk_states_to_recompute=2 gdp_num_householder=3 glu_linear_offset=0.0
    gtp_weight_remat_size=1 linear_conv_kernel_dim=4 linear_key_head_dim=128 linear_num_key_heads=16
    linear_num_value_heads=32 linear_value_head_dim=128 mamba_head_dim=64 mamba_num_groups=8 mamba_state_dim=128
    megatron_fsdp_main_params_dtype=torch.float32 mhc_init_gating_factor=0.01 mhc_num_residual_streams=4
    mhc_sinkhorn_iterations=20 moe_combine_bwd_dtype=bf16 moe_dispatch_fwd_dtype=bf16
    moe_hybridep_num_sms_preprocessing=108 moe_paged_stash_buffer_size_factor_cpu=0.0
    moe_paged_stash_buffer_size_factor_cuda=1.1 moe_paged_stash_page_size=64 outer_dp_sharding_strategy=no_shard
    tensor_parallel_num_weight_shards=1 tp_comm_bootstrap_backend=nccl tp_comm_bulk_dgrad=True
    tp_comm_bulk_wgrad=True tp_comm_overlap_ag=True tp_comm_overlap_rs=True tp_comm_split_ag=True
    tp_comm_split_rs=True wgrad_deferral_limit=0
    """.split()  # noqa: SIM905
)


def says_nothing(name: str, value: str) -> bool:
    """Whether an attribute at this value tells of no choice of the user's."""
    return name in SILENT or f"{name}={value}" in USUAL

"""Arguments of Megatron that change no price here, and those that do, but that nothing here is said by.

The lists are of main of August 2026, and of what earlier versions had.
"""

from __future__ import annotations


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# What is logged, saved, loaded, evaluated, tokenised; learning rates; other programs' (inference, reinforcement).
NEUTRAL_STARTS = _names("""
    log- save load lr min-lr decoupled- warmup weight-decay start-weight- end-weight- adam- sgd-momentum muon- lion-
    clip-grad eval start-eval full-validation multiple-validation validation- data-path data-cache data-args train-
    valid-data test-data per-split per-dataset dataloader split mock-data num-workers no-mmap reset- eod- mask-
    short-seq sample-rate tensorboard wandb- no-wandb ckpt- no-ckpt dist-ckpt use-dist-ckpt non-persistent async-
    use-persistent no-save no-load override- use-checkpoint auto-detect-ckpt verify-integrity replication
    persistent- finetune pretrained- exit- no-log no-barrier rl- no-rl grpo- langrl inference- no-inference
    inprocess- ft- enable-ft calc-ft otel- one-logger no-one-logger app-tag straggler- disable-straggler rerun-
    tokenizer- no-tokenizer no-use-tokenizer tiktoken- vocab-file merge-file vocab-extra ict- bert- vision- img-
    patch- iter- retriever- query-in dino- swin- profile nvtx pytorch-profiler record- memory-snapshot
    use-pytorch-profiler error- result- fim- sft export- logits- msc enable-msc disable-msc moe-router-
    no-moe-router moe-aux- moe-z- moe-input-jitter moe-per-layer- moe-routing- moe-enable-routing mtp-loss
    init-method embedding-init loss-scale initial-loss min-loss hysteresis seed distributed- local-rank lazy-
    check-for check-weight no-check yarn- no-yarn rotary-percent rotary-interleaved rotary-seq rotary-scaling
    original-max mscale beta- rope- no-rope-freq qk-clip timing- flight- no-flight disable-flight adlr- titles-
    evidence- block-data embedding-path indexer- relative-attention perform-rl kitchen- iterations-to-skip dump-
    config-logger te-precision manual-gc no-manual-gc empty-unused run-workload gpu-sniff num-tokens-to-generate
    num-dataset no-data-sharding is-rank block- prompts incoming- output- stop-words temperature top- top_
    return-log max-tokens-to-oom use-same-sampling num-speculative enable-chunked decode-only flash-decode
    use-legacy-static suspend- refit- termination- simulate- external- nccl-communicator straggler throughput-
    no-record
""")
NEUTRAL = frozenset(
    _names("""
    allow-ambiguous-pad-tokens apply-layernorm-1p apply-query-key-layer-scaling apply-wd-to-qk-layernorm
    attention-mask-in-length attention-softmax-in-fp32 batch-invariant-mode calculate-per-token-loss chat-template
    ckpt-step classes-fraction consumed-train-samples consumed-valid-samples create-attention-mask-in-dataloader
    data-parallel-random-init dataset-provider ddp-average-in-collective decrease-batch-size-if-needed
    deterministic-mode disable-gloo-process-groups disable-jit-fuser distribute-timeout-minutes enable-experimental
    enable-gloo-process-groups fp8-amax-compute-algo fp8-amax-history-len fp8-interval fp8-margin
    fp8-quantizer-factory head-lr-mult inference-max-seq-length init-model-with-meta-device keep-fp8-transpose-cache
    language-model-checkpoint logging-level megatron-fsdp-version model-provider moe-apply-probs-on-input
    moe-grouped-gemm moe-shared-expert-gate moe-token-drop-policy mup-base-hidden-size no-bias-dropout-fusion
    no-bias-gelu-fusion no-bias-swiglu-fusion no-create-attention-mask-in-dataloader no-gradient-reduce-div-fusion
    no-initialization no-masked-softmax-fusion no-pad-vocab-size no-persist-layer-norm no-position-embedding
    no-rope-fusion no-weight-decay-cond-type null-tokenizer-eod-id num-channels num-classes num-frames onnx-safe
    openai-gelu output-path pad-vocab-size phase-transition-iterations prompt-file qk-l2-norm rampup-batch-size rank
    reuse-grad-buf-for-mxfp8-param-ag skip-train softmax-type spec te-rng-tracker test-mode tokens-generated
    trust-remote-code use-coordinator use-cpu-initialization use-mp-args-from-checkpoint-args use-mup
    use-one-sent-docs use-ring-exchange-p2p use-te-activation-func variable-seq-lengths
""")
)
# Known, with an effect on time or memory that no field or column here says.
UNPRICED_STARTS = _names("""
    mtp- cuda-graph enable-cuda-graph external-cuda-graph optimizer-cuda-graph tp-comm- no-tp-comm disable-tp-comm
    DDP-impl defer-embedding wgrad- ddp- gtp- overlap-moe overlap-dispatch overlap-p2p-comm ep-overlap
    delay-wgrad moe-permute moe-expert- moe-pad- moe-shared-expert-overlap moe-hybridep moe-deepep moe-ncclep
    moe-flex-dispatcher-num moe-latent moe-layer-recompute moe-paged moe-use-upcycling moe-mlp moe-dispatch-fwd
    moe-combine moe-single moe-use-grouped moe-apply fp4- fp8-output first-last-layers num-layers-at- no-fp8
    disable-fp8 fsdp- outer-dp enable-full-sharding suggested-communication megatron-fsdp- nccl-ub use-nccl-ub
    disable-symmetric create-all-gather high-priority use-sharp sharp- cp-comm-type hierarchical-context
    hybrid-context max-seqlen optimizer-offload overlap-cpu-optimizer no-pin use-torch-optimizer cpu-offloading-
    fine-grained-offloading offload- min-offloaded delay-offload delta-offload activation-offload exp-avg window-
    distribute-saved fp32-residual fp16-lm-cross apply-residual-connection-post fused-residual use-fused-weighted
    use-transformer-engine-op use-grouped-gemm pipeline-model-parallel-comm pipeline-model-parallel-split
    overlap-param-gather-with no-align align- mla-down attention-output-gate linear- experimental-attention dsa-
    glu-linear activation-func-clamp tensor-parallel-num expert-tensor-parallel-num encoder-pipeline encoder-tensor
    step-batch-size bert-no mhc enable-mhc gdp- no-clone disable-clone symmetric-ar
    use-layer-wise no-use-layer-wise use-kitchen heterogeneous- mamba- disable-mamba is-hybrid yarn-mscale
    use-flashinfer packing- dataloader-seq use-packed multi-token freeze no-async-tensor async-tensor
    standalone-embedding output-logit
""")
# Those of the table that are written, or looked at where others are, and that nothing is priced by.
UNPRICED = ("mtp-num-layers", "use-precision-aware-optimizer")


def is_neutral(name: str) -> bool:
    """Whether an argument is known, and changes no price here."""
    return name in NEUTRAL or name.startswith(NEUTRAL_STARTS)


def is_unpriced(name: str) -> bool:
    """Whether an argument is known, and changes what a job takes, but nothing here says by how much."""
    return name.startswith(UNPRICED_STARTS)

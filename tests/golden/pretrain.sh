#!/bin/bash
# A 70B model as many train it: the script that README.md reads with `plan --from`.
GPUS_PER_NODE=8
NNODES=8

MODEL_ARGS=(
    --num-layers 80 --hidden-size 8192 --ffn-hidden-size 28672
    --num-attention-heads 64 --group-query-attention --num-query-groups 8
    --seq-length 8192 --max-position-embeddings 131072 --vocab-size 128256
    --swiglu --normalization RMSNorm --position-embedding-type rope
    --untie-embeddings-and-output-weights --disable-bias-linear
)
TRAINING_ARGS=(--micro-batch-size 1 --global-batch-size 512 --bf16 --use-distributed-optimizer)
PARALLEL_ARGS=(--tensor-model-parallel-size 8 --pipeline-model-parallel-size 4 --sequence-parallel)

torchrun --nproc_per_node $GPUS_PER_NODE --nnodes $NNODES pretrain_gpt.py "${MODEL_ARGS[@]}" "${TRAINING_ARGS[@]}" \
    "${PARALLEL_ARGS[@]}" --recompute-granularity full --recompute-method uniform --recompute-num-layers 1 --use-flash-attn \
    --my-flag 3

#!/usr/bin/env bash
# Run it on every node, with NODE_RANK and MASTER_ADDR set; MEGATRON is a checkout of Megatron-LM.
# Mock data unless DATA is set: DATA='--data-path /data/my_text_document --tokenizer-type HuggingFaceTokenizer ...'
set -euo pipefail
export CUDA_DEVICE_MAX_CONNECTIONS=1
export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True
export TORCH_NCCL_AVOID_RECORD_STREAMS=1
export NCCL_NVLS_ENABLE=0
NNODES=2
GPUS_PER_NODE=4
NODE_RANK=${NODE_RANK:-0}
MASTER_ADDR=${MASTER_ADDR:-127.0.0.1}
MASTER_PORT=${MASTER_PORT:-29500}
MEGATRON=${MEGATRON:-.}
DATA=${DATA:---mock-data --tokenizer-type NullTokenizer}
MODEL=(
  --num-layers 4
  --hidden-size 64
  --ffn-hidden-size 128
  --num-attention-heads 4
  --kv-channels 16
  --group-query-attention
  --num-query-groups 2
  --vocab-size 256
  --untie-embeddings-and-output-weights
  --position-embedding-type rope
  --max-position-embeddings 128
  --normalization RMSNorm
  --swiglu
  --disable-bias-linear
  --attention-dropout 0
  --hidden-dropout 0
)
LAYOUT=(
  --seq-length 32
  --tensor-model-parallel-size 2
  --pipeline-model-parallel-size 2
  --sequence-parallel
  --micro-batch-size 1
  --global-batch-size 8
  --use-distributed-optimizer
  --decoder-first-pipeline-num-layers 3
)
SOFTWARE=(
  --recompute-granularity full
  --recompute-method block
  --recompute-num-layers 1
  --transformer-impl transformer_engine
  --cross-entropy-loss-fusion
  --bf16
  --attention-backend fused
  --overlap-grad-reduce
  --overlap-param-gather
)
TRAINING=(
  --train-iters 50
  --lr 0.00015
  --min-lr 1.5e-05
  --lr-decay-style cosine
  --lr-warmup-iters 5
  --optimizer adam
  --weight-decay 0.1
  --clip-grad 1
  --adam-beta1 0.9
  --adam-beta2 0.95
  --init-method-std 0.02
  --seed 1234
  --eval-iters 0
  --log-interval 1
  --log-throughput
  --distributed-timeout-minutes 60
)
torchrun --nnodes "$NNODES" --nproc-per-node "$GPUS_PER_NODE" --node-rank "$NODE_RANK" \
  --master-addr "$MASTER_ADDR" --master-port "$MASTER_PORT" "$MEGATRON/pretrain_gpt.py" \
  "${MODEL[@]}" "${LAYOUT[@]}" "${SOFTWARE[@]}" "${TRAINING[@]}" $DATA

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
  --num-layers 8
  --hidden-size 64
  --ffn-hidden-size 256
  --num-attention-heads 4
  --kv-channels 16
  --vocab-size 256
  --untie-embeddings-and-output-weights
  --position-embedding-type learned_absolute
  --max-position-embeddings 128
  --normalization LayerNorm
  --norm-epsilon 1e-05
  --attention-dropout 0.1
  --hidden-dropout 0.1
  --no-rope-fusion
  --no-persist-layer-norm
)
LAYOUT=(
  --seq-length 32
  --pipeline-model-parallel-size 4
  --micro-batch-size 1
  --global-batch-size 12
  --use-distributed-optimizer
  --microbatch-group-size-per-virtual-pipeline-stage 6
  --num-virtual-stages-per-pipeline-rank 2
)
SOFTWARE=(
  --transformer-impl local
  --fp16
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

"""Launch scripts, YAML files and logs of Megatron as people have them: what is read, listed, assumed, contradicts."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.plans import Plan
from planner.stacks import registry
from planner.stacks.handover import Given, StackJob
from planner.stacks.megatron.shell import read_script
from profiles.errors import InputError, TrainwrightError
from profiles.models.hf_config import checked
from profiles.units import MIB

NOTHING = Given()
# Arrays, defaults, arithmetic, a condition, a loop, what nobody can know, and a flag from the future.
SCRIPT = """\
#!/bin/bash
#SBATCH --nodes=4
#SBATCH --gres=gpu:8          # all of them
#SBATCH --time=04:00:00
export CUDA_DEVICE_MAX_CONNECTIONS=1
TP=${TP:-4}
PP=${1:-2}
: ${SEQ:=2048}
NNODES=${SLURM_NNODES}
GBS=$(( NNODES * 8 * 4 ))
PRECISION="bf16"
HIDDEN=1024
OUT="/runs/$(date +%s)"

MODEL_ARGS=(
    --num-layers 8
    --hidden-size $HIDDEN --ffn-hidden-size $((HIDDEN * 4))   # four times
    "--num-attention-heads 16"
    --seq-length "$SEQ"
    --max-position-embeddings ${SEQ}
    --vocab-size 50000
)
if [[ "$PRECISION" == "fp8" ]]; then
    MODEL_ARGS+=(--fp8-format hybrid)
elif [ $PRECISION = bf16 ]; then
    MODEL_ARGS+=(--bf16)
else
    MODEL_ARGS+=(--fp16)
fi
[ -n "$UNSET" ] && MODEL_ARGS+=(--swiglu)
for i in 1 2 3; do
    EXTRA="$EXTRA --recompute-activations"
done
LAYOUT="--tensor-model-parallel-size $TP \\
    --pipeline-model-parallel-size $PP --sequence-parallel \\
    --micro-batch-size 2 --global-batch-size $GBS"

srun --ntasks-per-node=1 torchrun --nnodes $NNODES --nproc_per_node=8 \\
    pretrain_gpt.py ${MODEL_ARGS[@]} $LAYOUT \\
    --use-distributed-optimizer --overlap-grad-reduce --save $OUT \\
    --frobnicate 3 --cuda-graph-impl local --num-experts $EXPERTS ${MORE_ARGS}
"""
ARGUMENTS = """\
MODEL_ARGS:
  --num-layers: 12
  --hidden-size: 512
  --num-attention-heads: 8
  --seq-length: 1024
  --max-position-embeddings: 1024
  --micro-batch-size: 4
  --global-batch-size: 32
  --tensor-model-parallel-size: 2
  --pipeline-model-parallel-size: 2
  --vocab-size: 1000
  --bf16: true
  --fp16: false
"""
NESTED = """\
language_model:
  num_layers: 24
  hidden_size: 1024
  num_attention_heads: 16
  activation_func: swiglu
  normalization: RMSNorm
  add_bias_linear: false
  num_moe_experts:
model_parallel:
  tensor_model_parallel_size: 2
  sequence_parallel: true
  overlap_p2p_comm: true
  bf16: true
micro_batch_size: 2
global_batch_size: 64
seq_length: 2048
vocab_size: 32000
untie_embeddings_and_output_weights: true
use_distributed_optimizer: true
"""
LOG = """\
0: using world size: 16, data-parallel size: 4
0: ------------------------ arguments ------------------------
0:   add_bias_linear ................................. False
0:   attention_backend ............................... AttnBackend.flash
0:   bf16 ............................................ True
0:   encoder_num_layers .............................. 8
0:   global_batch_size ............................... 32
0:   gradient_accumulation_fusion .................... True
0:   hidden_size ..................................... 1024
0:   micro_batch_size ................................ 1
0:   moe_router_topk ................................. 2
0:   a_new_attribute ................................. 7
0:   num_attention_heads ............................. 16
0:   num_layers ...................................... 8
0:   overlap_p2p_comm ................................ False
0:   padded_vocab_size ............................... 50304
0:   pipeline_model_parallel_size .................... 2
0:   position_embedding_type ......................... rope
0:   seq_length ...................................... 2048
0:   swiglu .......................................... True
0:   tensor_model_parallel_size ...................... 2
0:   vocab_size ...................................... None
0:   world_size ...................................... 16
0: -------------------- end of arguments ---------------------
"""
STEP = (
    " [2026-01-01] iteration {0:8d}/     100 | consumed samples:  1 | elapsed time per iteration (ms): {1} | "
    "throughput per GPU (TFLOP/s/GPU): 400.0 | learning rate: 1E-05 | global batch size:    32 | lm loss: {2} |\n"
)
MEMORY = (
    "[Rank {0}] (after 10 iterations) memory (MB) | allocated: 1.5 | max allocated: {1} | reserved: 9.0 | "
    "max reserved: 9.5\n"
)


def read(name: str, text: str, beside: Given = NOTHING) -> StackJob:
    return registry.read(Path(name), text, beside)


def with_lines(text: str, *more: str) -> str:
    """The YAML with more arguments at its end."""
    return text + "".join(f"  {line}\n" for line in more)


def test_a_launch_script_is_worked_out_without_being_run() -> None:
    job = read("train.sh", SCRIPT)
    assert job.num_devices == 32
    assert job.plan == Plan(
        data_parallel=4, tensor_parallel=4, pipeline_parallel=2, sequence_parallel=True, vocab_parallel=True,
        micro_batch_size=2, num_microbatches=16, schedule="1f1b", stage_bounds=(0, 5), zero_stage=1, precision="bf16",
    )  # fmt: skip
    assert job.workload.config["model_type"] == "gpt2"
    assert checked("a", job.workload.config).sizes["ffn_size"] == 4096
    assert (job.sequence_length, job.global_batch_size, job.stack) == (2048, 128, "megatron-core")
    assert job.cells["overlap_grad"] == "yes"
    assert job.unread == (
        'line 32: EXTRA="$EXTRA --recompute-activations" (runs on a condition)',
        "line 41: ${MORE_ARGS}",
        "line 41: --frobnicate 3",
        "line 41: --num-experts $EXPERTS (not worked out)",
    )
    assert job.unpriced == ("line 41: --cuda-graph-impl local",)
    assert any("32 devices: as line 38 starts them" in text for text in job.assumed)
    assert any("version" in text for text in job.assumed)


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("pretrain_gpt.py", ""),
        ("-m torch.distributed.run --nnodes 1 pretrain_gpt.py", ""),
        ("examples/multimodal/train.py", "train.py: its language model alone, as pretrain_gpt.py trains it"),
        ("-m examples.offline_inference", "examples.offline_inference: trains nothing: priced is a training"),
        ("tools/run_text_generation_server.py", "run_text_generation_server.py: trains nothing"),
    ],
)
def test_a_program_that_trains_another_model_or_none_is_named(program: str, words: str) -> None:
    sizes = "--num-layers 8 --hidden-size 64 --num-attention-heads 8 --seq-length 64 --max-position-embeddings 64"
    job = read("a.sh", f"torchrun --nproc-per-node 8 {program} {sizes} --vocab-size 64")
    said = [text for text in job.assumed if "pretrain_gpt.py" in text]
    assert [words in text for text in said] == ([True] if words else [])
    assert job.num_devices == 8
    assert not job.unread


def test_nothing_of_a_script_is_executed(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    evil = SCRIPT.replace("$(date +%s)", f"$(touch {mark})`touch {mark}`").replace("4 ))", f"4 + $(touch {mark}) ))")
    job = read("train.sh", evil + f"\ntouch {mark}\neval 'touch {mark}'\n")
    assert not mark.exists()
    # A sum that cannot be known leaves the batch open, and says so.
    assert "--global-batch-size" in "".join(job.unread)


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("A=3; B=$A$A; echo; run ${B} \"$A x\" '$A'", ["run", "33", "3 x", "$A"]),
        ('A=(1 "2 3"); A+=(4); run "${A[@]}" ${A[1]} ${#A[@]}', ["run", "1", "2 3", "4", "2", "3", "3"]),
        ("run ${X:-7} ${X-8} ${Y:=9} $Y ${Y:+set} ${Z:+set}", ["run", "7", "8", "9", "9", "set"]),
        ("N=5; run $((N*2+1)) $(( (N - 1) / 2 )) $((N % 3))", ["run", "11", "2", "2"]),
        ("if [ 3 -gt 2 ] && [ a != b ]; then run yes; else run no; fi", ["run", "yes"]),
        ("X=7B; case $X in 1B|3B) run small;; 7*) run large;; *) run other;; esac", ["run", "large"]),
        ("f() {\n run inside\n}\nf", ["run", "inside"]),
        ("cat <<EOF\nrun not $X\nEOF\nrun after > out.txt 2>&1", ["run", "after"]),
        ("run a \\\n  b # c\n", ["run", "a", "b"]),
        ("export A=1 B=2\nrun $A-$B", ["run", "1-2"]),
    ],
)  # fmt: skip
def test_words_are_what_bash_makes_of_them(script: str, words: list[str]) -> None:
    commands = [[word.text for word in command] for command in read_script("a", script).commands]
    assert next(command for command in commands if command[0] == "run") == words


def test_what_cannot_be_known_stays_as_it_is_written() -> None:
    command = read_script("a", 'run --a $A --b "${B%.x}" --c $(hostname) --d `date` $((N + 1))').commands[0]
    assert [word.text for word in command] == [
        "run", "--a", "$A", "--b", "${B%.x}", "--c", "$(hostname)", "--d", "`date`", "$((N + 1))",
    ]  # fmt: skip
    assert [word.is_open for word in command] == [False, False, True, False, True, False, True, False, True, True]


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ('A="x\nrun', "not closed"),
        ("run ${A", "not closed"),
        ("A=xxxxxxxxxx\n" + "A=$A$A$A$A$A$A$A$A\n" * 8, "grows beyond"),
        ("make --num-layers --hidden-size", "no seq-length"),
        ("A=1", "not a known file of other software"),
    ],
)  # fmt: skip
def test_a_script_that_is_none_is_refused(script: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        read("a.sh", script if "--" in script or script == "A=1" else f"{script}\n# --num-layers --hidden-size")


@given(pieces=st.lists(st.sampled_from((*SCRIPT.split(" "), '"', "'", "${", "$((", "`", "\\", "fi", "\n", "=(", ")"))))
def test_no_script_ends_in_a_traceback(pieces: list[str]) -> None:
    with suppress(TrainwrightError):
        read("a.sh", " ".join(pieces))


@given(text=st.text(alphabet="MODEL_ARGS: -{}[]\n\t'\"&*!%0123456789abc#|>", max_size=200))
def test_no_yaml_ends_in_a_traceback(text: str) -> None:
    with suppress(TrainwrightError):
        read("a.yaml", f"MODEL_ARGS:\n  --num-layers: 4\n{text}")


def test_arguments_in_yaml_are_read_and_devices_assumed() -> None:
    job = read("model_config.yaml", ARGUMENTS)
    assert job.num_devices == 8
    assert (job.plan.data_parallel, job.plan.tensor_parallel, job.plan.pipeline_parallel) == (2, 2, 2)
    assert any("8 devices, as the file does not say" in text for text in job.assumed)
    assert (job.unread, job.plan.precision, job.cells["gradient_dtype"]) == ((), "bf16", "fp32")
    told = read("gpt_tp2_pp2_2N8G/model_config.yaml", ARGUMENTS)
    assert told.num_devices == 16
    assert read("model_config.yaml", ARGUMENTS, Given(num_devices=32)).num_devices == 32


def test_a_configuration_of_nested_groups_is_read() -> None:
    job = read("config.yaml", NESTED, Given(num_devices=8))
    assert job.workload.config["model_type"] == "llama"
    # Two thirds of four times the hidden size, cut to a multiple of 64, as Megatron has it.
    assert job.workload.config["intermediate_size"] == 2688
    assert job.plan == Plan(
        data_parallel=4, tensor_parallel=2, sequence_parallel=True, vocab_parallel=True, micro_batch_size=2,
        num_microbatches=8, stage_bounds=(0,), zero_stage=1, precision="bf16",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--fp16: true", "--bf16: true"), "line 15: --bf16 and line 14: --fp16 cannot both hold"),
        (("--num-layers: 13",), "line 2: --num-layers 12 and line 14: --num-layers 13 contradict"),
        (("--recompute-granularity: full", "--recompute-activations: true"), "line 15: .*line 14: "),
        (("--num-layers-per-virtual-pipeline-stage: 5",), "cannot be cut into"),
        (("--pipeline-model-parallel-layout: Et*5|t*5L",), "should name 12 layers"),
        (("--decoder-first-pipeline-num-layers: 13",), "cannot be cut into"),
        (("--num-experts: 4", "--moe-layer-freq: '([0]*3)'"), "line 15: .*a mark for each of 12 layers"),
        (("--seq-length: 1024.5",), "contradict"),
        (("--expert-model-parallel-size: many", "--num-experts: 4"), "should be a number"),
        (("--hybrid-layer-pattern: M*M-",), "Mamba"),
        (("--encoder-num-layers: 6", "--decoder-num-layers: 6"), "T5|cannot both hold"),
    ],
)  # fmt: skip
def test_what_contradicts_is_named_with_its_lines(more: tuple[str, ...], words: str) -> None:
    with pytest.raises(InputError, match=words):
        read("model_config.yaml", with_lines(ARGUMENTS, *more).replace("  --fp16: false\n", "  --seed: 1\n"))


def test_devices_and_batches_that_do_not_divide_are_refused() -> None:
    with pytest.raises(InputError, match=r"line 9: --tensor-model-parallel-size 2.*6 devices are not a multiple"):
        read("model_config.yaml", ARGUMENTS, Given(num_devices=6))
    script = "torchrun --nproc_per_node 8 pretrain_gpt.py --num-layers 8 --hidden-size 64 --num-attention-heads 8 "
    sizes = "--seq-length 64 --max-position-embeddings 64 --vocab-size 64 --pipeline-model-parallel-size 16"
    with pytest.raises(InputError, match=r"8 devices \(as line 1 starts them, 1 x 8\) are .* --gpus 16 or a mul"):
        read("a.sh", script + sizes)
    with pytest.raises(InputError, match=r"12 devices are not a multiple"):
        read("a.sh", script + sizes, Given(num_devices=12))
    with pytest.raises(InputError, match=r"line 8: --global-batch-size 32.*not a whole number of micro-batches"):
        read("model_config.yaml", ARGUMENTS, Given(num_devices=12))
    cut = ARGUMENTS.replace("--num-layers", "--num-workers").replace("--num-attention-heads", "--seed")
    with pytest.raises(InputError, match="no num-layers and no num-attention-heads: name the model"):
        read("model_config.yaml", cut)


@pytest.mark.parametrize(
    ("more", "plan", "cells"),
    [
        (("--use-distributed-optimizer: true",), {"zero_stage": 1}, {}),
        (("--use-torch-fsdp2: true",), {"zero_stage": 3}, {}),
        (("--use-megatron-fsdp: true", "--data-parallel-sharding-strategy: optim_grads"), {"zero_stage": 2}, {}),
        (("--recompute-activations: true",), {"recompute": "selective"}, {}),
        (("--recompute-granularity: full", "--recompute-method: block", "--recompute-num-layers: 4"),
         {"recompute": "full", "recompute_layers": (4, 4)}, {}),
        (("--recompute-granularity: full", "--recompute-method: uniform", "--recompute-num-layers: 3"),
         {"recompute": "full", "recompute_layers": ()}, {}),
        (("--recompute-granularity: selective", "--recompute-modules: '[moe_act layernorm]'"),
         {"recompute": "selective"}, {"recompute_class": "partial", "recompute_modules": "layernorm;moe-act"}),
        (("--num-layers-per-virtual-pipeline-stage: 2",),
         {"virtual_stages": 3, "schedule": "interleaved-1f1b", "stage_bounds": (0, 3, 5, 7, 9, 11)},
         {"overlap_pp": "yes"}),
        (("--decoder-last-pipeline-num-layers: 5",), {"stage_bounds": (0, 8)}, {}),
        (("--pipeline-model-parallel-layout: Et*7|t*5L",), {"stage_bounds": (0, 8)}, {}),
        (("--use-tp-pp-dp-mapping: true",), {"axis_order": ("tensor", "context", "pipeline", "data")}, {}),
        (("--fp8-format: hybrid", "--fp8-recipe: blockwise", "--fp8-param-gather: true"), {"precision": "fp8"},
         {"fp8_recipe": "blockwise", "fp8_param_gather": "yes"}),
        (("--grad-reduce-in-bf16: true",), {}, {"gradient_dtype": "bf16"}),
        (("--num-experts: 8", "--moe-router-topk: 4", "--expert-model-parallel-size: 2", "--swiglu: true",
          "--moe-token-dispatcher-type: flex", "--moe-flex-dispatcher-backend: hybridep"),
         {"expert_parallel": 2}, {"etp": "2", "moe_dispatcher": "hybrid"}),
        (("--optimizer: sgd",), {}, {"optimizer": "sgd"}),
        (("--cross-entropy-loss-fusion: true",), {}, {"fused_loss": "yes"}),
    ],
)  # fmt: skip
def test_each_word_means_what_it_means(more: tuple[str, ...], plan: dict, cells: dict) -> None:
    job, usual = (read("a.yaml", text) for text in (with_lines(ARGUMENTS, *more), ARGUMENTS))
    assert job.plan == replace(usual.plan, **plan)
    assert dict(job.cells) == {**usual.cells, **cells}


@pytest.mark.parametrize(
    ("more", "family", "sizes"),
    [
        ((), "gpt2", {"ffn_size": 2048, "tied": True, "biases": True}),
        (("--swiglu: true", "--normalization: RMSNorm"), "llama", {"ffn_size": 1344, "gated": True}),
        (("--swiglu: true", "--qk-layernorm: true", "--kv-channels: 128"), "qwen3", {"head_dim": 128}),
        (("--swiglu: true", "--group-query-attention: true", "--num-query-groups: 2"), "llama", {"num_kv_heads": 2}),
        (("--swiglu: true", "--num-experts: 8", "--ffn-hidden-size: 700"), "mixtral", {"expert_ffn_size": 700}),
        (("--swiglu: true", "--num-experts: 8", "--moe-ffn-hidden-size: 64", "--moe-layer-freq: '([0]*2+[1]*10)'"),
         "qwen3_moe", {"expert_ffn_size": 64, "num_dense_layers": 2}),
        (("--swiglu: true", "--multi-latent-attention: true", "--num-experts: 8", "--moe-ffn-hidden-size: 64",
          "--moe-shared-expert-intermediate-size: 128", "--q-lora-rank: 96", "--kv-lora-rank: 48"),
         "deepseek_v3", {"shared_ffn_size": 128, "mla_kv_lora": 48, "mla_qk_nope": 128}),
        (("--make-vocab-size-divisible-by: 512",), "gpt2", {"vocab_size": 1024}),
    ],
)  # fmt: skip
def test_models_are_of_the_nearest_family(more: tuple[str, ...], family: str, sizes: dict) -> None:
    job = read("a.yaml", with_lines(ARGUMENTS, *more))
    assert job.workload.config["model_type"] == family
    own = checked("a", job.workload.config).sizes
    assert {name: own[name] for name in sizes} == sizes


def test_a_log_tells_configuration_and_measurement() -> None:
    steps = "".join(STEP.format(number, ms, loss) for number, ms, loss in ((1, 9000.5, "1.1E+01"), (2, 1234.5, "nan")))
    job = read("train.log", LOG + steps + MEMORY.format(0, 1024.0) + MEMORY.format(1, 2048.25) + "Killed\n")
    assert job.num_devices == 16
    assert (job.plan.data_parallel, job.plan.virtual_stages, job.attention_kernel) == (4, 1, "flash")
    assert job.workload.config["vocab_size"] == 50304
    assert [(step.number, step.seconds) for step in job.steps] == [(1, 9.0005), (2, 1.2345)]
    assert job.steps[0].loss == 11.0
    assert job.peak_bytes == 2048.25 * MIB
    assert job.unread == ("line 12: --a-new-attribute 7",)


def test_a_log_that_breaks_off_or_differs_from_what_the_user_says_is_refused() -> None:
    with pytest.raises(InputError, match="not all there"):
        read("train.log", LOG.split("0:   seq_length")[0])
    with pytest.raises(InputError, match="--gpus 8 contradicts"):
        read("train.log", LOG, Given(num_devices=8))
    twice = LOG + LOG.replace("micro_batch_size ................................ 1", "micro_batch_size .... 2")
    with pytest.raises(InputError, match="line 10: --micro-batch-size 1 and line 34: --micro-batch-size 2 contradict"):
        read("train.log", twice)


@pytest.mark.parametrize(
    "more",
    [
        ("--num-experts: 0",), ("--num-layers: 1e400",), ("--kv-channels: nan",),
        ("--num-experts: 4", "--moe-layer-freq: ²"),
        ("--num-experts: 4", "--moe-layer-freq: '[1]*999999'"),
        ("--pipeline-model-parallel-layout: 'Et*99999|t*99999L'",),
        ("--num-virtual-stages-per-pipeline-rank: 999999999999",), ("--padded-vocab-size: 1_000",),
    ],
)  # fmt: skip
def test_odd_numbers_are_read_or_refused(more: tuple[str, ...]) -> None:
    with suppress(InputError):
        job = read("a.yaml", with_lines(ARGUMENTS, *more))
        assert job.plan.num_devices == 8


def test_a_model_that_the_user_names_stands_in_for_sizes() -> None:
    beside = Given(num_devices=8, workload=read("a.yaml", ARGUMENTS).workload)
    bare = "".join(line + "\n" for line in ARGUMENTS.splitlines() if "hidden-size" not in line and "heads" not in line)
    assert read("a.yaml", bare, beside).workload == beside.workload
    with pytest.raises(InputError, match=r"line 2: --num-layers 13: --model .* has 12 layers"):
        read("a.yaml", bare.replace("--num-layers: 12", "--num-layers: 13"), beside)

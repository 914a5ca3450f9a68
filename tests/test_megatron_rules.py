"""Megatron's own rules, by its arguments.py and transformer_config.py, in what is read of its launch scripts."""

from pathlib import Path

import pytest

from planner.stacks.handover import Given, StackJob
from planner.stacks.registry import read
from profiles.errors import InputError
from profiles.models.sizes import sizes_of

SIZES = "--num-layers 24 --hidden-size 4096 --num-attention-heads 32 --seq-length 2048 --max-position-embeddings 2048"
SCRIPT = f"torchrun --nproc-per-node 8 pretrain_gpt.py {SIZES} --micro-batch-size 1 --global-batch-size 64 --bf16"
PIPED = "--pipeline-model-parallel-size 2"


def job_of(more: str) -> StackJob:
    return read(Path("a.sh"), f"{SCRIPT} --vocab-size 50257 {more}\n", Given())


def test_swiglu_alone_narrows_the_feed_forward_layers() -> None:
    widths = {
        gate: float(sizes_of("a", job_of(gate).workload.config).transformer.ffn_size[0])
        for gate in ("--swiglu", "--quick-geglu", "")
    }
    assert widths == {"--swiglu": 10880, "--quick-geglu": 4 * 4096, "": 4 * 4096}


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (f"{PIPED} --num-layers-per-virtual-pipeline-stage 5", "cannot be cut into stages of 5"),
        (f"{PIPED} --num-layers-per-virtual-pipeline-stage 24", "cannot be cut into stages of 24"),
        ("--recompute-granularity full", "--recompute-method"),
        (
            "--pipeline-model-parallel-size 4 --num-experts 8 --swiglu --expert-model-parallel-size 8",
            "8 x 1 x 4.*--gpus",
        ),
    ],
)
def test_what_megatron_would_refuse_is_refused(more: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        job_of(more)


@pytest.mark.parametrize(
    "more",
    [
        "--mtp-num-layers 1",
        "--use-precision-aware-optimizer",
        "--no-gradient-accumulation-fusion",
        "--recompute-num-layers 4 --recompute-granularity full --recompute-method uniform",
        f"--microbatch-group-size-per-virtual-pipeline-stage 4 {PIPED} --num-virtual-stages-per-pipeline-rank 2",
    ],
)
def test_what_is_known_and_not_priced_is_listed(more: str) -> None:
    assert more.split(" ")[0] in "".join(job_of(more).unpriced)


def test_virtual_stages_are_as_many_either_way() -> None:
    """By layers of each, or by their number on a rank."""
    by_layers = job_of(f"{PIPED} --num-layers-per-virtual-pipeline-stage 4").plan
    assert by_layers == job_of(f"{PIPED} --num-virtual-stages-per-pipeline-rank 3").plan
    assert by_layers.virtual_stages == 3


def test_groups_of_heads_count_where_they_are_switched_on() -> None:
    plain = job_of("--swiglu --num-query-groups 8")
    assert any("--num-query-groups 8" in word for word in plain.assumed)
    heads = [
        int(sizes_of("a", job.workload.config).transformer.num_kv_heads[0])
        for job in (plain, job_of("--swiglu --group-query-attention --num-query-groups 8"))
    ]
    assert heads == [32, 8]


def test_other_programs_than_that_of_gpt_are_told_of() -> None:
    text = f"{SCRIPT} --vocab-size 50257\n"
    assert not any("pretrain" in word for word in job_of("").assumed)
    other = read(Path("a.sh"), text.replace("pretrain_gpt", "pretrain_bert"), Given())
    assert any("pretrain_bert.py" in word for word in other.assumed)

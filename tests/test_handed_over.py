"""Plans written down for other software and read again, as a user does it: the same plan at the same price."""

from __future__ import annotations

import contextlib
import functools
import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from planner.ask import Request, answer_to
from planner.command import app
from planner.prediction import PlanFile
from planner.published.predict import forecast
from planner.stacks.handover import Given, StackJob
from planner.stacks.judge import judged, priced
from planner.stacks.registry import exporters, read
from planner.stacks.rows import cells_of
from planner.stacks.write import hand_over
from planner.terminal.handover import lines
from profiles import artifacts
from profiles.errors import PlanError, TrainwrightError
from reports.command import app as compare

RUNNER = CliRunner()
# The file that says how a plan is laid out, by stack.
MAIN_FILES = {
    "accelerate": "accelerate.yaml", "deepspeed": "ds_config.json", "horovod": "job.json", "megatron-core": "launch.sh",
    "megatron-lm": "launch.sh", "tensorflow": "job.json", "torchtitan": "trainwright_plan.py",
}  # fmt: skip
MODELS = {"horovod": "gpt2-xl", "tensorflow": "gpt2-xl"}


def asked(stack: str, **more: object) -> Request:
    request = {"model": MODELS.get(stack, "llama-3.1-8b"), "num_devices": 16, "device": "h100-sxm", "stack": stack}
    return Request(**request, global_batches=(64,), sequence_length=1024, top=3, **more)


@functools.cache
def found_for(stack: str) -> PlanFile:
    return answer_to(asked(stack)).file


def said(*arguments: object, code: int = 0) -> str:
    result = RUNNER.invoke(app, [str(word) for word in arguments], terminal_width=400)
    assert getattr(result.exception, "exit_code", result.exit_code) == code, result.output
    return " ".join((result.output + str(result.exception or "")).split())


@pytest.mark.parametrize("stack", sorted(exporters()))
def test_a_plan_comes_back_as_it_was_at_the_same_price(stack: str, tmp_path: Path) -> None:
    found = found_for(stack)
    for candidate in found.candidates[:4]:
        folder = tmp_path / str(candidate.rank)
        hand_over(stack, found, candidate, folder)
        path = folder / MAIN_FILES[stack]
        job = read(path, path.read_text(encoding="utf-8"), Given(num_devices=16))
        assert job.plan == candidate.plan
        assert not job.unread
        again = priced(job, Request(model="", num_devices=0, device="h100-sxm"))
        assert again.prediction.step_seconds == pytest.approx(candidate.prediction.step_seconds, rel=0.005)
        assert again.prediction.peak_bytes == pytest.approx(candidate.prediction.peak_bytes, rel=0.005)
        if stack != "megatron-lm":
            # Of its own layers the price has messages of 16 bits beside the backward pass, the file none such.
            assert not again.priced_as


def test_a_row_of_a_job_costs_what_its_plan_costs() -> None:
    """The table of runs and the search price a job alike; of a pipeline the row knows the closed form alone."""
    found = found_for("megatron-core")
    jobs = [
        StackJob(
            stack=found.stack, workload=found.workload, plan=each.plan, num_devices=16, global_batch_size=64,
            sequence_length=1024, device="h100-sxm", attention_kernel=found.attention_kernel,
            overlaps_tensor=found.overlaps_tensor,
        )
        for each in found.candidates
    ]  # fmt: skip
    for each, row in zip(found.candidates, forecast([cells_of(job, Path("a")) for job in jobs]), strict=True):
        assert row.refused is None
        near = 0.06 if each.plan.pipeline_parallel > 1 else 1e-6
        assert row.step_seconds == pytest.approx(each.prediction.step_seconds, rel=near)


def test_a_user_of_megatron_learns_what_to_change(tmp_path: Path) -> None:
    """From a launch script to what it takes, what would be better and which flags that is, in one command."""
    written = tmp_path / "best"
    question = ("--model", "llama-3.1-8b", "--gpus", 16, "--global-batch", 64, "--sequence-length", 1024)
    said(*question, "--device", "h100-sxm", "--export", "megatron-core", "-o", written)
    text = (written / "launch.sh").read_text(encoding="utf-8")
    mine = tmp_path / "mine.sh"
    slow = "--seq-length 1024\n  --tensor-model-parallel-size 8\n  --frobnicate 3"
    mine.write_text(text.replace("--seq-length 1024", slow), encoding="utf-8")
    plan_file = tmp_path / "plan.json"
    words = said("--from", mine, "--device", "h100-sxm", "-o", plan_file)
    read_job = artifacts.read(plan_file, "plan", PlanFile).answers.read
    assert read_job is not None
    assert "tp8" in read_job.plan
    assert read_job.gain_fraction > 0.05
    assert "- --tensor-model-parallel-size 8" in read_job.changes
    assert [word.split(": ", 1)[1] for word in read_job.unread] == ["--frobnicate 3"]
    assert f"your job (megatron-core): {read_job.plan}" in words
    assert "not understood" in words
    assert " better in megatron-core: " in words
    # A gain that no two runs of one plan would show is none to change a job for.
    close = list(lines(replace(read_job, gain_fraction=0.003), "megatron-core"))
    assert [line for line in close if "as fast within 1% in megatron-core: " in line and "0.3 % less" in line]
    # What is better is no longer better than itself.
    again = said("--from", written / "launch.sh", "--device", "h100-sxm")
    assert "no plan of megatron-core is predicted to be faster" in again


def test_what_is_not_sent_beside_compute_takes_longer(tmp_path: Path) -> None:
    """A script without Megatron's overlap of gradients is priced without it, and told to have it."""
    path, seconds = tmp_path / "a.sh", {}
    sizes = "--num-layers 24 --hidden-size 4096 --num-attention-heads 32 --seq-length 2048 --vocab-size 50257"
    for more in ("", "--overlap-grad-reduce"):
        path.write_text(
            f"torchrun --nnodes 8 --nproc-per-node 8 pretrain_gpt.py {sizes} --max-position-embeddings 2048 --bf16 "
            f"--use-distributed-optimizer --micro-batch-size 1 --global-batch-size 64 {more}\n",
            encoding="utf-8",
        )
        job = read(path, path.read_text(encoding="utf-8"), Given())
        found = judged(job, path, Request(model="", num_devices=0, device="h100-sxm"))
        assert found.answers.read is not None
        seconds[more] = found.answers.read.step_seconds
        if not more:
            assert "+ --overlap-grad-reduce" in found.answers.read.changes
    assert seconds[""] > 1.01 * seconds["--overlap-grad-reduce"]


def test_gradients_and_loss_are_priced_as_a_script_has_them_and_stay_so(tmp_path: Path) -> None:
    """Gradients in bf16 take two bytes of a weight less, logits of a fused loss fewer than the plain one's eight."""
    path, took = tmp_path / "a.sh", {}
    sizes = "--num-layers 8 --hidden-size 2048 --num-attention-heads 16 --seq-length 8192 --vocab-size 128000 --bf16"
    asked = Request(model="", num_devices=0, device="h100-sxm")
    for more in ("", "--grad-reduce-in-bf16", "--cross-entropy-loss-fusion"):
        path.write_text(
            f"torchrun --nproc-per-node 8 pretrain_gpt.py {sizes} --max-position-embeddings 8192 --swiglu "
            f"--use-distributed-optimizer --micro-batch-size 1 --global-batch-size 64 {more}\n",
            encoding="utf-8",
        )
        job = read(path, path.read_text(encoding="utf-8"), Given())
        took[more] = priced(job, asked)
        assert not any("gradient_dtype" in words or "fused_loss" in words for words in took[more].priced_as)
    usual, short, fused = (each.prediction for each in took.values())
    weights = took[""].at.model.transformer.num_parameters[0]
    assert usual.bytes_per_rank["gradients"] - short.bytes_per_rank["gradients"] == pytest.approx(2 * weights, rel=0.01)
    assert short.step_seconds < usual.step_seconds == fused.step_seconds
    assert 0 < usual.peak_bytes - fused.peak_bytes <= 6 * 1.1 * 8192 * 128000

    # A model that sees images as well has its decoder's length beside the encoder's, and keeps both.
    more = "--decoder-seq-length 8192 --grad-reduce-in-bf16 --cross"
    text = path.read_text(encoding="utf-8").replace("--seq-length 8192", "--seq-length 576").replace("--cross", more)
    job = read(path, text, Given())
    assert job.sequence_length == 8192
    found = judged(job, path, asked)
    changes = found.answers.read.changes if found.answers.read else ()
    assert changes
    assert not any(word in line for line in changes for word in ("bf16", "loss-fusion", "seq-length"))
    hand_over(job.stack, found, found.candidates[0], tmp_path / "best")
    best = (tmp_path / "best" / "launch.sh").read_text(encoding="utf-8")
    again = priced(read(Path("launch.sh"), best, Given()), asked).prediction
    assert again.peak_bytes == pytest.approx(found.candidates[0].prediction.peak_bytes, rel=0.005)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("--group-query-attention --num-query-groups 8", "num_kv_heads: 8, priced as 32"),
        ("--kv-channels 256", "head_dim: 256, priced as 128"),
        ("--squared-relu", "mlp_type: squared_relu, priced as gelu"),
        ("--optimizer sgd", "optimizer: sgd, priced as adamw"),
        (
            "--recompute-granularity selective --recompute-modules mlp",
            "recompute_modules: mlp, priced as core-attention",
        ),
        ("--num-experts 8 --swiglu --moe-shared-expert-intermediate-size 4096", "shared_expert_ffn_size: 4096"),
        ("--num-experts 8 --swiglu", "etp: 2, priced as 1"),
        ("--overlap-grad-reduce", ""),
    ],
)
def test_what_a_price_leaves_out_is_named(more: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "a.sh"
    script = "torchrun --nproc-per-node 8 pretrain_gpt.py --num-layers 24 --hidden-size 4096 --num-attention-heads 32"
    sizes = "--seq-length 2048 --max-position-embeddings 2048 --vocab-size 50257 --bf16 --tensor-model-parallel-size 2"
    path.write_text(f"{script} {sizes} --micro-batch-size 1 --global-batch-size 64 {more}\n", encoding="utf-8")
    job = read(path, path.read_text(encoding="utf-8"), Given())
    assert not job.unread
    assert not job.unpriced
    told = "; ".join(priced(job, Request(model="", num_devices=0, device="h100-sxm")).priced_as)
    assert words in told
    assert words or not told


def test_what_cannot_be_written_or_read_is_said(tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    said("--model", "llama-3.1-8b", "--gpus", 16, "--device", "h100-sxm", "--stack", "megatron-core", "-o", plan)
    assert "give both or neither" in said("--from", plan, "--export", "megatron-core", code=2)
    assert "known are accelerate" in said("--from", plan, "--export", "jax", "-o", tmp_path / "a", code=2)
    assert "numbered 1 to" in said(
        "--from", plan, "--export", "megatron-core", "-o", tmp_path / "a", "--rank", 999, code=2
    )
    assert not (tmp_path / "a").exists()
    (tmp_path / "other.sh").write_text("make all\n", encoding="utf-8")
    assert "not a known file of other software" in said("--from", tmp_path / "other.sh", "--device", "h100-sxm", code=2)
    file = artifacts.read(plan, "plan", PlanFile)
    split = next(each for each in file.candidates if each.plan.tensor_parallel > 1)
    with pytest.raises(PlanError, match="deepspeed has no tensor parallel"):
        hand_over("deepspeed", file, split, tmp_path / "b")
    assert not (tmp_path / "b").exists()


LOG = """\
using world size: 16, data-parallel size: 2, context-parallel size: 1
------------------------ arguments ------------------------
  num_layers ...................................... 32
  hidden_size ..................................... 4096
  ffn_hidden_size ................................. 14336
  num_attention_heads ............................. 32
  group_query_attention ........................... True
  num_query_groups ................................ 8
  seq_length ...................................... 4096
  max_position_embeddings ......................... 8192
  position_embedding_type ......................... rope
  normalization ................................... RMSNorm
  swiglu .......................................... True
  add_bias_linear ................................. False
  untie_embeddings_and_output_weights ............. True
  padded_vocab_size ............................... 128256
  tensor_model_parallel_size ...................... 8
  pipeline_model_parallel_size .................... 1
  sequence_parallel ............................... True
  micro_batch_size ................................ 1
  global_batch_size ............................... 32
  world_size ...................................... 16
  use_distributed_optimizer ....................... True
  bf16 ............................................ True
  transformer_impl ................................ transformer_engine
-------------------- end of arguments ---------------------
"""
STEP = (
    " [2026-01-01 00:00:00] iteration {number:8d}/     100 | consumed samples: {samples:12d} | "
    "elapsed time per iteration (ms): {ms:.1f} | learning rate: 1.000000E-05 | global batch size:    32 | "
    "lm loss: 1.093125E+01 | grad norm: 1.0 |\n"
)


def test_compare_takes_a_log_as_a_run(tmp_path: Path) -> None:
    path = tmp_path / "job.log"
    path.write_text(
        LOG + "".join(STEP.format(number=n, samples=32 * n, ms=4000.0 if n < 3 else 1500.0) for n in range(1, 21)),
        encoding="utf-8",
    )
    result = RUNNER.invoke(compare, [str(path), "--device", "h100-sxm", "--json"], terminal_width=400)
    assert result.exit_code == 0, result.output
    (row,) = json.loads(result.stdout)["rows"]
    assert row["measured_step_seconds"] == pytest.approx(1.5)
    # 131,072 tokens of 8 billion parameters on 16 cards cannot take less than at all of their 989 TFLOP/s.
    assert row["predicted_step_seconds"] > 6 * 8.03e9 * 32 * 4096 / (16 * 989e12)
    assert row["is_judged"]
    refused = RUNNER.invoke(compare, [str(path)], terminal_width=400)
    assert "give --device or --cluster" in str(refused.exception)


# What a file may have instead of what belongs there.
ODD = (
    "0", "-1", "1e999", "nan", "9" * 30, "null", "[]", "''", "$X", "$((1/0))", "$((2**99999))", "${A[@]}", "\\", "\0",
    "\n", "#", "!!python/object/apply:os.system ['x']", "&a *a", "$(touch owned)", "`touch owned`",
)  # fmt: skip


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, str]:
    """What all stacks are given of a plan, and a log, by path."""
    texts = {Path("job.log"): LOG + STEP.format(number=1, samples=32, ms=1.0)}
    for stack in exporters():
        found = found_for(stack)
        folder = tmp_path_factory.mktemp(stack)
        hand_over(stack, found, found.candidates[0], folder)
        texts |= {path: path.read_text(encoding="utf-8") for path in folder.iterdir() if path.name != "plan.json"}
    return texts


@settings(max_examples=150)
@given(data=st.data())
def test_a_damaged_file_ends_in_a_job_or_a_sentence(written: dict[Path, str], data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(sorted(written)))
    text = written[path]
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(text)))
        stop = min(len(text), start + data.draw(st.integers(0, 40)))
        text = text[:start] + data.draw(st.sampled_from(ODD)) + text[stop:]
    with contextlib.suppress(TrainwrightError):
        read(path, text, Given(num_devices=16))
    assert not (path.parent / "owned").exists()
    assert not Path("owned").exists()

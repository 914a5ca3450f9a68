"""Plans for software other than this program: judged by what that can run, and not run by `execute`."""

import csv
import io
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from executor.legality import choose
from planner.ask import Request, answer_to
from planner.plans import Plan
from planner.published.columns import ONE_AT_A_TIME
from planner.schedules.registry import SCHEDULES, schedule, torch_names
from planner.settings import settings_of
from planner.space.beside import Questions
from planner.space.block import block, step_seconds
from planner.space.explore import explore
from planner.space.layouts import Options
from planner.space.question import setting
from planner.space.to_plans import place_at, plan_of
from planner.terminal.show import show
from profiles.catalog import CATALOG
from profiles.errors import InputError, NoFeasiblePlanError, PlanError, UnknownNameError
from profiles.library import load_sizes
from profiles.machines.devices import load_device
from profiles.machines.stacks import load_stack, stack_names
from profiles.models.sizes import sizes_of
from tests.plan_builders import make_plan_file

# 1T parameters: Narayanan et al., 2021 (arXiv 2104.04473), table 1.
TRILLION = {
    "model_type": "gpt2", "n_embd": 25600, "n_layer": 128, "n_head": 160, "n_positions": 2048, "vocab_size": 51200,
}  # fmt: skip


def shown(file):
    text = io.StringIO()
    show(file, Console(file=text, width=400), None)
    return text.getvalue()


@pytest.fixture(scope="module")
def megatron():
    request = Request(
        model=load_sizes("gpt3-175b"), num_devices=1024, device="a100-sxm-80gb", stack="megatron-core",
        global_batches=(1536,), top=3,
    )  # fmt: skip
    return answer_to(request, Questions(why_not="tp=8,pp=16"))


def test_tied_embeddings_are_no_hindrance_to_megatron(megatron):
    assert len(megatron.file.candidates) >= 3
    best = megatron.file.candidates[0].plan
    assert best.pipeline_parallel > 1
    assert {c.plan.schedule for c in megatron.file.candidates if c.plan.pipeline_parallel > 1} <= {
        "1f1b",
        "interleaved-1f1b",
    }


def test_its_published_layout_is_in_the_space(megatron):
    space = megatron.space
    plans = [
        plan_of(space, place_at(space, row))
        for row in range(len(space.best))
        if space.layouts.tensor[space.best.layout[row]] == 8 and space.layouts.pipeline[space.best.layout[row]] == 16
    ]
    assert any(plan.schedule == "interleaved-1f1b" and plan.virtual_stages > 1 for plan in plans)
    found = megatron.file.answers.why_not
    assert found.is_legal
    assert found.fits
    assert found.refusal == ""


def test_the_answer_says_whom_its_plans_are_for(megatron):
    assert megatron.file.stack == "megatron-core"
    # By Megatron itself; `execute` says whose they are.
    assert all(candidate.executable for candidate in megatron.file.candidates)
    text = shown(megatron.file)
    assert text.count("these plans are for megatron-core 0.20.0; ") == 1
    assert "simulate only" not in text
    assert "can be run" not in text
    with pytest.raises(PlanError, match="--export megatron-core -o DIR, or plan again with --stack trainwright"):
        choose(megatron.file, 1, with_baseline=False)


def test_a_trillion_parameters_are_planned_as_they_were_trained():
    """On 3,072 A100 in 8 x 64 x 6 ranks, a global batch of 3,072."""
    request = Request(
        model=sizes_of("1t", TRILLION), num_devices=3072, device="a100-sxm-80gb", stack="megatron-lm",
        global_batches=(3072,), top=1,
    )  # fmt: skip
    file = answer_to(request, Questions(why_not="tp=8,pp=64,dp=6")).file
    assert 1e12 < file.num_parameters < 1.02e12
    assert file.candidates[0].plan.tensor_parallel > 1
    assert file.answers.why_not.is_legal
    assert file.answers.why_not.fits


def test_families_that_the_executor_does_not_build_are_refused_to_it_alone():
    request = Request(model=load_sizes("deepseek-v3"), num_devices=128, device="b200-sxm", global_batches=(128,), top=1)
    with pytest.raises(NoFeasiblePlanError, match="family deepseek_v3; pass --simulate"):
        answer_to(request)
    # Fewer devices, which take less of a search.
    seen = answer_to(replace(request, num_devices=64, simulate=True)).file.candidates
    assert [candidate.executable for candidate in seen] == [False] * max(1, len(seen))
    assert answer_to(replace(request, stack="megatron-core")).file.candidates[0].prediction.fits


def test_a_file_for_this_program_says_nothing_of_it():
    assert "these plans are for" not in shown(make_plan_file(Plan(data_parallel=2)))


FORKED = {("megatron-lm", "zb-1p"), ("megatron-lm", "zb-2p")}


def test_stacks_have_the_schedules_that_were_published_of_them():
    with (CATALOG / "measured" / "runs.csv").open(newline="", encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            # Zero-bubble pipelines were published of a fork of Megatron-LM, which has none of them itself.
            is_forked = (row["stack"], row["schedule"]) in FORKED
            if float(row["pp"] or 1) > 1 and row["schedule"] not in ("", ONE_AT_A_TIME) and not is_forked:
                known = load_stack(row["stack"]).schedules or torch_names()
                assert schedule(row["schedule"]).name in known, row["row_id"]
    for stack in map(load_stack, stack_names()):
        assert set(stack.habits.hides_messages_of) <= set(stack.schedules or torch_names()) <= set(SCHEDULES)
        assert "schedules" in stack.sources


def test_attention_is_the_usual_one_of_the_stack_on_the_device():
    kernels = {
        (stack, device): setting(load_sizes("llama-3.1-8b"), load_device(device), 8, 64, 4096, stack).attention_kernel
        for stack in ("megatron-core", "trainwright")
        for device in ("v100-sxm-32gb", "a100-sxm-80gb", "h100-sxm", "b200-sxm")
    }
    assert {kernels[stack, "v100-sxm-32gb"] for stack in ("megatron-core", "trainwright")} == {"unfused"}
    assert kernels["megatron-core", "h100-sxm"] == kernels["megatron-core", "b200-sxm"] == "cudnn"
    assert kernels["megatron-core", "a100-sxm-80gb"] == kernels["trainwright", "h100-sxm"] == "flash2"


def test_overlap_of_tensor_parallel_messages_only_helps_and_where_sequences_are_split():
    at = setting(load_sizes("llama-3.1-8b"), load_device("h100-sxm"), 8, 64, 4096, "megatron-core")
    assert at.overlaps_tensor
    beside, alone = (explore(replace(at, overlaps_tensor=overlaps), Options()) for overlaps in (True, False))
    seconds = []
    for layout in range(len(beside.layouts)):
        choices = beside.choices(layout)
        pair = [step_seconds(block(one.tables, np.array([layout]), choices)) for one in (beside, alone)]
        assert (pair[0] <= pair[1] * (1 + 1e-12)).all()
        is_split = bool(beside.layouts.sequence_parallel[layout])
        assert (pair[0] < pair[1]).any() == is_split
        seconds.append(is_split)
    assert any(seconds)
    assert not all(seconds)


def test_kernels_that_a_stack_does_not_have_are_refused():
    request = Request(model="llama-3.1-8b", num_devices=8, device="h100-sxm", global_batches=(64,))
    with pytest.raises(InputError, match="--tp-overlap: trainwright cannot overlap tensor-parallel messages"):
        settings_of(replace(request, tensor_overlap=True))
    with pytest.raises(UnknownNameError, match="attention kernel"):
        settings_of(replace(request, attention_kernel="flash9"))
    (unfused,), notes = settings_of(replace(request, attention_kernel="unfused"))
    assert unfused.attention_kernel == "unfused"
    assert "attention by unfused" in notes

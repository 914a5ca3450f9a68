"""Pipelines of fewer micro-batches than stages: what they take and hold, who runs them, and who refuses them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.ask import options_of
from planner.cost.axes.pipeline import held_microbatches, idle_terms
from planner.legality import refusal
from planner.model_facts import facts_of_sizes
from planner.plans import Plan
from planner.request import Request
from planner.schedules.registry import in_flight
from planner.schedules.replay import replay_plans
from planner.schedules.steps import Shape
from planner.space.explore import Space, explore
from planner.space.to_plans import best_places, plan_of
from planner.stacks.handover import Given
from planner.stacks.judge import priced
from planner.stacks.registry import read
from profiles.errors import PlanError
from tests.pipeline_builders import even_seconds, random_seconds
from tests.test_replay import longest_path
from tests.test_space import make

SHORT = st.integers(2, 8).flatmap(lambda ranks: st.tuples(st.just(ranks), st.integers(1, ranks - 1)))
SCRIPT = """torchrun --nproc-per-node 8 pretrain_gpt.py --num-layers 24 --hidden-size 2048 --ffn-hidden-size 8192 \
--num-attention-heads 16 --seq-length 2048 --max-position-embeddings 2048 --vocab-size 50257 --micro-batch-size 1 \
--global-batch-size {batch} --bf16 --pipeline-model-parallel-size 8 --use-mcore-models --mock-data \
--transformer-impl transformer_engine
"""


@given(SHORT)
def test_the_laws_are_those_of_the_replay(both: tuple[int, int]) -> None:
    ranks, count = both
    shape, one = Shape("1f1b", ranks, 1, count), np.ones(1)
    # Forward and backward of a micro-batch take three seconds.
    filling, rounds = idle_terms(ranks * one, one, count * one)
    closed = 3.0 * (count + float(filling[0]) * (ranks - 1) + float(rounds[0]))
    seconds = even_seconds(shape)
    assert replay_plans(shape, seconds).step_seconds[0] == pytest.approx(closed)
    assert longest_path(shape, seconds) == pytest.approx(closed)
    columns = (np.full(ranks, float(value)) for value in (ranks, 1, count))
    assert held_microbatches("1f1b", *columns, np.arange(float(ranks))).tolist() == list(in_flight(shape))


@given(SHORT, st.floats(0, 0.9), st.floats(0, 1), st.integers(0, 99))
def test_the_replay_is_the_longest_path(both: tuple[int, int], spread: float, message: float, seed: int) -> None:
    shape = Shape("1f1b", both[0], 1, both[1])
    seconds = random_seconds(shape, 1, spread, message, seed)
    assert replay_plans(shape, seconds).step_seconds[0] == pytest.approx(longest_path(shape, seconds))


def counts_of(stack: str) -> tuple[Space, set[bool]]:
    """Whether plans of pipelines among the best have fewer micro-batches than stages."""
    at = make(num_devices=8, batch=4, stack=stack)
    options = options_of(Request(model="", num_devices=8), at)
    space = explore(at, replace(options, zero_stages=(0, 1)))
    plans = [plan_of(space, place) for place in best_places(space, len(space.best))]
    return space, {plan.num_microbatches < plan.num_stages for plan in plans if plan.schedule == "1f1b"}


def test_a_search_offers_them_for_software_that_runs_them() -> None:
    space, found = counts_of("megatron-core")
    assert found == {False, True}
    assert not space.rejected["fewer micro-batches than pipeline stages"]
    space, found = counts_of("trainwright")
    assert found == {False}
    assert space.rejected["fewer micro-batches than pipeline stages"]


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_a_job_of_megatron_is_read_and_priced(batch: int, tmp_path: Path) -> None:
    text, asked = SCRIPT.format(batch=batch), Request(model="", num_devices=0, device="h100-sxm")
    job = read(tmp_path / "launch.sh", text, Given())
    assert (job.plan.pipeline_parallel, job.plan.num_microbatches) == (8, batch)
    taken = priced(job, asked).prediction
    whole = priced(read(tmp_path / "launch.sh", SCRIPT.format(batch=16), Given()), asked).prediction
    # Each micro-batch more takes what the slowest stage takes, the others' turn comes once.
    assert 0.2 < taken.step_seconds / whole.step_seconds * 23 / (batch + 7) < 1.5
    assert taken.step_seconds < whole.step_seconds
    assert taken.peak_bytes <= whole.peak_bytes


def test_torch_has_none_and_ours_says_so() -> None:
    at, plan = make(num_devices=4, batch=2), Plan(pipeline_parallel=4, schedule="1f1b", num_microbatches=2)
    reason = refusal(replace(plan, stage_bounds=(0, 1, 2, 3)), facts_of_sizes(at.model), 2048)
    assert "num_microbatches=2: 1f1b needs at least one per stage, 4" in reason
    job = read(Path("launch.sh"), SCRIPT.format(batch=3), Given())
    with pytest.raises(PlanError, match="fewer micro-batches than pipeline stages"):
        priced(replace(job, stack="trainwright"), Request(model="", num_devices=0, device="h100-sxm"))

"""What a stack can run: a search by its rules offers just the plans that it does not refuse one by one."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.ask import Request, answer_to
from planner.plans import Plan
from planner.space.beside import Questions
from planner.space.explore import Place, Space, explore
from planner.space.layouts import Options
from planner.space.to_plans import plan_of
from planner.stacks.abilities import known_of, refusal
from planner.stacks.layout_rules import Known
from profiles.errors import InputError
from profiles.machines.stacks import THIS_PROGRAM, load_stack, stack_names
from tests.marks import slow
from tests.test_space import make

KNOWN = [name for name in stack_names() if load_stack(name).runs is not None]
EVERYTHING = Options(offload=("none",), vocab_parallel=(0, 1))


# A mixture has ten times the plans: of all stacks, one that shares out experts and one that does not.
CASES = [
    *(("uneven", name) for name in KNOWN),
    *(("experts", name) if name in ("megatron-core", "deepspeed") else slow("experts", name) for name in KNOWN),
]


def every_plan(space: Space) -> list[Plan]:
    """All legal plans of a space, one by one."""
    result = []
    for layout in range(len(space.layouts)):
        legal = space.choices(layout).legal
        result += [plan_of(space, Place(layout, *map(int, place))) for place in np.argwhere(legal)]
    return result


@pytest.mark.parametrize(("config", "name"), CASES)
def test_the_search_by_its_rules_is_the_whole_search_without_what_it_refuses(config: str, name: str) -> None:
    """The same plans come of a table of layouts and of asking for each plan; what is left out is counted."""
    stack = load_stack(name)
    at = make(config, num_devices=4, batch=4, stack=name)
    options = replace(EVERYTHING, schedules=stack.schedules or EVERYTHING.schedules, offload=stack.runs.offload)
    whole, some = explore(at, options), explore(at, replace(options, as_stack_runs=True))
    num_layers = at.model.transformer.num_positions
    known = known_of(at.model.transformer, at.sequence_length)
    accepted = Counter(plan.id for plan in every_plan(whole) if not refusal(stack, plan, num_layers, known))
    assert Counter(plan.id for plan in every_plan(some)) == accepted
    assert accepted
    assert some.generated == whole.generated
    assert some.generated == some.accepted + some.rejected.total()


@given(name=st.sampled_from(KNOWN), degree=st.sampled_from(["tensor", "context", "expert", "pipeline"]))
def test_an_axis_that_a_stack_lacks_is_refused_by_name(name: str, degree: str) -> None:
    stack = load_stack(name)
    bounds = (0, 5) if degree == "pipeline" else (0,)
    schedule = "1f1b" if degree == "pipeline" else "none"
    data = 2 if degree == "expert" else 1
    plan = Plan(
        **{f"{degree}_parallel": 2}, data_parallel=data, stage_bounds=bounds, schedule=schedule, precision="bf16",
        num_microbatches=2,
    )  # fmt: skip
    if not getattr(stack.runs, degree):
        assert f"{name} has no {degree} parallel" in refusal(stack, plan, 10)


@pytest.mark.parametrize("name", ["megatron-core", "megatron-lm"])
def test_experts_of_megatron_ask_for_split_sequences(name: str) -> None:
    """As its MoELayer raises while it trains by tensor parallelism without sequence parallelism."""
    stack = load_stack(name)
    whole = Plan(tensor_parallel=2, vocab_parallel=True, precision="bf16")
    assert refusal(stack, whole, 10) == ""
    assert "experts" in refusal(stack, whole, 10, Known(num_experts=8))
    assert refusal(stack, replace(whole, sequence_parallel=True), 10, Known(num_experts=8)) == ""


def test_nobody_has_tried_what_other_stacks_run() -> None:
    assert refusal(load_stack("nanotron"), Plan(precision="fp8"), 10) == ""
    assert THIS_PROGRAM not in KNOWN


def test_plans_are_offered_as_the_stack_runs_them_and_others_with_simulate() -> None:
    request = Request(
        model="llama-3.1-8b", num_devices=16, device="h100-sxm", stack="torchtitan", global_batches=(64,), top=5
    )
    found = answer_to(request, Questions(why_not="zero=1")).file
    stack = load_stack("torchtitan")
    assert found.stack == "torchtitan"
    assert found.stack_version == stack.runs.version
    assert all(each.executable and not refusal(stack, each.plan, found.num_layers) for each in found.candidates)
    assert any("which torchtitan lacks" in reason for reason in found.rejected)
    assert "which torchtitan lacks; --simulate offers" in found.answers.why_not.rule
    offered = answer_to(replace(request, simulate=True), Questions()).file
    assert not any("lacks" in reason for reason in offered.rejected)


@pytest.mark.parametrize(("stack", "words"), [("horovod", "--precision fp8: Horovod"), ("deepspeed", "DeepSpeed")])
def test_a_precision_that_a_stack_lacks_is_refused_before_the_search(stack: str, words: str) -> None:
    request = Request(model="gpt2-xl", num_devices=8, device="h100-sxm", stack=stack, precisions=("fp8",))
    with pytest.raises(InputError, match=words):
        answer_to(request, Questions())

"""Which plans of a table are variants of a better one: a table shows ideas, and counts what is like them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

from planner.plans import Plan
from planner.prediction import Candidate
from planner.space.explore import Place, Space
from planner.space.to_plans import plan_of

# Variants that are kept for each plan that is shown, on the average: with more, a table ends early.
MOST_VARIANTS = 30


def num_differing(one: Plan, other: Plan) -> int:
    """In how many choices two plans of one question differ.

    What follows from other choices is none: data-parallel ranks and micro-batches, of which there are as many as
    devices and batch leave; sequence parallelism or a schedule where one plan has no axis for it; virtual stages of
    another schedule; how many layers are recomputed, which follows memory. A micro-batch counts in tokens of a rank.
    """
    both_split = min(one.tensor_parallel, other.tensor_parallel) > 1
    both_piped = min(one.pipeline_parallel, other.pipeline_parallel) > 1
    same_schedule = both_piped and one.schedule == other.schedule
    pairs = (
        (one.tensor_parallel, other.tensor_parallel),
        (one.context_parallel, other.context_parallel),
        (one.expert_parallel, other.expert_parallel),
        (one.pipeline_parallel, other.pipeline_parallel),
        (one.zero_stage, other.zero_stage),
        (one.shard_degree, other.shard_degree),
        (one.axis_order, other.axis_order),
        (one.recompute, other.recompute),
        (one.offload, other.offload),
        (both_split and one.sequence_parallel, both_split and other.sequence_parallel),
        (both_piped and one.schedule, both_piped and other.schedule),
        (same_schedule and one.virtual_stages, same_schedule and other.virtual_stages),
        (one.micro_batch_size * other.context_parallel, other.micro_batch_size * one.context_parallel),
    )
    return sum(own != its for own, its in pairs)


def ideas(space: Space, places: Iterator[Place], top: int) -> Iterator[tuple[Place, int | None]]:
    """The places, best first, until `top` of them are new: each with which of those it is a variant of, None if new.

    A variant differs in one choice at the most.
    """
    new: list[Plan] = []
    num_variants = 0
    for place in places:
        plan = plan_of(space, place)
        like = next((number for number, known in enumerate(new) if num_differing(plan, known) <= 1), None)
        if like is None:
            if len(new) == top:
                return
            new.append(plan)
        else:
            num_variants += 1
            if num_variants > MOST_VARIANTS * top:
                return
        yield place, like


def folded(candidates: Sequence[Candidate], likes: Sequence[int | None], kept: Collection[int]) -> list[Candidate]:
    """The candidates with what is folded into which; variants whose index is in `kept` are shown all the same.

    Shapes: `likes` as of `ideas`, one entry per candidate.
    """
    result = list(candidates)
    new = [index for index, like in enumerate(likes) if like is None]
    for index, like in enumerate(likes):
        if like is None or index in kept:
            continue
        shown = result[new[like]]
        behind = candidates[index].prediction.step_seconds / shown.prediction.step_seconds - 1
        result[index] = replace(candidates[index], folded_into=shown.rank)
        result[new[like]] = replace(
            shown,
            num_folded=shown.num_folded + 1,
            folded_within_fraction=max(shown.folded_within_fraction, behind),
        )
    return result

"""Memory of a plan's fullest rank by kind and by the layers that hold it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from planner.cost.job import Jobs
from planner.cost.memory.footprint import memory_of, parameters_of
from planner.cost.memory.stage_content import StageContent
from planner.cost.memory.stage_states import stage_states
from planner.cost.software_memory import MemoryRules, memory_rules
from planner.plans import Plan
from planner.schedules.registry import stage_ranks
from planner.schedules.steps import Ints
from planner.space.explore import Memory, Place, Space
from planner.space.memory import memories
from planner.space.stage_passes import layers_between, shape_of, shared_of
from planner.space.to_plans import jobs_at, plan_of
from profiles.models.transformer import DENSE, ROUTED

# Kinds in the order in which they are drawn. What lies outside of torch is the device's context and communicators.
KINDS = ("weights", "gradients", "optimizer state", "activations", "buffers", "allocator's holes", "outside torch")
STATES = {"parameters": "weights", "gradients": "gradients", "optimizer": "optimizer state"}
EMBEDDING, HEAD, SHARED = "embedding", "head", "shared between layers"
LAYER_TITLES = {DENSE: "transformer blocks", ROUTED: "blocks with experts"}


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldBytes:
    """Bytes of one kind that some layers hold; `layers` is "" where the prediction does not tell them apart."""

    kind: str
    layers: str
    num_bytes: float


def held_by_kind(bytes_per_rank: dict[str, float]) -> tuple[HeldBytes, ...]:
    """The same from a prediction alone, which knows no layers."""
    names = {**STATES, "slack": "allocator's holes", "outside": "outside torch"}
    return tuple(
        HeldBytes(kind=names.get(kind, kind), layers="", num_bytes=held)
        for kind, held in bytes_per_rank.items()
        if held > 0
    )


def held_by_layer(space: Space, place: Place) -> tuple[HeldBytes, ...]:
    """Bytes of the fullest rank of the plan at `place`; they add up to its peak.

    Model: states are divided as each layer's are, activations as each keeps them; what is whole for a moment only
    counts as buffers, of no layer.
    """
    plan, memory = plan_of(space, place), memories(space, [place])[0]
    owners = stage_ranks(shape_of(plan))
    rank = int(np.argmax(memory.stages)) if len(memory.stages) == plan.pipeline_parallel else 0
    jobs = jobs_at(space, [place]).take(np.zeros(len(owners), dtype=np.int64))
    rules, content = memory_rules(jobs), _content(space, plan)
    chosen = np.flatnonzero(owners == rank)
    held = [*_states(jobs, rules, content, chosen, memory), *_others(jobs, rules, content, chosen, memory)]
    return tuple(one for one in held if one.num_bytes > 0)


def _content(space: Space, plan: Plan) -> StageContent:
    """What every stage of the model holds."""
    model, stage = space.at.model.transformer, np.arange(plan.num_stages)
    return StageContent(
        index=stage_ranks(shape_of(plan)).astype(np.float64),
        exists=stage >= 0,
        is_first=stage == 0,
        is_last=stage == plan.num_stages - 1,
        layers=layers_between(plan.stage_bounds, model),
        shared=shared_of(plan.stage_bounds, model),
    )


def _alone(content: StageContent) -> Iterator[tuple[str, StageContent]]:
    """The stages with some of their layers alone: each kind of layer, the ends, and what layers share."""
    no = np.zeros(len(content.exists), dtype=bool)
    empty = replace(content, layers={kind: 0 * count for kind, count in content.layers.items()}, shared=0.0,
                    is_first=no, is_last=no)  # fmt: skip
    for kind, count in content.layers.items():
        yield kind, replace(empty, layers={**empty.layers, kind: count})
    yield EMBEDDING, replace(empty, is_first=content.is_first)
    # A head that is tied to an embedding on the same rank adds nothing to it.
    yield HEAD, replace(empty, is_first=content.is_first, is_last=content.is_last)
    yield SHARED, replace(empty, shared=content.shared)


def _states(jobs: Jobs, rules: MemoryRules, content: StageContent, chosen: Ints, memory: Memory) -> Iterator[HeldBytes]:
    """Weights, gradients and the optimizer's state, in the proportion of what each layer's take."""
    parameters = parameters_of(jobs, rules)
    by_layer = {name: stage_states(jobs, rules, parameters, own) for name, own in _alone(content)}
    for state, kind in STATES.items():
        sizes = {name: float(np.sum(getattr(own, state)[chosen])) for name, own in by_layer.items()}
        sizes[HEAD] -= sizes[EMBEDDING]
        yield from _divided(kind, memory.parts[state], sizes, _titles(content, chosen))


def _others(jobs: Jobs, rules: MemoryRules, content: StageContent, chosen: Ints, memory: Memory) -> Iterator[HeldBytes]:
    """Activations by what each kind of layer keeps, the logits, and all that belongs to no layer."""
    parts, titles = memory.parts, _titles(content, chosen)
    kept = {
        kind: float(np.sum((count * memory_of(jobs, rules, kind).kept)[chosen]))
        for kind, count in content.layers.items()
    }
    yield from _divided("activations", parts["activations"], kept, titles)
    yield HeldBytes(kind="activations", layers="logits and loss", num_bytes=parts["logits"])
    yield HeldBytes(kind="buffers", layers="messages, gathered weights, copies", num_bytes=parts["buffers"])
    yield HeldBytes(kind="buffers", layers="workspace of matrix products", num_bytes=parts["workspace"])
    holes = memory.device - sum(parts.values()) - memory.outside
    yield HeldBytes(kind="allocator's holes", layers="", num_bytes=holes)
    yield HeldBytes(kind="outside torch", layers="", num_bytes=memory.outside)


def _divided(kind: str, total: float, sizes: dict[str, float], titles: dict[str, str]) -> Iterator[HeldBytes]:
    """A total in the proportion of `sizes`; whole where they are not known."""
    known = {name: size for name, size in sizes.items() if size > 0}
    if not known:
        yield HeldBytes(kind=kind, layers="", num_bytes=total)
    for name, size in known.items():
        share = size / sum(known.values())
        yield HeldBytes(kind=kind, layers=titles.get(name, name), num_bytes=total * share)


def _titles(content: StageContent, chosen: Ints) -> dict[str, str]:
    """Kinds of layers in words, with how many of them the rank has."""
    counts = {kind: int(np.sum(count[chosen])) for kind, count in content.layers.items()}
    return {kind: f"{count} {LAYER_TITLES.get(kind, f'x {kind}')}" for kind, count in counts.items()}


def total_bytes(held: Sequence[HeldBytes]) -> float:
    """All of them."""
    return sum(one.num_bytes for one in held)

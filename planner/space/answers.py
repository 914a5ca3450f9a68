"""What a search answers: the best plans that can be run, the usual ones beside them, and what was turned down."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from planner.answers import NearestMiss
from planner.legality import refusal
from planner.model_facts import facts_of, facts_of_sizes
from planner.plans import Plan
from planner.prediction import Candidate, PlanFile
from planner.space.evidence import REPEAT_FRACTION
from planner.space.explore import NO_ROOM, NO_ROOM_ON_HOST, Place, Space
from planner.space.files import plan_file, planned_for, ranked
from planner.space.ideas import folded, ideas
from planner.space.memory import memories
from planner.space.predictions import predictions
from planner.space.question import Setting
from planner.space.to_plans import place_at, plan_of
from planner.stacks.abilities import known_of
from planner.stacks.abilities import refusal as stack_refusal
from profiles.errors import NoFeasiblePlanError
from profiles.machines.stacks import THIS_PROGRAM
from profiles.models.families import BUILT_FAMILIES
from profiles.models.transformer import Flags
from profiles.units import format_bytes, format_percent

# With less of its device free a plan is called tight.
LEAST_FREE = 0.03
# What is the same of variants of a layout.
Degrees = tuple[int, ...]
# Plans whose memory is worked out together.
AT_ONCE = 6
# Plans among which a usual one that can be run is looked for.
MOST_LOOKED_AT = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A space with its plans of interest: `places` by candidate of `file`, and baselines' names by their rank."""

    space: Space
    file: PlanFile
    places: tuple[Place, ...]
    baselines: dict[str, int]


def why_not_run(at: Setting, plan: Plan) -> str:
    """Why the software would refuse the plan, ours by what the executor can do, others by what they say; or ""."""
    if at.stack.name != THIS_PROGRAM:
        sizes = at.model.transformer
        return stack_refusal(at.stack, plan, sizes.num_positions, known_of(sizes, at.sequence_length))
    if at.model.profile is not None:
        return refusal(plan, facts_of(at.model.profile), at.sequence_length)
    return why_not_built(at) or refusal(plan, facts_of_sizes(at.model), at.sequence_length)


def why_not_built(at: Setting) -> str:
    """Why the executor runs no plan of this model, or ""; other software is not bound by what it can do."""
    family = at.model.config.get("model_type")
    if at.stack.name != THIS_PROGRAM or at.model.profile is not None or family in BUILT_FAMILIES:
        return ""
    return f"the executor does not build models of the family {family}"


def is_executable(at: Setting, plan: Plan) -> bool:
    """Whether the software that plans are for carries this one out, as far as is known: ours is `execute`."""
    return bool(at.stack.name == THIS_PROGRAM or at.stack.runs) and not why_not_run(at, plan)


def answer(space: Space, top: int, simulate: bool, notes: Sequence[str]) -> Answer:
    """The `top` fastest plans of a ranked space that are no variants of better ones, those variants, and the baselines.

    What cannot be run is there only with `simulate`.
    Raises: NoFeasiblePlanError with counts by reason and the nearest miss.
    """
    likes = dict(ideas(space, runnable_places(space, simulate, len(space.best)), top))
    if not likes:
        raise NoFeasiblePlanError(no_plan(space))
    baselines = {name: place for name, where in _baselines(space) if (place := _best_where(space, where)) is not None}
    places = [*likes, *(place for place in baselines.values() if place not in likes)]
    ranks = {name: places.index(place) for name, place in baselines.items()}
    plans = [plan_of(space, place) for place in places]
    can_run = partial(is_executable, space.at)
    candidates = ranked(plans, predictions(space, places), space.at.memory_bytes, can_run, ranks)
    candidates = folded(candidates, [likes.get(place) for place in places], ranks.values())
    file = _file(
        space, candidates, ranks, (*notes, *_tight(space.at, candidates[0]), *_advice(space.at, candidates, ranks))
    )
    return Answer(space=space, file=file, places=tuple(places), baselines=ranks)


def runnable_places(space: Space, simulate: bool, top: int) -> Iterator[Place]:
    """The fastest plan of each layout in order, those that the executor refuses left out unless `simulate`.

    Layouts that differ in schedule, sequence parallelism or the order of their axes count as one. Left out as well is
    what fits by the closed form and not step by step.
    """
    seen: set[Degrees] = set()
    coming: deque[tuple[Place, Degrees]] = deque()
    rest = _runnable(space, simulate, seen)
    while len(seen) < top:
        if not coming:
            coming.extend(itertools.islice(rest, AT_ONCE))
            # What several hold is worked out at once, of each layout's fastest alone.
            memories(space, list({key: place for place, key in reversed(coming)}.values()))
        if not coming:
            return
        place, key = coming.popleft()
        if key not in seen and memories(space, [place])[0].device <= space.at.memory_bytes:
            seen.add(key)
            yield place


def _runnable(space: Space, simulate: bool, seen: Collection[Degrees]) -> Iterator[tuple[Place, Degrees]]:
    """Plans in order with what is the same of a layout's variants; none of layouts that are `seen` by then."""
    own = space.layouts
    columns = (own.tensor, own.context, own.expert, own.pipeline, own.data, own.zero_stage, own.shard)
    for place in (place_at(space, row) for row in range(len(space.best))):
        key = tuple(int(column[place.layout]) for column in columns)
        if key not in seen and (simulate or not why_not_run(space.at, plan_of(space, place))):
            yield place, key


def _baselines(space: Space) -> list[tuple[str, Flags]]:
    """What most would try first: which layouts each of the usual recipes allows."""
    own = space.layouts
    plain = (own.optimizer_offload + own.activation_offload + own.data_outside) == 0
    alone = plain & (own.tensor == 1) & (own.pipeline == 1) & (own.context == 1) & (own.expert == 1)
    replicas = own.data * own.context
    split = (own.tensor > 1) & (own.tensor <= space.at.fast_domain)
    # However many ranks of the node share a layer, and stages the model: the best that such a search would find.
    megatron = plain & (own.context == 1) & split & (own.zero_stage <= 1)
    return [
        ("DDP", alone & (own.zero_stage == 0)),
        ("FSDP", alone & (own.zero_stage == 3) & (own.shard == replicas)),
        ("TP in the node, then PP", megatron),
    ]


def _best_where(space: Space, allowed: Flags) -> Place | None:
    """The fastest plan of the allowed layouts, else the one that takes the fewest bytes; None where none is allowed.

    Of those that fit one that can be run, if it is among the first.
    """
    rows = np.flatnonzero(allowed[space.best.layout])
    if len(rows):
        places = [place_at(space, int(row)) for row in rows[:MOST_LOOKED_AT]]
        return next((place for place in places if not why_not_run(space.at, plan_of(space, place))), places[0])
    nearest = np.where(allowed, space.nearest, np.inf)
    if not np.isfinite(nearest).any():
        return None
    layout = int(nearest.argmin())
    return Place(layout, *map(int, space.nearest_place[layout]))


def _tight(at: Setting, best: Candidate) -> Iterator[str]:
    """Whether the best plan nearly fills its device, so that a small error of the prediction makes it fail."""
    left, stack = 1 - best.prediction.peak_bytes / at.whole_memory_bytes, at.stack
    if left < LEAST_FREE:
        band, source = f"{stack.memory.band:.0%}", stack.sources["memory_band"]
        yield (
            f"tight: the best plan leaves {format_percent(left)} of memory free, and its peak may be off by "
            f"{format_percent(stack.memory.band)} ({source}): --headroom {band} leaves as much free"
        )


def _advice(at: Setting, candidates: Sequence[Candidate], baselines: dict[str, int]) -> Iterator[str]:
    """Whether the best is worth its complexity: a gain inside the band may not be there.

    Of a measured machine most of what a band allows for is common to all plans, and says nothing of which is faster.
    """
    best = candidates[0].prediction
    half = (best.high_seconds - best.low_seconds) / 2 / best.step_seconds
    within = f"inside the band of ±{half:.0%}"
    if at.measured is not None:
        half, within = REPEAT_FRACTION, "no more than steps of one plan differ"
    for name, index in baselines.items():
        plain = candidates[index].prediction
        if not plain.fits or why_not_run(at, candidates[index].plan):
            continue
        gain = plain.step_seconds / best.step_seconds - 1
        if index == 0:
            return
        if gain <= half:
            yield (
                f"{name} is predicted {format_percent(gain)} slower than the best, {within}: it "
                f"is the simpler choice until both are measured ({candidates[index].plan.id})"
            )
            return


def nearest_miss(space: Space) -> tuple[Place, float] | None:
    """The plan that misses the device's memory by the least, and by how many bytes; None where none misses."""
    over = np.where(space.nearest > space.at.memory_bytes, space.nearest - space.at.memory_bytes, np.inf)
    if not np.isfinite(over).any():
        return None
    layout = int(over.argmin())
    return Place(layout, *map(int, space.nearest_place[layout])), float(over[layout])


def no_plan(space: Space) -> str:
    """Why a space has no plan to offer: counts by reason, and the nearest miss."""
    at = space.at
    counts = "; ".join(f"{count:,} x {reason}" for reason, count in (space.rejected + space.broken).most_common())
    words = f"no plan of {at.model.name} on {at.num_devices} x {at.device.name}: {counts}"
    if len(space.best):
        return f"{words}; all that fit can only be simulated: pass --simulate to see them"
    missed = nearest_miss(space)
    if missed is None:
        least, room = float(space.tables.shared.least_state_bytes.min()), at.memory_bytes
        if space.rejected[NO_ROOM_ON_HOST] and least <= room:
            return (
                f"{words}; more devices would do, or hosts of more than {format_bytes(at.host_memory_bytes)} for each"
            )
        alone = f"{format_bytes(least)} of {format_bytes(room)}"
        return f"{words}; nearest: states alone take {alone}: more devices, or a smaller model{_otherwise(space)}"
    nearest = f"{plan_of(space, missed[0]).id}, {format_bytes(missed[1])} over"
    return f"{words}; nearest: {nearest}; more devices would do{_otherwise(space)}"


def _otherwise(space: Space) -> str:
    """What else takes less memory than all that was tried, and has not been asked for."""
    model, words = space.at.model, ""
    if model.profile is None and not model.adapters.freezes:
        words += ", or --peft lora:16 to train adapters alone"
    if not np.any(space.tables.shared.jobs.optimizer_offload):
        words += ", or --simulate to see what offload would do"
    return words


def _file(space: Space, candidates: Sequence[Candidate], baselines: dict[str, int], notes: Sequence[str]) -> PlanFile:
    missed = nearest_miss(space) if space.rejected[NO_ROOM] else None
    miss = missed and NearestMiss(plan=plan_of(space, missed[0]).id, over_bytes=missed[1])
    return plan_file(
        planned_for(space.at),
        candidates,
        num_legal=space.accepted + space.rejected[NO_ROOM],
        rejected={**space.rejected, **space.broken},
        notes=notes,
        baseline=baselines.get("DDP", baselines.get("FSDP", -1)),
        nearest_miss=miss,
    )

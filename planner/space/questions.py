"""Questions about a search: why not that plan, what would change the winner, what memory it needs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from planner.answers import Change, ParetoPlan, WhyNot
from planner.cost.factors import Factors
from planner.space.answers import Answer, why_not_run
from planner.space.explore import Place, Space, tables_of
from planner.space.layouts import Layouts, illegal_degrees
from planner.space.memory import memories
from planner.space.predictions import predictions
from planner.space.question import Setting
from planner.space.replay_best import replay_offsets
from planner.space.to_plans import best_places, closed_seconds, place_at, place_in, plan_of
from planner.terminal.progress import OnProgress, silent
from planner.verdict import verdict
from profiles.errors import InputError
from profiles.inputs import limits
from profiles.machines.profile import MachineProfile
from profiles.models.sharing import Sharing
from profiles.models.transformer import Array, Flags

# What --why-not may fix, and the columns of the layouts that hold it.
DEGREES = {
    "tp": "tensor", "cp": "context", "ep": "expert", "pp": "pipeline", "dp": "data", "zero": "zero_stage",
    "shard": "shard", "sp": "sequence_parallel",
}  # fmt: skip
DEGREE_RANGES = {"zero": (0, 3), "sp": (0, 1)}
# Plans whose order is asked about under another machine; of the degrees asked about, those followed step by step.
CONTENDERS, MOST_FOLLOWED, MOST_LOOKED_AT = 300, 40, 300
# A gain of less is none: its percent would be printed as 0.0.
LEAST_GAIN = 0.0005
# Factors that are seconds of messages.
MESSAGES = ("tensor_comm", "data_comm", "expert_comm", "pipeline_comm", "context_comm")


def parse_wanted(text: str) -> dict[str, int]:
    """Degrees by name from `tp=8,pp=4`.

    Raises: InputError for a name or a number that is none.
    """
    wanted: dict[str, int] = {}
    for word in text.split(","):
        name, _, value = word.strip().partition("=")
        if name not in DEGREES or name in wanted or not limits.is_whole(value):
            known = ", ".join(DEGREES)
            raise InputError(f"--why-not {word.strip()}: give degrees such as tp=8,pp=4, each once; known are {known}")
        wanted[name] = int(value)
        limits.check(f"--why-not {name}", wanted[name], *DEGREE_RANGES.get(name, (1, limits.DEVICES)))
    return wanted


def why_not(answer: Answer, text: str, offers_all: bool = False) -> WhyNot:
    """What becomes of the plans with the given degrees: whether they are legal, fit, run, and what they lose.

    Of those that fit, one that can be run comes first unless plans that cannot are offered too (`offers_all`).
    Raises: InputError for unknown names.
    """
    space, wanted = answer.space, parse_wanted(text)
    own = _matching(space.layouts, wanted)
    if not own.any():
        return WhyNot(asked=text, is_legal=False, rule=_rule(space, wanted))
    legal = WhyNot(asked=text, is_legal=True, num_layouts=int(own.sum()), memory_bytes=space.at.memory_bytes)
    place, fits = _fastest(space, own, offers_all)
    if place is None:
        # Of every one the states alone are too many.
        least = np.where(own, space.tables.shared.least_state_bytes, np.inf).min()
        return replace(legal, peak_bytes=float(least), over_bytes=float(least) - space.at.memory_bytes)
    mine, plan, best = predictions(space, [place])[0], plan_of(space, place), answer.file.candidates[0].prediction
    held = replace(legal, plan=plan.id, peak_bytes=mine.peak_bytes, bytes_per_rank=mine.bytes_per_rank)
    if not fits:
        return replace(held, over_bytes=mine.peak_bytes - space.at.memory_bytes)
    return replace(
        held,
        fits=True,
        refusal=why_not_run(space.at, plan),
        step_seconds=mine.step_seconds,
        behind_fraction=mine.step_seconds / best.step_seconds - 1,
        difference_seconds={part: mine.seconds[part] - best.seconds[part] for part in mine.seconds},
        verdict=verdict(space.at.memory_bytes, best, mine, plan, is_best=False),
    )


def _fastest(space: Space, own: Flags, offers_all: bool) -> tuple[Place | None, bool]:
    """The fastest plan of the layouts that fits, runnable ones first, and whether one does; else that of fewest bytes.

    None where the states alone of every layout are too many.
    """
    found = [place_at(space, int(row)) for row in np.flatnonzero(own[space.best.layout])[:MOST_LOOKED_AT]]
    places = found[:MOST_FOLLOWED]
    can_run = [] if offers_all else [place for place in found if not why_not_run(space.at, plan_of(space, place))]
    for place in (*can_run[:MOST_FOLLOWED], *places):
        # What fits by the closed form may not step by step.
        if memories(space, [place])[0].device <= space.at.memory_bytes:
            return place, True
    if places:
        return min(places, key=lambda place: memories(space, [place])[0].device), False
    nearest = np.where(own, space.nearest, np.inf)
    if not np.isfinite(nearest).any():
        return None, False
    layout = int(nearest.argmin())
    return Place(layout, *map(int, space.nearest_place[layout])), False


def _matching(layouts: Layouts, wanted: dict[str, int]) -> Flags:
    own = np.ones(len(layouts), dtype=bool)
    for name, value in wanted.items():
        own &= getattr(layouts, DEGREES[name]) == value
    return own


def _rule(space: Space, wanted: dict[str, int]) -> str:
    """The rule that such degrees break."""
    at = space.at
    tensor, context, pipeline = (wanted.get(name, 1) for name in ("tp", "cp", "pp"))
    rest, left = divmod(at.num_devices, tensor * context * pipeline)
    if left or ("dp" in wanted and rest != wanted["dp"] and set(wanted) >= {"tp", "cp", "pp"}):
        return f"{at.num_devices} devices are not divisible that way"
    for needed, layouts in space.unoffered.items():
        if _matching(layouts, wanted).any():
            return f"such plans {needed}; --simulate offers such plans too"
    traced = at.model.profile
    if wanted.get("ep", 1) > 1 and traced is not None and traced.workload.task:
        return _rule_of_experts(at, traced.sharing)
    reason = illegal_degrees(at, tensor, context, pipeline, wanted.get("dp", rest))
    return reason or "no layout combines these degrees"


def _rule_of_experts(at: Setting, sharing: Sharing) -> str:
    """The rule that degrees over which a task's experts are shared out break."""
    if sharing.refusal:
        return f"experts cannot be shared out: {sharing.refusal}"
    if not (degrees := sharing.at(at.precision)):
        return "the model has no experts to share out over ranks"
    known = ", ".join(map(str, degrees))
    return (
        f"experts of a task can be shared over {known} ranks, which must divide dp, with plain data parallelism only: "
        "tp=1, cp=1, pp=1, zero=0, no codec"
    )


def sensitivity(answer: Answer, on_progress: OnProgress = silent) -> list[Change]:
    """What each unknown would cost, and whether it would change the winner: links, their share in overlap, products.

    Model: the best plans of the search are priced again, each unknown off by what is usual, pipelines off by what
    replay said; memory is what it was.
    """
    space = answer.space
    best = space.best
    count = min(CONTENDERS, len(best))
    allowed = [
        place
        for place in best_places(space, count)
        if not answer.file.candidates[0].executable or not why_not_run(space.at, plan_of(space, place))
    ]
    first = answer.places[0]
    contenders = [first, *(place for place in allowed if place != first)]
    result = []
    chosen, where = np.unique([place.layout for place in contenders], return_inverse=True)
    closed = np.array([closed_seconds(space, space.tables, place, place.layout) for place in contenders])
    off = 1 + replay_offsets(space, contenders) / closed
    today = float(closed[0] * off[0])
    changes = list(_changes(space))
    for number, (what, at, factors) in enumerate(changes):
        on_progress(number / len(changes), what)
        tables = tables_of(at, space.layouts.take(chosen), replace(space.learned, factors=factors))
        priced = [closed_seconds(space, tables, place, int(row)) for place, row in zip(contenders, where, strict=True)]
        seconds = np.array(priced) * off
        winner = _winner(space, contenders, seconds)
        # Two places may be one plan in words, as where orders of axes that have one rank differ.
        if plan_of(space, contenders[winner]).id == plan_of(space, first).id:
            winner = 0
        result.append(
            Change(
                what=what,
                step_seconds=float(seconds[0]),
                change_fraction=float(seconds[0] / today - 1),
                winner=plan_of(space, contenders[winner]).id,
                winner_seconds=float(seconds[winner]),
                is_same=winner == 0,
                gain=float(1 - seconds[winner] / seconds[0]),
            )
        )
    return result


def _winner(space: Space, contenders: Sequence[Place], seconds: Array) -> int:
    """The fastest contender that fits; the first, which is today's best, where others are only as fast."""
    for index in np.argsort(seconds, kind="stable"):
        if seconds[index] >= seconds[0] * (1 - LEAST_GAIN):
            break
        if memories(space, [contenders[index]])[0].device <= space.at.memory_bytes:
            return int(index)
    return 0


def _changes(space: Space) -> Iterator[tuple[str, Setting, Factors]]:
    at, factors = space.at, space.learned.factors
    if at.measured is None:
        yield from ((what, changed, factors) for what, changed in _other_links(at))
    else:
        yield from _other_messages(at, at.measured.machine, factors)
    for factor, word in ((0.85, "15 % faster"), (1.15, "15 % slower")):
        yield f"products {word}", at, replace(factors, matmul=factors.matmul * factor)
    yield (
        "twice the slowdown of overlapping",
        at,
        replace(factors, compute_slowdown=2 * factors.compute_slowdown, comm_slowdown=2 * factors.comm_slowdown),
    )
    yield "twice the pipeline's messages", at, replace(factors, pipeline_comm=2 * factors.pipeline_comm)


def _other_links(at: Setting) -> Iterator[tuple[str, Setting]]:
    """Faster and slower links than those off a data sheet."""
    for factor, word in ((0.5, "half"), (2.0, "twice")):
        network, inside = at.network_bytes_per_second * factor, at.fast_bytes_per_second * factor
        yield f"{word} the network bandwidth", replace(at, network_bytes_per_second=network)
        yield f"{word} the bandwidth inside nodes", replace(at, fast_bytes_per_second=inside)
    yield "four times the network's latency", replace(at, network_latency_seconds=4 * at.network_latency_seconds)


def _other_messages(at: Setting, machine: MachineProfile, factors: Factors) -> Iterator[tuple[str, Setting, Factors]]:
    """Faster and slower messages than those that were measured; a network that was not, as off its data sheet."""
    for factor, word in ((2.0, "twice"), (0.5, "half")):
        sent = {name: getattr(factors, name) * factor for name in MESSAGES}
        yield f"messages that take {word} as long", at, replace(factors, **sent)
    if at.num_devices > at.devices_per_node and not any(link.span == "network" for link in machine.links):
        yield from ((what, other, factors) for what, other in _other_links(at) if "network" in what)


# As many of the best of each layout as replay may have timed again.
MOST_REPLAYED = 200


def pareto(space: Space, simulate: bool, most: int = 8) -> tuple[ParetoPlan, ...]:
    """At most `most` of the plans that no other beats in both time and memory, fastest first, down to the least."""
    # The fastest have been timed again by replay; the others are as the search priced them.
    known = {
        place_in(plans, row): (float(plans.step_seconds[row]), float(plans.device_bytes[row]))
        for plans, count in ((space.front, len(space.front)), (space.best, min(len(space.best), MOST_REPLAYED)))
        for row in range(count)
    }
    offered: list[tuple[Place, float, float]] = []
    for place, (seconds, held) in sorted(known.items(), key=lambda one: one[1]):
        is_lower = not offered or held < offered[-1][2]
        if is_lower and (simulate or not why_not_run(space.at, plan_of(space, place))):
            offered.append((place, seconds, held))
    if not offered:
        return ()
    # Steps down of one size lead to the plan that takes least; one of less than 3 % is no choice.
    step = min(0.97, (offered[-1][2] / offered[0][2]) ** (1 / (most - 1)))
    chosen = offered[:1]
    for one in offered[1:]:
        if one[2] <= step * chosen[-1][2] * (1 + 1e-9):
            chosen.append(one)
    if len(chosen) < most and offered[-1][2] < 0.97 * chosen[-1][2]:
        chosen.append(offered[-1])
    return tuple(
        ParetoPlan(plan=plan_of(space, place).id, step_seconds=seconds, device_bytes=held)
        for place, seconds, held in chosen
    )

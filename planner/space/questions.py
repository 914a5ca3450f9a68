"""Questions about a search: why not that plan, what would change the winner, what it costs, what memory it needs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from planner.choices import Plan
from planner.explain import verdict
from planner.goodput import goodput
from planner.jobs.factors import Factors
from planner.prediction import Prediction
from planner.space.answers import Answer, why_not_run
from planner.space.explore import STATES_ALONE, Place, Space, tables_of
from planner.space.layouts import Layouts, illegal_degrees
from planner.space.plans import best_places, closed_seconds, plan_of
from planner.space.predictions import predictions
from planner.space.retime import corrections
from planner.space.setting import Setting
from profiles.errors import InputError
from profiles.transformer import Array, Flags
from profiles.units import format_bytes, format_count, format_percent, format_seconds

# What --why-not may fix, and the columns of the layouts that hold it.
DEGREES = {
    "tp": "tensor", "cp": "context", "ep": "expert", "pp": "pipeline", "dp": "data", "zero": "zero_stage",
    "shard": "shard", "sp": "sequence_parallel",
}  # fmt: skip
SECONDS_PER_DAY, SECONDS_PER_HOUR, JOULES_PER_KWH = 86400.0, 3600.0, 3.6e6
# 419 unexpected interruptions in 54 days on 16,384 GPUs. Source: Grattafiori et al., The Llama 3 Herd of Models, 2024
# (arXiv 2407.21783), section 3.3.4. How long a checkpoint and a restart hold a job up is assumed.
DEVICE_FAILURE_HOURS = 54 * 24 * 16384 / 419
CHECKPOINT_SECONDS, RESTART_SECONDS = 30.0, 600.0
# Plans whose order is asked about under another machine.
CONTENDERS = 300


def parse_wanted(text: str) -> dict[str, int]:
    """Degrees by name from `tp=8,pp=4`.

    Raises: InputError for a name or a number that is none.
    """
    wanted = {}
    for word in text.split(","):
        name, _, value = word.strip().partition("=")
        if name not in DEGREES or not value.isdigit():
            known = ", ".join(DEGREES)
            raise InputError(f"--why-not {word.strip()}: give degrees such as tp=8,pp=4; known are {known}")
        wanted[name] = int(value)
    return wanted


def why_not(answer: Answer, text: str) -> list[str]:
    """What becomes of the plans with the given degrees: whether they are legal, fit, run, and what they lose.

    Raises: InputError for unknown names.
    """
    space, wanted = answer.space, parse_wanted(text)
    own = _matching(space.layouts, wanted)
    if not own.any():
        return [f"{text}: not legal; {_rule(space, wanted)}"]
    lines = [f"{text}: legal, {int(own.sum())} layouts"]
    rows = np.flatnonzero(own[space.best.layout])
    if not len(rows):
        return [*lines, *_does_not_fit(space, own)]
    places = [best_places(space, int(row) + 1)[-1] for row in rows[:1]]
    mine = predictions(space, places)[0]
    plan, best = plan_of(space, places[0]), answer.file.candidates[0].prediction
    lines.append(f"fits: {plan.id} takes {format_bytes(mine.peak_bytes)} of {format_bytes(space.at.memory_bytes)}")
    refused = why_not_run(space.at, plan)
    lines.append(f"simulate only: {refused}" if refused else "can be run")
    behind = mine.step_seconds / best.step_seconds - 1
    words = verdict(space.at.memory_bytes, best, mine, plan, is_best=False)
    lines.append(f"{format_seconds(mine.step_seconds)} a step, {format_percent(behind, signed=True)}: {words}")
    lines += _differences(best, mine)
    return lines


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
    reason = illegal_degrees(at, tensor, context, pipeline, wanted.get("dp", rest))
    return reason or "no layout has these degrees together"


def _does_not_fit(space: Space, own: Flags) -> list[str]:
    """How far the smallest such plan is from fitting, and what would help."""
    nearest = np.where(own, space.nearest, np.inf)
    if not np.isfinite(nearest).any():
        least = np.where(own, space.tables.shared.least_state_bytes, np.inf).min()
        return [f"{STATES_ALONE}: {format_bytes(float(least))} at the least of {format_bytes(space.at.memory_bytes)}"]
    layout = int(nearest.argmin())
    place = Place(layout, *map(int, space.nearest_place[layout]))
    over = format_bytes(float(nearest[layout]) - space.at.memory_bytes)
    held = predictions(space, [place])[0].bytes_per_rank
    most = max(held, key=lambda kind: held[kind])
    smallest = plan_of(space, place).id
    return [f"does not fit: even {smallest} is {over} over; most of it is {most}, {format_bytes(held[most])}"]


def _differences(best: Prediction, mine: Prediction) -> Iterator[str]:
    """Seconds by part against the best, the largest differences first."""
    lost = {part: mine.seconds[part] - best.seconds[part] for part in mine.seconds}
    for part in sorted(lost, key=lambda part: -abs(lost[part])):
        if abs(lost[part]) > 0.001 * best.step_seconds:
            sign = "+" if lost[part] > 0 else "-"
            yield f"  {part}: {sign}{format_seconds(abs(lost[part]))}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What becomes of the winner under another machine; `winner` is the plan's id, `gain` what changing to it saves."""

    what: str
    winner: str
    is_same: bool
    gain: float


def sensitivity(answer: Answer) -> list[Change]:
    """Which unknown would change the winner: links, their share in overlap, and products, each off by what is usual.

    Model: the best plans of the search are priced again, pipelines off by what replay said; memory is what it was.
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
    off = 1 + corrections(space, contenders) / closed
    for what, at, factors in _changes(space):
        tables = tables_of(at, space.layouts.take(chosen), replace(space.learned, factors=factors))
        priced = [closed_seconds(space, tables, place, int(row)) for place, row in zip(contenders, where, strict=True)]
        seconds = np.array(priced) * off
        # Equal ones stay with the winner.
        winner = int(seconds.argmin()) if seconds.min() < seconds[0] * (1 - 1e-9) else 0
        result.append(
            Change(
                what=what,
                winner=plan_of(space, contenders[winner]).id,
                is_same=winner == 0,
                gain=float(1 - seconds[winner] / seconds[0]),
            )
        )
    return result


def _changes(space: Space) -> Iterator[tuple[str, Setting, Factors]]:
    at, factors = space.at, space.learned.factors
    for factor, word in ((0.5, "half"), (2.0, "twice")):
        network, inside = at.network_bytes_per_second * factor, at.fast_bytes_per_second * factor
        yield f"{word} the network bandwidth", replace(at, network_bytes_per_second=network), factors
        yield f"{word} the bandwidth inside nodes", replace(at, fast_bytes_per_second=inside), factors
    latency = 4 * at.network_latency_seconds
    yield "four times the network's latency", replace(at, network_latency_seconds=latency), factors
    for factor, word in ((0.85, "15 % faster"), (1.15, "15 % slower")):
        yield f"products {word}", at, replace(factors, matmul=factors.matmul * factor)
    yield (
        "twice the slowdown of overlapping",
        at,
        replace(factors, compute_slowdown=2 * factors.compute_slowdown, comm_slowdown=2 * factors.comm_slowdown),
    )
    yield "twice the pipeline's messages", at, replace(factors, pipeline_comm=2 * factors.pipeline_comm)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a number of tokens takes: days, device-hours, energy, and dollars from lowest to highest price.

    Days and all that follows include `goodput_fraction`, the share of the time that a job trains between failures, with
    a checkpoint every `interval_seconds`.
    """

    tokens: float
    days: float
    device_hours: float
    kwh: float
    goodput_fraction: float
    interval_seconds: float
    dollars: tuple[float, float] | None
    price_date: str

    def __str__(self) -> str:
        words = (
            f"{format_count(self.tokens)} tokens: {self.days:,.3g} days, {format_count(self.device_hours)} "
            f"device-hours, {format_count(self.kwh)} kWh of the devices at their rated power"
        )
        if self.dollars is None:
            return f"{words}; no price is known: give --price{self._failures()}"
        low, high = (format_count(value) for value in self.dollars)
        amount = f"${low}" if low == high else f"${low} to ${high}"
        return f"{words}, {amount}" + (f" ({self.price_date})" if self.price_date else "") + self._failures()

    def _failures(self) -> str:
        return (
            f"; of the time {format_percent(self.goodput_fraction)} trains, with failures as expected and a checkpoint "
            f"every {format_seconds(self.interval_seconds)}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Reliability:
    """How often one device fails, in hours of it, and how long a checkpoint and a restart hold the job up."""

    failure_hours: float = DEVICE_FAILURE_HOURS
    checkpoint_seconds: float = CHECKPOINT_SECONDS
    restart_seconds: float = RESTART_SECONDS


def cost_of(
    at: Setting, prediction: Prediction, tokens: float, price: float | None, reliability: Reliability | None = None
) -> Cost:
    """What training on `tokens` takes at a plan's predicted speed; `price` is in dollars per device and hour.

    Raises: InputError where a time of `reliability` is not positive.
    """
    reliability = reliability or Reliability()
    expected = goodput(
        device_failure_seconds=reliability.failure_hours * SECONDS_PER_HOUR,
        num_devices=at.num_devices,
        checkpoint_seconds=reliability.checkpoint_seconds,
        restart_seconds=reliability.restart_seconds,
    )
    seconds = tokens / prediction.tokens_per_second / float(expected.goodput_fraction)
    hours = seconds / SECONDS_PER_HOUR * at.num_devices
    prices = (price, price) if price is not None else at.device.price_per_hour
    return Cost(
        tokens=tokens,
        days=seconds / SECONDS_PER_DAY,
        device_hours=hours,
        goodput_fraction=float(expected.goodput_fraction),
        interval_seconds=float(expected.interval_seconds),
        kwh=seconds * at.num_devices * at.device.power_watts / JOULES_PER_KWH,
        dollars=None if prices is None else (hours * prices[0], hours * prices[1]),
        price_date="" if price is not None else f"price of {at.device.price_date}" if at.device.price_date else "",
    )


def pareto(space: Space, simulate: bool, most: int = 6) -> list[tuple[Plan, float, float]]:
    """Plans that no other beats in both time and memory, fastest first: plan, step seconds, bytes."""
    best = space.best
    lowest: Array = np.minimum.accumulate(best.device_bytes)
    front = np.flatnonzero(np.concatenate([[len(best) > 0], best.device_bytes[1:] < lowest[:-1]]))
    result = []
    held = np.inf
    for row in front:
        plan = plan_of(space, best_places(space, int(row) + 1)[-1])
        # A step down of less than 3 % is no choice.
        if best.device_bytes[row] < 0.97 * held and (simulate or not why_not_run(space.at, plan)):
            held = float(best.device_bytes[row])
            result.append((plan, float(best.step_seconds[row]), held))
        if len(result) == most:
            break
    return result

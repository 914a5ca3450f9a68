"""From what the ranks noted to a measurement's parts: where the step's time went, on the rank that was busiest.

A pipeline stage waits for two reasons that look alike: the neighbour is not done (bubble), or its result is under way
(transfer and runtime). The ranks of one machine share a clock, so the neighbour's own notes tell which it was.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from executor.mesh import Coordinates
from executor.observe.events import BACKWARD, FORWARD, OPTIMIZER, PASSES, WEIGHT, Action, StepTrace
from planner.parts import PART_NAMES
from planner.plans import Plan
from planner.prediction import Span
from profiles.codecs.codec import ALL_REDUCE, DECODE, ENCODE, FSDP_STAGES, codec

# Names under which the report draws what the recorder notes; a decode lies within the wait for its all-reduce.
SPAN_NAMES = {
    FORWARD: "F",
    BACKWARD: "B",
    WEIGHT: "W",
    ENCODE: "codec",
    ALL_REDUCE: "all_reduce",
    OPTIMIZER: "optimizer",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RankTraces:
    """All timed steps of one rank; `exchange_seconds` of a step by part, None where they were not observed."""

    place: Coordinates
    steps: tuple[StepTrace, ...]
    exchange_seconds: dict[str, float] | None


def step_seconds(ranks: Sequence[RankTraces]) -> tuple[float, ...]:
    """Seconds of each timed step, slowest rank each."""
    return tuple(max(trace.seconds for trace in traces) for traces in _by_step(ranks))


def median_parts(plan: Plan, ranks: Sequence[RankTraces], on_cuda: bool) -> dict[str, float | None]:
    """Seconds by part, medians over the timed steps of the busiest rank; None where a part cannot be observed."""
    rows = [_parts_of_step(plan, ranks, step, on_cuda) for step in range(len(ranks[0].steps))]
    result: dict[str, float | None] = {}
    for part in PART_NAMES:
        # Parts that no plan which runs here has are zero.
        values = [row.get(part, 0.0) for row in rows]
        known = [value for value in values if value is not None]
        result[part] = statistics.median(known) if len(known) == len(values) else None
    return result


def median_spans(ranks: Sequence[RankTraces]) -> tuple[Span, ...]:
    """Actions of the step nearest to the median, of one replica's stages, in seconds from the step's start."""
    totals = step_seconds(ranks)
    middle = statistics.median(totals)
    index = min(range(len(totals)), key=lambda step: abs(totals[step] - middle))
    chosen = [rank for rank in ranks if _replica(rank.place) == (0, 0, 0)]
    origin = min(rank.steps[index].start_seconds for rank in chosen)
    return tuple(
        Span(
            # What is no stage's alone is drawn with the first of the rank's.
            stage=rank.place.pipeline if action.stage < 0 else action.stage,
            action=SPAN_NAMES[action.name],
            microbatch=action.microbatch,
            start_seconds=max(0.0, action.start_seconds - origin),
            stop_seconds=max(0.0, action.stop_seconds - origin),
        )
        for rank in sorted(chosen, key=lambda rank: rank.place.pipeline)
        for action in rank.steps[index].named(*SPAN_NAMES)
    )


def _replica(place: Coordinates) -> tuple[int, int, int]:
    """Which of the pipelines a rank belongs to."""
    return place.data, place.context, place.tensor


def _by_step(ranks: Sequence[RankTraces]) -> list[tuple[StepTrace, ...]]:
    return list(zip(*(rank.steps for rank in ranks), strict=True))


def _parts_of_step(plan: Plan, ranks: Sequence[RankTraces], step: int, on_cuda: bool) -> dict[str, float | None]:
    total = max(rank.steps[step].seconds for rank in ranks)
    busiest = max(ranks, key=lambda rank: _busy_seconds(rank.steps[step]))
    trace = busiest.steps[step]
    data_comm, codec_seconds = _gradient_seconds(trace)
    exchanges = _exchanges(plan, busiest)
    bubble, pipeline_comm = 0.0, 0.0
    if plan.pipeline_parallel > 1:
        neighbours = {
            rank.place.pipeline: rank.steps[step] for rank in ranks if _replica(rank.place) == _replica(busiest.place)
        }
        bubble, pipeline_comm = _waits(neighbours, busiest.place.pipeline)
        bubble += total - trace.seconds
    compute = _busy_seconds(trace) - data_comm - codec_seconds - sum(value or 0.0 for value in exchanges.values())
    optimizer = sum(action.seconds for action in trace.named(OPTIMIZER))
    seconds: dict[str, float | None] = {
        "compute": max(0.0, compute),
        # Recomputation runs inside the backward pass and is counted as compute.
        "recompute": 0.0 if plan.recompute == "none" else None,
        "bubble": bubble,
        **exchanges,
        "data_comm": exchanges["data_comm"] if plan.zero_stage in FSDP_STAGES else data_comm,
        "pipeline_comm": pipeline_comm,
        "codec": _codec_part(plan, codec_seconds, on_cuda),
        "optimizer": optimizer,
    }
    seconds["host"] = max(0.0, total - sum(value for value in seconds.values() if value is not None))
    return seconds


def _exchanges(plan: Plan, rank: RankTraces) -> dict[str, float | None]:
    """Seconds by part of what the plan's axes send within passes; None where that was not observed."""
    sends = {
        "tensor_comm": plan.tensor_parallel > 1,
        "context_comm": plan.context_parallel > 1,
        "expert_comm": plan.expert_parallel > 1,
        "data_comm": plan.zero_stage in FSDP_STAGES,
    }
    seen = rank.exchange_seconds
    return {part: 0.0 if not own else None if seen is None else seen[part] for part, own in sends.items()}


def _codec_part(plan: Plan, seconds: float, on_cuda: bool) -> float | None:
    # PowerSGD works in callbacks of the all-reduce: its time is in data_comm. On CUDA a codec runs beside the backward.
    return None if codec(plan.codec).rank or (on_cuda and codec(plan.codec).lossy) else seconds


def _busy_seconds(trace: StepTrace) -> float:
    return sum(action.seconds for action in trace.named(*PASSES))


def _gradient_seconds(trace: StepTrace) -> tuple[float, float]:
    """Exposed seconds of the gradients' all-reduce, and the seconds that a codec took from the compute thread.

    Model: exposed from the last bucket handed over until the backward pass returns, less the decoding in that time.
    """
    encoded = sum(action.seconds for action in trace.named(ENCODE))
    if trace.ready_seconds is None:
        return 0.0, encoded
    end = max(action.stop_seconds for action in trace.named(BACKWARD, WEIGHT))
    tail = [action for action in trace.named(DECODE) if action.start_seconds >= trace.ready_seconds]
    decoded = sum(min(action.stop_seconds, end) - min(action.start_seconds, end) for action in tail)
    return max(0.0, end - trace.ready_seconds - decoded), encoded + decoded


def _waits(ranks: dict[int, StepTrace], place: int) -> tuple[float, float]:
    """Seconds that a rank waited for a neighbouring stage to finish, and for the transfer and the runtime after that.

    Weight gradients wait for nobody.
    """
    own = ranks[place]
    done = {
        (_stage(action, index), action.name, action.microbatch): action.stop_seconds
        for index, trace in ranks.items()
        for action in trace.named(FORWARD, BACKWARD)
    }
    idle, transfer, reached = 0.0, 0.0, own.start_seconds
    for action in own.named(*PASSES):
        neighbour = _stage(action, place) + (-1 if action.name == FORWARD else 1)
        before = done.get((neighbour, action.name, action.microbatch))
        waited = max(0.0, action.start_seconds - reached)
        blocked = 0.0 if before is None else min(waited, max(0.0, before - reached))
        idle, transfer = idle + blocked, transfer + waited - blocked
        reached = action.stop_seconds
    following: list[Action] = own.named(OPTIMIZER)
    return idle, transfer + max(0.0, following[0].start_seconds - reached)


def _stage(action: Action, place: int) -> int:
    return place if action.stage < 0 else action.stage

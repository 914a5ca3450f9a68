"""From what the ranks noted to a measurement's parts: where the step's time went, on the rank that was busiest.

A pipeline stage waits for two reasons that look alike: the neighbour is not done (bubble), or its result is under way
(transfer and runtime). The ranks of one machine share a clock, so the neighbour's own notes tell which it was.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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
class StepParts:
    """Seconds of one step on one rank, as far as it can tell from its own notes and those of its pipeline.

    `busy` are those of its passes, with what exchanges gradients or codes them within; `idle` and `transfer` those that
    it waited for a neighbouring stage to finish, and for the result to come after that.
    """

    total: float
    busy: float
    data_comm: float
    codec: float
    optimizer: float
    idle: float
    transfer: float


def step_parts(plan: Plan, trace: StepTrace, pipeline: int, stages: dict[int, StepTrace]) -> StepParts:
    """The parts of a rank's step; `stages` are the same step's traces of its pipeline, itself included, by place."""
    data_comm, codec_seconds = _gradient_seconds(trace)
    idle, transfer = _waits(stages, pipeline) if plan.pipeline_parallel > 1 else (0.0, 0.0)
    return StepParts(
        total=trace.seconds,
        busy=sum(action.seconds for action in trace.named(*PASSES)),
        data_comm=data_comm,
        codec=codec_seconds,
        optimizer=sum(action.seconds for action in trace.named(OPTIMIZER)),
        idle=idle,
        transfer=transfer,
    )


def median_parts(
    plan: Plan,
    steps: Sequence[Sequence[StepParts]],
    exchanges: Sequence[dict[str, float] | None],
    on_cuda: bool,
) -> dict[str, float | None]:
    """Seconds by part, medians over steps of the busiest rank; None where a part cannot be observed.

    `steps` are the parts of each step by rank, `exchanges` the seconds of a step by part, of each rank, None where
    they were not observed.
    """
    rows = [_parts_of_step(plan, ranks, exchanges, on_cuda) for ranks in steps]
    result: dict[str, float | None] = {}
    for part in PART_NAMES:
        # Parts that no plan which runs here has are zero.
        values = [row.get(part, 0.0) for row in rows]
        known = [value for value in values if value is not None]
        result[part] = statistics.median(known) if len(known) == len(values) else None
    return result


def without_messages(seconds: Mapping[str, float | None]) -> dict[str, float | None]:
    """Parts of a runtime that sends messages within its passes and does not tell when: passes are not split there."""
    return dict(seconds) | dict.fromkeys(("compute", "data_comm", "pipeline_comm", "bubble"))


def middle_step(step_seconds: Sequence[float], stride: int) -> int:
    """The step nearest to the median, of every `stride`-th, counted among those."""
    middle = statistics.median(step_seconds)
    kept = step_seconds[::stride]
    return min(range(len(kept)), key=lambda step: abs(kept[step] - middle))


def spans(stages: dict[int, StepTrace]) -> tuple[Span, ...]:
    """Actions of a step of one pipeline, whose traces are given by place, in seconds from the step's start."""
    origin = min(trace.start_seconds for trace in stages.values())
    return tuple(
        Span(
            # What is no stage's alone is drawn with the first of the rank's.
            stage=_stage(action, place),
            action=SPAN_NAMES[action.name],
            microbatch=action.microbatch,
            start_seconds=max(0.0, action.start_seconds - origin),
            stop_seconds=max(0.0, action.stop_seconds - origin),
        )
        for place, trace in sorted(stages.items())
        for action in trace.named(*SPAN_NAMES)
    )


def _parts_of_step(
    plan: Plan, ranks: Sequence[StepParts], seen: Sequence[dict[str, float] | None], on_cuda: bool
) -> dict[str, float | None]:
    total = max(rank.total for rank in ranks)
    index = max(range(len(ranks)), key=lambda rank: ranks[rank].busy)
    busiest = ranks[index]
    exchanges = _exchanges(plan, seen[index])
    bubble = busiest.idle + (total - busiest.total if plan.pipeline_parallel > 1 else 0.0)
    compute = busiest.busy - busiest.data_comm - busiest.codec - sum(value or 0.0 for value in exchanges.values())
    seconds: dict[str, float | None] = {
        "compute": max(0.0, compute),
        # Recomputation runs inside the backward pass and is counted as compute.
        "recompute": 0.0 if plan.recompute == "none" else None,
        "bubble": bubble,
        **exchanges,
        "data_comm": exchanges["data_comm"] if plan.zero_stage in FSDP_STAGES else busiest.data_comm,
        "pipeline_comm": busiest.transfer,
        "codec": _codec_part(plan, busiest.codec, on_cuda),
        "optimizer": busiest.optimizer,
    }
    seconds["host"] = max(0.0, total - sum(value for value in seconds.values() if value is not None))
    return seconds


def _exchanges(plan: Plan, seen: dict[str, float] | None) -> dict[str, float | None]:
    """Seconds by part of what the plan's axes send within passes; None where that was not observed."""
    sends = {
        "tensor_comm": plan.tensor_parallel > 1,
        "context_comm": plan.context_parallel > 1,
        "expert_comm": plan.expert_parallel > 1,
        "data_comm": plan.zero_stage in FSDP_STAGES,
    }
    return {part: 0.0 if not own else None if seen is None else seen[part] for part, own in sends.items()}


def _codec_part(plan: Plan, seconds: float, on_cuda: bool) -> float | None:
    # PowerSGD works in callbacks of the all-reduce: its time is in data_comm. On CUDA a codec runs beside the backward.
    return None if codec(plan.codec).rank or (on_cuda and codec(plan.codec).lossy) else seconds


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

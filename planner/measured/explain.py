"""The table of the best layouts with a reason beside each, and the spans of their timelines."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from planner.legality import facts_of, refusal
from planner.measured.estimate import message_seconds
from planner.measured.search import Priced, Search
from planner.measured.table import schedule_names
from planner.plans import Plan
from planner.prediction import MAX_SPANS, Candidate, Prediction, Span
from planner.schedules.replay import replay
from planner.verdict import verdict
from profiles.errors import NoFeasiblePlanError
from profiles.units import format_bytes


def candidates(search: Search, top: int) -> tuple[tuple[Candidate, ...], int]:
    """The `top` best layouts, fastest first, each at its best micro-batch and recomputation; and the baseline's index.

    Plain data parallel is always among them where it is legal; plans that do not fit come last, with what they lack.
    Raises: NoFeasiblePlanError with counts by reason and the nearest miss.
    """
    ranked = _best_of_each_layout(search)
    if not ranked or not ranked[0][0].fits[ranked[0][1]]:
        raise NoFeasiblePlanError(_no_plan(search, ranked))
    baseline = next((i for i, (priced, row) in enumerate(ranked) if _is_baseline(priced, row)), -1)
    chosen = list(range(min(top, len(ranked))))
    if baseline >= top:
        chosen.append(baseline)
    best = predict(search, *ranked[0])
    facts = facts_of(search.model)
    result = []
    for rank, index in enumerate(chosen):
        priced, row = ranked[index]
        prediction = predict(search, priced, row)
        plan = plan_of(priced, row)
        result.append(
            Candidate(
                rank=index + 1,
                plan=plan,
                prediction=prediction,
                verdict=verdict(search.machine.memory_bytes, best, prediction, plan, is_best=rank == 0),
                executable=not refusal(plan, facts, search.choices.sequence_length),
            )
        )
    return tuple(result), (chosen.index(baseline) if baseline >= 0 else -1)


def plan_of(priced: Priced, row: int) -> Plan:
    """Row `row` as a Plan with its stage boundaries."""
    return priced.table.plan(row, priced.estimate.layouts[priced.estimate.layout_index[row]].bounds)


def predict(search: Search, priced: Priced, row: int) -> Prediction:
    """The full prediction of one row, with the timeline of its step."""
    estimate, choices, machine = priced.estimate, search.choices, search.machine
    step = float(estimate.step_seconds[row])
    width = float(estimate.error_fraction[row])
    peak_flops = machine.peak_flops_per_second[priced.table.precision]
    useful = search.model.model_flops(choices.global_batch_size, choices.sequence_length)
    tokens = choices.global_batch_size * choices.sequence_length
    return Prediction(
        step_seconds=step,
        low_seconds=step * max(0.0, 1 - width),
        high_seconds=step * (1 + width),
        seconds={part: float(values[row]) for part, values in estimate.seconds.items()},
        bytes_per_rank={kind: float(values[row]) for kind, values in estimate.bytes_per_rank.items()},
        peak_bytes=float(estimate.peak_bytes[row]),
        stage_peak_bytes=tuple(float(value) for value in estimate.stage_peak_bytes[row]),
        fits=bool(priced.fits[row]),
        tokens_per_second=tokens / step,
        mfu=useful / step / choices.num_devices / peak_flops,
        mfu_denominator=(
            f"{peak_flops / 1e12:.4g} TFLOP/s {priced.table.precision} per device ({machine.peak_source}); "
            "full attention, no recomputation counted"
        ),
        method="closed form",
        assumptions=(f"compute from {estimate.provenance}",),
        spans=_spans(priced, row),
    )


def _best_of_each_layout(search: Search) -> list[tuple[Priced, int]]:
    """One row per layout, fitting ones first, then by step time; equal ones by fewer axes."""
    best: dict[tuple[object, ...], tuple[tuple[float, ...], Priced, int]] = {}
    for priced in search.priced:
        for row in _preferred(priced):
            table = priced.table
            key = (
                table.precision,
                *(
                    int(column[row])
                    for column in (
                        table.data_parallel,
                        table.tensor_parallel,
                        table.pipeline_parallel,
                        table.schedule,
                        table.zero_stage,
                        table.codec,
                    )
                ),
            )
            if key not in best:
                missing = max(0.0, float(priced.estimate.peak_bytes[row]) - search.machine.memory_bytes)
                order = (missing, float(priced.estimate.step_seconds[row]))
                best[key] = (order, priced, int(row))
    return [(priced, row) for _, priced, row in sorted(best.values(), key=lambda item: item[0])]


def _preferred(priced: Priced) -> NDArray[np.intp]:
    """Rows in order of preference: those that fit by their time, then the others by the memory they lack."""
    step, peak = priced.estimate.step_seconds, priced.estimate.peak_bytes
    return np.lexsort((peak, np.where(priced.fits, step, peak), ~priced.fits))


def _is_baseline(priced: Priced, row: int) -> bool:
    table = priced.table
    return bool(
        table.tensor_parallel[row] == 1
        and table.pipeline_parallel[row] == 1
        and table.zero_stage[row] == 0
        and table.codec_names[table.codec[row]] == "none"
    )


def _no_plan(search: Search, ranked: list[tuple[Priced, int]]) -> str:
    counts = "; ".join(f"{count} x {reason}" for reason, count in search.rejected.items()) or "nothing to choose from"
    message = f"no plan of {search.model.name} on {search.choices.num_devices} x {search.machine.device_name}: {counts}"
    if not ranked:
        return message
    priced, row = min(ranked, key=lambda item: float(item[0].estimate.peak_bytes[item[1]]))
    over = float(priced.estimate.peak_bytes[row]) - search.machine.memory_bytes
    stage = int(np.argmax(priced.estimate.stage_peak_bytes[row]))
    return f"{message}; nearest: {plan_of(priced, row).id}, {format_bytes(over)} over on stage {stage}"


def _spans(priced: Priced, row: int) -> tuple[Span, ...]:
    """The timeline of one step: the pipeline replayed, or the micro-batches one after the other; then what follows."""
    table, shared = priced.table, priced.shared
    rows = np.array([row])
    stages = shared.stages(priced.estimate.layouts[priced.estimate.layout_index[row]], rows)
    count, num_stages = int(table.num_microbatches[row]), len(stages.forward)
    if 2 * count * num_stages > MAX_SPANS:
        return ()
    action = shared.machine.pipeline_action_seconds if num_stages > 1 else 0.0
    forward = [float(value) + action for value in stages.forward_busy[:, 0]]
    backward = [float(value) + action for value in stages.backward_busy[:, 0]]
    if num_stages > 1:
        message = float(message_seconds(shared.machine, table.take(rows), stages)[0])
        name = schedule_names()[table.schedule[row]]
        end, spans = replay(name, forward, backward, message, count)
    else:
        spans = _one_after_the_other(forward[0], backward[0], count)
        end = spans[-1].stop_seconds
    tail: list[Span] = []
    for action_name, part in (("codec", "codec"), ("all_reduce", "data_comm"), ("optimizer", "optimizer")):
        seconds = float(priced.estimate.seconds[part][row])
        if seconds > 0:
            tail += [
                Span(stage=stage, action=action_name, microbatch=-1, start_seconds=end, stop_seconds=end + seconds)
                for stage in range(num_stages)
            ]
            end += seconds
    return (*spans, *tail)


def _one_after_the_other(forward: float, backward: float, count: int) -> tuple[Span, ...]:
    spans = []
    for microbatch in range(count):
        start = microbatch * (forward + backward)
        middle, stop = start + forward, start + forward + backward
        spans.append(Span(stage=0, action="F", microbatch=microbatch, start_seconds=start, stop_seconds=middle))
        spans.append(Span(stage=0, action="B", microbatch=microbatch, start_seconds=middle, stop_seconds=stop))
    return tuple(spans)

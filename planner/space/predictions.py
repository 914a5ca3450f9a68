"""What plans of the space would take, part by part and kind by kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from planner.cost.adapted import adapter_count
from planner.cost.error_bands import band, half_width, remarks
from planner.cost.ingredients import ingredients_of
from planner.cost.job import Jobs
from planner.cost.measured.kernels import OnMachine
from planner.parts import PART_NAMES
from planner.prediction import KINDS, MAX_SPANS, Prediction, Span
from planner.published.learn import predict, total_seconds
from planner.schedules.replay import PipelineSeconds, replay_spans
from planner.schedules.steps import Shape
from planner.space.block import block, step_seconds, straggling
from planner.space.evidence import band_of, bases, compute_words, taught_words, words_of
from planner.space.explore import Memory, Place, Space
from planner.space.memory import memories
from planner.space.question import Setting
from planner.space.replay_best import Retimed, replay_offsets, retimed
from planner.space.to_plans import jobs_at
from profiles.models.transformer import Array

# What the laws of memory tell apart and predictions do not.
KIND_OF = {"logits": "activations", "workspace": "buffers"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a step must do, and the FLOPs per second that all devices could do at most: `peak_words` say which."""

    tokens: int
    flops: float
    peak_flops_per_second: float
    peak_words: str


def predictions(space: Space, places: Sequence[Place]) -> list[Prediction]:
    """What the plans at `places` would take: totals of the search, pipelines by replay, parts by the laws for jobs.

    Model: where some layers of a stage are recomputed, parts lie between those of none and of all; the memory of our
    own pipelines is followed step by step.
    """
    replayed = retimed(space, places)
    added = replay_offsets(space, places, replayed)
    jobs, rest = jobs_at(space, places), jobs_at(space, places, "none")
    share = np.array([space.choices(place.layout).share[place.recompute] for place in places])
    parts, plain = (predict(ingredients_of(which), space.learned) for which in (jobs, rest))
    seconds = {name: plain[name] + (values - plain[name]) * share for name, values in parts.items()}
    memory = memories(space, places)
    grounds = _grounds(space, jobs, seconds)
    work, result = work_of(space.at), []
    for index, place in enumerate(places):
        own = block(space.tables, np.array([place.layout]), space.choices(place.layout))
        closed = step_seconds(own)[0, place.micro_batch, place.schedule, place.recompute]
        step, timed = float(closed) + float(added[index]), replayed.get(place)
        low, high, assumptions = grounds[index]
        result.append(
            prediction_of(
                work,
                step,
                (step * low, step * high),
                _parts(parts_at(seconds, index), step, timed, straggling(space.tables)),
                memory[index],
                fits=memory[index].device <= space.at.memory_bytes,
                method="schedule replay" if timed else "closed form",
                assumptions=assumptions,
                spans=spans_of(timed.shape, timed.stages) if timed else (),
            )
        )
    return result


def _grounds(space: Space, jobs: Jobs, seconds: Mapping[str, Array]) -> list[tuple[float, float, tuple[str, ...]]]:
    """Of each job the ends of its band as multiples of the step, and what the prediction rests on in words."""
    if space.at.measured is not None:
        return [_measured(space.at, space.at.measured, jobs, seconds, row) for row in range(len(jobs))]
    total = total_seconds(seconds)
    low, high = band(total, half_width(jobs, seconds, space.learned))
    words = f"kernels, links and software ({space.at.stack.name}) learned from published runs"
    said = remarks(jobs, space.learned)
    ends = zip(low / total, high / total, said, strict=True)
    return [(float(least), float(most), (words, *more)) for least, most, more in ends]


def _measured(
    at: Setting, traced: OnMachine, jobs: Jobs, seconds: Mapping[str, Array], row: int
) -> tuple[float, float, tuple[str, ...]]:
    rests = bases(traced, jobs, seconds, row)
    taught = (taught_words(at.corrections),) if at.corrections else ()
    return *band_of(rests), (compute_words(traced), words_of(rests), *taught)


def _parts(parts: dict[str, float], step: float, timed: Retimed | None, straggling: float) -> dict[str, float]:
    """Seconds by part that add up to the step, those of a pipeline as replay has them."""
    if timed:
        parts["bubble"] = timed.silent_seconds - timed.busy_seconds
        parts["pipeline_comm"] = timed.makespan_seconds - timed.silent_seconds
        parts["stragglers"] = step * (1 - 1 / straggling)
    # Of mixed recomputation the parts' sum is off by what messages hide behind other passes.
    parts["compute"] += step - sum(parts.values())
    return parts


def work_of(at: Setting) -> Work:
    """The work of a setting's step, against the rate that was measured, or the data sheet's."""
    peak = peak_flops_per_second(at)
    source = at.measured.machine.peak_source if at.measured else f"data sheet of {at.device.title}, dense"
    return Work(
        tokens=at.global_batch_size * at.sequence_length,
        flops=model_flops(at),
        peak_flops_per_second=at.num_devices * peak,
        peak_words=f"{peak / 1e12:.4g} TFLOP/s {at.precision} per device ({source})",
    )


def prediction_of(
    work: Work,
    step_seconds: float,
    band_seconds: tuple[float, float],
    seconds: dict[str, float],
    memory: Memory,
    *,
    fits: bool,
    method: str,
    assumptions: tuple[str, ...],
    spans: tuple[Span, ...] = (),
) -> Prediction:
    """The prediction of a plan from its step, the ends of its band, its seconds by part, and what it holds."""
    kinds = dict.fromkeys(KINDS, 0.0)
    for name, value in memory.parts.items():
        kinds[KIND_OF.get(name, name)] += value
    kinds["outside"] = memory.outside
    kinds["slack"] += memory.device - sum(kinds.values())
    return Prediction(
        step_seconds=step_seconds,
        low_seconds=band_seconds[0],
        high_seconds=band_seconds[1],
        seconds=seconds,
        bytes_per_rank=kinds,
        peak_bytes=memory.device,
        stage_peak_bytes=memory.stages,
        fits=fits,
        tokens_per_second=work.tokens / step_seconds,
        mfu=work.flops / step_seconds / work.peak_flops_per_second,
        mfu_denominator=f"{work.peak_words}; full attention, no recomputation counted",
        method=method,
        spans=spans,
        assumptions=assumptions,
    )


def parts_at(columns: Mapping[str, Array], row: int) -> dict[str, float]:
    """Seconds by part of one job; 0 of parts that have no column."""
    return dict.fromkeys(PART_NAMES, 0.0) | {name: float(values[row]) for name, values in columns.items()}


def spans_of(shape: Shape, stages: PipelineSeconds) -> tuple[Span, ...]:
    """The timeline of a pipeline, where it is short enough to be looked at."""
    is_short = 2 * shape.num_stages * shape.num_microbatches <= MAX_SPANS
    return replay_spans(shape, stages)[1] if is_short else ()


def peak_flops_per_second(at: Setting) -> float:
    """The dense rate at the setting's precision: as measured, or the data sheet's."""
    return at.device.peak_tflops[at.precision] * 1e12


def model_flops(at: Setting) -> float:
    """FLOPs that one step must do: three times the forward pass, full attention, no recomputation.

    Model: weights that are frozen have no gradient, which spares them a third.
    """
    whole, model = at.model.transformer.flops_per_sample(at.sequence_length), at.model
    if model.adapters.freezes:
        spared = 2 * float(model.transformer.active_matmul_parameters[0])
        whole += at.sequence_length * (6 * adapter_count(model) - spared)
    return at.global_batch_size * whole

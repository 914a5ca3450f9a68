"""What rows of a table of runs would take in time and memory: the whole way from columns to a forecast per row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from planner.cost.error_bands import band, half_width, remarks
from planner.cost.factors import load_learned
from planner.cost.ingredients import ingredients_of
from planner.cost.job import Jobs
from planner.cost.memory.footprint import footprint
from planner.published.learn import predict, total_seconds
from planner.published.reading import read_jobs


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What one row would take, None where it is refused; `seconds` add up to the step, `bytes` to the allocated peak.

    The bands hold 90 % of runs. `reserved_bytes` is what the caching allocator holds, `device_bytes` what the driver
    shows, and `fits` whether the device has that much.
    """

    row_id: str
    refused: str | None = None
    assumptions: tuple[str, ...] = ()
    step_seconds: float | None = None
    low_seconds: float | None = None
    high_seconds: float | None = None
    allocated_bytes: float | None = None
    reserved_bytes: float | None = None
    device_bytes: float | None = None
    low_bytes: float | None = None
    high_bytes: float | None = None
    fits: bool | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    bytes: dict[str, float] = field(default_factory=dict)


def forecast(rows: Sequence[Mapping[str, str | None]]) -> list[Forecast]:
    """The forecast of every row, in order; a bad row is refused with a reason and stops no other."""
    reading = read_jobs(rows)
    result = [
        Forecast(row_id=row_id, refused=reading.refused.get(number), assumptions=reading.assumptions[number])
        for number, row_id in enumerate(reading.row_ids)
    ]
    if len(reading.jobs):
        for number, made in zip(reading.accepted, _forecasts(reading.jobs), strict=True):
            kept = result[number]
            result[number] = replace(made, row_id=kept.row_id, assumptions=(*kept.assumptions, *made.assumptions))
    return result


def _forecasts(jobs: Jobs) -> list[Forecast]:
    """One forecast per job, without its row's id and assumptions, but with what is said of the job itself."""
    learned = load_learned()
    parts = predict(ingredients_of(jobs), learned)
    seconds = total_seconds(parts)
    low, high = band(seconds, half_width(jobs, parts, learned))
    said = remarks(jobs, learned)
    memory = footprint(jobs)
    width = 1 + jobs.stack.read(lambda stack: stack.memory.band)
    return [
        Forecast(
            row_id="",
            assumptions=said[job],
            step_seconds=float(seconds[job]),
            low_seconds=float(low[job]),
            high_seconds=float(high[job]),
            allocated_bytes=float(memory.allocated_bytes[job]),
            reserved_bytes=float(memory.reserved_bytes[job]),
            device_bytes=float(memory.device_bytes[job]),
            low_bytes=float(memory.allocated_bytes[job] / width[job]),
            high_bytes=float(memory.reserved_bytes[job] * width[job]),
            fits=bool(memory.device_bytes[job] <= jobs.device_memory_bytes[job]),
            seconds={name: float(values[job]) for name, values in parts.items()},
            bytes={name: float(values[job]) for name, values in memory.parts.items()},
        )
        for job in range(len(jobs))
    ]

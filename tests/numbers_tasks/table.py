"""The table of what was predicted beside what was measured: printed, and as CSV."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from profiles.units import MIB

# Shares of the plans' errors that are told beside the median.
NINE_TENTHS = 0.9


@dataclass(frozen=True, kw_only=True)
class Row:
    """One plan of a model: what was predicted, with its parts and band, and measured.

    `kernels_seconds` are predicted where no layer was timed; `lost` is the share of the time that others took.
    """

    model: str
    kind: str
    parameters: int
    plan: str
    batch: int
    size: int
    predicted_seconds: float
    low_seconds: float
    high_seconds: float
    kernels_seconds: float
    seconds: float
    spread: float
    predicted_bytes: float
    peak_bytes: float
    lost: float
    parts: dict[str, float]
    measured_parts: dict[str, float | None]
    device: str
    software: str
    profiled: str

    @property
    def time_error(self) -> float:
        """Predicted over measured seconds, less 1."""
        return self.predicted_seconds / self.seconds - 1

    @property
    def kernels_error(self) -> float:
        """The same where no layer was timed."""
        return self.kernels_seconds / self.seconds - 1

    @property
    def memory_error(self) -> float:
        """Predicted over measured bytes, less 1."""
        return self.predicted_bytes / self.peak_bytes - 1


def show(rows: Sequence[Row]) -> None:
    """Print a line for each plan, and the errors of all plans of a kind."""
    for row in rows:
        print(
            f"{row.model:13s} {row.plan:6s} {row.predicted_seconds * 1e3:7.0f} ms predicted, {row.seconds * 1e3:7.0f} "
            f"±{row.spread:4.0%} measured {row.time_error:+7.1%} (kernels {row.kernels_error:+4.0%})   "
            f"{row.predicted_bytes / MIB:7.1f} MiB, {row.peak_bytes / MIB:7.1f} {row.memory_error:+6.1%}  {_parts(row)}"
        )
    for plan in dict.fromkeys(row.plan for row in rows):
        print(summary(plan, [row for row in rows if row.plan == plan]))


def summary(plan: str, rows: Sequence[Row]) -> str:
    """The errors of one plan over all models, in a line."""
    inside = statistics.mean(row.low_seconds <= row.seconds <= row.high_seconds for row in rows)
    return (
        f"{plan}, {len(rows)} models: step time {told([row.time_error for row in rows])}, {inside:.0%} in the band; "
        f"from kernels alone {told([row.kernels_error for row in rows])}; "
        f"peak memory {told([row.memory_error for row in rows])}"
    )


def told(errors: Sequence[float]) -> str:
    """Median, ninth decile and worst of some errors, signs aside."""
    ordered = sorted(map(abs, errors))
    ninth = ordered[min(len(ordered) - 1, int(NINE_TENTHS * len(ordered)))]
    return f"median {statistics.median(ordered):.1%}, p90 {ninth:.1%}, worst {ordered[-1]:.1%}"


def _parts(row: Row) -> str:
    """The parts of a step in milliseconds, predicted over measured."""
    pairs = {name: (value, row.measured_parts.get(name)) for name, value in row.parts.items()}
    return " ".join(
        f"{name} {value * 1e3:.0f}/{'-' if real is None else f'{real * 1e3:.0f}'}"
        for name, (value, real) in pairs.items()
    )


def write(path: Path, rows: Sequence[Row]) -> None:
    """Write the rows as CSV."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(
            ("model", "kind", "parameters", "plan", "batch", "size", "predicted_ms", "low_ms", "high_ms", "measured_ms",
             "spread", "time_error", "kernels_error", "predicted_mib", "measured_mib", "memory_error", "lost", "device",
             "software", "profiled")
        )  # fmt: skip
        for row in rows:
            milliseconds = (row.predicted_seconds, row.low_seconds, row.high_seconds, row.seconds)
            writer.writerow(
                (row.model, row.kind, row.parameters, row.plan, row.batch, row.size,
                 *(f"{1e3 * seconds:.1f}" for seconds in milliseconds), f"{row.spread:.3f}", f"{row.time_error:.4f}",
                 f"{row.kernels_error:.4f}",
                 f"{row.predicted_bytes / MIB:.2f}", f"{row.peak_bytes / MIB:.2f}", f"{row.memory_error:.4f}",
                 f"{row.lost:.3f}", row.device, row.software, row.profiled)
            )  # fmt: skip

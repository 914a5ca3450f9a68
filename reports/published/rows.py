"""Runs that others measured: a table read, every row predicted from its configuration, and paired with what it says."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from planner.classic.forecast import forecast_trainings
from planner.classic.training import CONFIGURATION as TRAINING_COLUMNS
from planner.classic.training import is_training
from planner.published.cells import EMPTY
from planner.published.columns import CONFIGURATION
from planner.published.predict import Forecast, forecast
from profiles.errors import InputError
from profiles.inputs.foreign import read_text
from profiles.units import GIB

Counter = Literal["allocated", "reserved", "device"]
DELIMITERS = (",", ";", "\t")
NO_FAMILY = "all"
LONGEST_CELL = 200
# Cells that hold a whole configuration.
LONGEST_CELLS = {"model_config": 20_000}
# Columns of what was measured, and what can be: a microsecond to thirty years, a KiB to a thousand TiB.
MEASURED = {"step_time_s": (1e-6, 1e9), "peak_mem_gib": (1e-6, 1e6)}
UNFIT = re.compile(r"c\b", re.IGNORECASE)
DEVICE_COUNTERS = ("nvidia-smi", "nvidia_smi", "smi", "nvml", "driver")
# "torch max_allocated; reserved 70.88 GiB": the second counter is an aside, not what the column holds.
ASIDE = re.compile(r"\b(?:allocated|reserved)\s*[:=]?\s*\d[\d.]*\s*(?:gib|gb|mib|mb)?", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of a table: its cells by column name in lower case, and why it cannot be read, if it cannot."""

    cells: dict[str, str]
    family: str
    damaged: str | None = None

    def text(self, column: str) -> str:
        """The cell, "" where it is empty."""
        value = self.cells.get(column, "").strip()
        return "" if value.lower() in EMPTY else value

    def measured(self, column: str) -> float | None:
        """The cell as a number that can have been measured, None where it holds none."""
        least, most = MEASURED[column]
        try:
            value = float(self.text(column))
        except ValueError:
            return None
        return value if least <= value <= most else None


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedRun:
    """One row: what was predicted and what was measured, None where unknown.

    `counter` is the one that `measured_bytes` comes from; `is_judged` and `is_memory_judged` say whether the
    measurement is fit to score a prediction.
    """

    row_id: str
    family: str
    forecast: Forecast
    measured_seconds: float | None
    measured_bytes: float | None
    counter: Counter
    is_out_of_memory: bool
    is_fit: bool
    is_memory_fit: bool

    @property
    def is_predicted(self) -> bool:
        """Whether there is a prediction."""
        return self.forecast.refused is None and is_number(self.forecast.step_seconds)

    @property
    def is_judged(self) -> bool:
        """Whether the step time counts in the summary."""
        return self.is_fit and self.error_fraction is not None

    @property
    def error_fraction(self) -> float | None:
        """Predicted / measured step time - 1."""
        return _error(self.forecast.step_seconds, self.measured_seconds) if self.is_predicted else None

    @property
    def is_inside_band(self) -> bool:
        """Whether the measured step time lies in the predicted band."""
        return _is_between(self.measured_seconds, self.forecast.low_seconds, self.forecast.high_seconds)

    @property
    def fits(self) -> bool | None:
        """Whether the device was predicted to have the memory, None where unknown."""
        return None if self.forecast.fits is None else bool(self.forecast.fits)

    @property
    def predicted_bytes(self) -> float | None:
        """The predicted peak by the measured value's counter."""
        made = self.forecast
        values = {"allocated": made.allocated_bytes, "reserved": made.reserved_bytes, "device": made.device_bytes}
        return values[self.counter]

    @property
    def memory_error_fraction(self) -> float | None:
        """Predicted / measured peak memory - 1."""
        return _error(self.predicted_bytes, self.measured_bytes) if self.is_predicted else None

    @property
    def is_memory_judged(self) -> bool:
        """Whether the memory counts in the summary."""
        return self.is_memory_fit and self.memory_error_fraction is not None


def is_number(value: float | None) -> bool:
    """Whether a value is known and finite."""
    return value is not None and math.isfinite(value)


def _error(predicted: float | None, measured: float | None) -> float | None:
    if predicted is None or measured is None or not math.isfinite(predicted):
        return None
    return predicted / measured - 1


def _is_between(value: float | None, low: float | None, high: float | None) -> bool:
    return value is not None and low is not None and high is not None and low <= value <= high


def read_tables(paths: Sequence[Path], fill: Mapping[str, str] | None = None) -> list[Row]:
    """The rows of all tables; empty columns named in `fill` take its values.

    Raises: InputError where a file cannot be read, is no table or has no row.
    """
    rows = []
    for path in paths:
        own = path.stem if len(paths) > 1 else NO_FAMILY
        rows += [_filled(row, fill or {}) for row in _read_table(path, own)]
    return rows


def _filled(row: Row, fill: Mapping[str, str]) -> Row:
    missing = {name: value for name, value in fill.items() if not row.text(name)}
    return Row(cells=row.cells | missing, family=row.family, damaged=row.damaged)


def _read_table(path: Path, family: str) -> list[Row]:
    text = read_text(path, "give a table of runs, as CSV in UTF-8")
    if "\0" in text:
        raise InputError(f"{path} is not a table of comma-separated values: it has zero bytes")
    first = next((line for line in text.splitlines() if line.strip()), "")
    if not first:
        raise InputError(f"{path} is empty; it needs a line that names the columns, and a line per run")
    try:
        delimiter = max(DELIMITERS, key=lambda mark: len(_known(next(csv.reader([first], delimiter=mark), []))))
        lines = [line for line in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if any(line)]
    except csv.Error as error:
        raise InputError(f"{path} is not a table of comma-separated values: {error}") from None
    header = [name.strip().lower() for name in lines[0]]
    if not _known(header):
        raise InputError(
            f"{path} has no header: its first line names none of the columns that describe a run, such as "
            "num_layers, hidden_size, gpu_type, num_gpus"
        )
    twice = sorted({name for name in header if name and header.count(name) > 1})
    if twice:
        raise InputError(f"{path} names the column {twice[0]} twice; give each column once")
    rows = [_row(header, line, family) for line in lines[1:] if any(cell.strip() for cell in line)]
    if not rows:
        raise InputError(f"{path} has a header, but no run; give one run per line")
    return rows


def _known(names: Iterable[str]) -> set[str]:
    return {name.strip().lower() for name in names} & set(CONFIGURATION)


def _row(header: Sequence[str], line: Sequence[str], family: str) -> Row:
    cells = {
        name: _printable(cell, LONGEST_CELLS.get(name, LONGEST_CELL))
        for name, cell in zip(header, line, strict=False)
        if name
    }
    damaged = None
    if any(cell.strip() for cell in line[len(header) :]):
        damaged = f"the row has {len(line)} cells, but the header names {len(header)} columns"
    own = cells.get("family", "")
    row = Row(cells=cells, family=family if own.lower() in EMPTY else own, damaged=damaged)
    return row if damaged else replace(row, damaged=_wrong_measurement(row))


def _wrong_measurement(row: Row) -> str | None:
    """What a row says was measured and cannot have been, in words; None where all could."""
    for column, (least, most) in MEASURED.items():
        if row.text(column) and row.measured(column) is None:
            return f"{column} is '{row.text(column)}', not a number from {least:g} to {most:g}"
    return None


def _printable(cell: str, longest: int) -> str:
    """The cell on one line, of a length that fits a message, without what a terminal would obey."""
    return "".join(mark if mark.isprintable() else " " for mark in cell[:longest]).strip()


def predict(
    rows: Sequence[Row], predictor: Callable[[list[dict[str, str]]], list[Forecast]] | None = None
) -> list[PublishedRun]:
    """Every row predicted from its configuration columns, the only ones that are handed on, and paired."""
    readable = [row for row in rows if row.damaged is None]
    names = [row.text("row_id") or f"row {number}" for number, row in enumerate(rows, start=1)]
    made = iter(predictor(_handed(readable, CONFIGURATION)) if predictor else forecast_rows(readable))
    return [
        _pair(row, name, next(made) if row.damaged is None else _unread(name, row.damaged))
        for row, name in zip(rows, names, strict=True)
    ]


def _handed(rows: Sequence[Row], columns: Iterable[str]) -> list[dict[str, str]]:
    """The cells of rows that a prediction may read."""
    return [{name: row.cells[name] for name in columns if name in row.cells} for row in rows]


def forecast_rows(rows: Sequence[Row]) -> list[Forecast]:
    """The forecast of every row: language models by their layers, trainings of any other network by its operators."""
    others = [row for row in rows if is_training(row.cells)]
    known = [row for row in rows if not is_training(row.cells)]
    trained = iter(forecast_trainings(_handed(others, TRAINING_COLUMNS)))
    made = iter(forecast(_handed(known, CONFIGURATION)) if known else [])
    return [next(trained if is_training(row.cells) else made) for row in rows]


def _unread(name: str, reason: str) -> Forecast:
    return Forecast(
        row_id=name,
        refused=reason,
        assumptions=(),
        step_seconds=None,
        low_seconds=None,
        high_seconds=None,
        allocated_bytes=None,
        reserved_bytes=None,
        device_bytes=None,
        low_bytes=None,
        high_bytes=None,
        fits=None,
        seconds={},
        bytes={},
    )


def _pair(row: Row, name: str, made: Forecast) -> PublishedRun:
    peak = row.measured("peak_mem_gib")
    return PublishedRun(
        row_id=name,
        family=row.family,
        forecast=made,
        measured_seconds=row.measured("step_time_s"),
        measured_bytes=None if peak is None else peak * GIB,
        counter=counter_of(row.text("peak_mem_kind")),
        is_out_of_memory=row.text("oom").lower() in ("yes", "true", "1", "y"),
        is_fit=not UNFIT.match(row.text("quality")),
        is_memory_fit=not UNFIT.match(row.text("quality_mem")),
    )


def counter_of(kind: str) -> Counter:
    """The counter that a text about a memory figure names; the middle one, reserved, where it names none."""
    text = ASIDE.sub(" ", kind).lower()
    places = {
        "allocated": text.find("allocated"),
        "reserved": text.find("reserved"),
        "device": max(text.find(word) for word in DEVICE_COUNTERS),
    }
    named: list[Counter] = [name for name in ("allocated", "reserved", "device") if places[name] >= 0]
    return min(named, key=lambda name: places[name], default="reserved")

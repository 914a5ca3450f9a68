"""The page about compressed models: is it worth it, and how right were the predictions; tables alone."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from executor.compress.results import CompressionFile, CompressionResult
from executor.compress.verdict import worth
from planner.compression.recipes import CompressionChoice
from profiles.pages.html import Table
from profiles.pages.tables_page import tables_page
from profiles.units import format_bytes, format_count, format_percent, format_seconds

WORTH = (
    "compression",
    "stored",
    "of the whole",
    "latency",
    "of the whole",
    "loss",
    "uncompressed",
    "right",
    "training memory",
)
RUNTIMES = ("compression", "runtime", "precision", "latency", "calls", "with copies", "loss", "right")
RIGHT = (
    "compression",
    "parameters",
    "predicted",
    "bytes",
    "predicted",
    "latency",
    "off",
    "step",
    "off",
    "quality risk",
)


def render(files: Sequence[CompressionFile]) -> str:
    """The whole page as HTML text."""
    return tables_page(
        kicker="Is it worth it?",
        title=" and ".join(dict.fromkeys(file.model_name for file in files)),
        verdict=[worth(file, result) for file in files for result in file.results[1:]],
        notes=[note for file in files for note in file.notes],
        tables=[pair for file in files for pair in _tables(file)],
    )


def _tables(file: CompressionFile) -> list[tuple[str, Table]]:
    tables = [("Size, speed, quality and memory", _worth(file)), ("How right it was", _right(file))]
    if any(own.runtimes for own in file.results):
        tables.append(("In other runtimes", _runtimes(file)))
    return tables


def _runtimes(file: CompressionFile) -> Table:
    rows = [
        (
            own.recipe.name,
            " ".join(filter(None, (one.runtime, one.version))),
            one.precision,
            f"{format_seconds(one.latency_seconds)} ±{one.spread_fraction / 2:.0%}",
            str(one.num_timed),
            "" if one.with_copies_seconds is None else format_seconds(one.with_copies_seconds),
            "" if one.loss is None else f"{one.loss:.3f}",
            "" if one.right_fraction is None else format_percent(one.right_fraction),
        )
        for own in file.results
        for one in own.runtimes
    ]
    return Table(
        caption=(
            "One sample of the exported model, on one CPU thread, in turns with PyTorch on its device. For TensorRT: "
            "the median of the device's own times, and the times with copies to the device and back. Loss is on "
            "held-out samples."
        ),
        header=RUNTIMES,
        rows=tuple(rows),
    )


def _worth(file: CompressionFile) -> Table:
    whole = file.results[0]
    return Table(
        caption=(
            f"{file.model_name} on {file.environment.num_devices} x {file.environment.device}, {file.plan}: "
            f"{file.first_steps} steps of {file.global_batch_size} x {file.sequence_length} tokens of "
            f"{file.environment.data} first, then compressed and, if the recipe does so, trained further. Latency is "
            'that of one sample on every device at once. Loss is on held-out text; "uncompressed" is that of the '
            'unchanged model after further training of equal time. "Right" is the share of held-out '
            "predictions that are right. Training memory is predicted, for the fullest rank."
        ),
        header=WORTH,
        rows=tuple(_worth_row(whole, own, choice) for choice, own in zip(file.choices, file.results, strict=True)),
    )


def _worth_row(whole: CompressionResult, own: CompressionResult, choice: CompressionChoice) -> tuple[str, ...]:
    return (
        own.recipe.name,
        format_bytes(own.stored_bytes),
        format_percent(own.stored_bytes / whole.stored_bytes),
        f"{format_seconds(own.latency_seconds)} ±{own.latency_spread_fraction / 2:.0%}",
        format_percent(own.latency_seconds / whole.latency_seconds),
        f"{own.loss:.3f}",
        f"{own.equal_time_loss:.3f}",
        format_percent(own.right_fraction),
        format_bytes(choice.peak_bytes),
    )


def _right(file: CompressionFile) -> Table:
    rows = []
    for choice, own in zip(file.choices, file.results, strict=True):
        step = statistics.median(own.step_seconds) if own.step_seconds else None
        rows.append(
            (
                own.recipe.name,
                format_count(own.num_parameters),
                _exactly(choice.num_parameters, own.num_parameters),
                format_bytes(own.stored_bytes),
                _exactly(choice.stored_bytes, own.stored_bytes),
                format_seconds(own.latency_seconds),
                _off(choice.latency_seconds, own.latency_seconds),
                "" if step is None else format_seconds(step),
                "" if step is None else _off(choice.step_seconds, step),
                choice.risk,
            )
        )
    return Table(
        caption="Predicted before the run, against what was counted and timed; step is one training step.",
        header=RIGHT,
        rows=tuple(rows),
    )


def _exactly(predicted: float, counted: float) -> str:
    return "exact" if predicted == counted else _off(predicted, counted)


def _off(predicted: float | None, measured: float) -> str:
    return "not predicted" if predicted is None else format_percent(predicted / measured - 1, signed=True)

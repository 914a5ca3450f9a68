"""Every plan of a space as a file: CSV, or Parquet where pyarrow is installed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import IO, Any

import numpy as np

from planner.space.explore import Space, explore
from planner.space.layouts import Ints, Layouts, Options, legal_layouts
from planner.space.question import Setting
from planner.space.schedule_choices import METHODS, Variants
from planner.terminal.progress import OnNote, OnProgress, silent, unheard
from profiles.errors import EnvironmentFailure, InputError
from profiles.files import replacing
from profiles.models.transformer import Array
from profiles.units import format_bytes

Columns = dict[str, Any]


def write_all(
    at: Setting,
    options: Options,
    path: Path,
    on_progress: OnProgress = silent,
    on_note: OnNote = unheard,
) -> Space:
    """Search, and write every legal plan with its seconds, bytes and whether it fits. Half a file is never left.

    Layouts whose states alone do not fit have no seconds and no row, and plans have none that offload more than the
    host has room for. How large the file will be is told by its first
    block, before the others are written.
    Raises: InputError for another ending than .csv or .parquet; EnvironmentFailure where pyarrow is missing, or the
    disk has no room for all of it.
    """
    if path.suffix not in (".csv", ".parquet"):
        raise InputError(f"--all {path}: the name must end in .csv or .parquet")
    layouts, _ = legal_layouts(at, options)
    is_told = False
    with replacing(path, binary=True) as stream:
        write, close = (_csv if path.suffix == ".csv" else _parquet)(stream)

        def seen(num_legal: int, chosen: Ints, choices: Variants, seconds: Array, held: Array) -> None:
            nonlocal is_told
            columns = _columns(at, layouts, chosen, choices, seconds, held)
            write(columns)
            # A pipe takes what comes, and has no size.
            if not is_told and len(columns["fits"]) and stream.seekable():
                written = stream.tell()
                needed = written / len(columns["fits"]) * num_legal
                on_note(f"{num_legal:,} plans go to {path}, about {format_bytes(needed)}")
                _check_room(path, needed, written)
                is_told = True

        space = explore(at, options, seen=seen, on_progress=on_progress)
        close()
    return space


def _check_room(path: Path, needed: float, written: int) -> None:
    """Check that a file of which some bytes are written already has room for the rest.

    Raises: EnvironmentFailure.
    """
    free = shutil.disk_usage(path.parent).free + written
    if needed > free:
        raise EnvironmentFailure(
            f"--all {path}: about {format_bytes(needed)} are needed and {format_bytes(free)} are free there; nothing "
            "was written"
        )


def _columns(at: Setting, layouts: Layouts, chosen: Ints, choices: Variants, seconds: Array, held: Array) -> Columns:
    layout, micro, schedule, recompute = np.nonzero(np.isfinite(held))
    columns: Columns = {field.name: getattr(layouts, field.name)[chosen[layout]] for field in fields(Layouts)}
    place = (layout, micro, schedule, recompute)
    return columns | {
        "micro_batch_size": choices.micro_batch[micro].astype(int),
        "num_microbatches": choices.count[micro].astype(int),
        "schedule": np.array(choices.schedules)[schedule],
        "virtual_stages": choices.chunks[schedule].astype(int),
        "recompute": np.array(METHODS)[choices.method[recompute]],
        "recomputed_layers": choices.layers[recompute].astype(int),
        "step_seconds": seconds[place],
        "device_bytes": held[place].astype(np.int64),
        "fits": held[place] <= at.memory_bytes,
    }


def _csv(stream: IO[bytes]) -> tuple[Callable[[Columns], None], Callable[[], None]]:
    import pandas

    headers = iter([True])

    def write(columns: Columns) -> None:
        pandas.DataFrame(columns).to_csv(stream, index=False, header=next(headers, False))

    return write, stream.flush


def _parquet(stream: IO[bytes]) -> tuple[Callable[[Columns], None], Callable[[], None]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise EnvironmentFailure("--all FILE.parquet needs pyarrow: pip install pyarrow, or write a .csv") from None
    writer: list[Any] = []

    def write(columns: Columns) -> None:
        table = pyarrow.table(columns)
        if not writer:
            writer.append(pyarrow.parquet.ParquetWriter(stream, table.schema))
        writer[0].write_table(table)

    return write, lambda: writer[0].close() if writer else None

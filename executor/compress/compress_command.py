"""`execute --compress`: runs the recipes of a plan file, and shows what came of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from executor.compress.job import Extras, compression_file, prepare_compression
from executor.compress.show import show
from profiles.artifacts import dump
from profiles.files import write_text
from profiles.ranks.forked import rank_server
from profiles.ranks.launcher import launch
from profiles.terminal import console

if TYPE_CHECKING:
    from rich.console import Console

    from executor.run.prepare import RunOptions


def compress_models(
    plan: Path,
    extras: Extras,
    options: RunOptions,
    out: Console,
    json_output: bool,
    output: Path | None,
) -> None:
    """Run the recipes of the plan file; write and show what came of them."""
    job = prepare_compression(plan, extras, options)
    for note in job.notes:
        out.print(f"note: {note}")
    with rank_server(job.order.device_kind) as server, console.progress(out, f"{len(job.choices)} models") as advance:
        fields = launch(
            "executor.compress.session:run_compression",
            job.payload,
            job.file.num_devices,
            job.order.device_kind,
            on_report=lambda report: advance(report.fraction, report.text),
            server=server,
        )
    result = compression_file(job, fields)
    text = dump("compression", result)
    if output is not None:
        write_text(output, text)
    if json_output:
        console.print_json(text)
    show(result, out, output)

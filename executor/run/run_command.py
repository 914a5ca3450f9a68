"""`execute`: the chosen plans run, or a training by the first; what came of it written and shown. Torch-free."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from executor.run.follow import Follower, saying_what_is_kept
from executor.run.run_folder import KeptRun
from executor.run.show import show
from executor.run.sinks import opened
from profiles.artifacts import dump
from profiles.errors import ToleranceError
from profiles.files import write_text
from profiles.ranks.environment import is_main_process
from profiles.terminal import console

if TYPE_CHECKING:
    from rich.console import Console

    from executor.run.prepare import Job


def run(job: Job, out: Console, verbose: bool, json_output: bool, output: Path | None, runs: Path | None) -> None:
    """Run the job's plans; write and show what came of them.

    Raises: whatever ends the run; ToleranceError where its losses are not those of plain training.
    """
    from executor.run.run_file import run_file
    from profiles.ranks.forked import rank_server
    from profiles.ranks.launcher import launch

    if is_main_process():
        for note in job.notes:
            out.print(f"note: {note}")
    kept = KeptRun(runs, job.started, job.file.model_name, job.file.num_devices) if runs is not None else None
    saved = job.order.checkpoints.folder if job.order.checkpoints else None
    with ExitStack() as stack:
        # First: what follows may start threads, beside which nothing is forked.
        server = stack.enter_context(rank_server(job.order.device_kind))
        stack.enter_context(saying_what_is_kept(saved, kept))
        sinks = stack.enter_context(opened(job.sinks, job.file.model_name, job.settings))
        advance = stack.enter_context(console.progress(out, f"{job.num_runs} plans"))
        follow = Follower(out, advance, verbose, kept, sinks)
        fields = launch(
            job.entry,
            job.payload,
            job.file.num_devices,
            job.order.device_kind,
            on_report=follow,
            max_restarts=job.max_restarts,
            server=server,
        )
    if fields is None:
        # One rank of a job that torchrun or Slurm started; rank 0 writes.
        return
    result = run_file(replace(job, notes=(*job.notes, *follow.notices)), fields)
    text = dump("run", result)
    if output is not None:
        write_text(output, text)
    if kept is not None:
        out.print(f"kept as {kept.write(text)}")
    if json_output:
        console.print_json(text)
    # The job's own notes were said before the ranks started.
    show(replace(result, notes=tuple(follow.notices)), job.file.num_devices, out, output)
    for failure in (follow.failure, sinks.failure):
        if failure is not None:
            raise failure
    failed = [run for run in result.runs if run.measurement.loss_check.status == "failed"]
    if failed:
        raise ToleranceError(f"plan {failed[0].plan.id}: {failed[0].measurement.loss_check.reason}")

"""`execute --check`: the checks of the chosen plans, and nothing else. Torch-free."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from executor.run.measurement import LossCheck
from profiles import artifacts
from profiles.errors import ToleranceError
from profiles.ranks.environment import is_main_process
from profiles.terminal import console

if TYPE_CHECKING:
    from rich.console import Console

    from executor.run.prepare import Job


def run_checks(job: Job, out: Console, json_output: bool) -> None:
    """Check the job's plans, and show what came of it.

    Raises: ToleranceError where one of them does not train as a plain loop does.
    """
    from profiles.ranks.forked import rank_server
    from profiles.ranks.launcher import launch

    for note in job.notes if is_main_process() else ():
        out.print(f"note: {note}")
    payload = replace(job, order=replace(job.order, only_checks=True)).payload
    number = len(job.order.chosen)
    with rank_server(job.order.device_kind) as server, console.progress(out, f"{number} plans") as advance:
        fields = launch(
            "executor.run.session:run_order",
            payload,
            job.file.num_devices,
            job.order.device_kind,
            on_report=lambda report: advance(report.fraction, report.text),
            server=server,
        )
    if fields is None:
        # One rank of a job that torchrun or Slurm started; rank 0 tells.
        return
    plans = [job.file.candidates[index].plan.id for index in job.order.chosen]
    checks = [artifacts.validate(one, LossCheck, "the check") for one in fields]
    if json_output:
        said: list[dict[str, Any]] = [{"plan": plan, **asdict(one)} for plan, one in zip(plans, checks, strict=True)]
        console.print_json(json.dumps(said, indent=2))
    _show(plans, checks, out)
    for plan, check in zip(plans, checks, strict=True):
        if check.status == "failed":
            raise ToleranceError(f"plan {plan}: {check.reason}")


def _show(plans: list[str], checks: list[LossCheck], out: Console) -> None:
    from profiles.terminal.tables import plain_table, print_table

    table = plain_table()
    for name in ("plan", "check", "what was found"):
        table.add_column(name)
    for plan, check in zip(plans, checks, strict=True):
        table.add_row(plan, check.status, check.reason)
    print_table(table, out, named_by=0)

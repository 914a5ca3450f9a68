"""`plan` of several counts or kinds of devices: compares, shows, and writes all of it or the plan of one row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from profiles.files import write_text
from profiles.terminal import console

if TYPE_CHECKING:
    from rich.console import Console

    from planner.prediction import PlanFile
    from planner.purchase.answer import PurchaseAnswer
    from planner.request import Request
    from planner.space.beside import Questions
    from planner.terminal.progress import OnProgress


def is_purchase(counts: Sequence[int], device: str | None, cluster: str | None, source: Path | None) -> bool:
    """Whether several counts or kinds of devices are asked about, or `--from` names a file that tells of them."""
    from planner.purchase.answer import ARTIFACT
    from planner.purchase.questions import is_several
    from profiles.artifacts import artifact_kind

    if source is not None:
        return not counts and artifact_kind(source) == ARTIFACT
    return len(counts) > 1 or is_several(device, cluster)


def read_or_compare(
    request: Request, counts: tuple[int, ...], questions: Questions, source: Path | None, on_progress: OnProgress
) -> PurchaseAnswer:
    """The answer: of each of `counts` in each place that a request names, or that of a file.

    Raises: InputError for what cannot be; NoFeasiblePlanError where nothing fits anywhere.
    """
    from planner.purchase.answer import read_purchase
    from planner.purchase.compare import compare
    from planner.purchase.questions import Purchase, places_of
    from planner.purchase.terms import usual_terms

    if source is not None:
        return read_purchase(source)
    purchase = Purchase(
        request=replace(request, device=None, cluster=None),
        num_devices=counts,
        places=places_of(request.device, request.cluster),
        terms=questions.terms or usual_terms(),
        tokens=questions.tokens,
        samples=questions.samples,
    )
    return compare(purchase, on_progress)


def put_out(
    answer: PurchaseAnswer,
    out: Console,
    rank: int | None,
    export: str | None,
    output: Path | None,
    json_output: bool,
    page: Path | None,
    *,
    shows: bool = True,
) -> None:
    """Show the answer (`shows`) and write it, or with a `rank` the plan of that row, for `execute` or for `export`.

    `page` is of the whole answer.

    Raises: InputError for a row that is not there, or has no plan; PlanError for one that the software cannot run.
    """
    from planner.terminal.handover import write_export
    from planner.terminal.show import next_step
    from planner.terminal.show_purchase import show_purchase
    from profiles.artifacts import dump

    is_whole = rank is None and export is None
    file = None if is_whole else answer.plan_of(rank or 1)
    text = dump("purchase", answer) if json_output or is_whole else ""
    if output is not None and export is None:
        write_text(output, text if file is None else dump("plan", file))
    if json_output:
        console.print_json(text)
    if page is not None:
        # Plotly is loaded only where something is drawn.
        from planner.pages.purchase.page import write_page

        write_page(page, answer)
    if shows:
        show_purchase(answer, out, output if is_whole else None)
    if page is not None:
        out.print(f"page: {page}")
    if file is None or output is None:
        return
    if export is not None:
        write_export(export, _with_bill(answer, rank or 1, file), 1, output, out)
    else:
        out.print(f"plan of row {rank} written to {output}; {next_step(file, output)}")


def _with_bill(answer: PurchaseAnswer, rank: int, file: PlanFile) -> PlanFile:
    """A row's plan file with what was asked to be trained, from which its steps follow."""
    return replace(file, answers=replace(file.answers, cost=answer.row(rank).cost)) if answer.is_budget else file

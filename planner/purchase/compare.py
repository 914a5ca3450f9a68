"""Several counts and kinds of devices side by side: each question asked once, marked by money and by time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from planner.ask import answer_to
from planner.prediction import PlanFile
from planner.purchase.answer import BILLION, Assumption, PurchaseAnswer, Row
from planner.purchase.bill import cost_of, price_of
from planner.purchase.questions import Purchase, questions_of
from planner.purchase.terms import (
    CHECKPOINT_SECONDS,
    DEVICE_FAILURE_HOURS,
    RESTART_SECONDS,
    SPOT_NODE_HOURS,
    Terms,
)
from planner.request import Request
from planner.space.question import Setting
from planner.terminal.progress import OnProgress, pieces, silent
from profiles.errors import InputError, NoFeasiblePlanError, TrainwrightError, UnknownNameError
from profiles.machines.power import load_power
from profiles.machines.stacks import THIS_PROGRAM
from profiles.units import format_percent, three_digits

# Samples that bills are of where nobody says how many, of models that count no tokens.
COMPARED_SAMPLES = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """A question with its answer, or the reason why there is none."""

    request: Request
    file: PlanFile | None = None
    at: Setting | None = None
    error: TrainwrightError | None = None


def compare(purchase: Purchase, on_progress: OnProgress = silent) -> PurchaseAnswer:
    """The answer: a row for each count in each place, and for spot devices where they are asked about.

    Raises: InputError for what cannot be; NoFeasiblePlanError where nothing fits anywhere.
    """
    requests, notes = questions_of(purchase)
    asked = [
        _ask(request, piece)
        for request, piece in zip(requests, pieces(on_progress, [1.0] * len(requests)), strict=True)
    ]
    first = next((one for one in asked if one.file is not None), None)
    if first is None or first.file is None or first.at is None:
        raise _why_none(asked)
    tokens = _tokens(purchase, first.at)
    rows = [row for index, one in enumerate(asked) for row in _rows(one, index, tokens, purchase.terms)]
    # Files are numbered among those that there are.
    files = [one.file for one in asked]
    number = {index: sum(file is not None for file in files[:index]) for index in range(len(files))}
    rows = [replace(row, plan_file=number[row.plan_file]) if row.plan else row for row in rows]
    rows = _sorted(_with_efficiency(rows), len(purchase.num_devices) > 1)
    plans = tuple(file for file in files if file is not None)
    file = first.file
    return PurchaseAnswer(
        model_name=file.model_name,
        num_parameters=file.num_parameters,
        sequence_length=file.sequence_length,
        size_unit=file.size_unit,
        stack=file.stack,
        global_batch_sizes=requests[0].global_batches,
        tokens=tokens,
        is_budget=purchase.tokens is not None or purchase.samples is not None,
        samples=purchase.samples or 0.0,
        deadline_days=purchase.terms.deadline_days,
        deadline=purchase.terms.deadline,
        rows=tuple(rows),
        **marks(rows),
        assumptions=tuple(_assumptions(purchase.terms)),
        notes=(*notes, *_common(plans), *_left_free(purchase.request, plans), *_software(file)),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        plans=plans,
    )


def _ask(request: Request, on_progress: OnProgress) -> _Asked:
    """The question's answer; what does not fit, or cannot be there, is a reason and no error."""
    title = f"{request.num_devices} x {request.cluster or request.device or 'devices'}"
    on_progress(0.0, title)
    try:
        found = answer_to(request, on_progress=lambda fraction, words: on_progress(fraction, f"{title}: {words}"))
    except UnknownNameError:
        raise
    except (InputError, NoFeasiblePlanError) as error:
        return _Asked(request=request, error=error)
    # The space of plans is large, and done with.
    return _Asked(request=request, file=found.file, at=found.space.at)


def _why_none(asked: Sequence[_Asked]) -> TrainwrightError:
    """The error of a purchase without any answer."""
    errors = [one.error for one in asked if one.error is not None]
    misfits = [one for one in asked if isinstance(one.error, NoFeasiblePlanError)]
    if not misfits or len(errors) == 1:
        return errors[0]
    most = max(misfits, key=lambda one: one.request.num_devices)
    return NoFeasiblePlanError(f"no row of {len(errors)} has a plan that fits; for the most devices: {most.error}")


def _tokens(purchase: Purchase, at: Setting) -> float:
    """The tokens that bills are of."""
    if purchase.samples is not None:
        return purchase.samples * at.sequence_length
    if purchase.tokens is not None:
        return purchase.tokens
    return BILLION if at.model.size_unit == "tokens" else COMPARED_SAMPLES * at.sequence_length


def _rows(one: _Asked, index: int, tokens: float, terms: Terms) -> Iterator[Row]:
    """The row of a question, and that of spot devices; `plan_file` is the question's index."""
    request = one.request
    name = one.at.device.name if one.at else request.device or ""
    row = Row(rank=1, num_devices=request.num_devices, device=name, cluster=request.cluster or "")
    if one.file is None or one.at is None:
        yield replace(row, refusal=str(one.error))
        return
    best, prediction = one.file.candidates[0], one.file.candidates[0].prediction
    row = replace(
        row,
        plan_file=index,
        plan=best.plan.id,
        step_seconds=prediction.step_seconds,
        low_seconds=prediction.low_seconds,
        high_seconds=prediction.high_seconds,
        tokens_per_second=prediction.tokens_per_second,
        mfu=prediction.mfu,
        peak_bytes=prediction.peak_bytes,
        memory_bytes=one.at.memory_bytes,
    )
    has_spot = price_of(one.at, terms, is_spot=True, cluster=row.cluster)[0] is not None
    for is_spot in (False, True) if has_spot else (False,):
        try:
            cost = cost_of(one.at, prediction, tokens, terms, is_spot=is_spot, cluster=row.cluster)
        except InputError as error:
            yield replace(row, is_spot=is_spot, refusal=str(error))
        else:
            yield replace(row, is_spot=is_spot, cost=cost)


def _with_efficiency(rows: Sequence[Row]) -> list[Row]:
    """The rows with their throughput per device against that of the fewest devices of their place."""
    least: dict[str, Row] = {}
    for row in rows:
        if row.tokens_per_second and (row.place not in least or row.num_devices < least[row.place].num_devices):
            least[row.place] = row
    return [
        replace(row, efficiency_fraction=_each(row) / _each(least[row.place])) if row.tokens_per_second else row
        for row in rows
    ]


def _each(row: Row) -> float:
    """Tokens per second of one device."""
    return (row.tokens_per_second or 0.0) / row.num_devices


def _sorted(rows: Sequence[Row], has_counts: bool) -> list[Row]:
    """The rows with their ranks: as they were asked for where there are several counts, else fastest first."""
    ordered = list(rows) if has_counts else sorted(rows, key=lambda row: row.cost.days if row.cost else float("inf"))
    return [replace(row, rank=rank) for rank, row in enumerate(ordered, 1)]


def marks(rows: Sequence[Row]) -> dict[str, int]:
    """Ranks of the cheapest and the fastest row, and of the cheapest that is done in time."""
    billed = [(row, row.cost) for row in rows if row.cost is not None]
    priced = [row for row, _ in billed if row.dollars is not None]
    in_time = [row for row, cost in billed if cost.in_time]
    known = [row for row in in_time if row.dollars is not None]
    enough = _least(known, lambda row: row.dollars or 0.0) or _least(in_time, lambda row: row.num_devices)
    return {
        "cheapest": _least(priced, lambda row: row.dollars or 0.0),
        "fastest": _least([row for row, _ in billed], lambda row: row.cost.days if row.cost else 0.0),
        "enough": enough,
    }


def _least(rows: Sequence[Row], key: Callable[[Row], float]) -> int:
    """The rank of the row with the least of something; 0 where there are no rows."""
    return min(rows, key=key).rank if rows else 0


def _common(plans: Sequence[PlanFile]) -> list[str]:
    """Notes that all plan files share, in the first one's order; that all rest on data sheets, whichever these are."""
    shared = [note for note in plans[0].notes if all(note in file.notes for file in plans)]
    if len({file.machine_name for file in plans}) > 1 and all(file.machine_origin == "datasheet" for file in plans):
        shared.insert(0, "planned from data sheets and factors learned from published runs: nothing was measured")
    return shared


def _left_free(request: Request, plans: Sequence[PlanFile]) -> Iterator[str]:
    """What of memory is left free, where kinds of devices with different memory each say so in their own words."""
    if request.headroom_fraction and len({file.machine_name for file in plans}) > 1:
        yield f"at least {format_percent(request.headroom_fraction)} of each device's memory is left free"


def _software(file: PlanFile) -> Iterator[str]:
    """That seconds are of this program's executor, which other software may beat on the same devices."""
    if file.stack == THIS_PROGRAM and file.machine_origin == "datasheet":
        yield (
            "times are those of plans that Trainwright's executor runs; other software may be faster or slower: "
            "--stack megatron-core prices that one, --list stacks names all"
        )


def _assumptions(terms: Terms) -> Iterator[Assumption]:
    """What bills rest on that nobody gave."""
    power, energy, often = load_power(), terms.energy, terms.reliability
    if energy.host_watts is None:
        words = f"{100 * power.host_share:g} % of its devices' rated power"
        yield Assumption(what="the rest of a node draws", value=words, source=power.sources["host_share"])
    if energy.pue == power.pue:
        yield Assumption(what="PUE", value=three_digits(power.pue), source=power.sources["pue"])
    if often.failure_hours == DEVICE_FAILURE_HOURS:
        words = f"every {often.failure_hours:,.0f} hours of it"
        yield Assumption(what="a device fails", value=words, source="The Llama 3 Herd of Models (arXiv 2407.21783)")
    if often.checkpoint_seconds == CHECKPOINT_SECONDS:
        yield Assumption(what="a checkpoint holds training up", value=f"{CHECKPOINT_SECONDS:g} s", source="assumed")
    yield Assumption(what="a restart takes", value=f"{RESTART_SECONDS:g} s", source="assumed")
    if terms.spot_prices is not None and often.spot_node_hours == SPOT_NODE_HOURS:
        words = f"after {SPOT_NODE_HOURS:g} hours"
        yield Assumption(
            what="a spot node is reclaimed", value=words, source="assumed: a usual lifetime of preemptible machines"
        )

"""A purchase as people read it: one line for each count and kind of devices, then what it rests on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from profiles.machines.stacks import THIS_PROGRAM
from profiles.units import (
    format_bytes,
    format_count,
    format_days,
    format_hours,
    format_percent,
    format_seconds,
    rate_of,
    three_digits,
)

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console
    from rich.table import Table

    from planner.answers import Cost
    from planner.purchase.answer import PurchaseAnswer, Row

MARK = " *"
# Units of a column: it has the largest of which its largest number is one or more.
TIMES = (("days", 1.0), ("hours", 24.0))
ENERGIES = (("GWh", 1e-6), ("MWh", 1e-3), ("kWh", 1.0))


def show_purchase(answer: PurchaseAnswer, out: Console, output: Path | None) -> None:
    """Print the table of rows, with what goes before and after it."""
    from profiles.terminal.tables import print_table
    from profiles.units import format_batch

    batches = ", ".join(
        format_batch(batch, answer.sequence_length, answer.size_unit) for batch in answer.global_batch_sizes
    )
    parameters = format_count(answer.num_parameters)
    out.print(f"{answer.model_name} ({parameters} parameters), global batch {batches}, with {answer.stack}")
    for note in answer.notes:
        out.print(f"note: {note}")
    print_table(_table(answer), out, named_by=1)
    for line in _lines(answer):
        out.print(line)
    if output is not None:
        out.print(f"written to {output}; the plan of a row: plan --from {output} --rank ROW -o plan.json")


def _table(answer: PurchaseAnswer) -> Table:
    from profiles.terminal.tables import plain_table

    table = plain_table()
    has_counts = len({row.num_devices for row in answer.rows}) > 1
    counted, _ = rate_of(0.0, answer.sequence_length, answer.size_unit)
    names = ("step", counted, *(("per device",) if has_counts else ()))
    costs = [row.cost for row in answer.rows if row.cost is not None]
    times = unit_of(TIMES, [cost.days for cost in costs])
    energy = unit_of(ENERGIES, [cost.facility_kwh for cost in costs])
    bill = (*((times[0],) if answer.is_budget else ()), "cost", energy[0])
    table.add_column("#", justify="right", no_wrap=True)
    table.add_column("devices", no_wrap=True)
    for name in (*names, *bill):
        table.add_column(name, justify="right", no_wrap=True)
    for row in answer.rows:
        cells = [*_speed(answer, row)][: len(names)] if row.plan else ["no plan"]
        cells += [] if row.cost is None else _bill(answer, row, row.cost, times[1], energy[1])
        table.add_row(str(row.rank), row.title, *cells, *[""] * (len(names) + len(bill) - len(cells)))
    return table


def _speed(answer: PurchaseAnswer, row: Row) -> Iterator[str]:
    """The step with its band, what is done per second, and by one device against the fewest."""
    step, low, high = row.step_seconds or 0.0, row.low_seconds or 0.0, row.high_seconds or 0.0
    yield f"{format_seconds(step)} ±{(high - low) / 2 / step:.0%}"
    yield format_count(rate_of(row.tokens_per_second or 0.0, answer.sequence_length, answer.size_unit)[1])
    yield f"{(row.efficiency_fraction or 0.0) * 100:.0f} %"


def unit_of(units: Sequence[tuple[str, float]], values: Sequence[float]) -> tuple[str, float]:
    """The unit of a column of values, and what they are multiplied by."""
    most = max(values, default=0.0)
    return next((unit for unit in units if most * unit[1] >= 1), units[-1])


def _bill(answer: PurchaseAnswer, row: Row, cost: Cost, time: float, energy: float) -> Iterator[str]:
    """Time, money and energy in their columns' units, the fewest days and the least money marked."""
    is_fastest, is_cheapest = row.rank == answer.fastest, row.rank == answer.cheapest
    if answer.is_budget:
        yield three_digits(cost.days * time) + (MARK if is_fastest else "")
    yield ("?" if cost.dollars is None else money(*cost.dollars)) + (MARK if is_cheapest else "")
    if cost.kwh > 0:
        yield three_digits(cost.facility_kwh * energy)


def money(low: float, high: float) -> str:
    """Dollars, or a range of them at one scale: `$792 k`, `$0.79-3.98 M`."""
    if low == high:
        return f"${format_count(high)}"
    number, _, unit = format_count(high).partition(" ")
    scale = {"": 1.0, "k": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}[unit]
    return f"${three_digits(round(low / scale, 2))}-{number}{' ' if unit else ''}{unit}"


def amount(answer: PurchaseAnswer) -> str:
    """What bills are of."""
    if answer.samples:
        return f"{format_count(answer.samples)} samples"
    return count_words(answer.tokens, answer.sequence_length, answer.size_unit)


def count_words(tokens: float, size: int, unit: str) -> str:
    """So many tokens, or samples of a model that counts none."""
    counted, count = rate_of(tokens, size, unit)
    return f"{format_count(count)} {'tokens' if counted == 'tok/s' else counted.removesuffix('/s')}"


def _lines(answer: PurchaseAnswer) -> Iterator[str]:
    """What is said below the table."""
    yield from _marks(answer)
    yield from _deadline(answer)
    yield "best plans:"
    for row in answer.rows:
        if row.plan and not row.is_spot:
            held = f"{format_bytes(row.peak_bytes or 0.0)} of {format_bytes(row.memory_bytes or 0.0)}"
            is_planned_only = answer.stack == THIS_PROGRAM and not answer.best(row.rank).executable
            words = " (simulate only)" if is_planned_only else ""
            yield f"  {row.rank}: {row.plan}, {held}, MFU {format_percent(row.mfu or 0.0)}{words}"
    for row in answer.rows:
        if row.refusal:
            yield f"  {row.rank}: {row.refusal}"
    first = next((row for row in answer.rows if row.cost is not None), None)
    if first is not None and first.cost is not None:
        yield from _storage(answer, first.cost)
        yield from _energy(answer, first.cost)
    if answer.assumptions:
        assumed = "; ".join(f"{one.what} {one.value}" for one in answer.assumptions)
        yield f"assumed, with sources in --json and -o: {assumed}"


def _marks(answer: PurchaseAnswer) -> Iterator[str]:
    """What marks mean, and which prices money is of."""
    what = "days, money and energy" if answer.is_budget else "money and energy"
    marked = "fewest days and least money" if answer.is_budget else "least money"
    yield f"{what} are of {amount(answer)}, failures included; * {marked}"
    if not answer.is_budget and answer.fastest:
        yield f"fastest: {answer.fastest} ({answer.row(answer.fastest).title})"
    dates = dict.fromkeys(row.cost.price_date for row in answer.rows if row.cost and row.cost.price_date)
    if dates:
        yield f"ranges of money: catalogue prices ({', '.join(dates)}), compared by their middles; --price gives yours"
    given = {row.place + (" spot" if row.is_spot else ""): row.cost for row in answer.rows if row.cost}
    prices = [f"{place} ${_price(cost)}" for place, cost in given.items() if cost.price_per_hour]
    if prices:
        yield f"prices per device-hour: {', '.join(prices)}"
    unknown = [str(row.rank) for row in answer.rows if row.cost and row.cost.dollars is None]
    if unknown:
        yield f"no price is known for {', '.join(unknown)}: give --price"


def _price(cost: Cost) -> str:
    """What a device-hour costs, or from where to where."""
    low, high = map(three_digits, cost.price_per_hour or (0.0, 0.0))
    return low if low == high else f"{low}-{high}"


def _deadline(answer: PurchaseAnswer) -> Iterator[str]:
    """Which rows are done in time, and how sure that is."""
    if answer.deadline_days is None:
        return
    days = format_days(answer.deadline_days)
    until = f"by {answer.deadline}, in {days}" if answer.deadline else f"in {days}"
    done = [row for row in answer.rows if row.cost is not None and row.cost.in_time]
    if not done:
        fastest = answer.row(answer.fastest).cost if answer.fastest else None
        if fastest is not None:
            times = three_digits(fastest.days / answer.deadline_days)
            yield f"none is done {until}: the fastest would take {times} times as long"
        return
    yield f"done {until}: {', '.join(str(row.rank) for row in done)}"
    row = answer.row(answer.enough)
    if row.cost is not None:
        why = "the cheapest of them" if row.dollars is not None else "of the fewest devices"
        sure = "" if row.cost.high_days <= answer.deadline_days else ", so it may be late"
        span = f"{three_digits(row.cost.low_days)} to {three_digits(row.cost.high_days)} by the band of its step"
        yield f"enough: {row.rank} ({row.title}), {why}: {three_digits(row.cost.days)} days, {span}{sure}"


def _storage(answer: PurchaseAnswer, cost: Cost) -> Iterator[str]:
    """What checkpoints take, and how often they are."""
    held, stored = format_bytes(cost.checkpoint_bytes), format_bytes(cost.stored_bytes)
    yield f"a checkpoint: {held} of weights and moments; {cost.checkpoints_kept} kept: {stored}"
    costs = [row.cost for row in answer.rows if row.cost is not None]
    often = [format_hours(cost.interval_seconds) for cost in sorted(costs, key=lambda cost: cost.interval_seconds)]
    trains = [format_percent(share) for share in sorted(cost.goodput_fraction for cost in costs)]
    each = "; --json has each row's" if len(costs) > 1 else ""
    yield f"time between checkpoints that wastes the least: {_span(often)}{each}"
    yield f"share of the time spent training, net of failures and checkpoints: {_span(trains)}{each}"


def _span(values: Sequence[str]) -> str:
    """The first and the last of some values in order, or the one."""
    return values[0] if values[0] == values[-1] else f"{values[0]} to {values[-1]}"


def _energy(answer: PurchaseAnswer, cost: Cost) -> Iterator[str]:
    """What is drawn, and what that costs and emits where it was asked."""
    if cost.kwh <= 0:
        return
    yield f"energy is that of devices at rated power, the rest of their nodes and the building (PUE {cost.pue:g})"
    words = ((row.rank, energy_words(row.cost)) for row in answer.rows if row.cost is not None)
    if said := "; ".join(f"{rank}: {each}" for rank, each in words if each):
        yield f"energy cost and CO2: {said}"


def energy_words(cost: Cost) -> str:
    """What the energy costs and emits; "" where nobody asked."""
    dollars = "" if cost.energy_dollars is None else f"${format_count(cost.energy_dollars)}"
    emitted = "" if cost.co2_kg is None else f"{format_count(cost.co2_kg / 1000)} t of CO2"
    return ", ".join(words for words in (dollars, emitted) if words)

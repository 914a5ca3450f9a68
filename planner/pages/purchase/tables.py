"""The tables of a purchase's page: the rows, the numbers of each figure, and what they rest on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from planner.pages.plan_rows import band_words
from planner.pages.purchase.points import front, kinds, perfect, planned, priced, rate, rate_band
from planner.pages.purchase.words import place_words
from planner.purchase.answer import PurchaseAnswer, Row
from planner.terminal.show_purchase import ENERGIES, TIMES, energy_words, money, unit_of
from profiles.machines.stacks import THIS_PROGRAM
from profiles.pages.html import Table
from profiles.units import (
    format_batch,
    format_bytes,
    format_count,
    format_hours,
    format_percent,
    format_seconds,
    rate_of,
    three_digits,
)


def header(answer: PurchaseAnswer) -> list[str]:
    """The names of a row's cells beside its rank and its devices."""
    has_counts = len({row.num_devices for row in answer.rows}) > 1
    names = ["step", counted(answer), *(["per device"] if has_counts else []), "MFU"]
    time, energy = [_time(answer)[0]] if answer.is_budget else [], [_energy(answer)[0]] if has_energy(answer) else []
    return [*names, *time, "money", *energy]


def cells(answer: PurchaseAnswer, row: Row) -> list[str]:
    """The cells of a row; "" of what is not known of it."""
    if not row.plan:
        return [""] * len(header(answer))
    has_counts = len({own.num_devices for own in answer.rows}) > 1
    found = [
        f"{format_seconds(row.step_seconds or 0.0)} {band_words(answer.best(row.rank).prediction)}",
        format_count(rate(answer, row)),
        *([format_percent(row.efficiency_fraction or 0.0)] if has_counts else []),
        format_percent(row.mfu or 0.0),
    ]
    cost = row.cost
    if cost is None:
        return found + [""] * (len(header(answer)) - len(found))
    if answer.is_budget:
        found.append(three_digits(cost.days * _time(answer)[1]))
    found.append("not known" if cost.dollars is None else money(*cost.dollars))
    if has_energy(answer):
        found.append(three_digits(cost.facility_kwh * _energy(answer)[1]) if cost.kwh > 0 else "not known")
    return found


def sorting(row: Row) -> dict[str, Any]:
    """What rows are put in order by, least first; None stands last."""
    cost = row.cost
    return {
        "days": None if cost is None else cost.days,
        "dollars": row.dollars,
        "energy": cost.facility_kwh if cost is not None and cost.kwh > 0 else None,
        "efficiency": None if row.efficiency_fraction is None else -row.efficiency_fraction,
    }


def tags(answer: PurchaseAnswer, row: Row) -> list[str]:
    """What a row is marked as."""
    names = {"cheapest": answer.cheapest, "fastest": answer.fastest, "enough in time": answer.enough}
    return [name for name, rank in names.items() if rank == row.rank]


def counted(answer: PurchaseAnswer) -> str:
    """What is counted per second."""
    return rate_of(0.0, answer.sequence_length, answer.size_unit)[0]


def has_energy(answer: PurchaseAnswer) -> bool:
    """Whether it is known of some devices what they draw."""
    return any(row.cost is not None and row.cost.kwh > 0 for row in answer.rows)


def _time(answer: PurchaseAnswer) -> tuple[str, float]:
    return unit_of(TIMES, [row.cost.days for row in answer.rows if row.cost is not None])


def _energy(answer: PurchaseAnswer) -> tuple[str, float]:
    return unit_of(ENERGIES, [row.cost.facility_kwh for row in answer.rows if row.cost is not None])


def speed_table(answer: PurchaseAnswer) -> Table:
    """The numbers of the scaling curve."""
    return Table(
        caption="Speed of each row, with the band of about 90 % and what perfect scaling from the fewest would give",
        header=("devices", counted(answer), "band", "perfect", "per device"),
        rows=tuple(
            (
                row.title,
                format_count(rate(answer, row)),
                " to ".join(format_count(end) for end in rate_band(answer, row)),
                format_count(best),
                format_percent(row.efficiency_fraction or 0.0),
            )
            for kind in kinds(answer)
            for row, best in zip(kind.rows, perfect(answer, kind), strict=True)
        ),
    )


def efficiency_table(answer: PurchaseAnswer) -> Table:
    """The numbers of the efficiency."""
    return Table(
        caption="Throughput of one device, and relative to the fewest devices of its kind",
        header=("devices", f"{counted(answer)} of a device", "over the fewest's", "MFU"),
        rows=tuple(
            (
                row.title,
                format_count(rate(answer, row) / row.num_devices),
                format_percent(row.efficiency_fraction or 0.0),
                format_percent(row.mfu or 0.0),
            )
            for row in planned(answer)
        ),
    )


def bill_table(answer: PurchaseAnswer) -> Table:
    """The numbers of money against days."""
    unbeaten = front(answer)
    time, over = unit_of(TIMES, [cost.days for _, cost, _ in priced(answer)])
    return Table(
        caption="Days and money of each row; no row beats those of the front in both",
        header=("devices", time, f"band of {time}", "money", "front", "in time"),
        rows=tuple(
            (
                row.title,
                three_digits(cost.days * over),
                f"{three_digits(cost.low_days * over)} to {three_digits(cost.high_days * over)}",
                "" if cost.dollars is None else money(*cost.dollars),
                "yes" if row.rank in unbeaten else "",
                {None: "", True: "yes", False: "no"}[cost.in_time],
            )
            for row, cost, _ in priced(answer)
        ),
    )


def failures_table(answer: PurchaseAnswer) -> Table | None:
    """What failures and checkpoints take of each row's time, and its energy; None where no row has a bill."""
    asked = any(row.cost is not None and energy_words(row.cost) for row in answer.rows)
    rows = tuple(
        (
            row.title,
            format_percent(row.cost.goodput_fraction),
            three_digits(row.cost.num_failures),
            format_hours(row.cost.interval_seconds),
            format_bytes(row.cost.stored_bytes),
            *((energy_words(row.cost),) if asked else ()),
        )
        for row in answer.rows
        if row.cost is not None
    )
    if not rows:
        return None
    names = ("devices", "time that trains", "failures", "a checkpoint every", "room for checkpoints")
    return Table(
        caption="Time lost to failures and checkpoints",
        header=(*names, *(("energy",) if asked else ())),
        rows=rows,
    )


def prices_table(answer: PurchaseAnswer) -> Table:
    """What a device costs per hour, and whence that is."""
    return Table(
        caption="Prices, in dollars per device and hour",
        header=("devices", "price", "source"),
        rows=tuple(dict.fromkeys(_prices(answer))),
    )


def _prices(answer: PurchaseAnswer) -> Iterator[tuple[str, str, str]]:
    for row in answer.rows:
        cost = row.cost
        if cost is None:
            continue
        name = place_words(row)
        if cost.price_per_hour is None:
            yield name, "not known", "none given, and none in the catalogue"
        else:
            low, high = map(three_digits, cost.price_per_hour)
            source = f"catalogue, {cost.price_date}" if cost.price_date else "given"
            yield name, low if low == high else f"{low} to {high}", source


def assumptions_table(answer: PurchaseAnswer) -> Table | None:
    """What bills rest on that nobody gave; None where everything was given."""
    rows = tuple((one.what, one.value, one.source) for one in answer.assumptions)
    if not rows:
        return None
    return Table(caption="Assumed, as not given", header=("what", "value", "source"), rows=rows)


def facts(answer: PurchaseAnswer) -> list[tuple[str, str]]:
    """What was asked: name and value."""
    batches = (
        format_batch(batch, answer.sequence_length, answer.size_unit) for batch in answer.global_batch_sizes
    )  # fmt: skip
    stack = answer.stack if answer.stack != THIS_PROGRAM else f"{answer.stack}, which execute runs"
    found = [
        ("model", f"{answer.model_name}, {format_count(answer.num_parameters)} parameters"),
        ("global batch", ", ".join(batches)),
        ("software", stack),
        ("deadline", "" if answer.deadline_days is None else f"{three_digits(answer.deadline_days)} days"),
        ("made", answer.created),
    ]
    return [(name, value) for name, value in found if value]

"""What the figures of a purchase are drawn from: the rows of each kind of devices, and those that no other beats."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from planner.answers import Cost
from planner.pages.plan_rows import on_front
from planner.purchase.answer import PurchaseAnswer, Row
from profiles.units import rate_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of devices and its rows with a plan, fewest devices first; `number` is its place among the kinds."""

    title: str
    number: int
    is_spot: bool
    rows: tuple[Row, ...]


def kinds(answer: PurchaseAnswer, *, with_spot: bool = False) -> tuple[Kind, ...]:
    """The kinds of devices that a plan fits, in the answer's order; spot devices have the plans of the others."""
    places = list(dict.fromkeys(row.place for row in answer.rows))
    found = []
    for (number, place), is_spot in itertools.product(enumerate(places), (False, True) if with_spot else (False,)):
        rows = [row for row in answer.rows if row.plan and row.place == place and row.is_spot == is_spot]
        if rows:
            title = f"{place} spot" if is_spot else place
            ordered = tuple(sorted(rows, key=lambda row: row.num_devices))
            found.append(Kind(title=title, number=number, is_spot=is_spot, rows=ordered))
    return tuple(found)


def planned(answer: PurchaseAnswer) -> tuple[Row, ...]:
    """The rows with a plan of their own: those of spot devices have that of the row before."""
    return tuple(row for row in answer.rows if row.plan and not row.is_spot)


def is_curve(answer: PurchaseAnswer) -> bool:
    """Whether some kind has a plan for several counts, so that there is a line to draw."""
    return any(len(kind.rows) > 1 for kind in kinds(answer))


def rate(answer: PurchaseAnswer, row: Row) -> float:
    """What a row does per second: tokens, or samples of a model that counts none."""
    return rate_of(row.tokens_per_second or 0.0, answer.sequence_length, answer.size_unit)[1]


def rate_band(answer: PurchaseAnswer, row: Row) -> tuple[float, float]:
    """The lowest and the highest rate by the band of the step."""
    step = row.step_seconds or 0.0
    return rate(answer, row) * step / (row.high_seconds or step), rate(answer, row) * step / (row.low_seconds or step)


def perfect(answer: PurchaseAnswer, kind: Kind) -> list[float]:
    """The rates of a kind if each device did as much as with the fewest of them."""
    first = kind.rows[0]
    return [rate(answer, first) * row.num_devices / first.num_devices for row in kind.rows]


def priced(answer: PurchaseAnswer) -> Iterator[tuple[Row, Cost, float]]:
    """The rows whose days and money are known, with their bill and its dollars."""
    for row in answer.rows:
        if row.cost is not None and row.dollars is not None:
            yield row, row.cost, row.dollars


def front(answer: PurchaseAnswer) -> list[int]:
    """Ranks of the rows that no other beats in days and in money, fewest days first."""
    rows = sorted(priced(answer), key=lambda each: (each[1].days, each[2]))
    kept = on_front([(cost.days, dollars) for _, cost, dollars in rows])
    return [row.rank for (row, _, _), is_kept in zip(rows, kept, strict=True) if is_kept]

"""The sentences of a purchase's page: the answer, and what is said where something is not known."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from planner.pages.purchase.points import is_curve, planned, priced
from planner.purchase.answer import PurchaseAnswer, Row
from planner.terminal.show_purchase import amount, money
from profiles.units import format_bytes, format_count, format_percent, rate_of, three_digits

# Kinds of devices that the head of the page names.
MOST_NAMED: Final = 3
# What is written as more than 100 %.
MORE_THAN_ALL: Final = 1.0005


def title(answer: PurchaseAnswer) -> str:
    """What is compared, for the head of the page."""
    counts = sorted({row.num_devices for row in answer.rows})
    places = list(dict.fromkeys(row.place for row in answer.rows))
    many = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    where = f"{', '.join(places[:-1])} or {places[-1]}" if len(places) > 1 else places[0]
    if len(places) > MOST_NAMED:
        where = f"{len(places)} kinds of devices"
    return f"{answer.model_name} on {many} x {where}"


def verdict(answer: PurchaseAnswer) -> list[tuple[str, str]]:
    """The answer in toned sentences, the most important first."""
    return list(_verdict(answer))


def _verdict(answer: PurchaseAnswer) -> Iterator[tuple[str, str]]:
    # Who gave a date asks what meets it, whatever is cheaper or faster.
    if answer.deadline_days is not None:
        yield _deadline(answer)
    for names, rank in _marked(answer):
        row = answer.row(rank)
        tone = "fair" if row.cost is not None and row.cost.in_time is False else "good"
        yield tone, f"{names}: row {rank}, {row.title}: {_bill_words(answer, row)}."
    unknown = dict.fromkeys(place_words(row) for row in answer.rows if row.cost and row.cost.dollars is None)
    if unknown:
        yield "fair", f"No price is known for {_some(list(unknown))}: give --price."
    refused = [row.title for row in answer.rows if row.refusal]
    if refused:
        yield "fair", f"No answer for {_some(refused)}: the table gives the reasons."
    basis = "" if answer.is_budget else ", chosen for comparison, as no amount was given"
    yield "", f"Costs are for {amount(answer)}{basis}, including failures."


def _marked(answer: PurchaseAnswer) -> list[tuple[str, int]]:
    if answer.cheapest and answer.cheapest == answer.fastest:
        return [("Cheapest and fastest", answer.cheapest)]
    return [(name, rank) for name, rank in (("Cheapest", answer.cheapest), ("Fastest", answer.fastest)) if rank]


def _bill_words(answer: PurchaseAnswer, row: Row) -> str:
    """What a row costs, how long it takes, and how fast it is."""
    cost = row.cost
    words = []
    if cost is not None and cost.dollars is not None:
        words.append(money(*cost.dollars))
    if cost is not None and answer.is_budget:
        words.append(f"{days_words(cost.days)}{' (too late)' if cost.in_time is False else ''}")
    return ", ".join((*words, rate_words(answer, row)))


def rate_words(answer: PurchaseAnswer, row: Row) -> str:
    """What a row does per second."""
    name, own = rate_of(row.tokens_per_second or 0.0, answer.sequence_length, answer.size_unit)
    return f"{format_count(own)} {name}"


def place_words(row: Row) -> str:
    """The kind of a row's devices, and whether they may be taken back."""
    return f"{row.place} spot" if row.is_spot else row.place


def days_words(days: float) -> str:
    """A span of time, in hours where it is less than a day."""
    return f"{three_digits(days)} days" if days >= 1 else f"{three_digits(24 * days)} hours"


def _deadline(answer: PurchaseAnswer) -> tuple[str, str]:
    """What is done by the deadline, and how sure that is."""
    by = days_words(answer.deadline_days or 0.0)
    if not answer.enough:
        return "bad", f"No row finishes within {by}."
    row = answer.row(answer.enough)
    cost = row.cost
    why = "the cheapest row" if row.dollars is not None else "the row with the fewest devices"
    words = f"Enough for {by}: row {row.rank}, {row.title}, {why} that is done in time"
    if cost is None:
        return "good", f"{words}."
    span = f"{days_words(cost.days)}, {three_digits(cost.low_days)} to {three_digits(cost.high_days)} by its band"
    is_sure = cost.high_days <= (answer.deadline_days or 0.0)
    return ("good", f"{words}: {span}.") if is_sure else ("fair", f"{words}: {days_words(cost.days)}; {_late(answer)}.")


def _late(answer: PurchaseAnswer) -> str:
    cost = answer.row(answer.enough).cost
    return "" if cost is None else f"it may be late, as its band reaches to {days_words(cost.high_days)}"


def _some(titles: list[str], most: int = 4) -> str:
    """Some titles, and how many more there are."""
    more = f" and {len(titles) - most} more" if len(titles) > most else ""
    return f"{', '.join(titles[:most])}{more}"


def tiles(answer: PurchaseAnswer) -> list[tuple[str, str, str]]:
    """The key numbers: name, value, and what it means."""
    found = []
    for name, rank in (("cheapest", answer.cheapest), ("fastest", answer.fastest), ("enough", answer.enough)):
        row = answer.row(rank) if rank else None
        if row is None or row.cost is None:
            continue
        dollars = "" if row.cost.dollars is None else money(*row.cost.dollars)
        time = days_words(row.cost.days) if answer.is_budget else ""
        values = [dollars, time or rate_words(answer, row)]
        values = [value for value in (values[::-1] if name == "fastest" else values) if value]
        found.append((name, values[0], ", ".join((row.title, *values[1:]))))
    cost = next((row.cost for row in answer.rows if row.cost is not None), None)
    if cost is not None:
        kept = f"{cost.checkpoints_kept} kept: {format_bytes(cost.stored_bytes)}"
        found.append(("a checkpoint", format_bytes(cost.checkpoint_bytes), f"weights and moments; {kept}"))
    return found


def speed_words(answer: PurchaseAnswer) -> str:
    """What the curve shows, or why there is none."""
    if is_curve(answer):
        return (
            "The shaded area is the band of about 90 % of each step. The dotted line is perfect scaling from the "
            "fewest devices of a kind that a plan fits."
        )
    if len(planned(answer)) > 1:
        return "Thin bars are the band of about 90 %. Give several counts, such as --gpus 64-1024, for a curve."
    return "Only one row has a plan, so there is nothing to compare its speed with."


def efficiency_words(answer: PurchaseAnswer) -> str:
    """What the efficiency shows, or why it is not drawn."""
    if not is_curve(answer):
        return "One count of each kind does not show how speed scales: give several, such as --gpus 64-1024."
    worst = min(planned(answer), key=lambda row: row.efficiency_fraction or 0.0)
    share = format_percent(worst.efficiency_fraction or 0.0)
    words = f"Throughput per device, against the fewest devices of its kind. The lowest is {share} ({worst.title})."
    if any((row.efficiency_fraction or 0.0) > MORE_THAN_ALL for row in planned(answer)):
        return f"{words} It can exceed 100 %: with more devices each has more free memory, which allows faster plans."
    return words


def bill_words(answer: PurchaseAnswer) -> str:
    """What money against time shows, or why it is not drawn."""
    if not answer.is_budget:
        return "The number of days depends on the amount of training: give --tokens or --samples."
    if not list(priced(answer)):
        return "The cost is not known: give --price."
    words = "Numbers are counts of devices. Thin bars are the band of days, with which the money grows."
    if any(low < high for low, high in (cost.dollars or (0.0, 0.0) for _, cost, _ in priced(answer))):
        words = f"{words} Upright bars are the range of prices; rows are compared by the middle."
    if any(row.is_spot for row, _, _ in priced(answer)):
        words = f"{words} Open marks are spot devices."
    if answer.deadline_days is not None:
        words = f"{words} The dashed line is the deadline of {days_words(answer.deadline_days)}."
    return words


def rests(answer: PurchaseAnswer) -> list[str]:
    """What the predictions rest on, each said once."""
    said = (text for row in planned(answer) for text in answer.best(row.rank).prediction.assumptions)
    return list(dict.fromkeys(said))

"""What a training takes as lines of text: time and money with their bands, energy, checkpoints, the deadline."""

from __future__ import annotations

from collections.abc import Iterator

from planner.answers import Cost
from planner.terminal.show_purchase import energy_words
from profiles.units import (
    format_bytes,
    format_count,
    format_days,
    format_energy,
    format_hours,
    format_percent,
    three_digits,
)


def cost_lines(cost: Cost, amount: str) -> Iterator[str]:
    """What a training takes: time and money, energy with hosts and building, room for checkpoints, the deadline."""
    yield f"{amount}: {time_words(cost)}, {money_words(cost)}"
    yield f"{format_count(cost.device_hours)} device-hours; {failure_words(cost)}"
    if cost.kwh > 0:
        yield f"energy: {kwh_words(cost)}"
    held, stored = format_bytes(cost.checkpoint_bytes), format_bytes(cost.stored_bytes)
    yield f"a checkpoint: {held} of weights and moments; {cost.checkpoints_kept} kept: {stored}"
    if cost.deadline_days is not None:
        yield deadline_words(cost)


def spot_lines(cost: Cost) -> Iterator[str]:
    """What the same takes of devices that may be taken back."""
    amount = "no spot price is known" if cost.dollars is None else money_words(cost)
    yield f"on spot devices: {time_words(cost)}, {amount}; {failure_words(cost, 'interruptions and failures')}"


def time_words(cost: Cost) -> str:
    """The days with those of the step's band: `254 days (190 to 318 days by the step's band)`."""
    whole, span = format_days(cost.days), span_words(cost)
    return f"{whole} ({span} by the step's band)" if span else whole


def span_words(cost: Cost) -> str:
    """The days of the step's band, `190 to 318 days`; "" where they are not known."""
    if not cost.high_days:
        return ""
    low, high = format_days(cost.low_days), format_days(cost.high_days)
    number, _, unit = low.rpartition(" ")
    return f"{number if high.endswith(f' {unit}') else low} to {high}"


def price_words(cost: Cost) -> str:
    """What a device-hour costs, `$2.5 per device-hour`; "" where no price is known."""
    if cost.price_per_hour is None:
        return ""
    low, high = map(three_digits, cost.price_per_hour)
    dated = f" ({cost.price_date})" if cost.price_date else ""
    return f"${low if low == high else f'{low} to ${high}'} per device-hour{dated}"


def money_words(cost: Cost) -> str:
    """The dollars with those of the step's band, and the price that they are of."""
    if cost.dollars is None:
        return "no price is known: give --price"
    low, high = cost.dollars
    at = f"at {price_words(cost)}"
    if cost.dollars_by_band is None:
        return f"{dollars_words(low, high)} {at}"
    return f"{dollars_words(low, high)} ({dollars_words(*cost.dollars_by_band)} by the step's band) {at}"


def dollars_words(low: float, high: float) -> str:
    """An amount, or a range of one: `$792 k to $3.98 M`."""
    least, most = format_count(low), format_count(high)
    return f"${least}" if least == most else f"${least} to ${most}"


def failure_words(cost: Cost, what: str = "failures") -> str:
    """How much of the time trains, with how many failures, and how often a checkpoint is written."""
    return (
        f"{format_percent(cost.goodput_fraction)} of the time trains, with {format_count(cost.num_failures)} {what} "
        f"expected and a checkpoint every {format_hours(cost.interval_seconds)}"
    )


def kwh_words(cost: Cost) -> str:
    """What is drawn by the devices, and by all of it with hosts and building, and what that costs and emits."""
    more = f", {words}" if (words := energy_words(cost)) else ""
    host = f"{three_digits(cost.host_watts)} W per device for the rest of its node, PUE {cost.pue:g}"
    devices = f"{format_energy(cost.kwh)} for the devices at their rated power"
    return f"{devices}, {format_energy(cost.facility_kwh)} with hosts and building ({host}){more}"


def deadline_words(cost: Cost) -> str:
    """Whether the training is done in time, and whether the slow end of its band is too."""
    until = f"by {cost.deadline}, in {format_days(cost.deadline_days or 0.0)}" if cost.deadline else (
        f"within {format_days(cost.deadline_days or 0.0)}"
    )  # fmt: skip
    if not cost.in_time:
        return f"done {until}: too late"
    is_sure = cost.high_days <= (cost.deadline_days or 0.0)
    return f"done {until}: enough" + ("" if is_sure else ", but late at the slow end of the step's band")

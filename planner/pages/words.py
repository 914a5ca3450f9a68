"""The sentences of a plan's page: the answer, and what is said where something is not known."""

from __future__ import annotations

from collections.abc import Iterator

from planner.pages.content import Content
from planner.pages.plan_rows import band_words
from planner.parts import PART_TITLES
from planner.stacks.abilities import lacked
from planner.terminal import show_answers
from planner.terminal.show_cost import (
    deadline_words,
    dollars_words,
    money_words,
    price_words,
    span_words,
    time_words,
)
from planner.terminal.show_purchase import count_words
from profiles.machines.stacks import THIS_PROGRAM
from profiles.units import (
    GB,
    format_batch,
    format_bytes,
    format_count,
    format_days,
    format_percent,
    format_seconds,
    rate_of,
    three_digits,
)


def verdict(content: Content) -> list[tuple[str, str]]:
    """The answer in toned sentences, the most important first."""
    return list(_verdict(content))


def _verdict(content: Content) -> Iterator[tuple[str, str]]:
    file, best = content.file, content.best
    prediction = best.prediction
    room = "" if content.memory_bytes is None else f" of {format_bytes(content.memory_bytes)}"
    counted, rate = rate_of(prediction.tokens_per_second, file.sequence_length, file.size_unit)
    step = f"{format_seconds(prediction.step_seconds)} {band_words(prediction)}"
    speed, held = f"{format_count(rate)} {counted}", f"{format_bytes(prediction.peak_bytes)}{room}"
    words = f"is the best of {file.num_legal:,} legal plans: {step} a step, {speed}, {held} on the fullest device."
    yield "good", f"{best.plan.id} {words}"
    if file.answers.cost is not None:
        cost = file.answers.cost
        amount = count_words(cost.tokens, file.sequence_length, file.size_unit)
        until = "" if cost.deadline_days is None else f"; {deadline_words(cost)}"
        tone = "" if cost.in_time in (None, True) else "bad"
        yield tone, f"{amount} take {time_words(cost)}, {money_words(cost)}{until}."
    batch = format_batch(file.global_batch_size, file.sequence_length, file.size_unit)
    parameters = format_count(file.num_parameters)
    where = "the software it is for" if file.stack != THIS_PROGRAM else "execute"
    runs = f"{where} can run it" if best.executable else f"{where} cannot run it: simulate only"
    yield "", f"{file.model_name} has {parameters} parameters; a step trains on {batch}; {runs}."
    far = next((text for text in prediction.assumptions if text.startswith("outside of what was measured")), "")
    if far:
        yield "fair", f"Extrapolated, {far}."


def tiles(content: Content) -> list[tuple[str, str, str]]:
    """The key numbers: name, value, and what it means."""
    file, own = content.file, content.best.prediction
    counted, rate = rate_of(own.tokens_per_second, file.sequence_length, file.size_unit)
    low, high = format_seconds(own.low_seconds), format_seconds(own.high_seconds)
    found = [
        ("step", format_seconds(own.step_seconds), f"{low} to {high}, the 90 % band"),
        (counted, format_count(rate), f"of all {file.num_devices} devices"),
        ("MFU", format_percent(own.mfu), f"of {own.mfu_denominator.split(' (')[0]}"),
        ("memory", format_bytes(own.peak_bytes), "peak of the fullest device"),
    ]
    if content.memory_bytes is not None:
        left = content.memory_bytes - own.peak_bytes
        share = format_percent(left / content.memory_bytes)
        asked = f", {format_percent(content.headroom_fraction)} required" if content.headroom_fraction else ""
        found.append(("left free", format_bytes(left), f"{share} of the device's memory{asked}"))
    cost = file.answers.cost
    if cost is not None:
        amount = count_words(cost.tokens, file.sequence_length, file.size_unit)
        span = f"{span_words(cost)} by the step's band" if cost.high_days else "failures included"
        found.append(("training", format_days(cost.days), f"{span}, for {amount}"))
        if cost.dollars is not None:
            ends = f"{dollars_words(*cost.dollars_by_band)} by the step's band, " if cost.dollars_by_band else ""
            found.append(("money", dollars_words(*cost.dollars), f"{ends}at {price_words(cost)}"))
    if own.seconds:
        lost = max(own.seconds, key=lambda part: own.seconds[part] if part != "compute" else -1.0)
        if own.seconds[lost] > 0:
            share = format_percent(own.seconds[lost] / own.step_seconds)
            found.append(("most lost to", share, PART_TITLES[lost]))
    return found


def notes(content: Content) -> list[str]:
    """What the reader must know before trusting the table."""
    return [*content.file.notes, *show_answers.notes(content.file.answers)]


def scatter_words(content: Content, is_drawn: bool) -> str:
    """What a device has, and whether that `is_drawn` beside the marks of the scatter."""
    if content.memory_bytes is None:
        return "The two kinds of devices have different amounts of memory; see the notes."
    if not is_drawn:
        return f"A device has {format_bytes(content.memory_bytes)} of memory, beyond the range drawn."
    return f"The dashed line is a device's memory, {format_bytes(content.memory_bytes)}."


def memory_words(content: Content) -> str:
    """What the areas of the memory's figure mean."""
    if not content.memory:
        return "The use of memory is not known for this plan."
    if any(one.layers for one in content.memory):
        return (
            "Areas add up to the predicted peak of the fullest rank. Buffers are tensors that exist only briefly. "
            '"Outside torch" is the device\'s context and its communicators.'
        )
    return "Areas add up to the predicted peak of the fullest rank; which layers hold them is not known for this plan."


def links_words(content: Content) -> str:
    """What the drawing of links shows, or why there is none."""
    drawing = content.drawing
    if drawing is None:
        if content.file.num_devices == 1 or content.best.plan.num_devices == 1:
            return "There is one device, so nothing crosses a link."
        known = "; ".join(map(show_answers.axis_words, content.file.answers.links))
        return f"{known[:1].upper()}{known[1:]}." if known else "The links of its axes are not known."
    fast, network = (
        f"{three_digits(rate / GB)} GB/s" for rate in (drawing.fast_bytes_per_second, drawing.network_bytes_per_second)
    )
    words = "Each square is a device, numbered by its rank; lines join the groups of rank 0."
    if any(own.num_domains == 1 for own in drawing.axes):
        words = f"{words} Solid lines stay on fast links ({fast})."
    if any(own.num_domains > 1 for own in drawing.axes):
        words = f"{words} Dotted lines cross the network ({network} per device)."
    count = len(drawing.rows)
    return words if count == drawing.num_domains else f"{words} Drawn: {count} of {drawing.num_domains:,}."


def tornado_words(content: Content) -> str:
    """What the tornado says beside its bars."""
    if not content.changes:
        return "Sensitivity was not computed for this plan."
    others = [change for change in content.changes if not change.is_same]
    if not others:
        return "The best plan stays the best whichever of these is off."
    return "* another plan would then be best: see the numbers."


def refusal_words(content: Content) -> str:
    """Which plan missed by the least."""
    miss = content.file.answers.nearest_miss
    needs = any(lacked(reason, content.file.stack) for reason in content.file.rejected)
    lacks = f"Some plans need what {content.file.stack} lacks. " if needs else ""
    if miss is not None:
        return f"{lacks}Nearest miss for memory: {miss.plan}, {format_bytes(miss.over_bytes)} over."
    if not content.file.rejected:
        return "No plan was rejected."
    return f"{lacks}No nearest miss for memory is known."


def rests_words(content: Content) -> str:
    """What predictions rest on, and how many published runs resemble the question."""
    said = "; ".join(content.best.prediction.assumptions)
    words = f"{said[:1].upper()}{said[1:]}." if said else ""
    found = content.resembling
    if found is None:
        return words
    alike = "none" if not found.num_alike else f"{found.num_alike:,}"
    where = f", {found.num_in_software or 'none'} of them with the same software" if found.num_alike else ""
    return (
        f"{words} Of {found.num_runs:,} published steps {alike} had the same generation of devices, precision and "
        f"parallel axes{where}."
    ).strip()

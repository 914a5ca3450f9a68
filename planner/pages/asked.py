"""What was asked, on the page: the command and its terms, what is answered beside the table, and the words of plans."""

from __future__ import annotations

import re
from collections.abc import Iterator

from planner.answers import Cost
from planner.pages.content import Content
from planner.terminal.handover import lines as read_lines
from planner.terminal.legend import Word, legend
from planner.terminal.show_answers import simulated_lines, why_not_lines
from planner.terminal.show_cost import cost_lines, price_words, spot_lines
from planner.terminal.show_purchase import count_words
from profiles.units import format_batch, format_count, format_days, format_percent, three_digits


def facts(content: Content) -> list[tuple[str, str]]:
    """What was asked, and what was settled for what was not: name and value."""
    file = content.file
    origin = {"datasheet": "data sheet, not measured"}.get(file.machine_origin, f"{file.machine_origin} profile")
    headroom = content.headroom_fraction
    found = [
        ("model", f"{file.model_name}, {format_count(file.num_parameters)} parameters"),
        ("global batch", format_batch(file.global_batch_size, file.sequence_length, file.size_unit)),
        ("machine", f"{file.num_devices} x {file.machine_name}, {origin}"),
        ("cluster", file.cluster),
        ("devices of a node", str(file.devices_per_node or "")),
        ("software", " ".join(filter(None, (file.stack, file.stack_version)))),
        ("attention kernel", file.attention_kernel),
        ("precision", content.best.plan.precision),
        ("memory left free", f"at least {format_percent(headroom)}" if headroom else ""),
        *_terms(content),
        ("learned from runs here", ", ".join(f"{part} x {value:.2f}" for part, value in file.learned.items())),
        ("legal plans priced", f"{file.num_legal:,}"),
        ("made", file.created),
    ]
    return [(name, value) for name, value in found if value]


def _terms(content: Content) -> Iterator[tuple[str, str]]:
    """What the bill of a training is of."""
    file, cost, spot = content.file, content.file.answers.cost, content.file.answers.spot_cost
    if cost is None:
        return
    yield "trained on", count_words(cost.tokens, file.sequence_length, file.size_unit)
    yield "price", price_words(cost) or "not known: give --price"
    yield "price on spot", "" if spot is None else price_words(spot)
    yield "to be done", _deadline(cost)
    yield "PUE of the building", f"{cost.pue:g}" if cost.kwh > 0 else ""
    yield "power of the node", f"{three_digits(cost.host_watts)} W beside each device" if cost.kwh > 0 else ""
    yield "checkpoints kept", str(cost.checkpoints_kept)


def _deadline(cost: Cost) -> str:
    if cost.deadline_days is None:
        return ""
    within = format_days(cost.deadline_days)
    return f"by {cost.deadline}, in {within}" if cost.deadline else f"within {within}"


def answered(content: Content) -> list[tuple[str, list[str]]]:
    """What is answered beside the table of plans: a title, and its lines as the terminal has them."""
    file, answers = content.file, content.file.answers
    found: list[tuple[str, list[str]]] = []
    if answers.cost is not None:
        amount = count_words(answers.cost.tokens, file.sequence_length, file.size_unit)
        lines = list(cost_lines(answers.cost, amount))
        found.append(("What the training takes", lines + list(_spot(answers.spot_cost))))
    if answers.why_not is not None:
        found.append((f"Why not {answers.why_not.asked}", list(why_not_lines(answers.why_not, file))))
    if answers.simulated:
        found.append(("Simulated event by event", list(simulated_lines(answers))))
    if answers.read is not None:
        found.append(("The job that was read", list(read_lines(answers.read, file.stack))))
    return found


def _spot(cost: Cost | None) -> Iterator[str]:
    return iter(()) if cost is None else spot_lines(cost)


def words_of_plans(content: Content) -> list[Word]:
    """What the words mean that the plans of the page have."""
    said = {word for one in content.plans for word in one.plan.id.split()}
    return [word for word in legend() if any(re.fullmatch(word.pattern, one) for one in said)]

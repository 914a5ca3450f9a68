"""The answers of a plan file as lines of text: every number is one that the file holds."""

from __future__ import annotations

from collections.abc import Iterator

from planner.answers import Answers, AxisLinks, Change, PoolAlone, WhyNot
from planner.parts import PART_TITLES
from planner.prediction import Candidate, PlanFile, Prediction
from planner.terminal.handover import lines as read_lines
from planner.terminal.show_cost import cost_lines, spot_lines
from planner.terminal.show_purchase import count_words
from profiles.machines.stacks import THIS_PROGRAM
from profiles.units import GB, format_bytes, format_percent, format_seconds

# Parts whose difference is less than this share of the best plan's step are not worth a line.
WORTH_A_LINE_FRACTION = 0.001


def notes(answers: Answers) -> Iterator[str]:
    """What is said before the table."""
    if answers.nearest_miss is not None:
        miss = answers.nearest_miss
        yield f"nearest miss for memory: {miss.plan}, {format_bytes(miss.over_bytes)} over"
    yield from map(_pool, answers.pools)


def like_it(candidate: Candidate) -> str:
    """How many plans are folded into this one, as what follows a verdict."""
    if not candidate.num_folded:
        return ""
    return f"; {candidate.num_folded} like it within {format_percent(candidate.folded_within_fraction)}"


def memory_words(prediction: Prediction) -> str:
    """What the fullest rank holds inside torch's allocator, by kind."""
    held = {kind: value for kind, value in prediction.bytes_per_rank.items() if value > 0 and kind != "outside"}
    words = ", ".join(f"{kind} {format_bytes(value)}" for kind, value in held.items())
    # The parts of traced layers come from another law than the whole, and may be more.
    over = -prediction.bytes_per_rank.get("slack", 0.0)
    return f"{words}; minus {format_bytes(over)}, by which these parts exceed the predicted peak" if over > 0 else words


def lines(file: PlanFile) -> Iterator[str]:
    """What is said after the table."""
    answers = file.answers
    if answers.links:
        yield f"links of the best plan: {'; '.join(map(axis_words, answers.links))}"
    if answers.pareto:
        yield "time against memory:"
        for plan in answers.pareto:
            yield f"  {format_seconds(plan.step_seconds)}, {format_bytes(plan.device_bytes)}: {plan.plan}"
    if answers.cost is not None:
        yield from cost_lines(answers.cost, count_words(answers.cost.tokens, file.sequence_length, file.size_unit))
    if answers.spot_cost is not None:
        yield from spot_lines(answers.spot_cost)
    if answers.why_not is not None:
        yield from why_not_lines(answers.why_not, file)
    if answers.simulated:
        yield from simulated_lines(answers)
    if answers.sensitivity:
        yield "what the best plan would take if an unknown were off, and what would change the winner:"
        yield from map(_change, answers.sensitivity)
        yield f"  the price of a device-hour: the same plan, as every plan takes all {file.num_devices} devices"
    if answers.read is not None:
        yield from read_lines(answers.read, file.stack)


def simulated_lines(answers: Answers) -> Iterator[str]:
    """The plans of the table by event simulation."""
    yield "by event simulation, with shared links and actual overlaps:"
    for played in answers.simulated:
        off = format_percent(played.off_fraction, signed=True)
        yield f"  {format_seconds(played.step_seconds)}, {off}: {played.plan}"
    yield f"timeline of the best written to {answers.timeline}: open it at ui.perfetto.dev"


def _pool(alone: PoolAlone) -> str:
    words = f"the {alone.num_devices} x {alone.device} alone"
    if alone.share_fraction is None:
        return f"{words}: {alone.refusal}"
    if alone.share_fraction >= 1:
        return f"{words} would reach {alone.share_fraction:.2f} times the throughput: do not mix ({alone.plan})"
    return f"{words} would reach {format_percent(alone.share_fraction)} of the throughput ({alone.plan})"


def axis_words(links: AxisLinks) -> str:
    """Where the ranks of an axis lie, and at which rate they are joined."""
    where = "inside one fast domain" if links.num_domains == 1 else f"across {links.num_domains} fast domains"
    return f"{links.axis} {links.degree} {where} ({links.bytes_per_second / GB:.4g} GB/s)"


def why_not_lines(found: WhyNot, file: PlanFile) -> Iterator[str]:
    """What becomes of the plans with the degrees that were asked about."""
    if not found.is_legal:
        yield f"{found.asked}: not legal; {found.rule}"
        return
    yield f"{found.asked}: legal, {found.num_layouts:,} layouts"
    if not found.fits:
        yield _does_not_fit(found)
        return
    held, room = format_bytes(found.peak_bytes or 0.0), format_bytes(found.memory_bytes or 0.0)
    yield f"fits: {found.plan} takes {held} of {room}"
    behind = found.behind_fraction or 0.0
    if file.stack != THIS_PROGRAM:
        pass
    elif not found.refusal:
        yield "can be run"
    elif behind < 0:
        yield f"faster than the best plan, but simulate only: {found.refusal}"
    else:
        yield f"simulate only: {found.refusal}"
    yield f"{format_seconds(found.step_seconds or 0.0)} a step, {format_percent(behind, signed=True)}: {found.verdict}"
    for part in sorted(found.difference_seconds, key=lambda part: -abs(found.difference_seconds[part])):
        lost = found.difference_seconds[part]
        if abs(lost) > WORTH_A_LINE_FRACTION * file.candidates[0].prediction.step_seconds:
            yield f"  {PART_TITLES.get(part, part)}: {'+' if lost > 0 else '-'}{format_seconds(abs(lost))}"


def _does_not_fit(found: WhyNot) -> str:
    """How far the smallest such plan is from fitting, and what would help."""
    if not found.plan:
        least, room = format_bytes(found.peak_bytes or 0.0), format_bytes(found.memory_bytes or 0.0)
        if (found.over_bytes or 0.0) <= 0:
            return "the offloaded bytes do not fit in the host's memory"
        return f"states alone do not fit in memory: they take at least {least} of {room}"
    most = max(found.bytes_per_rank, key=lambda kind: found.bytes_per_rank[kind])
    over, largest = format_bytes(found.over_bytes or 0.0), format_bytes(found.bytes_per_rank[most])
    return f"does not fit: even {found.plan} is {over} over; most of it is {most}, {largest}"


def _change(change: Change) -> str:
    now = f"{format_seconds(change.step_seconds)} a step, {format_percent(change.change_fraction, signed=True)}"
    if change.is_same:
        return f"  {change.what}: {now}; the same plan"
    then = f"{change.winner} in {format_seconds(change.winner_seconds)}, {format_percent(change.gain)} faster"
    return f"  {change.what}: {now}; then {then}"

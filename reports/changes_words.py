"""What changed between two runs, in sentences: what differs, what was predicted of it, what came of it."""

from __future__ import annotations

from collections.abc import Sequence

from planner.parts import PART_TITLES
from profiles.units import format_bytes, format_percent, format_seconds
from reports.changes import Changes
from reports.facts import value_words
from reports.outcomes import Outcome, Standing, median_of
from reports.summary import Finding, Tone

ARROW = "->"
# Of a peak that moved by less nobody need be told.
TOLD_MEMORY_FRACTION = 0.01


def findings(changes: Changes) -> tuple[Finding, ...]:
    """All that there is to say, what differs first."""
    said = [_facts(changes), *_reversed(changes), *_plans(changes)]
    same = changes.same_plans
    if same and not changes.is_nothing:
        said += _predictions(changes, same)
    if changes.outcomes:
        said += [_steps(changes.outcomes), *_memory(changes.outcomes), _errors(changes.outcomes)]
        said += [*_losses(changes.outcomes), *_unexplained(changes)]
    return tuple(said)


def side_words(values: Sequence[str], others: Sequence[str]) -> str:
    """Two sides of a fact, with an arrow between."""
    return f"{value_words(values)} {ARROW} {value_words(others)}"


def _facts(changes: Changes) -> Finding:
    if changes.is_nothing:
        missing = f", as far as is known ({_unrecorded(changes)})" if changes.unrecorded else ""
        return Finding(
            tone="good",
            text=f"Nothing changed but the time of the run{missing}: versions, machine, job, plans and their "
            "predictions are the same.",
        )
    groups: dict[str, list[str]] = {}
    for change in changes.facts:
        groups.setdefault(change.group, []).append(change.name)
    words = "; ".join(f"{group} ({_listed(names)})" for group, names in groups.items())
    known = f" Not recorded by one of them: {_unrecorded(changes)}." if changes.unrecorded else ""
    if not words:
        return Finding(tone="plain", text=f"Versions, machine and job are the same.{known}")
    return Finding(tone="plain", text=f"Changed: {words}.{known}")


def _unrecorded(changes: Changes) -> str:
    return _listed([name.name for name in changes.unrecorded])


def _listed(names: Sequence[str], most: int = 6) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _reversed(changes: Changes) -> list[Finding]:
    if not changes.is_reversed:
        return []
    return [Finding(tone="fair", text=f"{changes.after.name}, given second, ran first.")]


def _plans(changes: Changes) -> list[Finding]:
    said = []
    others = [outcome for outcome in changes.outcomes if not outcome.is_same_plan]
    if not changes.outcomes:
        said.append(Finding(tone="fair", text="No plan ran the same job in both, so no times are compared."))
    for outcome in changes.outcomes:
        dropped, added = outcome.words
        if dropped or added:
            name = "The plan" if outcome in others else outcome.before.label
            words = [f"-{word}" for word in dropped] + [f"+{word}" for word in added]
            said.append(Finding(tone="plain", text=f"{name} changed: {' '.join(words)}."))
    for standings, when in ((changes.only_before, "before"), (changes.only_after, "after")):
        if standings and changes.outcomes:
            said.append(Finding(tone="plain", text=f"{_count(standings)} ran only {when}: {_names(standings)}."))
    for choice in changes.first_choices:
        said.append(Finding(tone="plain", text=f"The first choice changed: {choice.before} {ARROW} {choice.after}."))
    return said


def _count(items: Sequence[object]) -> str:
    return f"{len(items)} plan{'' if len(items) == 1 else 's'}"


def _share(some: Sequence[object], every: Sequence[object]) -> str:
    if len(every) == 1:
        return "The plan"
    return f"All {len(every)} plans" if len(some) == len(every) else f"{len(some)} of {len(every)} plans"


def _is(items: Sequence[object]) -> str:
    return "is" if len(items) == 1 else "are"


def _names(standings: Sequence[Standing]) -> str:
    return _listed([standing.label for standing in standings], most=3)


def _predictions(changes: Changes, same: Sequence[Outcome]) -> list[Finding]:
    moved = [outcome for outcome in same if not outcome.is_time_predicted_alike]
    heavier = [outcome for outcome in same if not outcome.is_memory_predicted_alike]
    if not moved and not heavier:
        word = "plan is" if len(same) == 1 else f"{len(same)} plans are"
        return [Finding(tone="plain", text=f"The same {word} predicted as before, in time and memory.")]
    said = []
    if moved:
        most = max(moved, key=lambda outcome: max(map(abs, outcome.part_changes_seconds.values())))
        part = most.most_changed_part
        before, after = (format_seconds(side.part_seconds(part)) for side in (most.before, most.after))
        middle = format_percent(median_of(moved, lambda outcome: outcome.predicted_change_fraction), signed=True)
        subject = f"{_share(moved, same)} {_is(moved)}"
        of = "" if len(same) == 1 else f" of {most.after.label}"
        by = middle if len(moved) == 1 else f"{middle} in the median"
        said.append(
            Finding(
                tone="plain",
                text=f"{subject} predicted differently: {by}. What moved most is {PART_TITLES[part]}{of}, "
                f"{before} {ARROW} {after}.",
            )
        )
    if heavier:
        middle = format_percent(median_of(heavier, _predicted_peak_change), signed=True)
        text = f"{_share(heavier, same)} {_is(heavier)} predicted to have a different memory peak: {middle}."
        said.append(Finding(tone="plain", text=text))
    return [*said, Finding(tone="plain", text=_why_predicted_otherwise(changes))]


def _predicted_peak_change(outcome: Outcome) -> float:
    return outcome.after.predicted_peak_bytes / outcome.before.predicted_peak_bytes - 1


def _why_predicted_otherwise(changes: Changes) -> str:
    """What may be behind another prediction of the same plan, as far as the files tell."""
    changed = {change.name for change in changes.facts}
    if any(name.startswith("learned") for name in changed):
        return "What was learned from earlier runs changed, and predictions with it."
    profile = (
        "another profile of the machine" if changed & {"profile", "fingerprint of the profile"} else "a new profile"
    )
    if changed & {"commit", "Trainwright"}:
        return f"The cause may be a law that changed between the versions, or {profile}."
    if changed & {"method", "software planned for"}:
        return "The cause is another way of predicting, or other software that was planned for."
    return f"Both ran with the same version, so look at the machine first: {profile} would do this."


def _steps(outcomes: Sequence[Outcome]) -> Finding:
    judged = [outcome for outcome in outcomes if outcome.is_judged]
    counted, doubt = judged or outcomes, "" if judged else " These times are not judged."
    middle = median_of(counted, lambda outcome: outcome.step_change_fraction)
    apart = [outcome for outcome in counted if outcome.is_beyond_spread]
    if len(counted) == 1:
        one = counted[0]
        before, after = (format_seconds(side.measured_seconds) for side in (one.before, one.after))
        how = "more than its steps spread" if apart else "within the spread of its steps"
        text = f"A step of {one.after.label}: {before} {ARROW} {after} ({format_percent(middle, signed=True)}), {how}."
        return Finding(tone=_tone(middle, bool(apart and judged)), text=text + doubt)
    moved = format_percent(abs(middle))
    how = "as long as before" if moved == format_percent(0.0) else f"{moved} {'longer' if middle > 0 else 'less'}"
    text = f"Steps take {how} in the median of {_count(counted)}; "
    if not apart:
        return Finding(tone="plain", text=f"{text}none moved by more than its steps spread.{doubt}")
    most = max(apart, key=lambda outcome: abs(outcome.step_change_fraction))
    change = format_percent(most.step_change_fraction, signed=True)
    return Finding(
        tone=_tone(middle, 2 * len(apart) > len(counted) and bool(judged)),
        text=f"{text}{len(apart)} moved by more than their steps spread, most {most.after.label} ({change}).{doubt}",
    )


def _tone(change: float, counts: bool) -> Tone:
    return "plain" if not counts or change == 0 else "good" if change < 0 else "bad"


def _memory(outcomes: Sequence[Outcome]) -> list[Finding]:
    known = [outcome for outcome in outcomes if outcome.memory_change_fraction is not None]
    if not known:
        return []
    most = max(known, key=lambda outcome: abs(outcome.memory_change_fraction or 0.0))
    change = most.memory_change_fraction or 0.0
    if abs(change) < TOLD_MEMORY_FRACTION:
        return [Finding(tone="plain", text="Memory peaks are the same within 1 %.")]
    before, after = (format_bytes(side.measured_peak_bytes or 0.0) for side in (most.before, most.after))
    which = "The peak of" if len(known) == 1 else "Of all memory peaks, the one that moved most is that of"
    text = f"{which} {most.after.label}: {before} {ARROW} {after} ({format_percent(change, signed=True)})."
    return [Finding(tone="plain", text=text)]


def _errors(outcomes: Sequence[Outcome]) -> Finding:
    counted = [outcome for outcome in outcomes if outcome.is_judged] or list(outcomes)
    before = median_of(counted, lambda outcome: abs(outcome.before.error_fraction))
    after = median_of(counted, lambda outcome: abs(outcome.after.error_fraction))
    middle = "" if len(counted) == 1 else " in the median"
    texts = format_percent(before), format_percent(after)
    tone: Tone = "plain" if texts[0] == texts[1] else "good" if after < before else "fair"
    return Finding(tone=tone, text=f"Error of predicted step times{middle}: {texts[0]} {ARROW} {texts[1]}.")


def _losses(outcomes: Sequence[Outcome]) -> list[Finding]:
    said = []
    for outcome in outcomes:
        before, after = outcome.before.losses, outcome.after.losses
        if set(before) != set(after):
            tone: Tone = "bad" if "failed" in after else "plain"
            words = f"Losses of {outcome.after.label}: {side_words(before, after)}."
            said.append(Finding(tone=tone, text=words))
    return said


def _unexplained(changes: Changes) -> list[Finding]:
    if not changes.is_nothing or not any(outcome.is_beyond_spread for outcome in changes.outcomes):
        return []
    text = "The files do not say why step times differ: look at what else ran there, and at clock rates."
    return [Finding(tone="fair", text=text)]

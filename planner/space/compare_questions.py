"""Several settings side by side: precisions, gradient codecs and global batches, each with a space of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from planner.space.answers import no_plan, runnable_places, why_not_built
from planner.space.explore import Place, Space, explore
from planner.space.layouts import Options
from planner.space.predictions import predictions
from planner.space.question import Setting
from planner.space.replay_best import in_order
from planner.space.to_plans import closed_seconds, plan_of
from planner.terminal.progress import OnProgress, pieces, silent
from profiles.errors import NoFeasiblePlanError
from profiles.units import format_percent

# Plans with lossy gradients, or such as are sent for nothing, are about a tenth as many as those without.
PLAIN_WEIGHT, REPLAY_SHARE = 10.0, 0.1
# Lossy gradients must promise at least this much: a choice, below what any prediction is sure of.
WORTH_FRACTION = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """A setting's ranked space with its best plan that counts; `closed_seconds` is what the closed form says of it."""

    space: Space
    place: Place
    tokens_per_second: float
    closed_seconds: float


def try_settings(
    settings: Sequence[Setting], options: Options, simulate: bool, on_progress: OnProgress = silent
) -> tuple[Space, list[str]]:
    """The space of the setting whose best plan is the fastest per token, and what became of the others.

    Lossy gradients must be worth it: by WORTH_FRACTION over others.
    Codecs are tried where gradients sent for nothing would be worth them: no codec does better than that.
    Raises: NoFeasiblePlanError where no setting has a plan that fits, or the executor runs none of this model.
    """
    refused = "" if simulate else why_not_built(settings[0])
    if refused:
        raise NoFeasiblePlanError(
            f"no plan of {settings[0].model.name} can be run: {refused}; pass --simulate to see what would be fastest, "
            "or --stack to plan for other software"
        )
    tried: list[Tried] = []
    failed: list[NoFeasiblePlanError] = []
    notes: list[str] = []
    lossy = [at for at in settings if at.compresses]
    plain = [at for at in settings if not at.compresses]
    # Each plain one, then what it would gain, then the lossy ones.
    rest = len(plain) + len(lossy) if lossy else 0
    following = pieces(on_progress, [PLAIN_WEIGHT] * len(plain) + [1.0] * rest)
    has_room = {_but_codec(at) for at in plain if _try(at, options, simulate, tried, failed, next(following))}
    gains = {_but_codec(own.space.at): _most_gained(own, options, simulate, next(following)) for own in tried if lossy}
    declined = {key: gain for key, gain in gains.items() if gain < WORTH_FRACTION}
    # Nothing runs with a codec that does not run without.
    held_up = has_room - {_but_codec(own.space.at) for own in tried}
    for at in (at for at in lossy if _but_codec(at) not in declined.keys() | held_up):
        _try(at, options, simulate, tried, failed, next(following))
    if declined:
        most = format_percent(max(0.0, *declined.values()))
        notes.append(f"gradient codecs are not worth it: even sending gradients at no cost would gain only {most}")
    if not tried:
        raise failed[0]
    best = max(tried, key=_worth)
    notes += [_beside(own, best) for own in tried if own is not best]
    notes += [str(error) for error in failed]
    if best.space.at.compresses:
        notes.append(f"the best plan's gradients are lossy ({best.space.at.codec}): check that training tolerates this")
    return best.space, notes


def _worth(own: Tried) -> float:
    """Tokens per second, of lossy gradients less what they must promise."""
    return own.tokens_per_second / (1 + WORTH_FRACTION * own.space.at.compresses)


def _beside(own: Tried, best: Tried) -> str:
    """How a setting compares with the best one."""
    behind = best.tokens_per_second / own.tokens_per_second - 1
    words = f"{format_percent(behind)} slower per token"
    if behind < 0:
        words = f"{format_percent(-behind)} faster per token, too little to justify lossy gradients"
    return f"{_difference(own.space.at, best.space.at)}: {words} ({plan_of(own.space, own.place).id})"


def _try(
    at: Setting,
    options: Options,
    simulate: bool,
    tried: list[Tried],
    failed: list[NoFeasiblePlanError],
    on_progress: OnProgress,
) -> bool:
    """Whether anything fits; the best that counts joins `tried`, why there is none `failed`."""
    exploring, replaying = pieces(on_progress, (1 - REPLAY_SHARE, REPLAY_SHARE))
    try:
        space = explore(at, options, on_progress=exploring)
    except NoFeasiblePlanError as error:
        failed.append(error)
        return False
    closed = _best_seconds(space, simulate)
    if closed is None:
        failed.append(NoFeasiblePlanError(no_plan(space)))
        return len(space.best) > 0
    space = in_order(space, on_progress=replaying)
    place = next(iter(runnable_places(space, simulate, 1)))
    found = predictions(space, [place])[0]
    tried.append(Tried(space=space, place=place, tokens_per_second=found.tokens_per_second, closed_seconds=closed))
    return True


def _best_seconds(space: Space, simulate: bool) -> float | None:
    """What the first plan of a space that counts takes; None where there is none."""
    place = next(iter(runnable_places(space, simulate, 1)), None)
    return None if place is None else closed_seconds(space, space.tables, place, place.layout)


def _but_codec(at: Setting) -> tuple[str, int]:
    return at.precision, at.global_batch_size


def _most_gained(plain: Tried, options: Options, simulate: bool, on_progress: OnProgress) -> float:
    """How much faster the best plan would be whose gradients are sent for nothing, by the closed form."""
    try:
        space = explore(replace(plain.space.at, free_exchange=True), options, on_progress=on_progress)
        free = _best_seconds(space, simulate)
    except NoFeasiblePlanError:
        free = None
    return 0.0 if free is None else plain.closed_seconds / free - 1


def _difference(own: Setting, best: Setting) -> str:
    """What tells a setting from the best one."""
    words = []
    if own.precision != best.precision:
        words.append(own.precision)
    if own.codec != best.codec:
        words.append(f"gradients in {own.codec}" if own.compresses else "uncompressed gradients")
    if own.global_batch_size != best.global_batch_size:
        words.append(f"global batch {own.global_batch_size}")
    return ", ".join(words)

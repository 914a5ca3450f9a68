"""Several settings side by side: precisions, gradient codecs and global batches, each with a space of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from planner.executable import SPLIT_BACKWARD
from planner.space.answers import no_plan, runnable_places
from planner.space.explore import Space, explore
from planner.space.layouts import Options
from planner.space.plans import Place, plan_of
from planner.space.predictions import predictions
from planner.space.retime import in_order
from planner.space.setting import Setting
from profiles.codecs import codec
from profiles.errors import NoFeasiblePlanError
from profiles.units import format_percent

# A codec can save no more than what the exchange of gradients adds to the best plan; less than this is not looked for.
WORTH_FRACTION = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """A setting's space, ranked, with its best plan that counts, the tokens a second of it, and what tells it apart."""

    space: Space
    place: Place
    tokens_per_second: float
    exchange_fraction: float


def try_settings(settings: Sequence[Setting], options: Options, simulate: bool) -> tuple[Space, list[str]]:
    """The space of the setting whose best plan is the fastest per token, and what became of the others.

    Codecs are tried only where the exchange of gradients takes long enough to be worth it.
    Raises: NoFeasiblePlanError where no setting has a plan that fits.
    """
    plain = [at for at in settings if not codec(at.codec).lossy] or list(settings)
    tried: list[Tried] = []
    failed: list[NoFeasiblePlanError] = []
    notes: list[str] = []
    for at in plain:
        _try(at, options, simulate, tried, failed)
    if not tried:
        raise failed[0]
    most = max(own.exchange_fraction for own in tried)
    lossy = [at for at in settings if at not in plain] if len(plain) < len(settings) else []
    if lossy and most < WORTH_FRACTION:
        notes.append(
            f"gradient codecs are not worth it: the exchange of gradients takes {format_percent(most)} of the best step"
        )
        lossy = []
    for at in lossy:
        few = replace(
            options,
            zero_stages=(0, 1),
            schedules=tuple(name for name in options.schedules if name not in SPLIT_BACKWARD),
        )
        _try(at, few, simulate, tried, failed)
    best = max(tried, key=lambda own: own.tokens_per_second)
    for own in tried:
        if own is not best:
            behind = best.tokens_per_second / own.tokens_per_second - 1
            words = f"{_difference(own.space.at, best.space.at)}: {format_percent(behind)} slower per token"
            notes.append(f"{words} ({plan_of(own.space, own.place).id})")
    notes += [str(error) for error in failed]
    if codec(best.space.at.codec).lossy:
        notes.append(f"the best plan's gradients are lossy ({best.space.at.codec}): check that training bears it")
    return best.space, notes


def _try(at: Setting, options: Options, simulate: bool, tried: list[Tried], failed: list[NoFeasiblePlanError]) -> None:
    try:
        space = in_order(explore(at, options))
    except NoFeasiblePlanError as error:
        failed.append(error)
        return
    place = next(iter(runnable_places(space, simulate, 1)), None)
    if place is None:
        failed.append(NoFeasiblePlanError(no_plan(space)))
        return
    found = predictions(space, [place])[0]
    tried.append(
        Tried(
            space=space,
            place=place,
            tokens_per_second=found.tokens_per_second,
            exchange_fraction=found.seconds["data_comm"] / found.step_seconds,
        )
    )


def _difference(own: Setting, best: Setting) -> str:
    """What tells a setting from the best one."""
    words = []
    if own.precision != best.precision:
        words.append(own.precision)
    if own.codec != best.codec:
        words.append(f"gradients in {own.codec}" if codec(own.codec).lossy else "gradients as they are")
    if own.global_batch_size != best.global_batch_size:
        words.append(f"global batch {own.global_batch_size}")
    return ", ".join(words)

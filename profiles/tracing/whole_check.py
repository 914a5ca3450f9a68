"""A module traced with blocks taken out, held against one pass of the whole, or against what is left of them.

Its own code may tell its blocks apart by their numbers, between them, where nothing of the blocks shows it.
"""

from __future__ import annotations

from collections.abc import Sequence

from profiles.errors import InputError
from profiles.tracing.dropout import Dropout
from profiles.tracing.module_copies import forget_cached
from profiles.tracing.segments import Run
from profiles.tracing.task_runs import ENDS, Subject, whole_of


def check_against_whole(subject: Subject, precision: str, point: tuple[int, int]) -> None:
    """Check that the whole module does what the shortened one does, block by block, at one size.

    Raises: InputError where it does not.
    """
    whole = whole_of(subject)
    whole.dropout = Dropout(fused=subject.dropout.fused)
    try:
        wanted, found = whole.run(precision, *point), subject.run(precision, *point)
    finally:
        forget_cached(whole.module)
    if _expanded(found, subject.taken) != _expanded(wanted, {}):
        raise InputError(f"{subject.spec.title}: its blocks are equal, but the operations between them are not")


def check_between(subject: Subject, marks: Sequence[object], run: Run) -> None:
    """Check that what is left before blocks that were taken out is like the round before it, where the last is left.

    `marks` are what is equal in segments that are alike.
    Raises: InputError where it is not, or where more comes to the last.
    """
    if subject.left != ENDS:
        return
    came = dict(zip(run.cuts.order, run.cuts.num_bytes, strict=True))
    paths = [segment.path for segment in run.segments]
    for place, path in enumerate(paths):
        if path in subject.taken:
            period = len(set(subject.taken[path]))
            before, own, behind = (paths[place + period * way] for way in (-1, 0, 1))
            if marks[place - 2 * period + 1 : place - period + 1] != marks[place - period + 1 : place + 1]:
                raise InputError(f"{subject.spec.title}: no two of the blocks around {path} are equal")
            if not came.get(before) == came.get(own) == came.get(behind):
                raise InputError(f"{subject.spec.title}: the blocks around {path} take more and more inputs")


def _expanded(run: Run, taken: dict[str, list[str]]) -> list[object]:
    """What each block did and what came to it, those that were taken out as those that they are like."""
    cuts = zip(run.cuts.num_bytes, run.cuts.refusals, strict=True)
    came = dict(zip(run.cuts.order, cuts, strict=True))
    # Refusals name their block.
    own = {
        segment.path: (segment.key, came[segment.path][0], bool(came[segment.path][1])) if segment.path in came else
        (segment.key, 0, False)
        for segment in run.segments
    }  # fmt: skip
    expanded: list[object] = []
    for number, segment in enumerate(run.segments):
        expanded.append(own[segment.path] if segment.path else (number == 0, segment.key))
        expanded.extend(own[path] for path in taken.get(segment.path, ()))
    return expanded

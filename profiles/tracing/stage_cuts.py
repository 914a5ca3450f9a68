"""Cuts that runs of a module at several sizes showed, put together: where stages may begin, and bytes that come there.

Blocks that were taken out of the module are cut as the last that is left of their list, whose neighbour is too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from profiles.errors import InputError
from profiles.models.cutting import Cutting, SharedWeights
from profiles.models.operators import Polynomial
from profiles.models.polynomials import Grid
from profiles.tracing.cuts import Cuts


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenCuts:
    """What one run showed of each call of a block: its path, bytes that come to it, why no stage begins there, or "".

    `shared` are sizes of parameters that several parts of the pass use, and those parts; part 0 is before all blocks.
    """

    order: tuple[str, ...] = ()
    num_bytes: tuple[int, ...] = ()
    refusals: tuple[str, ...] = ()
    shared: tuple[tuple[int, tuple[int, ...]], ...] = ()


def seen_cuts(cuts: Cuts) -> SeenCuts:
    """The numbers of a pass."""
    parts: dict[nn.Parameter, list[int]] = {}
    for part in sorted(cuts.used):
        for parameter in cuts.used[part]:
            parts.setdefault(parameter, []).append(part)
    shared = sorted((parameter.numel(), tuple(own)) for parameter, own in parts.items() if len(own) > 1)
    stages = range(1, len(cuts.order) + 1)
    return SeenCuts(
        order=tuple(cuts.order),
        num_bytes=tuple(cuts.num_bytes(stage) for stage in stages),
        refusals=tuple(cuts.refused.get(stage, "") for stage in stages),
        shared=tuple(shared),
    )


def cutting_of(
    title: str,
    paths: Sequence[str],
    taken: Mapping[str, Sequence[str]],
    seen: Mapping[str, Sequence[SeenCuts]],
    grid: Grid,
) -> Cutting:
    """How a whole module is cut, by runs at the points of a grid at each precision.

    `paths` are the blocks of its segments, `taken` how many others follow some.
    Raises: InputError where what comes to blocks that were taken out is not known.
    """
    every = [one for runs in seen.values() for one in runs]
    blocks = [path for path in paths if path]
    if not blocks:
        return Cutting(refusal=f"{title} has no repeated blocks")
    if any(list(one.order) != blocks for one in every):
        return Cutting(refusal=f"which blocks of {title} run depends on the batch")
    for one in every:
        check_equal(title, blocks, taken, one)
    # Of each layer the block that it is like, from 1; the first and the last layer are none.
    like = [number for number, path in enumerate(blocks, 1) for _ in range(1 + len(taken.get(path, ())))]
    refusals = [
        next((one.refusals[number] for one in every if one.refusals[number]), "") for number in range(len(blocks))
    ]
    able = [place for place, number in enumerate(like, 1) if not refusals[number - 1]]
    fitted = {precision: _fitted(runs, grid) for precision, runs in seen.items()}
    return Cutting(
        positions=tuple(able),
        received_bytes={name: tuple(own[like[place - 1] - 1] for place in able) for name, own in fitted.items()},
        refusal=next((f"{title}: {words}" for words in refusals if words), ""),
        shared=_shared(every[0].shared, like, len(blocks)),
    )


def check_equal(title: str, blocks: Sequence[str], taken: Mapping[str, Sequence[str]], seen: SeenCuts) -> None:
    """Check that as much comes to blocks behind which others were taken out, as to those before.

    Raises: InputError.
    """
    if list(seen.order) != blocks:
        return
    for number, path in enumerate(blocks):
        if path in taken and seen.num_bytes[number] != seen.num_bytes[number - 1]:
            raise InputError(f"{title}: the blocks after {path} take more and more inputs")


def _fitted(runs: Sequence[SeenCuts], grid: Grid) -> list[Polynomial]:
    return [grid.fit(sizes) for sizes in zip(*(run.num_bytes for run in runs), strict=True)]


def _shared(seen: Sequence[tuple[int, tuple[int, ...]]], like: Sequence[int], count: int) -> tuple[SharedWeights, ...]:
    """Parameters by the layers that use them: those of every part by all, else the last that is like a part.

    What runs behind the last block that is left of a list runs behind all of them.
    """
    last = {number: place for place, number in enumerate((0, *like))}
    everywhere = tuple(range(len(like) + 1))
    sizes: dict[tuple[int, ...], int] = {}
    for size, parts in seen:
        own = everywhere if len(parts) > count else tuple(last[part] for part in parts)
        sizes[own] = sizes.get(own, 0) + size
    return tuple(SharedWeights(num_parameters=size, positions=own) for own, size in sorted(sizes.items()))

"""How the linears of a module are split over ranks: which, in what way, and what else of the module changes with them.

No process group is needed to find that out; the executor applies it to a module on a rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

# Consecutive indices [start, stop), in order; and those of every rank.
Pieces: TypeAlias = tuple[tuple[int, int], ...]
OfRanks: TypeAlias = tuple[Pieces, ...]

# By what a linear gives: it is given the same on all ranks, and gives its own part.
COLUMNS = "columns"
# As before, but what it is given is a rank's own, or used by a rank in its own way: a linear of CHOSEN feeds it.
COLUMNS_INSIDE = "columns inside"
# By what a linear is given: its own part, of which every rank has a sum to add up.
ROWS = "rows"
# Whole on every rank, which goes on with a part of what it gives; a lookup, or a linear whose parts ranks share.
CHOSEN = "chosen"
# Experts of a mixture, each whole on one rank, of which every rank has a sum to add up.
EXPERTS = "experts"


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """A module over `degree` ranks.

    `styles` are ways of linears and mixtures by path, `pieces` the features that each rank has of what they give, or,
    of ROWS, are given, or its experts; `transposed` those whose weights have inputs first. `parameters` are others of
    which a rank uses a part, and `arguments` what a module is called with, by path and name or place: along which
    dimension, which part. `attributes` are numbers that modules, by path, keep of what a rank has: heads, widths; one
    of a configuration of theirs is "config.name". `summed` are names of parameters whose gradients add up over the
    ranks. `left_whole` says in a sentence each what is not split, and why.
    """

    degree: int
    styles: Mapping[str, str] = field(default_factory=dict)
    pieces: Mapping[str, OfRanks] = field(default_factory=dict)
    transposed: frozenset[str] = frozenset()
    parameters: Mapping[str, tuple[int, OfRanks]] = field(default_factory=dict)
    arguments: Mapping[tuple[str, str | int], tuple[int, OfRanks]] = field(default_factory=dict)
    attributes: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    summed: frozenset[str] = frozenset()
    left_whole: tuple[str, ...] = ()


def joined(splits: list[Split], degree: int) -> Split:
    """Splits of several places in a module as one."""
    attributes: dict[str, dict[str, int]] = {}
    for split in splits:
        for path, values in split.attributes.items():
            attributes.setdefault(path, {}).update(values)
    return Split(
        degree=degree,
        styles={path: style for split in splits for path, style in split.styles.items()},
        pieces={path: own for split in splits for path, own in split.pieces.items()},
        transposed=frozenset[str]().union(*(split.transposed for split in splits)),
        parameters={path: own for split in splits for path, own in split.parameters.items()},
        arguments={key: own for split in splits for key, own in split.arguments.items()},
        attributes=attributes,
        summed=frozenset[str]().union(*(split.summed for split in splits)),
    )

"""Sizes of the symbolic dimensions of a graph's inputs: batch 1, the sequence length, and what is given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from profiles.errors import InputError
from profiles.inputs.foreign import shown

# Words by which exporters and people name a dimension.
BATCH_WORDS, SEQUENCE_WORDS, OTHER_WORDS = ("batch",), ("seq", "length", "tokens"), ("past", "total", "cache")
# Whole numbers: what tokens are.
TOKEN_TYPES = (6, 7)
LARGEST = 2**40


@dataclass(slots=True, kw_only=True)
class Bound:
    """Sizes by the names of dimensions, which of them are the sequence, and the shape of every input."""

    sizes: dict[str, int] = field(default_factory=dict)
    sequences: set[str] = field(default_factory=set)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)


def bind(graph: Any, where: str, sequence_length: int, given: Mapping[str, int]) -> Bound:
    """Bind every dimension of the graph's inputs, weights that stand among those aside.

    A dimension without a name is called by its input and place, as in `pixels.2`.
    Raises: InputError that names the first that nothing says a size of, or one given that is not there.
    """
    weights = {tensor.name for tensor in graph.initializer}
    bound = Bound(sizes=dict(given))
    seen: set[str] = set()
    inputs = [value for value in graph.input if value.name not in weights]
    for value in inputs:
        if not value.type.HasField("tensor_type") or not value.type.tensor_type.HasField("shape"):
            raise InputError(f"{where}: input {shown(value.name)} is not a tensor with a shape: export it with shapes")
        seen |= _bind_input(value, bound, sequence_length)
    for value in inputs:
        bound.shapes[value.name] = tuple(_size(value, place, bound, where) for place in range(_rank(value)))
    for name in given:
        if name not in seen:
            names = ", ".join(map(shown, sorted(seen)))
            words = f"its dimensions are {names}" if seen else "all its sizes are fixed"
            raise InputError(f"{where}: --dimension {shown(name)}: no input has it; {words}")
    return bound


def _bind_input(value: Any, bound: Bound, sequence_length: int) -> set[str]:
    """Bind what one input says of its dimensions; their names."""
    tensor, names = value.type.tensor_type, set()
    for place in range(_rank(value)):
        name = _name(value, place)
        if name is None:
            continue
        names.add(name)
        word = name.lower()
        is_other = any(part in word for part in OTHER_WORDS)
        is_named = "." not in name
        says_sequence = is_named and not is_other and any(part in word for part in SEQUENCE_WORDS)
        says_batch = is_named and any(part in word for part in BATCH_WORDS)
        is_token_axis = place == 1 and _rank(value) == 2 and tensor.elem_type in TOKEN_TYPES
        if says_sequence or (is_token_axis and not says_batch and not is_other):
            bound.sizes.setdefault(name, sequence_length)
            bound.sequences.add(name)
        elif says_batch or (place == 0 and not is_other):
            bound.sizes.setdefault(name, 1)
    return names


def _rank(value: Any) -> int:
    return len(value.type.tensor_type.shape.dim)


def _name(value: Any, place: int) -> str | None:
    """What a dimension is called; None where its size is in the file."""
    dimension = value.type.tensor_type.shape.dim[place]
    if dimension.HasField("dim_value"):
        return None
    return dimension.dim_param or f"{value.name}.{place}"


def _size(value: Any, place: int, bound: Bound, where: str) -> int:
    name = _name(value, place)
    if name is None:
        size = int(value.type.tensor_type.shape.dim[place].dim_value)
        if not 0 <= size <= LARGEST:
            raise InputError(f"{where}: input {shown(value.name)} has the impossible size {size}")
        return size
    if name not in bound.sizes:
        raise InputError(
            f"{where}: the size of dimension {shown(name)} of input {shown(value.name)} is unknown: "
            f"give it with --dimension '{name}=NUMBER'"
        )
    return bound.sizes[name]

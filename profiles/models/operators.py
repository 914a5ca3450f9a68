"""One operator: its shapes, FLOPs and bytes as functions of micro-batch, sequence length and tensor-parallel degree.

A size is a polynomial: a tuple of terms (coefficient, batch exponent, sequence exponent, tensor-parallel exponent), so
one traced layer prices every micro-batch, sequence length and degree, one value or a whole array of them at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from profiles.artifacts import STRICT
from profiles.inputs.ranges import Exponent, Finite, Whole

Term = tuple[Finite, Exponent, Exponent, Exponent]
Polynomial = tuple[Term, ...]
Kind = Literal["matmul", "attention", "memory"]
Phase = Literal["forward", "backward"]
PHASES: tuple[Phase, ...] = ("forward", "backward")

# FLOPs per b·h·q·kv·d: forward has 2 products, backward 5 (it recomputes the scores), 2 FLOPs per multiply-add;
# causal masking is not subtracted, as in torch.utils.flop_counter.
ATTENTION_FLOPS = {"forward": 4.0, "backward": 10.0}


def constant(value: float) -> Polynomial:
    """The polynomial that is `value` everywhere."""
    return ((float(value), 0, 0, 0),) if value else ()


def add(*polynomials: Polynomial) -> Polynomial:
    """The sum, with equal exponents collected."""
    terms: dict[tuple[int, int, int], float] = {}
    for polynomial in polynomials:
        for coefficient, *exponents in polynomial:
            key = (exponents[0], exponents[1], exponents[2])
            terms[key] = terms.get(key, 0.0) + coefficient
    return tuple((value, *key) for key, value in sorted(terms.items()) if value)


def multiply(*polynomials: Polynomial) -> Polynomial:
    """The product."""
    result = constant(1)
    for polynomial in polynomials:
        result = add(
            *((((c0 * c1, b0 + b1, s0 + s1, t0 + t1),) for c0, b0, s0, t0 in result for c1, b1, s1, t1 in polynomial))
        )
    return result


def evaluate(
    polynomial: Polynomial, batch: ArrayLike, sequence: ArrayLike, tensor_parallel: ArrayLike
) -> NDArray[np.float64]:
    """The value at micro-batch `batch` (samples), `sequence` (tokens), `tensor_parallel` (degree).

    Shapes: the arguments broadcast; the result has the broadcast shape.
    """
    b, s, t = (np.asarray(x, dtype=np.float64) for x in (batch, sequence, tensor_parallel))
    result = np.zeros(np.broadcast_shapes(b.shape, s.shape, t.shape))
    for coefficient, i, j, k in polynomial:
        result = result + coefficient * b**i * s**j * t**k
    return result


# How many sizes a kernel of a kind has.
NUM_DIMS: dict[Kind, int] = {"matmul": 4, "attention": 5, "memory": 0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """One kernel call of a layer; `saved_bytes` are of its outputs that the backward pass needs.

    Shapes: `dims` of a matmul are (batch, m, n, k), of an attention (batch, heads, queries, keys, head size), else ().
    """

    __pydantic_config__ = STRICT

    name: str
    kind: Kind
    phase: Phase
    path: str
    dtype: str
    layout: str = ""
    dims: tuple[Polynomial, ...] = ()
    read_bytes: Polynomial = ()
    written_bytes: Polynomial = ()
    saved_bytes: Polynomial = ()
    inputs: tuple[Whole, ...] = ()

    @property
    def flops(self) -> Polynomial:
        """Multiply-adds of products, counted twice; 0 for memory-bound operators, as in FlopCounterMode."""
        if self.kind == "matmul":
            return _product(2.0, self.dims)
        if self.kind == "attention":
            return _product(ATTENTION_FLOPS[self.phase], self.dims)
        return ()

    @property
    def moved_bytes(self) -> Polynomial:
        """Bytes read and written, each operand once."""
        return _sum(self.read_bytes, self.written_bytes)


# Layers are priced again and again, of the same few sizes.
@lru_cache(2**14)
def _product(value: float, dims: tuple[Polynomial, ...]) -> Polynomial:
    return multiply(constant(value), *dims)


@lru_cache(2**14)
def _sum(one: Polynomial, other: Polynomial) -> Polynomial:
    return add(one, other)

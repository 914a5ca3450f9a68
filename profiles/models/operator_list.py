"""The kernels of one training step of any model as a list that scales with the batch: what prices need. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from profiles.artifacts import STRICT
from profiles.models.operators import Phase

Kind = Literal["matmul", "attention", "convolution", "recurrent", "pass"]
# A size as (what does not depend on the batch, what each sample adds).
Linear = tuple[float, float]
# How many sizes a kernel of a kind has; see ListedOperator.
NUM_DIMS: dict[Kind, int] = {"matmul": 4, "attention": 5, "convolution": 9, "recurrent": 5, "pass": 0}


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedOperator:
    """Equal kernels of a step, `count` of them, in one precision.

    Shapes: `dims` of a matmul are (batch, m, n, k), of an attention (batch, heads, queries, keys, head size), of a
    convolution (samples, channels in, channels out, groups, positions in, positions out, positions of the filter,
    stride, gap between the filter's places) with those of all axes multiplied, of a recurrent layer (samples, time,
    inputs, units, gates).
    """

    __pydantic_config__ = STRICT

    name: str
    kind: Kind
    phase: Phase
    dtype: str
    count: int
    dims: tuple[Linear, ...] = ()
    read_bytes: Linear = (0.0, 0.0)
    written_bytes: Linear = (0.0, 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorList:
    """A model's step without its optimizer; `operators` in the order in which they are first met.

    `precision` is that of products: fp32, or 16 bits by autocast. `saved_bytes` stand at the end of the forward pass,
    `peak_bytes` at the worst moment, gradients of parameters in both, parameters in neither.
    """

    __pydantic_config__ = STRICT

    name: str
    precision: str
    num_parameters: int
    num_parameter_tensors: int
    operators: tuple[ListedOperator, ...]
    saved_bytes: Linear
    peak_bytes: Linear


def at(size: Linear, samples: float) -> float:
    """A size at a number of samples."""
    return size[0] + size[1] * samples


def columns(operators: tuple[ListedOperator, ...], samples: float) -> NDArray[np.float64]:
    """The dims of operators of one kind, a row each, at a number of samples."""
    return np.array([[at(size, samples) for size in one.dims] for one in operators], dtype=np.float64)

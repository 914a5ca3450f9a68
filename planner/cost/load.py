"""The work of a phase of a layer on one rank: seconds of products, bytes of everything bound by memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from profiles.models.operators import Phase
from profiles.models.transformer import Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Work of one phase of one layer on one rank.

    Seconds of products and of fused attention, each alone on the device; bytes that pass through memory besides:
    element-wise operators as the stack fuses them, copies of routed tokens, operands converted to low precision,
    attention scores as a fused softmax would pass them; logits (elements). Of the products' seconds `weight_seconds`
    are those of weight gradients.
    """

    matmul_seconds: Array
    weight_seconds: Array
    attention_seconds: Array
    element_bytes: Array
    routed_bytes: Array
    converted_bytes: Array
    score_bytes: Array
    logit_elements: Array

    def __add__(self, other: Load) -> Load:
        return Load(**{name: getattr(self, name) + getattr(other, name) for name in Load.__slots__})

    @property
    def products(self) -> Load:
        """Its products and its attention, without what passes through memory besides."""
        return load_of(
            self.matmul_seconds, matmul_seconds=self.matmul_seconds, attention_seconds=self.attention_seconds
        )


def load_of(like: Array, **fields: Array) -> Load:
    """A load of the `fields` given and nothing else."""
    zero = np.zeros_like(like)
    return Load(**{name: fields.get(name, zero) for name in Load.__slots__})


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Loads per micro-batch and rank by kind of layer and phase; `core` is what selective recomputation repeats."""

    layers: dict[str, dict[Phase, Load]]
    embedding: dict[Phase, Load]
    head: dict[Phase, Load]
    core: Load

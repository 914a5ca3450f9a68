"""Gradient compression: what each codec puts on the wire and keeps in memory. Torch-free; the hooks are executor's."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from profiles.errors import UnknownNameError

KNOWN = ("none", "bf16", "powersgd-1", "powersgd-4")
GRADIENT_BYTES = 4.0
# DistributedDataParallel's default bucket_cap_mb: gradients are exchanged in buckets of this size.
BUCKET_BYTES = 25 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Codec:
    """One codec for fp32 gradients that are all-reduced; `rank` is that of a low-rank approximation, else 0."""

    name: str
    lossy: bool
    wire_bytes_per_parameter: float
    rank: int = 0

    @property
    def is_bucketed(self) -> bool:
        """Whether gradients go out in buckets during backward, or all at once after it.

        A low rank takes two all-reduces one after the other; on gloo those of several buckets would start in another
        order on each rank, so the executor gives it a single bucket.
        """
        return not self.rank

    def wire_bytes(self, num_parameters: ArrayLike, matrix_sides: ArrayLike, num_vectors: ArrayLike) -> ArrayLike:
        """Bytes all-reduced for gradients of `num_parameters`.

        Model: low rank r sends r x (rows + columns) of every matrix, and vectors as they are.
        Shapes: the arguments broadcast. Source: Vogels et al., PowerSGD, 2019.
        """
        if self.rank:
            return GRADIENT_BYTES * (self.rank * matrix_sides + num_vectors)  # type: ignore[operator]
        return self.wire_bytes_per_parameter * num_parameters  # type: ignore[operator]

    def state_bytes(self, num_parameters: ArrayLike, matrix_sides: ArrayLike) -> ArrayLike:
        """Bytes held beside the gradients: a bucket's compressed copy, or the error feedback and the two factors.

        Ignores: buckets that wait for a slow link, whose copies take the place of activations that are gone by then.
        """
        if self.rank:
            return GRADIENT_BYTES * (num_parameters + self.rank * matrix_sides)  # type: ignore[operator]
        held = self.wire_bytes_per_parameter if self.lossy else 0.0
        return np.minimum(held * np.asarray(num_parameters), held / GRADIENT_BYTES * BUCKET_BYTES)


def codec(name: str) -> Codec:
    """The codec called `name`: none, bf16, or powersgd-R for rank R.

    Raises: UnknownNameError.
    """
    if name == "none":
        return Codec(name=name, lossy=False, wire_bytes_per_parameter=GRADIENT_BYTES)
    if name == "bf16":
        return Codec(name=name, lossy=True, wire_bytes_per_parameter=GRADIENT_BYTES / 2)
    head, _, rank = name.partition("-")
    if head == "powersgd" and rank.isdigit() and int(rank) > 0:
        return Codec(name=name, lossy=True, wire_bytes_per_parameter=GRADIENT_BYTES, rank=int(rank))
    raise UnknownNameError("codec", name, KNOWN)

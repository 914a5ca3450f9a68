"""Gradient compression: what each codec puts on the wire and keeps in memory. Torch-free; reductions has the hooks."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from profiles.errors import UnknownNameError

KNOWN = ("none", "bf16", "fp16", "int8", "fp8", "topk-1", "powersgd-1", "powersgd-4")
GRADIENT_BYTES = 4.0
# Of a product of two factors; beyond, the factors of any matrix are larger than it.
MOST_RANK = 65_536
# DistributedDataParallel's default bucket_cap_mb: gradients are exchanged in buckets of this size.
BUCKET_BYTES = 25 * 2**20
# A kept entry of a sparse message is its value (fp32) and its place (int32).
ENTRY_BYTES = 8.0
# Gradients that are rounded share a scale (fp32) in blocks of so many, so that small ones keep theirs.
BLOCK, SCALE_BYTES = 1024, 4.0
# Names of what averaging a bucket of gradients consists of: the codec's work before and after the message, and that.
ENCODE, ALL_REDUCE, DECODE = "encode", "all_reduce", "decode"
# Stages of ZeRO that are FSDP2.
FSDP_STAGES = (2, 3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Codec:
    """One codec for fp32 gradients, its `title` in a few words; `rank` is that of a low-rank approximation, else 0.

    Messages that cannot be summed on the way are `gathered`: every rank receives all and decodes them.
    With `feedback` a rank keeps what its message left out and adds it to the next one. Sparse messages have the largest
    `kept_fraction` of the entries. `decode_passes` is what decoding one rank's message moves, in passes over fp32
    gradients.
    """

    name: str
    title: str
    lossy: bool
    wire_bytes_per_parameter: float
    rank: int = 0
    gathered: bool = False
    feedback: bool = False
    kept_fraction: float = 0.0
    decode_passes: float = 0.0

    @property
    def is_bucketed(self) -> bool:
        """Whether gradients go out in buckets during backward, or all at once after it.

        A low rank takes two all-reduces one after the other; on gloo those of several buckets would start in another
        order on each rank, so the executor gives it a single bucket.
        """
        return not self.rank

    @property
    def is_sparse(self) -> bool:
        """Whether some of the entries are sent and the others not."""
        return self.kept_fraction > 0

    @property
    def collective(self) -> str:
        """What carries the messages."""
        return "all_gather" if self.gathered else "all_reduce"

    def num_kept(self, num_parameters: int) -> int:
        """Entries of a message of so many gradients that are sent: one at least."""
        return max(1, math.ceil(self.kept_fraction * num_parameters))

    def wire_bytes(self, num_parameters: ArrayLike, matrix_sides: ArrayLike, num_vectors: ArrayLike) -> ArrayLike:
        """Bytes of one rank's messages for gradients of `num_parameters`.

        Model: low rank r sends r x (rows + columns) of every matrix, and vectors as they are.
        Shapes: the arguments broadcast. Source: Vogels et al., PowerSGD, 2019.
        """
        if self.rank:
            return GRADIENT_BYTES * (self.rank * matrix_sides + num_vectors)  # type: ignore[operator]
        return self.wire_bytes_per_parameter * num_parameters  # type: ignore[operator]

    def feedback_bytes(self, num_parameters: ArrayLike, matrix_sides: ArrayLike) -> ArrayLike:
        """Bytes of what is kept from step to step: what messages left out, and factors."""
        if self.rank:
            return GRADIENT_BYTES * (num_parameters + self.rank * matrix_sides)  # type: ignore[operator]
        return np.asarray(num_parameters) * (GRADIENT_BYTES if self.feedback else 0.0)

    def bucket_bytes(self, num_parameters: ArrayLike) -> ArrayLike:
        """Bytes of the largest message that one rank sends at once."""
        of_one = self.wire_bytes_per_parameter if self.lossy and not self.rank else 0.0
        return np.asarray(np.minimum(np.asarray(num_parameters), BUCKET_BYTES / GRADIENT_BYTES) * of_one)

    def state_bytes(self, num_parameters: ArrayLike, matrix_sides: ArrayLike, num_ranks: ArrayLike = 1) -> ArrayLike:
        """Bytes held beside the gradients: what is kept, and a bucket's message, or all ranks' where they are gathered.

        Ignores: buckets that wait for a slow link, whose copies take the place of activations that are gone by then.
        """
        messages = np.asarray(self.bucket_bytes(num_parameters))
        if self.gathered:
            messages = messages * (1 + np.asarray(num_ranks))
        return np.asarray(np.asarray(self.feedback_bytes(num_parameters, matrix_sides)) + messages)


def codec(name: str) -> Codec:
    """The codec called `name`: none, bf16, fp16, int8, fp8, powersgd-R for rank R, or topk-P for P percent of entries.

    Raises: UnknownNameError.
    """
    if name == "none":
        return Codec(
            name=name, title="gradients as they are, in fp32", lossy=False, wire_bytes_per_parameter=GRADIENT_BYTES
        )
    if name in ("bf16", "fp16"):
        return Codec(name=name, title="rounded to 16 bits", lossy=True, wire_bytes_per_parameter=GRADIENT_BYTES / 2)
    if name in ("int8", "fp8"):
        # Decoding reads a byte, and reads and writes the sum.
        return Codec(
            name=name,
            title=f"rounded to 8 bits, a scale for each {BLOCK}; the error is added to the next step's",
            lossy=True,
            wire_bytes_per_parameter=1 + SCALE_BYTES / BLOCK,
            gathered=True,
            feedback=True,
            decode_passes=2.25,
        )
    head, _, number = name.partition("-")
    if head == "powersgd" and number.isascii() and number.isdigit() and 0 < int(number[:6]) <= MOST_RANK:
        return Codec(
            name=name,
            title=f"matrices as products of rank {number}; the error is added to the next step's (PowerSGD)",
            lossy=True,
            wire_bytes_per_parameter=GRADIENT_BYTES,
            rank=int(number),
        )
    percent = _number(number)
    if head == "topk" and 0 < percent <= 100:
        share = percent / 100
        return Codec(
            name=name,
            title=f"the largest {number} % of the entries; the rest is added to the next step's",
            lossy=True,
            wire_bytes_per_parameter=share * ENTRY_BYTES,
            gathered=True,
            feedback=True,
            kept_fraction=share,
            # Entries lie apart: each takes a line of the cache for itself, 64 bytes read and written.
            decode_passes=share * 2 * 64 / GRADIENT_BYTES,
        )
    raise UnknownNameError("codec", name, KNOWN)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0

"""What kernels and messages take, each alone: the one seam between laws of a step and whoever knows the hardware."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from planner.cost.factors import Factors
from planner.cost.software_time import TimeRules
from profiles.machines.profile import Collective
from profiles.models.operators import Phase
from profiles.models.transformer import Array


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerKernels:
    """Seconds of one layer in one direction, before any message. Shapes: one entry per job.

    `compute` on the device, `again` what is recomputed for it; of `compute`, `attention` is what context-parallel
    messages hide behind. `launch` is the host's work, which runs ahead, `dispatch` that which nothing hides. Ranks that
    share its linears sum `num_sums` times, those of what is recomputed included, each sum `late` by so much.
    """

    compute: Array
    again: Array
    attention: Array
    launch: Array
    dispatch: Array
    num_sums: Array
    late: Array


class Kernels(Protocol):
    """Seconds of some jobs' kernels. Shapes: one entry per job."""

    def layer(self, rules: TimeRules, factors: Factors, phase: Phase, kind: str) -> LayerKernels:
        """One layer of a kind in one direction."""

    def weights(self, rules: TimeRules, factors: Factors, kind: str) -> Array:
        """The part of a layer's backward that makes weight gradients."""

    def end(self, rules: TimeRules, factors: Factors, part: str) -> Array:
        """Embedding or head, both directions."""

    def codec(self, factors: Factors, num_parameters: Array) -> Array:
        """Encoding and decoding the gradients of so many parameters."""

    def optimizer(self, rules: TimeRules, factors: Factors, num_parameters: Array) -> Array:
        """Updating so many parameters."""


class Links(Protocol):
    """Seconds of messages between the ranks of some jobs."""

    def seconds(
        self, collective: Collective, num_bytes: Array, size: Array, inside: Array, stride: Array | float = 1.0
    ) -> Array:
        """Seconds of a collective over groups of `size` ranks, of which `inside` share a fast domain. Shapes: per job.

        Ranks of a group are `stride` apart, and the groups between communicate at the same time.
        Bytes are of the whole tensor, as profiles/laws/collectives counts them.
        """

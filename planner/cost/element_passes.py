"""Passes over memory of a layer's element-wise operators: how often an activation is read or written, by operator.

Counted kernel by kernel, in reads and writes of one activation of 16 bits, (forward, backward); an fp32 copy is two.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planner.cost.adapted import is_frozen
from planner.cost.job import Jobs
from profiles.models.operators import Phase
from profiles.models.transformer import Array, Flags

Passes = tuple[float, float]

# A norm reads and writes; backward it reads its input and the gradient and writes one. PyTorch's own kernels and a
# compiler's read both again for the gradient of the weight. Spelled out, an RMS norm widens (3), squares (4), averages
# (2), scales (4), rounds (3) and weights (2); backward each of them and the sums that they need.
HAND_NORM: Passes = (2.0, 3.0)
LIBRARY_NORM: Passes = (2.0, 5.0)
EAGER_RMS_NORM: Passes = (18.0, 47.0)
# Under autocast its weight has 32 bits: the product of both is wider (1 more), and rounded again (3).
AUTOCAST_RMS_NORM: Passes = (22.0, 57.0)
# A residual is a sum of two, backward too; joined with the norm behind it, the norm's input is at hand.
RESIDUAL: Passes = (3.0, 3.0)
JOINED_RESIDUAL: Passes = (2.0, 1.0)
# Rotation spelled out: two products, half negated, both halves joined, a sum; backward every half is padded with zeros.
ROTATION: Passes = (2.0, 2.0)
EAGER_ROTATION: Passes = (10.0, 15.0)
# Gate and value in, product out. Spelled out, the gate's activation stands alone; where gate and value are one
# product's result, backward joins their gradients. GELU is one kernel of PyTorch, or spelled out in 9 (as traced).
GATED: Passes = (3.0, 5.0)
EAGER_GATED: Passes = (5.0, 9.0)
EAGER_PACKED_GATED: Passes = (5.0, 13.0)
PLAIN: Passes = (2.0, 3.0)
SPELLED_GELU: Passes = (18.0, 31.0)
# The gradient of a bias is a sum over rows of a gradient that is read for it.
BIAS: Passes = (0.0, 1.0)
# Linears that read the same each give it a gradient: a sum for each further one.
JOINED_GRADIENT: Passes = (0.0, 3.0)
# Beside a linear adapters widen its input to their 32 bits and autocast narrows it again (6), back as well, where two
# gradients are summed (3); their output is scaled (2) and added (3), its gradient scaled and rounded (4).
ADAPTER_INPUTS: Passes = (6.0, 9.0)
ADAPTER_OUTPUTS: Passes = (5.0, 4.0)
FUSED_ADAPTER_INPUTS: Passes = (1.0, 3.0)
FUSED_ADAPTER_OUTPUTS: Passes = (3.0, 1.0)
FUSED_BIAS: Passes = (0.0, 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class ElementPasses:
    """Passes of each operator, by the software of each job. Shapes: two arrays (forward, backward), one per job."""

    norm: tuple[Array, Array]
    residual: tuple[Array, Array]
    rotation: tuple[Array, Array]
    activation: tuple[Array, Array]
    bias: tuple[Array, Array]
    adapter_inputs: tuple[Array, Array]
    adapter_outputs: tuple[Array, Array]

    def of(self, operator: str, phase: Phase) -> Array:
        """Passes of an operator in one direction."""
        pair: tuple[Array, Array] = getattr(self, operator)
        return pair[0 if phase == "forward" else 1]


def element_passes(jobs: Jobs) -> ElementPasses:
    """Passes of the operators of `jobs`: a compiler fuses every chain, a job may say that it fuses norms and the like.

    Model: models with gated networks have RMS norms, others layer norms, which have one kernel everywhere.
    """
    gated, compiled = jobs.model.gated, jobs.compiled
    said, denied = jobs.fused_norms == "yes", jobs.fused_norms == "no"

    def fuses(word: str) -> Flags:
        return jobs.stack.read(lambda stack: float(word in stack.time.fuses)) > 0

    def told(word: str) -> Flags:
        return np.asarray(said | (fuses(word) & ~denied))

    by_hand = np.where(gated, told("rms_norm"), told("layer_norm")) & ~compiled
    packed = jobs.stack.read(lambda stack: float(stack.time.packs_gates)) > 0
    spelled = jobs.stack.read(lambda stack: float(stack.time.spells_gelu)) > 0
    casts = jobs.stack.read(lambda stack: stack.time.cast_bytes) > 0
    activation = told("activation") | compiled
    return ElementPasses(
        norm=_choose(
            (by_hand, HAND_NORM), (compiled | ~gated, LIBRARY_NORM), (casts, AUTOCAST_RMS_NORM), usual=EAGER_RMS_NORM
        ),
        residual=_choose((compiled | fuses("residual_norm"), JOINED_RESIDUAL), usual=RESIDUAL),
        rotation=_choose((compiled | told("rotation"), ROTATION), usual=EAGER_ROTATION),
        activation=_choose(
            (gated & activation, GATED), (gated & packed, EAGER_PACKED_GATED), (gated, EAGER_GATED),
            (spelled & ~activation, SPELLED_GELU), usual=PLAIN,
        ),
        bias=_choose((fuses("bias") | ~jobs.model.biases | is_frozen(jobs), FUSED_BIAS), usual=BIAS),
        adapter_inputs=_choose((compiled | said, FUSED_ADAPTER_INPUTS), usual=ADAPTER_INPUTS),
        adapter_outputs=_choose((compiled | said, FUSED_ADAPTER_OUTPUTS), usual=ADAPTER_OUTPUTS),
    )  # fmt: skip


def _choose(*cases: tuple[Flags, Passes], usual: Passes) -> tuple[Array, Array]:
    """The passes of the first case that holds of each job."""
    flags = [case for case, _ in cases]
    ahead, back = (np.select(flags, [passes[i] for _, passes in cases], usual[i]) for i in range(2))
    return np.asarray(ahead, dtype=np.float64), np.asarray(back, dtype=np.float64)

"""Seconds of a traced layer's kernels by a law, as a machine's curves are one: at any micro-batch and degrees."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np

from profiles.errors import InputError
from profiles.laws.curves import kernel_seconds
from profiles.machines.profile import KernelCurve, MachineProfile
from profiles.models.layer_profile import LayerProfile
from profiles.models.operators import Operator, Phase, Polynomial, evaluate
from profiles.models.transformer import Array

CONCRETE_KIND = {("attention", "forward"): "attention_forward", ("attention", "backward"): "attention_backward"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What one micro-batch of a layer is on a rank. Shapes: all equally long.

    `batch` samples of `sequence` tokens, whose linears are split over `tensor` and whose tokens over `context` ranks;
    `spread` is over how many ranks the tokens between the linears are split besides, as sequence parallelism does.
    """

    batch: Array
    sequence: Array
    tensor: Array
    context: Array
    spread: Array

    def at(self, polynomial: Polynomial) -> Array:
        """A size of a layer on one rank."""
        return evaluate(polynomial, self.batch, self.sequence / self.context, self.tensor)

    def of_attention(self, polynomial: Polynomial) -> Array:
        """The same of attention: context ranks exchange tokens for heads, and see whole sequences."""
        return evaluate(polynomial, self.batch, self.sequence, self.tensor * self.context)

    def of_memory(self, polynomial: Polynomial) -> Array:
        """The same of what passes through memory: what the linears do not split, sequence parallelism does."""
        if any(term[3] for term in polynomial):
            return self.at(polynomial)
        return evaluate(polynomial, self.batch, self.sequence / self.context / self.spread, self.tensor)


# Seconds of operators that are alike but for their sizes, one row each: kind, name, precision, FLOPs, bytes, dims.
Law = Callable[[str, str, str, Array, Array, list[Array]], Array]


def curves_of(machine: MachineProfile) -> Law:
    """The law that a machine's own curves are, and on a CPU what training adds to each operator."""

    def seconds(kind: str, name: str, precision: str, flops: Array, moved: Array, dims: list[Array]) -> Array:
        kernels = kernel_seconds(find_curve(machine, kind, name, precision), flops, moved, dims)
        return kernels + machine.operator_seconds

    return seconds


def find_curve(machine: MachineProfile, kind: str, name: str, precision: str) -> KernelCurve:
    """The machine's curve for a kernel: by name and precision, else the general one of its kind, else that of fp32.

    Raises: InputError where the machine has neither; another kernel's curve would be a guess.
    """
    curves = {(curve.name, curve.precision): curve for curve in machine.kernels if curve.kind == kind}
    for wanted in ((name, precision), ("", precision), (name, "fp32"), ("", "fp32")):
        if wanted in curves:
            return curves[wanted]
    known = ", ".join(sorted({word or "general" for word, _ in curves})) or "none"
    raise InputError(
        f"machine {machine.name} was not measured for {kind} {name or 'kernels'} in {precision} (measured: {known}): "
        "profile it again, or leave this choice out"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseSeconds:
    """Seconds of a layer's kernels in one direction: all, of its products, of attention. Shapes: as the sizes."""

    total: Array
    products: Array
    attention: Array


def phase_seconds(law: Law, layer: LayerProfile, phase: Phase, sizes: Sizes) -> PhaseSeconds:
    """The kernels of one direction, one after the other."""
    groups: dict[tuple[str, str, str], list[Operator]] = {}
    for op in layer.of_phase(phase):
        groups.setdefault((CONCRETE_KIND.get((op.kind, phase), op.kind), _curve_name(op), op.dtype), []).append(op)
    sums = {"memory": np.zeros_like(sizes.batch), "matmul": np.zeros_like(sizes.batch), "attention": 0 * sizes.batch}
    # Operators of a layer have few distinct sizes.
    of_memory, of_attention, of_products = cache(sizes.of_memory), cache(sizes.of_attention), cache(sizes.at)
    for (kind, name, dtype), members in groups.items():
        at = {"memory": of_memory, "attention": of_attention}.get(members[0].kind, of_products)
        flops = np.stack([at(op.flops) for op in members])
        moved = np.stack([at(op.moved_bytes) for op in members])
        columns = range(len(members[0].dims))
        dims = [moved] if kind == "memory" else [np.stack([at(op.dims[i]) for op in members]) for i in columns]
        sums[members[0].kind] = sums[members[0].kind] + law(kind, name, dtype, flops, moved, dims).sum(axis=0)
    return PhaseSeconds(
        total=np.asarray(sum(sums.values())), products=sums["matmul"], attention=np.asarray(sums["attention"])
    )


def _curve_name(op: Operator) -> str:
    return {"matmul": op.layout, "attention": "", "memory": op.name}[op.kind]

"""Seconds of kernels on a machine that was measured: a layer as it was timed, else its kernels on the curves.

A layer is the sum of its kernels. Where the machine holds the time of the real layer, that time replaces the sum at the
sizes measured and corrects it in proportion at others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from planner.cost.axes.tensor import sum_bytes
from planner.cost.factors import Factors
from planner.cost.job import Jobs
from planner.cost.measured.codecs import codec_seconds
from planner.cost.measured.kernel_law import scaled_law
from planner.cost.measured.operators import Law, PhaseSeconds, Sizes, curves_of, find_curve, phase_seconds
from planner.cost.measured.timed_layers import timed_over_summed
from planner.cost.measured.traced import Host, Traced, TracedLayers
from planner.cost.software_time import TimeRules
from planner.cost.unit_costs import LayerKernels
from profiles.codecs.codec import FSDP_STAGES, codec
from profiles.laws.curves import ADAMW_BYTES_PER_PARAMETER, kernel_seconds
from profiles.machines.devices import Device
from profiles.machines.profile import LayerTiming, MachineProfile
from profiles.models.layer_profile import LayerProfile
from profiles.models.operators import PHASES, Phase, evaluate
from profiles.models.transformer import Array

# Adding a parameter's gradient to what earlier micro-batches left, or to DDP's bucket: two reads and a write of fp32.
ACCUMULATE_BYTES = 12.0
# A kernel on the vocabulary moves so much per token and entry of it, or more.
VOCABULARY_BYTES = 2.0
# Of what DTensor adds to a linear forward is a third: it has two products backward.
FORWARD_DISPATCH = 1 / 3


@dataclass(frozen=True, kw_only=True)
class OnMachine:
    """Layers on a machine that was measured, whose gradients are in one codec.

    `device` is the machine's where laws of its kernels are published.
    """

    machine: MachineProfile
    layers: TracedLayers
    codec_name: str
    device: Device | None

    @cached_property
    def law(self) -> Law:
        """The machine's curves, or the published law scaled to them."""
        return scaled_law(self.machine, self.device) if self.device else curves_of(self.machine)

    @cached_property
    def host(self) -> Host:
        """The host as it was measured."""
        machine = self.machine
        return Host(
            launch_seconds=0.0 if machine.device_kind == "cpu" else machine.launch_seconds,
            linear_seconds=machine.parallel_linear_seconds,
            seconds_per_byte=machine.parallel_message_seconds_per_byte,
        )

    @property
    def memory_bytes_per_second(self) -> float:
        """Of a plain copy that no cache holds."""
        return self.machine.memory_bytes_per_second

    def timings(self, layer: LayerProfile) -> list[LayerTiming]:
        """What was timed of a layer."""
        wanted = (self.layers.model.workload.digest, layer.name, self.layers.precision)
        return [one for one in self.machine.layer_timings if (one.workload, one.layer, one.precision) == wanted]

    def codec(self, jobs: Jobs, factors: Factors, num_parameters: Array) -> Array:
        """Encoding and decoding gradients bucket by bucket; messages that are gathered, each rank's."""
        replicas = jobs.data * jobs.context
        taken = codec_seconds(self.machine, codec(self.codec_name), num_parameters, replicas)
        # FSDP reduces in 16 bits by itself.
        return np.where((replicas > 1) & (jobs.zero_stage < min(FSDP_STAGES)), taken * factors.codec, 0.0)

    def optimizer(self, jobs: Jobs, rules: TimeRules, factors: Factors, num_parameters: Array) -> Array:
        """One AdamW step over parameters in so many tensors; of those that ranks split each has a part."""
        curve = find_curve(self.machine, "optimizer", "", "fp32")
        moved = num_parameters * ADAMW_BYTES_PER_PARAMETER
        elements = kernel_seconds(curve, 0.0, moved, [num_parameters])
        parts = jobs.tensor * np.where(jobs.zero_stage < min(FSDP_STAGES), 1.0, jobs.sharing)
        tensors = num_parameters * parts * self.layers.tensors_per_parameter
        return (elements + tensors * self.machine.optimizer_tensor_seconds) / factors.optimizer_fraction


@dataclass(frozen=True, kw_only=True)
class TracedKernels:
    """The kernels of `jobs` whose layers were traced. Shapes: one entry per job."""

    jobs: Jobs
    traced: Traced

    @cached_property
    def _distinct(self) -> tuple[Sizes, NDArray[np.int64]]:
        """The distinct sizes that jobs have, and which of them each has."""
        jobs = self.jobs
        spread = np.where(jobs.sequence_parallel, jobs.tensor, 1.0)
        keys = np.stack([jobs.micro_batch, jobs.sequence, jobs.tensor, jobs.context, spread], axis=1)
        unique, inverse = np.unique(keys, axis=0, return_inverse=True)
        batch, sequence, tensor, context, spread = unique.T
        sizes = Sizes(batch=batch, sequence=sequence, tensor=tensor, context=context, spread=spread)
        return sizes, inverse.reshape(-1)

    def _each(self, of_sizes: Callable[[Sizes], Array]) -> Array:
        """Something of every job that depends on its sizes alone."""
        sizes, index = self._distinct
        return np.asarray(of_sizes(sizes)[index])

    def layer(self, rules: TimeRules, factors: Factors, phase: Phase, kind: str) -> LayerKernels:
        """One layer in one direction.

        Model: kernels queue on an asynchronous device, whose host launches them; on a CPU the launch is part of every
        kernel. DTensor's own work is added per split linear where there are several ranks.
        """
        jobs, host, layer = self.jobs, self.traced.host, self.traced.layers.kinds[kind]
        own, ahead = (self._phase(kind, which, factors) for which in (phase, PHASES[0]))
        again, zero = np.zeros(len(jobs)), np.zeros(len(jobs))
        full = (jobs.recompute == "full") & jobs.model.can_recompute(kind)
        is_backward = phase != PHASES[0]
        if is_backward:
            again = np.where(full, ahead.total, np.where(jobs.recompute == "selective", ahead.attention, 0.0))
        launches = self._launches(kind, phase) + self._launches(kind, PHASES[0]) * full * is_backward
        share = (1 - FORWARD_DISPATCH + FORWARD_DISPATCH * full) if is_backward else FORWARD_DISPATCH
        linears = np.where(jobs.tensor > 1, layer.num_parallel_linears * host.linear_seconds, 0.0)
        sums = self._num_sums(layer, phase) + (self._num_sums(layer, PHASES[0]) * full if is_backward else 0.0)
        late = sum_bytes(jobs, kind)
        return LayerKernels(
            compute=own.total,
            again=again,
            attention=own.attention,
            launch=launches * host.launch_seconds * factors.host + zero,
            dispatch=share * linears * factors.host,
            num_sums=sums,
            late=np.where(jobs.tensor > 1, late * host.seconds_per_byte, 0.0),
        )

    def _num_sums(self, layer: LayerProfile, phase: Phase) -> Array:
        """How often ranks sum in one direction; with the sequence split, once for all linears that read it."""
        forward, own = (sum(one.phase == which for one in layer.messages) for which in (PHASES[0], phase))
        return np.where(self.jobs.sequence_parallel, float(forward), float(own))

    def weights(self, rules: TimeRules, factors: Factors, kind: str) -> Array:
        """The part of a layer's backward that makes weight gradients: one of two products each, and adding them up."""
        products = self._phase(kind, "backward", factors).products / 2
        added = self._of_shares(kind, lambda layer: self._each(lambda sizes: self._accumulating(layer, sizes)))
        return np.asarray(products + added * factors.matmul)

    def _of_shares(self, kind: str, of_layer: Callable[[LayerProfile], Array]) -> Array:
        """Something of a layer as it is, or where ranks share its experts as one of so many has it."""
        layers, expert = self.traced.layers, self.jobs.expert
        result = of_layer(layers.kinds[kind])
        for degree, shared in layers.shared.items():
            if (own := expert == degree).any():
                result = np.where(own, of_layer(shared[kind]), result)
        return result

    def _launches(self, kind: str, phase: Phase) -> Array:
        """Kernels in one direction."""
        return self._of_shares(kind, lambda layer: np.full(len(self.jobs), float(len(layer.of_phase(phase)))))

    def end(self, rules: TimeRules, factors: Factors, part: str) -> Array:
        """Embedding or head, both directions; what is done about the vocabulary is split as that is."""
        layer = self.traced.layers.ends.get(part)
        if layer is None:
            return np.zeros(len(self.jobs))
        seconds = np.asarray(sum(self._end_phase(layer, phase) for phase in PHASES)) * factors.matmul
        return np.maximum(seconds, len(layer.operators) * self.traced.host.launch_seconds * factors.host)

    def _end_phase(self, layer: LayerProfile, phase: Phase) -> Array:
        """One direction of an end: kernels on the vocabulary, and those on hidden states, which the sequence splits."""
        sizes, index = self._distinct
        whole = replace(sizes, spread=np.ones_like(sizes.spread))
        _, ratio = self._at_distinct(layer, phase)
        least = VOCABULARY_BYTES * self.traced.layers.model.vocab_size
        beside = tuple(op for op in layer.operators if float(evaluate(op.moved_bytes, 1, 1, 1)) < least)
        hidden = replace(layer, operators=beside)
        rest = phase_seconds(self.traced.law, hidden, phase, whole).total
        of_vocabulary = self._summed(layer, phase, whole).total - rest
        spread = phase_seconds(self.traced.law, hidden, phase, sizes).total
        return np.asarray((of_vocabulary * ratio)[index] / self.jobs.vocabulary_split + (spread * ratio)[index])

    def codec(self, factors: Factors, num_parameters: Array) -> Array:
        """Encoding and decoding the gradients of so many parameters."""
        return self.traced.codec(self.jobs, factors, num_parameters)

    def optimizer(self, rules: TimeRules, factors: Factors, num_parameters: Array) -> Array:
        """Updating so many parameters."""
        return self.traced.optimizer(self.jobs, rules, factors, num_parameters)

    def _phase(self, kind: str, phase: Phase, factors: Factors) -> PhaseSeconds:
        """The kernels of one direction, corrected as those of the layer with all of its experts are."""
        index = self._distinct[1]
        _, correction = self._at_distinct(self.traced.layers.kinds[kind], phase)
        ratio = (correction * factors.matmul)[index]

        def of_layer(layer: LayerProfile) -> Array:
            own, _ = self._at_distinct(layer, phase)
            return np.stack([own.total, own.products, own.attention])[:, index]

        total, products, attention = self._of_shares(kind, of_layer) * ratio
        return PhaseSeconds(total=total, products=products, attention=attention)

    @cached_property
    def _known(self) -> dict[tuple[int, Phase], tuple[PhaseSeconds, Array]]:
        return {}

    def _at_distinct(self, layer: LayerProfile, phase: Phase) -> tuple[PhaseSeconds, Array]:
        """The kernels of one direction at the distinct sizes, and what corrects them: asked for again and again."""
        # By identity, as `traced.layers` keeps every layer that is asked about.
        key = id(layer), phase
        if key not in self._known:
            sizes, _ = self._distinct
            self._known[key] = self._summed(layer, phase, sizes), self._correction(layer, phase, sizes)
        return self._known[key]

    def _summed(self, layer: LayerProfile, phase: Phase, sizes: Sizes) -> PhaseSeconds:
        """The kernels alone, with what adding gradients up takes."""
        found = phase_seconds(self.traced.law, layer, phase, sizes)
        if phase == PHASES[0]:
            return found
        return PhaseSeconds(
            total=found.total + self._accumulating(layer, sizes), products=found.products, attention=found.attention
        )

    def _accumulating(self, layer: LayerProfile, sizes: Sizes) -> Array:
        return sizes.at(layer.num_trained_parameters) * ACCUMULATE_BYTES / self.traced.memory_bytes_per_second

    def _correction(self, layer: LayerProfile, phase: Phase, sizes: Sizes) -> Array:
        """Measured over summed seconds."""
        layers = self.traced.layers
        return timed_over_summed(
            self.traced.timings(layer),
            phase,
            lambda timed: self._summed(layer, phase, timed).total,
            sizes,
            is_task=bool(layers.model.workload.task),
        )

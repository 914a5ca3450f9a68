"""What averaging gradients takes on a machine that was measured, held to timings of it in the midst of training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from planner.cost.axes.data import (
    Exchange,
    Sharded,
    StageParameters,
    expert_replicas,
    num_messages,
    sharded,
    tied_seconds,
)
from planner.cost.axes.groups import replica_seconds, replicas_inside
from planner.cost.factors import Factors
from planner.cost.job import Jobs
from planner.cost.layers import exposed
from planner.cost.measured.codecs import codec_seconds, num_buckets
from planner.cost.measured.links import MeasuredLinks
from planner.cost.software_time import TimeRules
from planner.cost.unit_costs import Links
from profiles.codecs.codec import FSDP_STAGES, GRADIENT_BYTES, Codec, codec
from profiles.machines.profile import Collective, ExchangeTiming, MachineProfile
from profiles.models.traced_sizes import is_of_task
from profiles.models.transformer import Array, Flags

# Timings that spread more than this are left alone: 0.6 and 0.94 were seen where other work ran beside, 0.3 without.
NOISY_FRACTION = 0.5
# Of a unit whose weights are gathered forward and back, and whose gradients are reduced.
NUM_MESSAGES = 3
# The stage of ZeRO that gathers weights forward and backward.
GATHERS_TWICE = max(FSDP_STAGES)


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedExchanges:
    """The exchanges of a machine, all gradients in one `codec`; `factors` say how messages and compute slow each other.

    Model: DDP sends buckets of 25 MiB while backward of the last micro-batch runs; the last bucket is complete only
    when backward is, so nothing hides it. On a CPU nothing hides what FSDP2 sends, whose overlap is made of CUDA
    streams, and every message is copied in and out. Where the exchange was timed in the midst of training, what it took
    there more or less than this is carried over: DDP, and the sending of weights after it, is off by so many seconds
    per parameter, which the backward pass cannot hide; FSDP2 on a CPU by a factor, since all of it is serial.
    What every parameter costs whatever its size was timed with small ones: `tensors` are how many a layer of each kind
    has, `tensors_per_parameter` those of the whole model over its parameters.
    Ignores: the order in which layers fill buckets.
    """

    machine: MachineProfile
    links: MeasuredLinks
    codec: str
    factors: Factors
    tensors: Mapping[str, int] = field(default_factory=dict)
    tensors_per_parameter: float = 0.0

    def exchange(self, jobs: Jobs, rules: TimeRules, links: Links, held: StageParameters) -> Exchange:
        """The exchange of a whole step's gradients, for jobs whose parameters are not sharded (ZeRO stage below 3)."""
        common = self._of(jobs, rules, links, held.common, jobs.data * jobs.context, jobs.tensor)
        routed = jobs.expert * jobs.expert_tensor
        experts = self._of(jobs, rules, links, held.expert, expert_replicas(jobs), routed)
        return Exchange(
            gradients=common.gradients + experts.gradients + tied_seconds(jobs, rules, links),
            parameters=common.parameters + experts.parameters,
            # DDP has no part in a task's experts: they are averaged behind the backward pass.
            tail=common.tail + (experts.gradients if is_of_task(jobs.model) else experts.tail),
            late=common.late + experts.late,
        )

    def _of(
        self, jobs: Jobs, rules: TimeRules, links: Links, parameters: Array, replicas: Array, stride: Array
    ) -> Exchange:
        """The exchange of some parameters over some replicas."""
        used, zero = codec(self.codec), jobs.zero_stage

        def seconds(collective: Collective, num_bytes: Array, count: Array) -> Array:
            return count * replica_seconds(jobs, links, collective, num_bytes / count, replicas, stride)

        buckets = num_buckets(parameters, used.is_bucketed)
        wire = parameters * GRADIENT_BYTES * np.maximum(jobs.gradient_wire_fraction, jobs.gradient_gather_fraction)
        if used.gathered:
            reduced = seconds("all_gather", wire * replicas, buckets)
        else:
            reduced = seconds("all_reduce", wire, buckets)
        weights = seconds("all_gather", parameters * GRADIENT_BYTES, num_buckets(parameters, is_bucketed=True))
        is_sharded = zero >= min(FSDP_STAGES)
        messages = self._sharded_messages(jobs, rules, parameters)
        scattered = seconds("reduce_scatter", wire, messages) + self._copying(wire)
        gathered = parameters * rules.parameter_message_bytes
        fetched = seconds("all_gather", gathered, messages) + self._copying(gathered)
        several = (replicas > 1) & (parameters > 0)
        is_near = replicas_inside(jobs, replicas, stride) >= replicas
        factor, late = self._corrections(zero, is_near)
        count = parameters * self.tensors_per_parameter * (zero < GATHERS_TWICE)
        of_tensors = self._per_tensor(zero, is_near) * count
        only = np.where(zero == min(FSDP_STAGES), factor, 0.0)
        return Exchange(
            gradients=np.where(several, np.where(is_sharded, scattered * only + of_tensors, reduced), 0.0),
            parameters=np.where(several, np.where(is_sharded, fetched * only, np.where(zero == 1, weights, 0.0)), 0.0),
            tail=np.where(several & ~is_sharded, reduced / buckets, 0.0),
            late=np.where(several & ~is_sharded, late * parameters + of_tensors, 0.0),
        )

    def sharded(self, jobs: Jobs, rules: TimeRules, links: Links) -> Sharded:
        """What ZeRO stage 3 sends for one unit."""
        law = sharded(jobs, rules, links)
        if self.machine.device_kind != "cpu":
            return law
        is_near = replicas_inside(jobs, jobs.shard, jobs.tensor) >= jobs.shard
        factor, _ = self._corrections(jobs.zero_stage, is_near)
        # Weights are gathered twice, and gradients reduced once.
        each = self._per_tensor(jobs.zero_stage, is_near) / NUM_MESSAGES

        def with_copies(seconds: Array, num_bytes: Array, kind: str = "") -> Array:
            sent = (seconds + np.where(seconds > 0, self._copying(num_bytes), 0.0)) * factor
            return np.asarray(sent + np.where(seconds > 0, each * self.tensors.get(kind, 0), 0.0))

        gathered, scattered = law.layer_gathered, law.layer_scattered
        return replace(
            law,
            layer_gather={kind: with_copies(own, gathered[kind], kind) for kind, own in law.layer_gather.items()},
            layer_scatter={kind: with_copies(own, scattered[kind], kind) for kind, own in law.layer_scatter.items()},
            root_gather=with_copies(law.root_gather, law.root_gathered),
            root_scatter=with_copies(law.root_scatter, law.root_scattered),
        )

    def _sharded_messages(self, jobs: Jobs, rules: TimeRules, parameters: Array) -> Array:
        """How many messages FSDP2 makes: one per layer, and on a CPU as many as it was held to."""
        if self.machine.device_kind == "cpu":
            return num_buckets(parameters, is_bucketed=True)
        return np.maximum(num_messages(jobs, rules, parameters, np.zeros(len(jobs), dtype=bool)), 1.0)

    def _copying(self, num_bytes: Array) -> Array:
        """Seconds of copying what FSDP2 sends into its buffer and out of it, on a CPU."""
        is_cpu = self.machine.device_kind == "cpu"
        return 2 * num_bytes / self.machine.memory_bytes_per_second * is_cpu

    def _corrections(self, zero_stage: Array, is_near: Flags) -> tuple[Array, Array]:
        """By how much what FSDP2 sends is off, and by how many seconds per parameter what DDP does. Shapes: per job."""
        factor, late = np.ones(len(zero_stage)), np.zeros(len(zero_stage))
        for zero in range(GATHERS_TWICE + 1):
            timings = self._timings(zero)
            if not timings:
                continue
            inside = min(timings[0].group_size, self.machine.devices_per_node)
            alike = (zero_stage == zero) & (is_near == (inside == timings[0].group_size))
            if zero in FSDP_STAGES:
                law = self._expected(timings[0], zero, float(inside))
                factor = np.where(alike, max(0.0, timings[0].added_seconds) / law, factor)
            else:
                late = np.where(alike, self._late(timings, float(inside)), late)
        return factor, late

    def _per_tensor(self, zero_stage: Array, is_near: Flags) -> Array:
        """Seconds that a parameter costs, whatever its size, where it is averaged or sharded. Shapes: one per job."""
        result = np.zeros(len(zero_stage))
        calm = [one for one in self.machine.exchange_timings if one.num_tensors and _is_calm(one)]
        for timing in calm if self.machine.device_kind == "cpu" else ():
            zero, inside = timing.zero_stage, min(timing.group_size, self.machine.devices_per_node)
            factor, _ = self._corrections(np.array([zero]), np.array([inside == timing.group_size]))
            known = factor * self._expected(timing, zero, float(inside))
            each = max(0.0, timing.added_seconds - float(known[0])) / timing.num_tensors
            # Of stage 1 nothing of the kind was timed: its gradients are averaged as without.
            alike = (zero_stage == zero) | ((zero_stage == 1) & (zero == 0))
            result = np.where(alike & (is_near == (inside == timing.group_size)), each, result)
        return result

    def _late(self, timings: tuple[ExchangeTiming, ...], inside: float) -> float:
        """Seconds per parameter by which DDP is off: those of the first, and what the last is off more than the second.

        Whoever reads it takes it for seconds alone.
        """
        off = [
            (timing.added_seconds - self._expected(timing, timing.zero_stage, inside)) / timing.num_parameters
            for timing in timings
        ]
        return (off[0] + (off[2] - off[1] if len(off) > 1 else 0.0)) / self.factors.data_comm

    def _timings(self, zero: int) -> tuple[ExchangeTiming, ...]:
        """What was timed of a stage; on GPUs nothing of FSDP2.

        Where weights were sent with other gradients alone: what DDP takes with these, and with those without and with.
        """
        if zero in FSDP_STAGES and self.machine.device_kind != "cpu":
            return ()
        used = "none" if zero in FSDP_STAGES else self.codec
        timings = self.machine.exchange_timings
        calm = {(one.codec, one.zero_stage): one for one in timings if _is_calm(one) and not one.num_tensors}
        if (used, zero) in calm:
            return (calm[used, zero],)
        cases = [("none", 0), ("none", 1)] if zero == 1 else []
        others = tuple(calm[case] for case in cases if all(case in calm for case in cases))
        return (calm[used, 0], *others) if zero == 1 and (used, 0) in calm else ()

    def _expected(self, timing: ExchangeTiming, zero: int, inside: float) -> float:
        """What the law says of a timed exchange, in the midst of training as the timing is."""
        used, size = codec(timing.codec), np.array([float(timing.group_size)])
        parameters = np.array([timing.num_parameters])
        wire = np.asarray(used.wire_bytes(parameters, np.array([timing.matrix_sides]), np.zeros(1)))
        links = self.links.of_one()

        def seconds(collective: Collective, num_bytes: Array, count: Array) -> Array:
            alone = links.seconds(collective, num_bytes / count, size, np.array([inside]))
            return count * alone * self.factors.data_comm

        if zero in FSDP_STAGES:
            messages = np.maximum(num_buckets(parameters, is_bucketed=True), float(timing.num_units))
            gathers, whole = 2 if zero == GATHERS_TWICE else 1, GRADIENT_BYTES * parameters
            sent = seconds("reduce_scatter", whole, messages) + gathers * seconds("all_gather", whole, messages)
            return float((sent + self._copying((1 + gathers) * whole))[0])
        count = num_buckets(parameters, used.is_bucketed)
        total = seconds("all_gather", wire * size, count) if used.gathered else seconds("all_reduce", wire, count)
        tail = total / count
        beside = timing.backward_seconds * (1 - 1 / count)
        added = tail + exposed(total - tail, beside, self.factors) + self._coding(used, parameters, size)
        if timing.zero_stage == 1:
            added = added + seconds("all_gather", GRADIENT_BYTES * parameters, count)
        return float(added[0])

    def _coding(self, used: Codec, parameters: Array, size: Array) -> Array:
        return codec_seconds(self.machine, used, parameters, size)


def _is_calm(timing: ExchangeTiming) -> bool:
    return timing.spread_fraction < NOISY_FRACTION

"""Seconds of kernels and launches by published laws: products at their shapes, the rest by bytes, as runs taught."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from planner.cost.adapted import is_frozen, trained_parameters
from planner.cost.axes.groups import FULL_ELEMENT_BYTES, message_element_bytes
from planner.cost.factors import Factors
from planner.cost.hardware import memory_rate
from planner.cost.job import Jobs
from planner.cost.kernel_work import work_of
from planner.cost.load import Load, Work
from planner.cost.low_precision import is_narrow
from planner.cost.software_memory import moment_share
from planner.cost.software_time import TimeRules
from planner.cost.unit_costs import LayerKernels
from profiles.codecs.codec import GRADIENT_BYTES
from profiles.models.operators import PHASES, Phase
from profiles.models.transformer import Array

# A backward pass launches about as many kernels per product, and has twice the products.
BACKWARD_HOST = 1.5
# Seconds that the element-wise kernels of a layer take however little they move: some fifteen forward, at 4 us.
KERNELS_SECONDS: dict[Phase, float] = {"forward": 60e-6, "backward": 90e-6}
# Sums over tensor-parallel ranks in one direction: behind attention and behind the feed-forward network.
NUM_SUMS = 2.0
# Bytes of a parameter's moments that AdamW reads and writes: two in 32 bits, each both ways.
ADAM_MOMENTS_MOVED = 16.0
# Bytes that pass of weights, gradients and states in 16 bits over those in 32.
NARROW_SHARE = 0.5


@dataclass(frozen=True, kw_only=True)
class SheetKernels:
    """The kernels of `jobs` on devices of a data sheet, by the laws of profiles/laws/kernels. Shapes: per job."""

    jobs: Jobs

    @cached_property
    def work(self) -> Work:
        """What no factor changes."""
        return work_of(self.jobs)

    @cached_property
    def memory_rate(self) -> Array:
        """Bytes per second of each device's memory."""
        return memory_rate(self.jobs)

    def layer(self, rules: TimeRules, factors: Factors, phase: Phase, kind: str) -> LayerKernels:
        """One layer in one direction."""
        jobs, loads = self.jobs, self.work.layers[kind]
        casting = self._casting(rules, factors, kind)
        compute = self._seconds(rules, factors, loads[phase]) + casting + KERNELS_SECONDS[phase]
        zero = again = np.zeros(len(jobs))
        repeated = jobs.repeated
        if phase == "backward":
            compute = compute + self._accumulating(rules, factors, kind)
            again = self._again(rules, factors, loads["forward"], casting)
        passes = repeated + BACKWARD_HOST if phase == "backward" else np.ones(len(jobs))
        attention = loads[phase].attention_seconds * factors.attention
        host = rules.host_layer_us * 1e-6 * factors.host * passes
        return LayerKernels(
            compute=compute,
            again=again,
            attention=attention,
            # A host that waits for every kernel runs ahead of none.
            launch=np.where(jobs.synchronous, 0.0, host),
            dispatch=np.where(jobs.synchronous, host, 0.0),
            num_sums=self._num_sums(rules, phase, kind) + (NUM_SUMS * repeated if phase == "backward" else zero),
            late=zero,
        )

    def _num_sums(self, rules: TimeRules, phase: Phase, kind: str) -> Array:
        """How often tensor-parallel ranks sum in one direction.

        Model: forward behind attention and behind the network; backward as often, or once for every linear that is
        split by columns; with the sequence split, all that read the same share one sum.
        """
        jobs, usual = self.jobs, np.full(len(self.jobs), NUM_SUMS)
        if phase == "forward":
            return usual
        each = (rules.linears_apart > 0) & ~jobs.sequence_parallel
        return np.where(each, jobs.model.column_linears(kind), usual)

    def weights(self, rules: TimeRules, factors: Factors, kind: str) -> Array:
        """The part of a layer's backward that makes weight gradients, and adds them up."""
        load = self.work.layers[kind]["backward"]
        products = load.weight_seconds * factors.matmul * rules.product_slowdown
        return np.asarray(products + self._accumulating(rules, factors, kind))

    def end(self, rules: TimeRules, factors: Factors, part: str) -> Array:
        """Embedding or head, both directions."""
        loads = self.work.embedding if part == "embedding" else self.work.head
        seconds = sum(self._seconds(rules, factors, loads[phase]) for phase in PHASES)
        return np.asarray(seconds + self._ends_gradients(rules, factors, part))

    def _ends_gradients(self, rules: TimeRules, factors: Factors, part: str) -> Array:
        """Adding the gradients of embedding or head up, and rounding the head's weights, as is done for layers."""
        model, split = self.jobs.model, self.jobs.vocabulary_split
        held = model.embedding_parameters if part == "embedding" else model.vocab_size * model.hidden_size
        held = np.where(is_frozen(self.jobs), 0.0, held)
        moved = rules.accumulate_bytes * rules.accumulates_ends
        if part == "head":
            moved = moved + 2 * self._cast_bytes(rules)
        return np.asarray(held / split * moved / (self.memory_rate * factors.traffic_fraction))

    def codec(self, factors: Factors, num_parameters: Array) -> Array:
        """Encoding and decoding a rank's gradients: passes over memory, as element-wise kernels."""
        jobs = self.jobs
        passes = jobs.codec_passes + jobs.codec_decode_passes * jobs.data * jobs.context
        moved = passes * num_parameters * GRADIENT_BYTES
        return np.asarray(moved / (self.memory_rate * factors.traffic_fraction) * factors.codec)

    def optimizer(self, rules: TimeRules, factors: Factors, num_parameters: Array) -> Array:
        """Updating so many parameters; of other optimizers' moments as many bytes fewer pass as they take fewer."""
        moved = rules.optimizer_bytes - ADAM_MOMENTS_MOVED * (1 - moment_share(self.jobs))
        moved = moved * np.where(is_narrow(self.jobs), NARROW_SHARE, 1.0)
        return np.asarray(num_parameters * moved / (self.memory_rate * factors.optimizer_fraction))

    def _seconds(self, rules: TimeRules, factors: Factors, load: Load) -> Array:
        """Seconds of a load's kernels."""
        moved = load.element_bytes * rules.element_passes + load.routed_bytes + load.converted_bytes
        moved = moved + load.score_bytes * rules.score_passes
        # Logits pass in forward and in backward: half of the stack's figure each.
        moved = moved + load.logit_elements * rules.loss_bytes / 2
        attention = load.attention_seconds * factors.attention
        products = load.matmul_seconds * factors.matmul * rules.product_slowdown
        return products + attention + moved / (self.memory_rate * factors.traffic_fraction)

    def _again(self, rules: TimeRules, factors: Factors, forward: Load, casting: Array) -> Array:
        """What recomputation repeats of a layer's forward pass, as the mean of all layers.

        Model: where it is partial, a share of the products, and of all else as much as is not kept.
        """
        jobs = self.jobs
        whole = self._seconds(rules, factors, forward) + casting
        core = self._selective(rules, factors, forward)
        again = np.where(jobs.recompute == "full", whole, np.where(jobs.recompute == "selective", core, 0.0))
        is_partial = jobs.recompute == "partial"
        if is_partial.any():
            products = self._seconds(rules, factors, forward.products)
            partly = products * jobs.recompute_products + (whole - products) * jobs.recompute_freed
            again = np.where(is_partial, partly, again)
        return again * jobs.recompute_share

    def _selective(self, rules: TimeRules, factors: Factors, forward: Load) -> Array:
        """What selective recomputation repeats: attention's core, or by operators all but attention and the rest."""
        share = rules.selective_product_share
        zero = np.zeros_like(share)
        by_operator = replace(forward, matmul_seconds=forward.matmul_seconds * share, attention_seconds=zero)
        core = self._seconds(rules, factors, self.work.core)
        return np.where(share > 0, self._seconds(rules, factors, by_operator), core)

    def _casting(self, rules: TimeRules, factors: Factors, kind: str) -> Array:
        """Rounding a layer's weights to the 16 bits that it computes in, or widening their gradients."""
        return self._held(kind) * self._cast_bytes(rules) / (self.memory_rate * factors.traffic_fraction)

    def _cast_bytes(self, rules: TimeRules) -> Array:
        return np.where(message_element_bytes(self.jobs) < FULL_ELEMENT_BYTES, rules.cast_bytes, 0.0)

    def _accumulating(self, rules: TimeRules, factors: Factors, kind: str) -> Array:
        """Adding a layer's gradients to those of earlier micro-batches."""
        moved = self._held(kind) * rules.accumulate_bytes / (self.memory_rate * factors.traffic_fraction)
        # In 16 bits the first micro-batch leaves its gradients as they are.
        later = 1 - 1 / np.maximum(self.jobs.num_microbatches, 1.0)
        return np.asarray(moved * np.where(is_narrow(self.jobs), NARROW_SHARE * later, 1.0))

    def _held(self, kind: str) -> Array:
        """Parameters of a layer on one rank that are trained."""
        common, experts = trained_parameters(self.jobs, kind)
        return np.asarray(common + experts / (self.jobs.expert * self.jobs.expert_tensor))

"""Training jobs in columns: model, hardware, layout, software and batch of many jobs at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from profiles.machines.devices import Device
from profiles.machines.stacks import Stack
from profiles.models.adapters import Adapters
from profiles.models.transformer import Array, Flags, Transformer

Names = NDArray[np.str_]
T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class Each(Generic[T]):
    """One value per job, of few distinct ones. Shapes: `index` (job,) into `values`."""

    values: tuple[T, ...]
    index: NDArray[np.int64]

    @classmethod
    def same(cls, value: T, count: int) -> Each[T]:
        """A column of `count` times the same value."""
        return cls((value,), np.zeros(count, dtype=np.int64))

    @classmethod
    def of(cls, values: Sequence[T]) -> Each[T]:
        """A column of these values; those that are one object share an entry."""
        distinct: list[T] = []
        index = []
        for value in values:
            known = next((place for place, one in enumerate(distinct) if one is value), None)
            if known is None:
                known = len(distinct)
                distinct.append(value)
            index.append(known)
        return cls(tuple(distinct), np.array(index, dtype=np.int64))

    def __getitem__(self, index: NDArray[np.int64] | Flags) -> Each[T]:
        return Each(self.values, self.index[index])

    def read(self, number: Callable[[T], float]) -> Array:
        """A number of every job's value. Shapes: one entry per job."""
        return np.array([number(value) for value in self.values], dtype=np.float64)[self.index]

    def words(self, word: Callable[[T], str]) -> Names:
        """A word of every job's value. Shapes: one entry per job."""
        return np.array([word(value) for value in self.values], dtype=np.str_)[self.index]


class Source(Protocol):
    """Who knows what the kernels and messages of jobs take; what they answer is in planner/cost/unit_costs."""

    def kernels(self, jobs: Jobs) -> Any:
        """The jobs' `Kernels`."""

    def links(self, jobs: Jobs) -> Any:
        """The `Links` that join their ranks."""

    def exchange(self, jobs: Jobs, rules: Any, links: Any, held: Any) -> Any:
        """Gradients averaged and parameters gathered once a step, an `Exchange` of planner/cost/axes/data."""

    def sharded(self, jobs: Jobs, rules: Any, links: Any) -> Any:
        """What ZeRO stage 3 sends for one unit, `Sharded` of planner/cost/axes/data."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Jobs:
    """Everything that a prediction may read. Shapes: one entry per job in every field; degrees and sizes are floats.

    Bandwidths are uni-directional, per device, in bytes per second.
    `data` is devices / (tensor · pipeline · context); expert-parallel ranks lie inside data · context. `shard` is over
    how many of these parameters are sharded with ZeRO stage 3, and states with stages 1 and 2 (there 1: over all).
    `chunks` is the number of model chunks per pipeline stage (virtual stages). `vocabulary_split` is over how many of
    the tensor-parallel ranks embedding and head
    are split: all of them, or none (1). `data_outside`: ranks are numbered tensor, context, pipeline, data, and not
    tensor, context, data, pipeline. Of the `first_fewer` / `last_fewer` layers the first / last stage has fewer.
    `network_latency_seconds` of a hop between fast domains. A gradient codec sends
    `gradient_wire_fraction` of the bytes, passes `codec_passes` times over fp32 gradients, and keeps
    `codec_state_bytes` per parameter. Messages that cannot be summed on the way are gathered: every rank receives
    `gradient_gather_fraction` of the bytes from each other, passes `codec_decode_passes` times over fp32 gradients for
    each, and holds `codec_message_bytes` of each. `source` is who knows what kernels and messages take, of all jobs;
    None are data sheets and published laws.

    What a run may say of its software and card, where 0 and "" leave it to the stack or the device:
    `board_power_watts` (0: the card's own), `clock_mhz` that the card is locked at (0: free), `gradient_bytes` of a
    parameter's gradient in memory and on the wire, `parameter_bytes` of a parameter that is gathered, `fp8_recipe`
    (what shares a scale), `master_weights` (no: weights, gradients and states are all in 16 bits), `fused_loss`
    (chunked: logits are never whole), `fused_norms` (norms, rotation and gate in fused kernels), `dispatcher` of routed
    tokens, `synchronous` launches (the host waits for every kernel). Where
    `recompute` is not none, `recompute_share` of the layers are recomputed; where it is partial, `recompute_products`
    of a layer's products are repeated, and `recompute_freed` of what recomputing all of it would free.
    `pipeline_passes`: how often a step fills and drains the pipeline. `adapters` say what is trained of the model.
    `guesses`: how much of the above stands for something that was not said, or has no price: each makes the prediction
    less sure.
    """

    model: Transformer
    sequence: Array
    attention_kernel: Names  # unfused, flash, flash1, flash2, flash3, cudnn
    device: Each[Device]
    device_memory_bytes: Array
    num_devices: Array
    devices_per_node: Array
    fast_domain: Array
    fast_bytes_per_second: Array
    network_bytes_per_second: Array
    tensor: Array
    pipeline: Array
    chunks: Array
    context: Array
    data: Array
    expert: Array
    expert_tensor: Array
    zero_stage: Array
    shard: Array
    reshard_after_forward: Flags
    sequence_parallel: Flags
    vocabulary_split: Array
    schedule: Names  # as planner/schedules/registry names them
    first_fewer: Array
    last_fewer: Array
    recompute: Names  # none, selective, partial, full
    recompute_share: Array
    recompute_products: Array
    recompute_freed: Array
    optimizer_offload: Flags
    activation_offload: Flags
    precision: Names  # fp32, fp16, bf16, fp8, mxfp8, nvfp4
    micro_batch: Array
    num_microbatches: Array
    pipeline_passes: Array
    stack: Each[Stack]
    compiled: Flags
    overlap_grad: Flags
    overlap_param: Flags
    overlap_tensor: Flags
    overlap_pipeline: Flags
    data_outside: Flags
    network_latency_seconds: Array
    gradient_wire_fraction: Array
    codec_passes: Array
    codec_state_bytes: Array
    gradient_gather_fraction: Array
    codec_decode_passes: Array
    codec_message_bytes: Array
    board_power_watts: Array
    clock_mhz: Array
    fp8_recipe: Names  # tensorwise, current, delayed, rowwise, blockwise, mxfp8-block32, or ""
    low_precision_parts: Names  # of linear, grouped and head those that compute in `precision`, with ";", or ""
    gradient_bytes: Array  # 2 or 4, or 0
    parameter_bytes: Array  # 1, or 0
    master_weights: Names  # yes, no, or ""
    fused_loss: Names  # no, yes, chunked, or ""
    fused_norms: Names  # no, yes, or ""
    dispatcher: Names  # alltoall, deepep, hybrid, allgather, or ""
    synchronous: Flags
    optimizer: Names  # adamw, adam8bit, sgd, muon, adafactor, adamw_in_backward, adam8bit_in_backward
    adapters: Each[Adapters]
    guesses: Array
    source: Source | None = None

    def __len__(self) -> int:
        return len(self.sequence)

    def take(self, index: NDArray[np.int64] | Flags) -> Jobs:
        """The jobs at `index`."""
        columns = {name: getattr(self, name)[index] for name in COLUMNS}
        return Jobs(model=self.model.take(index), source=self.source, **columns)

    @property
    def tokens(self) -> Array:
        """Tokens of one micro-batch that one rank holds: its samples times its share of the sequence."""
        return self.micro_batch * self.sequence / self.context

    @property
    def sharing(self) -> Array:
        """Ranks that states are sharded over where ZeRO shards them."""
        return np.where((self.zero_stage >= 3) | (self.shard > 1), self.shard, self.data * self.context)

    @property
    def per_pass(self) -> Array:
        """Micro-batches that go through a pipeline from its filling until its draining."""
        return self.num_microbatches / self.pipeline_passes

    @property
    def repeated(self) -> Array:
        """Share of a layer's forward pass that backward repeats, as the mean of all layers; attention's core aside."""
        share = np.where(self.recompute == "partial", self.recompute_products, self.recompute == "full")
        return np.asarray(share * self.recompute_share)

    @property
    def global_batch(self) -> Array:
        """Samples per step."""
        return self.micro_batch * self.num_microbatches * self.data


# What there is one of per job.
COLUMNS = tuple(field.name for field in fields(Jobs) if field.name not in ("model", "source"))

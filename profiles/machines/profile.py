"""A machine as the planner sees it: curves of kernels and links, each with its samples and its origin. Torch-free."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Literal

from profiles.artifacts import STRICT
from profiles.errors import ArtifactError
from profiles.inputs.ranges import (
    Amount,
    Count,
    Devices,
    Finite,
    Fraction,
    OptionalRate,
    Rate,
    Samples,
    Seconds,
    Size,
    Timed,
    Tokens,
    Whole,
    ZeroStage,
)
from profiles.machines.load import MachineLoad

# What the samples of each kind of kernel state: see KernelCurve.
KERNEL_DIMS = {
    "matmul": 4, "linear": 3, "attention_forward": 5, "attention_backward": 5, "memory": 1, "codec": 1, "optimizer": 1,
}  # fmt: skip
Origin = Literal["measured", "datasheet"]
Collective = Literal["all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send_receive"]
COLLECTIVES: tuple[Collective, ...] = (
    "all_reduce",
    "all_gather",
    "reduce_scatter",
    "all_to_all",
    "send_receive",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One measured point: what was timed (`dims`), the median seconds and the spread (interquartile range / median)."""

    __pydantic_config__ = STRICT

    dims: tuple[Size, ...]
    seconds: Timed
    spread_fraction: Fraction


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelCurve:
    """Seconds of one kind of kernel: latency + flops / flops_per_second + bytes / bytes_per_second.

    `kind` is matmul, attention_forward, attention_backward, memory, optimizer, codec or linear (of inference); `name`
    narrows it (the matmul's layout, the memory-bound operator, the codec, how the linear's weights are kept) and "" is
    the general curve. Sample dims: matmul (batch, m, n, k); linear (tokens, inputs, outputs);
    attention (batch, heads, queries, keys, head size); memory and codec (bytes moved); optimizer (parameters).
    A rate of 0 means that the term does not apply.
    """

    __pydantic_config__ = STRICT

    kind: str
    name: str = ""
    precision: str
    latency_seconds: Seconds
    flops_per_second: OptionalRate = 0.0
    bytes_per_second: OptionalRate = 0.0
    error_fraction: Fraction
    origin: Origin
    samples: tuple[Sample, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkCurve:
    """Seconds of one collective over one group: latency + bytes / bytes_per_second, and the samples it was fitted to.

    Bytes are of the whole tensor: all-reduce and all-to-all the input, all-gather the output, reduce-scatter the input,
    send/receive the message; sample dims are (bytes,). `span` tells whether the group stays within a node.
    """

    __pydantic_config__ = STRICT

    collective: Collective
    group_size: Devices
    span: Literal["node", "network"]
    latency_seconds: Seconds
    bytes_per_second: Rate
    error_fraction: Fraction
    origin: Origin
    samples: tuple[Sample, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTiming:
    """One real layer timed on one device: forward and backward seconds of one micro-batch, without communication.

    `inference_seconds` are of a forward pass that keeps nothing and has no loss, 0 where it was not timed.
    """

    __pydantic_config__ = STRICT

    workload: str
    layer: str
    precision: str
    micro_batch_size: Samples
    sequence_length: Tokens
    tensor_parallel: Devices
    forward_seconds: Timed
    backward_seconds: Seconds
    spread_fraction: Fraction
    inference_seconds: Seconds = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """How much slower compute and communication run while both run (0 = undisturbed)."""

    __pydantic_config__ = STRICT

    compute_slowdown_fraction: Fraction
    communication_slowdown_fraction: Fraction


@dataclass(frozen=True, slots=True, kw_only=True)
class ExchangeTiming:
    """What averaging gradients over all ranks added to a backward pass, in the midst of training.

    By DDP with one codec, where `zero_stage` is 1 with the sending of updated weights, or by FSDP2 (2 or 3), which
    gathers weights too. The pass is of linears with
    `num_parameters` in fp32, whose rows and columns make `matrix_sides`; by itself it takes `backward_seconds`, and
    with the average `added_seconds` more. Where `num_tensors` is not 0 they are so many small ones in `num_units`
    units, and the step of the optimizer is part of both: what each tensor costs, whatever its size.
    """

    __pydantic_config__ = STRICT

    codec: str
    zero_stage: ZeroStage
    group_size: Devices
    num_parameters: Size
    matrix_sides: Amount
    backward_seconds: Timed
    added_seconds: Finite
    spread_fraction: Fraction
    num_tensors: Whole = 0
    num_units: Whole = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """What a measurement depends on; a plan made on another fingerprint is flagged."""

    __pydantic_config__ = STRICT

    device: str
    num_cores: Count
    memory_bytes: Count
    torch: str
    python: str
    backend: str
    threads_per_rank: Count
    topology: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """Twelve hexadecimal digits."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:12]


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineProfile:
    """Everything a prediction may know of a machine. Bandwidth is uni-directional per device.

    `memory_bytes` is what one rank may use. `parallel_linear_seconds` is the host time DTensor adds to one
    tensor-parallel linear, forward and backward, and `parallel_message_seconds_per_byte` what its messages take longer
    in the midst of training than `links` say; `pipeline_action_seconds` what the pipeline runtime adds to one
    forward or backward of one micro-batch. On a CPU, which does one after the other, `operator_seconds` is what an
    operator takes in training besides its kernel, `optimizer_tensor_seconds` what AdamW takes for a tensor besides its
    elements; 0 elsewhere. `oversubscription_factor` is the measured slow-down with twice as many
    ranks as cores, 0 where it was not measured. `load` is what else the machine did meanwhile, `load_before` just
    before; None where nobody looked. Prices are US dollars per device and hour, lowest and highest seen.
    """

    __pydantic_config__ = STRICT

    name: str
    origin: Origin
    device_kind: Literal["cpu", "cuda"]
    device_name: str
    num_devices: Devices
    devices_per_node: Devices
    memory_bytes: Size
    peak_flops_per_second: dict[str, Rate]
    peak_source: str
    memory_bytes_per_second: Rate
    launch_seconds: Seconds
    parallel_linear_seconds: Seconds
    pipeline_action_seconds: Seconds
    oversubscription_factor: Fraction
    kernels: tuple[KernelCurve, ...]
    links: tuple[LinkCurve, ...]
    overlap: Overlap
    layer_timings: tuple[LayerTiming, ...] = ()
    exchange_timings: tuple[ExchangeTiming, ...] = ()
    fingerprint: Fingerprint | None = None
    parallel_message_seconds_per_byte: Seconds = 0.0
    operator_seconds: Seconds = 0.0
    optimizer_tensor_seconds: Seconds = 0.0
    price_per_hour: tuple[Amount, Amount] | None = None
    sources: dict[str, str] = field(default_factory=dict)
    load_before: MachineLoad | None = None
    load: MachineLoad | None = None
    created: str = ""

    def check(self) -> None:
        """Check that samples have the dims of their curves.

        Raises: ArtifactError.
        """
        for kernel in self.kernels:
            self._check_samples(f"{kernel.kind} {kernel.name}".strip(), kernel.samples, KERNEL_DIMS.get(kernel.kind, 0))
        for link in self.links:
            self._check_samples(link.collective, link.samples, 1)

    def _check_samples(self, what: str, samples: tuple[Sample, ...], num_dims: int) -> None:
        if any(len(sample.dims) != num_dims for sample in samples):
            words = f"samples should have {num_dims} dims each" if num_dims else "there is no such kernel"
            raise ArtifactError(f"machine profile {self.name}: at {what}: {words}: profile the machine again")

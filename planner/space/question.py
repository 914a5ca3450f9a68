"""What is fixed while layouts are compared: the model, the cluster, the software, the batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_type_hints

import numpy as np

from planner.cost.factors import Learned
from planner.cost.hardware import ELEMENT_BYTES
from planner.cost.job import COLUMNS, Each, Jobs, Names, Source
from planner.schedules.registry import USUAL
from profiles.codecs.codec import FSDP_STAGES, GRADIENT_BYTES
from profiles.codecs.codec import codec as find_codec
from profiles.laws.collectives import infiniband_seconds
from profiles.machines.clusters import Cluster
from profiles.machines.devices import MICROSECOND, Device
from profiles.machines.stacks import THIS_PROGRAM, Stack, load_stack
from profiles.models.sizes import ModelSizes
from profiles.models.transformer import Array, Flags
from profiles.units import GB, GIB

if TYPE_CHECKING:
    from planner.cost.measured.corrections import Corrections
    from planner.cost.measured.kernels import OnMachine

_HINTS = {name: hint for name, hint in get_type_hints(Jobs).items() if name in COLUMNS}
# Assumed until measured: how often a codec reads and writes a gradient.
CODEC_PASSES = 3
# What a codec that is no codec keeps and gathers.
NOTHING = ("codec_state_bytes", "gradient_gather_fraction", "codec_decode_passes", "codec_message_bytes")
# What plans leave to the device and to the stack.
AS_USUAL = {
    "board_power_watts": 0.0, "clock_mhz": 0.0, "parameter_bytes": 0.0, "guesses": 0.0,
    "optimizer": "adamw",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One question. `global_batch_size` is in samples of `sequence_length` tokens; rates are per device.

    `network_latency_seconds` is of a hop between fast domains. With `overlaps_tensor` tensor-parallel messages go
    beside compute where sequences are split, with `gradients_beside` and `parameters_beside` sums of gradients and
    gathered weights, which the stack decides where they are None, as it does where `gradient_dtype` (of gradients as
    they are added up and sent) and `fused_loss` (yes, no, chunked) are ""; with `free_exchange` gradients are sent for
    nothing, as no codec can. `source` knows the kernels and links of a machine that was measured, or of a traced model
    on a data sheet; None are published laws and the model's sizes. `learned` is what runs taught of the hardware, None
    what published ones did. `measured` are the machine and the model's layers on it where it was measured, and
    `corrections` what plans that ran there taught. `headroom_fraction` of a device's memory is left free: plans are as
    on a device of that much less.
    """

    model: ModelSizes
    device: Device
    num_devices: int
    devices_per_node: int
    fast_domain: int
    network_bytes_per_second: float
    fast_bytes_per_second: float
    stack: Stack
    precision: str
    attention_kernel: str
    global_batch_size: int
    sequence_length: int
    compiled: bool = False
    overlaps_tensor: bool = False
    gradients_beside: bool | None = None
    parameters_beside: bool | None = None
    gradient_dtype: str = ""
    fused_loss: str = ""
    codec: str = "none"
    network_latency_seconds: float
    free_exchange: bool = False
    source: Source | None = None
    learned: Learned | None = None
    measured: OnMachine | None = None
    corrections: Corrections | None = None
    headroom_fraction: float = 0.0

    @property
    def device_kind(self) -> Literal["cpu", "cuda"]:
        """What kind of devices plans are for; those of data sheets are GPUs."""
        return self.measured.machine.device_kind if self.measured else "cuda"

    @property
    def compresses(self) -> bool:
        """Whether gradients are compressed before they are sent."""
        return self.free_exchange or find_codec(self.codec).lossy

    @property
    def memory_bytes(self) -> float:
        """What the driver lets a process use, less what plans must leave free."""
        return self.whole_memory_bytes * (1 - self.headroom_fraction)

    @property
    def whole_memory_bytes(self) -> float:
        """What the driver lets a process use of a device."""
        return self.device.memory_gib * GIB

    @property
    def host_memory_bytes(self) -> float:
        """What a device may offload to its host."""
        return self.device.host_memory_gb * GB


def setting(
    model: ModelSizes,
    device: Device,
    num_devices: int,
    global_batch_size: int,
    sequence_length: int,
    stack: str = THIS_PROGRAM,
    precision: str = "bf16",
    cluster: Cluster | None = None,
    codec: str = "none",
) -> Setting:
    """A setting with the links of `cluster`, or those that the device is usually sold with."""
    software = load_stack(stack)
    return Setting(
        model=model,
        device=device,
        num_devices=num_devices,
        devices_per_node=cluster.devices_per_node if cluster else device.devices_per_node,
        fast_domain=_fast_domain(device, cluster),
        network_bytes_per_second=(cluster.network_gb_per_second if cluster else device.network_gb_per_second) * GB,
        fast_bytes_per_second=(device.link_gb_per_second or device.peer_gb_per_second) * GB,
        stack=software,
        precision=precision,
        attention_kernel=software.attention_kernel(device.generation),
        overlaps_tensor=software.habits.can_overlap_tensor,
        global_batch_size=global_batch_size,
        sequence_length=sequence_length,
        codec=codec,
        network_latency_seconds=cluster.network_latency_us * MICROSECOND if cluster else infiniband_seconds(),
    )


def _fast_domain(device: Device, cluster: Cluster | None) -> int:
    """Devices that reach each other without the network: over links of their own, else over PCIe."""
    if device.link_gb_per_second == 0:
        return cluster.devices_per_node if cluster else device.devices_per_node
    return max(1, cluster.fast_domain if cluster else device.fast_domain)


def jobs_of(at: Setting, **columns: Any) -> Jobs:
    """Jobs of one setting that differ in `columns`, which are equally long; what is not named is one, or off."""
    count = len(next(iter(columns.values())))
    fixed: dict[str, Any] = {
        **AS_USUAL,
        "sequence": at.sequence_length,
        "attention_kernel": at.attention_kernel,
        "device_memory_bytes": at.memory_bytes,
        "num_devices": at.num_devices,
        "devices_per_node": at.devices_per_node,
        "fast_domain": at.fast_domain,
        "fast_bytes_per_second": at.fast_bytes_per_second,
        "network_bytes_per_second": at.network_bytes_per_second,
        "zero_stage": 0.0,
        "first_fewer": 0.0,
        "last_fewer": 0.0,
        "schedule": USUAL,
        "recompute": "none",
        "precision": at.precision,
        "compiled": at.compiled,
        "gradient_bytes": ELEMENT_BYTES[at.gradient_dtype] if at.gradient_dtype else 0.0,
        "fused_loss": at.fused_loss,
        "overlap_tensor": at.overlaps_tensor & np.asarray(columns.get("sequence_parallel", False)),
        # A codec that makes one message of all gradients has nothing to overlap.
        "overlap_grad": overlaps_gradients(at, columns.get("zero_stage", np.zeros(count))),
        "network_latency_seconds": at.network_latency_seconds,
        **_codec_columns(at, columns.get("zero_stage", np.zeros(count))),
        "overlap_param": overlaps_parameters(at),
        "vocabulary_split": columns.get("tensor", 1.0),
    }
    values: dict[str, Any] = {
        "device": Each.same(at.device, count),
        "stack": Each.same(at.stack, count),
        "adapters": Each.same(at.model.adapters, count),
    }
    for name, hint in _HINTS.items():
        if name in values:
            continue
        if name in columns:
            values[name] = np.asarray(columns[name])
        else:
            value = fixed.get(name, False if hint == Flags else "" if hint == Names else 1.0)
            one = np.asarray(value, dtype=None if isinstance(value, str | bool) else float)
            # One number in memory, however many jobs.
            values[name] = np.broadcast_to(one, count)
    return Jobs(model=at.model.transformer.repeated(count), source=at.source, **values)


def overlaps_gradients(at: Setting, zero_stage: Array) -> Flags:
    """Whether gradients are sent beside the backward pass: not in one message of all, nor by FSDP2 without streams."""
    asked = at.stack.habits.overlaps_gradients if at.gradients_beside is None else at.gradients_beside
    overlaps = at.stack.time.overlaps_shards | (zero_stage < min(FSDP_STAGES))
    return np.asarray(asked & overlaps & find_codec(at.codec).is_bucketed)


def overlaps_parameters(at: Setting) -> bool:
    """Whether weights are gathered beside the forward pass."""
    return at.stack.habits.overlaps_parameters if at.parameters_beside is None else at.parameters_beside


def _codec_columns(at: Setting, zero_stage: Array) -> dict[str, float | Array]:
    """What the setting's gradient codec sends, computes and keeps, per byte and parameter of all linears.

    Assumed until measured: CODEC_PASSES over the gradients. FSDP2 reduces in 16 bits by itself, and keeps nothing.
    """
    if at.free_exchange:
        return {"gradient_wire_fraction": 0.0, "codec_passes": 0.0, **dict.fromkeys(NOTHING, 0.0)}
    own = find_codec(at.codec)
    weights, sides = at.model.transformer.linear_sizes
    sent = float(np.asarray(own.wire_bytes(weights, sides, 0.0))) / (GRADIENT_BYTES * weights)
    kept = own.feedback_bytes(weights, sides) if own.gathered else own.state_bytes(weights, sides)
    numbers = {
        "codec_passes": float(CODEC_PASSES) if own.lossy else 0.0,
        "codec_state_bytes": float(np.asarray(kept)) / weights,
        "codec_decode_passes": own.decode_passes,
        "codec_message_bytes": float(np.asarray(own.bucket_bytes(weights))) if own.gathered else 0.0,
    }
    works = (zero_stage < min(FSDP_STAGES)).astype(float)
    return {
        "gradient_wire_fraction": 0.0 if own.gathered else sent,
        "gradient_gather_fraction": sent if own.gathered else 0.0,
        **{name: number * works for name, number in numbers.items()},
    }

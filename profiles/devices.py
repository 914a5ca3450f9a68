"""Shipped devices: data-sheet numbers with their sources, as a machine of any number of devices. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from profiles.artifacts import STRICT, read_toml
from profiles.cluster import COLLECTIVES, Collective, KernelCurve, LinkCurve, MachineProfile, Overlap
from profiles.errors import UnknownNameError
from profiles.units import GB, GIB

FOLDER = Path(__file__).parent / "catalog" / "devices"
MICROSECOND = 1e-6
# Datasheet links and kernels as they are: what a band must allow for.
UNMEASURED_ERROR_FRACTION = 0.35
# Assumed until measured: shares of the data sheet's rates that memory-bound kernels, fused attention and codecs (which
# read and write a gradient about three times) reach.
MEMORY_EFFICIENCY = 0.85
ATTENTION_EFFICIENCY = {"attention_forward": 0.65, "attention_backward": 0.50}
CODEC_PASSES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One accelerator. Bandwidth is uni-directional per device, peaks are dense; `sources` says whence each is."""

    __pydantic_config__ = STRICT

    name: str
    title: str
    memory_gib: float
    memory_gb_per_second: float
    peak_tflops: dict[str, float]
    achievable_tflops: dict[str, float]
    kernel_latency_us: float
    host_launch_us: float
    devices_per_node: int
    link_gb_per_second: float
    link_latency_us: float
    network_gb_per_second: float
    network_latency_us: float
    compute_slowdown_fraction: float
    communication_slowdown_fraction: float
    price_per_hour: tuple[float, float] | None = None
    price_date: str = ""
    sources: dict[str, str]


def device_names() -> list[str]:
    """The names of all shipped devices."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load_device(name: str) -> Device:
    """The shipped device called `name`.

    Raises: UnknownNameError with the nearest name.
    """
    if name not in device_names():
        raise UnknownNameError("device", name, device_names())
    return read_toml(FOLDER / f"{name}.toml", Device)


def machine_of(device: Device, num_devices: int) -> MachineProfile:
    """A machine of `num_devices` devices in nodes as the device is usually sold, all numbers from the data sheet."""
    return MachineProfile(
        name=device.name,
        origin="datasheet",
        device_kind="cuda",
        device_name=device.title,
        num_devices=num_devices,
        devices_per_node=device.devices_per_node,
        memory_bytes=device.memory_gib * GIB,
        peak_flops_per_second={precision: peak * 1e12 for precision, peak in device.peak_tflops.items()},
        peak_source=f"{device.title} data sheet, dense",
        memory_bytes_per_second=device.memory_gb_per_second * GB * MEMORY_EFFICIENCY,
        launch_seconds=device.host_launch_us * MICROSECOND,
        parallel_linear_seconds=0.0,
        pipeline_action_seconds=0.0,
        oversubscription_factor=0.0,
        kernels=_kernels(device),
        links=tuple(_link(device, collective, span) for collective in COLLECTIVES for span in ("node", "network")),
        overlap=Overlap(
            compute_slowdown_fraction=device.compute_slowdown_fraction,
            communication_slowdown_fraction=device.communication_slowdown_fraction,
        ),
        price_per_hour=device.price_per_hour,
        sources=device.sources,
    )


def _kernels(device: Device) -> tuple[KernelCurve, ...]:
    bandwidth = device.memory_gb_per_second * GB * MEMORY_EFFICIENCY
    latency = device.kernel_latency_us * MICROSECOND
    curves = []
    for precision, achievable in device.achievable_tflops.items():
        rates = {"matmul": achievable * 1e12}
        rates |= {kind: device.peak_tflops[precision] * 1e12 * share for kind, share in ATTENTION_EFFICIENCY.items()}
        curves += [_kernel(kind, precision, latency, rate, bandwidth) for kind, rate in rates.items()]
        curves.append(_kernel("memory", precision, latency, 0.0, bandwidth))
    curves.append(_kernel("optimizer", "fp32", latency, 0.0, bandwidth))
    curves.append(_kernel("codec", "fp32", latency, 0.0, bandwidth / CODEC_PASSES))
    return tuple(curves)


def _kernel(kind: str, precision: str, latency: float, flops_rate: float, bandwidth: float) -> KernelCurve:
    return KernelCurve(
        kind=kind,
        precision=precision,
        latency_seconds=latency,
        flops_per_second=flops_rate,
        bytes_per_second=bandwidth,
        error_fraction=UNMEASURED_ERROR_FRACTION,
        origin="datasheet",
    )


def _link(device: Device, collective: Collective, span: str) -> LinkCurve:
    """The curve of two ranks; the planner carries it over to larger groups."""
    fast = span == "node" and device.link_gb_per_second > 0
    rate = device.link_gb_per_second if fast else device.network_gb_per_second
    # Two ranks send half of a gathered or reduced tensor, all of a message or an all-reduced one.
    share = 1.0 if collective in ("all_reduce", "send_receive") else 0.5
    return LinkCurve(
        collective=collective,
        group_size=2,
        span=span,  # type: ignore[arg-type]
        latency_seconds=(device.link_latency_us if fast else device.network_latency_us) * MICROSECOND,
        bytes_per_second=rate * GB / share,
        error_fraction=UNMEASURED_ERROR_FRACTION,
        origin="datasheet",
    )

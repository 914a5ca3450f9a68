"""What the devices and links of jobs can do, in columns."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np

from planner.cost.job import Jobs, Names
from profiles.laws.kernels import Silicon
from profiles.machines.devices import Device
from profiles.models.transformer import Array, Flags
from profiles.units import GB

TERA = 1e12
# Bytes of an element of a product's operands.
ELEMENT_BYTES = {"fp32": 4.0, "tf32": 4.0, "fp16": 2.0, "bf16": 2.0, "fp8": 1.0, "mxfp8": 1.0, "nvfp4": 0.5}
LOW_PRECISIONS = ("fp8", "mxfp8", "nvfp4")
# The highest clock of a generation, at which its peaks are stated. Source: NVIDIA data sheets, and peaks over
# multiprocessors and their FLOPs in a cycle (1024, 2048, 4096, 8192).
BOOST_MHZ = {"volta": 1530.0, "turing": 1590.0, "ampere": 1410.0, "ada": 2520.0, "hopper": 1830.0, "blackwell": 1855.0}
# A fused kernel of unknown version is the usual one of the device, cuDNN's where that is the software's there.
CUDNN, NAMELESS = "cudnn", "flash"


def rate_at(table: dict[str, float], precision: str) -> float:
    """A rate at `precision`, or that of the precision whose units compute it."""
    for name in (precision, {"mxfp8": "fp8", "nvfp4": "fp8", "fp16": "bf16", "bf16": "fp16"}.get(precision, "bf16")):
        if name in table:
            return table[name]
    return max(table.values())


def generations(jobs: Jobs) -> Names:
    """The generation of each job's device."""
    return jobs.device.words(lambda device: device.generation)


def silicon_of(jobs: Jobs, precisions: Names) -> Silicon:
    """The devices of `jobs` as kernels in `precisions` meet them. Shapes: one entry per job."""
    device = jobs.device
    peak, achievable = np.empty(len(jobs)), np.empty(len(jobs))
    for precision in np.unique(precisions):
        is_own, name = precisions == precision, str(precision)
        peak[is_own] = device[is_own].read(lambda one: rate_at(one.peak_tflops, name) * TERA)  # noqa: B023
        achievable[is_own] = device[is_own].read(lambda one: rate_at(one.achievable_tflops, name) * TERA)  # noqa: B023
    own = device.read(watts_per_tflops)
    other = jobs.board_power_watts / device.read(lambda one: rate_at(one.peak_tflops, "bf16"))
    boost = device.read(lambda one: BOOST_MHZ.get(one.generation, 0.0))
    is_locked = (jobs.clock_mhz > 0) & (boost > 0)
    return Silicon(
        matmul_flops_per_second=peak,
        achievable_fraction=np.minimum(1.0, achievable / peak),
        memory_bytes_per_second=memory_rate(jobs),
        num_multiprocessors=device.read(lambda one: float(one.num_multiprocessors)),
        element_bytes=np.array([ELEMENT_BYTES[str(precision)] for precision in precisions]),
        generation=generations(jobs),
        watts_per_tflops=np.where(jobs.board_power_watts > 0, other, own),
        is_sustained=True,
        vector_fraction=device.read(vector_fraction),
        clock_fraction=np.where(is_locked, np.minimum(jobs.clock_mhz / np.where(boost > 0, boost, 1.0), 1.0), 1.0),
    )


def silicon_where(flags: Flags, first: Silicon, second: Silicon) -> Silicon:
    """The first where a flag stands, else the second."""
    names = [field.name for field in fields(Silicon) if field.name != "is_sustained"]
    columns = {name: np.where(flags, getattr(first, name), getattr(second, name)) for name in names}
    return replace(first, **columns)


def watts_per_tflops(device: Device) -> float:
    """Power of a device's board over its 16-bit peak in TFLOP/s."""
    return device.power_watts / rate_at(device.peak_tflops, "bf16")


def vector_fraction(device: Device) -> float:
    """Peak outside of a device's matrix units over theirs in 16 bits."""
    return min(device.vector_tflops / rate_at(device.peak_tflops, "bf16"), 1.0)


def attention_kernels(jobs: Jobs) -> Names:
    """The attention kernel of each job: as named, or cuDNN's where the software asks for it."""
    takes = np.zeros(len(jobs), dtype=bool)
    for generation in np.unique(generations(jobs)):
        usual = jobs.stack.words(lambda stack: stack.attention_kernel(str(generation)))  # noqa: B023
        takes |= (generations(jobs) == generation) & (usual == CUDNN)
    return np.where((jobs.attention_kernel == NAMELESS) & takes, CUDNN, jobs.attention_kernel)


def silicon_at(device: Device, precision: str) -> Silicon:
    """One device as kernels in a precision meet it. Shapes: one entry, which broadcasts."""
    peak = rate_at(device.peak_tflops, precision) * TERA
    achievable = rate_at(device.achievable_tflops, precision) * TERA
    return Silicon(
        matmul_flops_per_second=np.array([peak]),
        achievable_fraction=np.array([min(1.0, achievable / peak)]),
        memory_bytes_per_second=np.array([device.memory_gb_per_second * GB]),
        num_multiprocessors=np.array([float(device.num_multiprocessors)]),
        element_bytes=np.array([ELEMENT_BYTES.get(precision, ELEMENT_BYTES["fp32"])]),
        generation=np.array([device.generation]),
        watts_per_tflops=np.array([watts_per_tflops(device)]),
        is_sustained=True,
        vector_fraction=np.array([vector_fraction(device)]),
    )


def memory_rate(jobs: Jobs) -> Array:
    """Bytes per second of each device's memory."""
    return jobs.device.read(lambda device: device.memory_gb_per_second * GB)


def linear_precisions(jobs: Jobs) -> Names:
    """Precision of the layers' linears: the job's own."""
    return jobs.precision


def wide_precisions(jobs: Jobs) -> Names:
    """Precision of attention, head and element-wise work: bf16 where the linears use less than 16 bits."""
    return np.where(np.isin(jobs.precision, LOW_PRECISIONS), "bf16", jobs.precision)

"""What the devices and links of jobs can do, looked up in the catalogue, in columns."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from planner.cost.job import Jobs, Names
from profiles.laws.collectives import Fabric
from profiles.laws.kernels import Silicon
from profiles.machines.devices import Device, load_device
from profiles.models.transformer import Array
from profiles.units import GB

TERA = 1e12
# Bytes of an element of a product's operands.
ELEMENT_BYTES = {"fp32": 4.0, "fp16": 2.0, "bf16": 2.0, "fp8": 1.0, "mxfp8": 1.0, "nvfp4": 0.5}
LOW_PRECISIONS = ("fp8", "mxfp8", "nvfp4")


@lru_cache(maxsize=64)
def _device(name: str) -> Device:
    return load_device(name)


def of_devices(names: Names, read: Callable[[Device], float]) -> Array:
    """One number per job, read from its device."""
    unique, inverse = np.unique(names, return_inverse=True)
    return np.array([read(_device(str(name))) for name in unique], dtype=np.float64)[inverse]


def _of_precision(table: dict[str, float], precision: str) -> float:
    """A rate at `precision`, or that of the precision whose units compute it."""
    for name in (precision, {"mxfp8": "fp8", "nvfp4": "fp8", "fp16": "bf16", "bf16": "fp16"}.get(precision, "bf16")):
        if name in table:
            return table[name]
    return max(table.values())


def generations(jobs: Jobs) -> Names:
    """The generation of each job's device."""
    names, inverse = np.unique(jobs.device, return_inverse=True)
    return np.array([_device(str(name)).generation for name in names])[inverse]


def silicon_of(jobs: Jobs, precisions: Names) -> Silicon:
    """The devices of `jobs` as kernels in `precisions` meet them. Shapes: one entry per job."""
    pairs = np.char.add(np.char.add(jobs.device, "|"), precisions)
    unique, inverse = np.unique(pairs, return_inverse=True)
    peak, share = np.empty(len(unique)), np.empty(len(unique))
    for row, pair in enumerate(unique):
        name, precision = str(pair).split("|")
        device = _device(name)
        peak[row] = _of_precision(device.peak_tflops, precision) * TERA
        share[row] = min(1.0, _of_precision(device.achievable_tflops, precision) * TERA / peak[row])
    return Silicon(
        matmul_flops_per_second=peak[inverse],
        achievable_fraction=share[inverse],
        memory_bytes_per_second=of_devices(jobs.device, lambda device: device.memory_gb_per_second * GB),
        num_multiprocessors=of_devices(jobs.device, lambda device: float(device.num_multiprocessors)),
        element_bytes=np.array([ELEMENT_BYTES[str(precision)] for precision in precisions]),
        generation=generations(jobs),
    )


def fabric_of(jobs: Jobs) -> Fabric:
    """The links of `jobs`: bandwidths of the job where it states them, the rest from its device. Shapes: per job."""
    label = of_devices(jobs.device, lambda device: device.link_gb_per_second * GB)
    peer = of_devices(jobs.device, lambda device: device.peer_gb_per_second * GB)
    return Fabric(
        fast_bytes_per_second=jobs.fast_bytes_per_second,
        # A pair's share of the total stays what it is on the data sheet.
        p2p_bytes_per_second=jobs.fast_bytes_per_second * np.where(label > 0, peer / np.maximum(label, 1.0), 1.0),
        network_bytes_per_second=jobs.network_bytes_per_second,
        in_switch=of_devices(jobs.device, lambda device: float(device.in_switch)).astype(bool),
        network_latency_seconds=jobs.network_latency_seconds,
    )


def linear_precisions(jobs: Jobs) -> Names:
    """Precision of the layers' linears: the job's own."""
    return jobs.precision


def wide_precisions(jobs: Jobs) -> Names:
    """Precision of attention, head and element-wise work: bf16 where the linears use less than 16 bits."""
    return np.where(np.isin(jobs.precision, LOW_PRECISIONS), "bf16", jobs.precision)

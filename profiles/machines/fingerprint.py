"""What a measurement on this machine depends on: hardware, versions, topology. Reads it without importing torch."""

from __future__ import annotations

import os
import platform
from dataclasses import fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from profiles.machines.cores import usable_cores
from profiles.machines.profile import Fingerprint
from profiles.ranks.cuda_setup import device_kind, loaded_driver, torch_build

# Where the kernel tells of AMD's boards.
AMD_BOARDS = Path("/sys/class/drm")


def current_device_kind() -> str:
    """`cuda` where this process may use GPUs, NVIDIA's or AMD's, that the installed torch computes on; else `cpu`.

    Raises: EnvironmentFailure where NVIDIA's driver is loaded and torch is no build for it.
    """
    driver = loaded_driver(os.environ)
    return device_kind(driver, torch_build()) if driver else "cpu"


def current_fingerprint(kind: str) -> Fingerprint:
    """The fingerprint of this machine for jobs on that kind of device (cpu or cuda)."""
    import psutil

    cuda = kind == "cuda"
    name, topology = _gpus() if cuda else (_cpu_name(), ())
    return Fingerprint(
        device=name,
        num_cores=len(usable_cores()),
        memory_bytes=psutil.virtual_memory().total,
        torch=_version("torch"),
        python=platform.python_version(),
        backend="nccl" if cuda else "gloo",
        threads_per_rank=1,
        topology=topology,
    )


def describe_difference(profiled: Fingerprint) -> str:
    """What differs between `profiled` and this machine, in a few words; "" where nothing does."""
    here = current_fingerprint("cuda" if profiled.backend == "nccl" else "cpu")
    return ", ".join(
        f"{field.name} {getattr(profiled, field.name)} there, {getattr(here, field.name)} here"
        for field in fields(Fingerprint)
        if field.name != "topology" and getattr(profiled, field.name) != getattr(here, field.name)
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _gpus() -> tuple[str, tuple[str, ...]]:
    """The first GPU's name, and how each pair is linked (NV# for NVLink, else the PCIe level) where NVML tells."""
    if loaded_driver(os.environ) == "amd":
        return _amd_name(), ()
    try:
        import pynvml
    except ImportError:
        return "unknown GPU (install nvidia-ml-py for its name and topology)", ()
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return f"unknown GPU ({error})", ()
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        pairs = [(i, j) for i in range(len(handles)) for j in range(i + 1, len(handles))]
        topology = tuple(f"{i}-{j}: {_link(pynvml, handles[i], handles[j])}" for i, j in pairs)
        return (str(pynvml.nvmlDeviceGetName(handles[0])) if handles else "no GPU"), topology
    finally:
        pynvml.nvmlShutdown()


def _amd_name(boards: Path = AMD_BOARDS) -> str:
    """The first of AMD's boards by the name that its firmware has."""
    for path in sorted(boards.glob("card*/device/product_name")):
        try:
            name = path.read_text(encoding="utf-8", errors="replace").strip()
        except OSError:
            continue
        if name:
            return name
    return "AMD GPU"


def _link(pynvml: object, one: object, other: object) -> str:
    nvml = pynvml.__dict__
    try:
        status = nvml["nvmlDeviceGetP2PStatus"](one, other, nvml["NVML_P2P_CAPS_INDEX_NVLINK"])
        if status == nvml["NVML_P2P_STATUS_OK"]:
            return "NVLink"
        return f"PCIe level {nvml['nvmlDeviceGetTopologyCommonAncestor'](one, other)}"
    except nvml["NVMLError"]:
        return "unknown"

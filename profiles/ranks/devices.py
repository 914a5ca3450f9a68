"""The device of this process: chosen, and a GPU made ready for one rank, by the rules of `cuda_setup`."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

import torch

from profiles.machines.cores import stay_on, usable_cores
from profiles.ranks.cuda_setup import (
    adapters_near,
    attention_wanted,
    cores_near,
    gpu_index,
    loaded_driver,
    pci_address,
    segments_environment,
    settings_told,
    told,
)

BACKENDS = {"cpu": "gloo", "cuda": "nccl"}
# torch's switches of its attention kernels. By "math" it computes whatever no other kernel takes.
ATTENTION_SWITCHES: dict[str, Callable[[bool], None]] = {
    "flash": torch.backends.cuda.enable_flash_sdp,
    "efficient": torch.backends.cuda.enable_mem_efficient_sdp,
    "cudnn": torch.backends.cuda.enable_cudnn_sdp,
}


def own_device(kind: str, local_rank: int) -> torch.device:
    """The device of a host's rank of that number, on `cpu` or `cuda`.

    Raises: EnvironmentFailure where this process sees no GPU.
    """
    if kind != "cuda":
        return torch.device(kind)
    return torch.device("cuda", gpu_index(local_rank, torch.cuda.device_count()))


def make_ready(device: torch.device) -> None:
    """Let this process compute on a GPU: memory that grows in place, cores beside it, the attention asked for.

    Raises: EnvironmentFailure for an attention kernel that is none.
    """
    if not torch.cuda.is_initialized():
        # torch reads them when the first memory is asked for.
        os.environ.update(segments_environment(loaded_driver(os.environ), os.environ))
    wanted = attention_wanted(os.environ)
    for name, switch in ATTENTION_SWITCHES.items() if wanted else ():
        switch(name == wanted)
    torch.cuda.set_device(device)
    if address := _address(device):
        stay_on(cores_near(address, list(usable_cores())))


def gpu_key(device: torch.device) -> str:
    """What tells a GPU of this host from all others of a job; "" for other devices."""
    if device.type != "cuda":
        return ""
    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None) or _address(device)
    return f"{socket.gethostname()}/{uuid}" if uuid else ""


def gpu_settings(device: torch.device) -> dict[str, str]:
    """What of the software on a GPU decides times, as it is now; nothing on other devices."""
    if device.type != "cuda":
        return {}
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    versions = {
        "cuda": torch.version.cuda,
        "rocm": torch.version.hip,
        "nccl": told(torch.cuda.nccl.version),
        "cudnn": told(cudnn.version),
        "driver": told(_driver_version),
    }
    switches = {
        "tf32 in products": told(lambda: matmul.allow_tf32),
        "tf32 in convolutions": told(lambda: cudnn.allow_tf32),
        "cudnn.benchmark": cudnn.benchmark,
        "attention allowed": ", ".join(_attention_allowed()),
        "cores": len(usable_cores()),
        "adapters near": ", ".join(adapters_near(_address(device))) or None,
    }
    return settings_told(os.environ, versions, switches)


def _attention_allowed() -> list[str]:
    allowed: dict[str, Callable[[], bool]] = {
        "flash": torch.backends.cuda.flash_sdp_enabled,
        "efficient": torch.backends.cuda.mem_efficient_sdp_enabled,
        "cudnn": torch.backends.cuda.cudnn_sdp_enabled,
        "math": torch.backends.cuda.math_sdp_enabled,
    }
    return [name for name, is_enabled in allowed.items() if is_enabled()]


def _address(device: torch.device) -> str:
    """Where a GPU stands on PCI; "" where torch does not tell."""
    own = told(lambda: torch.cuda.get_device_properties(device))
    ids = [getattr(own, f"pci_{part}_id", None) for part in ("domain", "bus", "device")]
    return "" if None in ids else pci_address(*(int(part) for part in ids if part is not None))


def _driver_version() -> object:
    import pynvml

    try:
        pynvml.nvmlInit()
        try:
            return pynvml.nvmlSystemGetDriverVersion()
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError:
        return None

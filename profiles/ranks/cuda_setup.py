"""What a rank on a GPU is told: the kind of device, which one, its memory, cores and attention. Torch-free.

Pure functions of what drivers, environment variables and /sys say, so that they can be tried where there is no GPU.
torch calls AMD's devices `cuda` too, and RCCL `nccl`: one kind of device stands for both makers.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from profiles.errors import EnvironmentFailure

# What says that a maker's driver is loaded; containers and WSL 2 do not show all of NVIDIA's.
DRIVER_FILES = {
    "nvidia": ("proc/driver/nvidia/version", "dev/nvidiactl", "usr/lib/wsl/lib/libcuda.so.1"),
    "amd": ("dev/kfd",),
}
# Variables by which a user chooses among devices, and what of them leaves none.
VISIBLE = {
    "nvidia": ("CUDA_VISIBLE_DEVICES",),
    "amd": ("HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"),
}
NONE_VISIBLE = ("", "-1", "NoDevFiles")
# The build of torch that computes on a maker's devices.
BUILDS = {"nvidia": "cuda", "amd": "rocm"}
# What Slurm tells a task of its GPUs where each task is given its own.
SLURM_PER_TASK = {
    "SLURM_GPUS_PER_TASK": re.compile(r".+"),
    "SLURM_TRES_PER_TASK": re.compile(r".*gres[/:]gpu.*"),
    "SLURM_GPU_BIND": re.compile(r"(verbose,)?(single|per_task).*"),
}
ALLOCATOR = "PYTORCH_ALLOC_CONF"
ALLOCATOR_VARIABLES = (ALLOCATOR, "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
# Segments that grow in place, where plans of many sizes would otherwise leave holes that none of the others fits.
EXPANDABLE = "expandable_segments:True"
ATTENTION_VARIABLE = "TRAINWRIGHT_ATTENTION"
ATTENTION_KERNELS = ("flash", "efficient", "cudnn", "math")
# Variables that decide what a message or an allocation does, which a run file tells.
TOLD_VARIABLES = re.compile(
    r"(NCCL|RCCL|TORCH_NCCL|PYTORCH_\w*ALLOC)_\w+|CUDA_DEVICE_MAX_CONNECTIONS|NVIDIA_TF32_OVERRIDE"
)


def loaded_driver(environ: Mapping[str, str], root: Path = Path("/")) -> str:
    """The maker whose driver is loaded and whose devices are not hidden from this process: nvidia, amd, or ""."""
    for maker, paths in DRIVER_FILES.items():
        is_hidden = any(environ.get(name, "all") in NONE_VISIBLE for name in VISIBLE[maker])
        if not is_hidden and any((root / path).exists() for path in paths):
            return maker
    return ""


def torch_build(source: str | None = None) -> str:
    """For which devices the installed torch is built: cuda, rocm, cpu, or "" where that is not said.

    Read from its version.py (`source` is its text), as loading torch takes seconds.
    """
    if source is None:
        found = importlib.util.find_spec("torch")
        folder = Path(found.origin).parent if found is not None and found.origin else None
        path = folder / "version.py" if folder is not None else None
        source = path.read_text(encoding="utf-8") if path is not None and path.is_file() else ""
    said = dict(re.findall(r"^(cuda|hip)\b[^=\n]*=\s*(\S+)", source, re.MULTILINE))
    if not said:
        return ""
    builds = {"hip": "rocm", "cuda": "cuda"}
    return next((build for name, build in builds.items() if said.get(name, "None") != "None"), "cpu")


def device_kind(driver: str, build: str) -> str:
    """`cuda` where there is a driver and torch is built for it, else `cpu`.

    An AMD driver alone makes no GPU: graphics in processors have it as well, which no build of torch computes on.

    Raises: EnvironmentFailure where NVIDIA's driver is loaded and torch is built for something else.
    """
    if not driver or (driver == "amd" and build != BUILDS["amd"]):
        return "cpu"
    if build not in (BUILDS[driver], ""):
        raise EnvironmentFailure(
            f"NVIDIA's driver is loaded, but torch is a build for {'CPUs' if build == 'cpu' else 'ROCm'}: install its "
            f"build for CUDA, or set {VISIBLE[driver][0]}= to ignore the GPUs"
        )
    return "cuda"


def gpus_are_per_task(environ: Mapping[str, str]) -> bool:
    """Whether Slurm shows every task its own GPUs alone, as with --gpus-per-task or --gpu-bind=single."""
    is_step = "SLURM_STEP_ID" in environ
    return is_step and any(said.fullmatch(environ.get(name, "")) for name, said in SLURM_PER_TASK.items())


def too_few_gpus(num_ranks: int, num_visible: int, environ: Mapping[str, str]) -> str:
    """Why the GPUs that this process sees are too few for a host's ranks; "" where they are enough."""
    needed = 1 if gpus_are_per_task(environ) else num_ranks
    if needed <= num_visible:
        return ""
    hint = f"ask for {num_visible}" if num_visible else "see what nvidia-smi or rocm-smi says"
    return f"{num_ranks} ranks need {needed} GPUs, this machine has {num_visible}: {hint}"


def gpu_index(local_rank: int, num_visible: int) -> int:
    """Which of the GPUs that this process sees is its own: the only one where each task is shown no other.

    Raises: EnvironmentFailure where it sees none.
    """
    if num_visible < 1:
        raise EnvironmentFailure("this process sees no GPU: see what nvidia-smi says, and CUDA_VISIBLE_DEVICES")
    return local_rank % num_visible


def segments_environment(driver: str, environ: Mapping[str, str]) -> dict[str, str]:
    """Variables for the memory of a rank on a GPU, which must be set before CUDA starts; a user's own stand.

    Ignores: AMD's devices, where segments that grow are not everywhere supported.
    """
    if driver != "nvidia" or any(environ.get(name) for name in ALLOCATOR_VARIABLES):
        return {}
    return {ALLOCATOR: EXPANDABLE}


def pci_address(domain: int, bus: int, device: int) -> str:
    """A PCI device's name in /sys."""
    return f"{domain:04x}:{bus:02x}:{device:02x}.0"


def numa_node(address: str, root: Path = Path("/")) -> int | None:
    """The NUMA node that a PCI device stands at; None where the kernel does not tell."""
    text = _read(root / "sys/bus/pci/devices" / address / "numa_node")
    # -1 says that the firmware does not tell.
    return int(text) if text.isdigit() else None


def cores_near(address: str, allowed: Iterable[int], root: Path = Path("/")) -> tuple[int, ...]:
    """Those of the `allowed` cores that are at a GPU's NUMA node; all of them where these are none or not told."""
    allowed = tuple(allowed)
    node = numa_node(address, root)
    if node is None:
        return allowed
    own = cores_of(_read(root / f"sys/devices/system/node/node{node}/cpulist"))
    return tuple(core for core in allowed if core in own) or allowed


def cores_of(text: str) -> frozenset[int]:
    """The numbers in a list such as `0-3,8`; none where it is no such list."""
    if not re.fullmatch(r"\d+(-\d+)?(,\d+(-\d+)?)*", text):
        return frozenset()
    ends = [[int(end) for end in part.split("-")] for part in text.split(",")]
    return frozenset(core for pair in ends for core in range(pair[0], pair[-1] + 1))


def adapters_near(address: str, root: Path = Path("/")) -> tuple[str, ...]:
    """InfiniBand and RoCE adapters at a GPU's NUMA node, by name.

    They are told and not bound: NCCL chooses among them by their distance on PCI, which is finer than that of nodes.
    """
    folder, node = root / "sys/class/infiniband", numa_node(address, root)
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    return tuple(name for name in names if node is not None and _read(folder / name / "device/numa_node") == str(node))


def attention_wanted(environ: Mapping[str, str]) -> str:
    """The attention kernel that a user asks for by TRAINWRIGHT_ATTENTION; "" where torch is to choose.

    Raises: EnvironmentFailure for a name that is none.
    """
    wanted = environ.get(ATTENTION_VARIABLE, "")
    if wanted not in ("", *ATTENTION_KERNELS):
        known = ", ".join(ATTENTION_KERNELS)
        raise EnvironmentFailure(f"{ATTENTION_VARIABLE} is {wanted[:20]!r}: it should be {known}")
    return wanted


def settings_told(
    environ: Mapping[str, str], versions: Mapping[str, object], switches: Mapping[str, object]
) -> dict[str, str]:
    """What of a GPU's software decides times, for a run file: versions of libraries, switches, and variables."""
    variables = {name: value for name, value in sorted(environ.items()) if TOLD_VARIABLES.fullmatch(name)}
    said = {**versions, **switches}
    return {name: _words(value) for name, value in said.items() if value is not None} | variables


def told(ask: Callable[[], object]) -> object:
    """What a library says of itself; None where it is not there, or this build of it cannot."""
    try:
        return ask()
    except (AttributeError, ImportError, RuntimeError, OSError):
        return None


def _words(value: object) -> str:
    return ".".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""

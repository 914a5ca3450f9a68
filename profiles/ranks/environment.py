"""Which job this process belongs to, told from its environment: torchrun's, Slurm's, or none. Torch-free."""

from __future__ import annotations

import os
import re
import sys

from profiles.machines.cores import usable_cores
from profiles.ranks.cuda_setup import loaded_driver, segments_environment, too_few_gpus

DEFAULT_PORT = 29500
LOOPBACK = "127.0.0.1"
# torchrun's agent hosts a store for its ranks, open to every address. torch's variable for not doing so.
NO_AGENT_STORE = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"
# What a rank has taken when it has loaded torch and joined its group, and how many of them may wait for one core.
RANK_BYTES = 256 * 2**20
RANKS_PER_CORE = 16
# glibc gives big blocks back to the kernel on every free and faults them in again on the next use, which costs up to
# ten times the time of the kernel that fills them (96 against 8.5 ms for 222 MiB here). CUDA's caching allocator keeps
# its memory; with these settings, so does the CPU's. Huge pages, where the kernel gives them to who asks, spare the
# look-ups of thousands of small ones: 5 % of a step in bf16 here.
ALLOCATOR_ENVIRONMENT = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
    "MALLOC_TOP_PAD_": str(2**28),
    "MALLOC_ARENA_MAX": "1",
}
HUGE_PAGES = "glibc.malloc.hugetlb=1"
THREAD_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
# What torchrun and srun tell every rank, each with what it is one of; and the largest value of the others.
TORCHRUN = ("RANK", "WORLD_SIZE", "MASTER_ADDR")
RANK_AND_COUNT = (("RANK", "WORLD_SIZE"), ("LOCAL_RANK", "LOCAL_WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS"))
OTHERS = {"MASTER_PORT": 65535, "SLURM_JOB_ID": 2**63 - 1}


def allocator_environment(device_kind: str) -> dict[str, str]:
    """Variables that a rank must be started with: its threads, and how it keeps memory."""
    if device_kind != "cpu":
        return {**THREAD_ENVIRONMENT, **segments_environment(loaded_driver(os.environ), os.environ)}
    own = os.environ.get("GLIBC_TUNABLES", "")
    tunables = own if HUGE_PAGES in own.split(":") else f"{own}:{HUGE_PAGES}" if own else HUGE_PAGES
    return {**THREAD_ENVIRONMENT, **ALLOCATOR_ENVIRONMENT, "GLIBC_TUNABLES": tunables}


def in_job() -> bool:
    """Whether this process was started as one rank of a job, by torchrun or by Slurm's srun."""
    return _in_torchrun() or _in_slurm()


def is_main_process() -> bool:
    """Whether this process writes files and talks to the user: rank 0 of a job, or a process outside any job."""
    if _in_torchrun():
        return os.environ["RANK"] == "0"
    return not _in_slurm() or os.environ["SLURM_PROCID"] == "0"


def ranks_per_host(num_ranks: int) -> int:
    """How many of the job's ranks are on this machine: all of them outside a job.

    Raises: EnvironmentFailure where the job's variables make no sense.
    """
    check_job()
    if _in_torchrun() and "LOCAL_WORLD_SIZE" in os.environ:
        return int(os.environ["LOCAL_WORLD_SIZE"])
    if _in_slurm():
        return -(-num_ranks // _slurm_hosts())
    return num_ranks


def is_on_one_host() -> bool:
    """Whether all ranks of the job are known to be on this machine."""
    return os.environ.get("LOCAL_WORLD_SIZE", "") == os.environ.get("WORLD_SIZE")


def check_job() -> None:
    """Check what a launcher has set: all that tells a rank its place or nothing, in numbers that fit together.

    Raises: EnvironmentFailure that names the variable.
    """
    from profiles.errors import EnvironmentFailure

    present = [name for name in TORCHRUN if os.environ.get(name)]
    missing = ", ".join(name for name in TORCHRUN if name not in present)
    # An address alone may be meant for srun, or for nothing.
    if missing and present not in ([], ["MASTER_ADDR"]) and not _in_slurm():
        raise EnvironmentFailure(
            f"{' and '.join(present)} set without {missing}: start ranks with torchrun or srun, or unset {present[0]}"
        )
    for rank, count in RANK_AND_COUNT:
        numbers = {name: _number(name) for name in (rank, count) if os.environ.get(name)}
        if (number := numbers.get(count)) is not None and number < 1:
            raise EnvironmentFailure(f"{count} is {number}: a job has at least one process")
        if len(numbers) == 2 and not 0 <= numbers[rank] < numbers[count]:
            raise EnvironmentFailure(f"{rank} is {numbers[rank]}: it is not one of {count} {numbers[count]} ranks")
    for name, most in OTHERS.items():
        if os.environ.get(name) and not 0 <= _number(name) <= most:
            raise EnvironmentFailure(f"{name} is {os.environ[name][:20]}: it should be from 0 to {most}")


def _number(name: str) -> int:
    from profiles.errors import EnvironmentFailure

    text = os.environ[name]
    if not re.fullmatch(r"-?[0-9]{1,18}", text):
        raise EnvironmentFailure(f"{name} is {text[:20]!r}: it should be a whole number")
    return int(text)


def check_system() -> None:
    """Check, before anything is loaded for it, that ranks can be started on this system.

    Raises: EnvironmentFailure on Windows, that says what runs there.
    """
    from profiles.errors import EnvironmentFailure

    if sys.platform == "win32":
        raise EnvironmentFailure(
            "ranks are started on Linux and macOS, not on Windows: run this under WSL 2; `plan`, `profile model` and "
            "`compare` run here"
        )


def check_room(num_ranks: int, device_kind: str) -> None:
    """Check, before any is started, that this machine has room for its ranks of a job.

    Raises: EnvironmentFailure that says how many it has room for.
    """
    import psutil

    from profiles.errors import EnvironmentFailure

    here = ranks_per_host(num_ranks)
    if device_kind == "cuda":
        import torch

        if reason := too_few_gpus(here, torch.cuda.device_count(), os.environ):
            raise EnvironmentFailure(reason)
        return
    cores, memory = len(usable_cores()), psutil.virtual_memory().total
    most = min(cores * RANKS_PER_CORE, max(1, memory // RANK_BYTES))
    if here > most:
        raise EnvironmentFailure(
            f"{here} ranks are too many for this machine of {cores} cores and {memory / 2**30:.3g} GiB: "
            f"ask for at most {most}"
        )


def join_slurm() -> None:
    """Translate Slurm's variables to the ones that torch.distributed reads; nothing where torchrun has set them.

    Raises: EnvironmentFailure where the ranks would not find each other.
    """
    if _in_torchrun() or not _in_slurm():
        return
    job = int(os.environ.get("SLURM_JOB_ID", "0"))
    os.environ.update(
        RANK=os.environ["SLURM_PROCID"],
        WORLD_SIZE=os.environ["SLURM_NTASKS"],
        LOCAL_RANK=os.environ.get("SLURM_LOCALID", "0"),
        LOCAL_WORLD_SIZE=str(ranks_per_host(int(os.environ["SLURM_NTASKS"]))),
        MASTER_ADDR=_slurm_master(_slurm_hosts()),
        # One port per job, so that two jobs of one node do not meet.
        MASTER_PORT=os.environ.get("MASTER_PORT") or str(DEFAULT_PORT + job % 1000),
    )


def _in_torchrun() -> bool:
    return all(os.environ.get(name) for name in TORCHRUN)


def _in_slurm() -> bool:
    # A batch script has SLURM_PROCID=0 as well, though it is no rank; only srun's own processes belong to a step.
    return all(name in os.environ for name in ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_STEP_ID"))


def _slurm_hosts() -> int:
    return max(1, int(os.environ.get("SLURM_STEP_NUM_NODES") or os.environ.get("SLURM_NNODES", "1")))


def _slurm_master(num_hosts: int) -> str:
    """Where ranks that srun started meet.

    Raises: EnvironmentFailure where no address of the first node resolves, at once rather than when a rank waits.
    """
    from profiles.ranks.slurm_address import check_given, master_address

    given = os.environ.get("MASTER_ADDR")
    if num_hosts == 1:
        return given or LOOPBACK
    if given:
        check_given(given)
        return given
    return master_address(os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_JOB_NODELIST", ""), os.environ)

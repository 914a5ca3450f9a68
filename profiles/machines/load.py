"""How busy a machine was besides the work measured on it, and whether that spoils the measurement. Torch-free."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from profiles.artifacts import STRICT
from profiles.machines.cores import usable_cores
from profiles.machines.counters import Counters, Watch, available_memory_fraction, read_counters
from profiles.ranks.environment import in_job
from profiles.units import format_percent

# Steps of one plan differ by up to 8 % on a quiet machine; a rank that loses a tenth of its time makes every step that
# waits for it longer by more than that. Quiet, the ranks of a two-core machine lose 2 %.
MOST_LOST_FRACTION = 0.10
# Causes below this are not told.
LEAST_TOLD_FRACTION = 0.02
# With less memory left than this, a run may swap or be killed.
LEAST_AVAILABLE_FRACTION = 0.05
LOOK_SECONDS = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineLoad:
    """What went on besides `num_ranks` ranks on the `num_cores` cores that they may use; None where unknown.

    `other_cores` is how many cores other processes kept busy. The others are shares of `seconds`: `waited_fraction`,
    in which the rank that waited most was ready to run and had no core; `stolen_fraction`, that the hypervisor gave to
    other machines; `throttled_fraction`, in which a container's limit on processor time held the ranks back;
    `stalled_fraction`, in which some process waited for memory. `available_memory_fraction` is of all memory, before
    the ranks started. `host` is named where a job has several: it is the one whose ranks lost most.
    """

    __pydantic_config__ = STRICT

    seconds: float
    num_ranks: int
    num_cores: int
    other_cores: float | None = None
    waited_fraction: float | None = None
    stolen_fraction: float | None = None
    throttled_fraction: float | None = None
    stalled_fraction: float | None = None
    available_memory_fraction: float | None = None
    host: str = ""

    @property
    def taken_fraction(self) -> float | None:
        """Share of the time that other processes took from the rank that lost most.

        A rank also waits for its own threads and for other ranks, but never longer for others than those ran. Where
        waiting is not counted, others run first on the cores that the ranks leave free.
        """
        if self.other_cores is None:
            return None
        if self.waited_fraction is not None:
            return min(self.waited_fraction, self.other_cores)
        free_cores = max(0, self.num_cores - self.num_ranks)
        return min(1.0, max(0.0, self.other_cores - free_cores) / min(self.num_ranks, self.num_cores))

    @property
    def lost_fraction(self) -> float | None:
        """Share of the time that the rank that lost most did not have, of all that is known; None where nothing is."""
        shares = (self.taken_fraction, self.stolen_fraction, self.throttled_fraction, self.stalled_fraction)
        known = [share for share in shares if share is not None]
        return sum(known) if known else None

    @property
    def is_busy(self) -> bool:
        """Whether so much was lost that times say little."""
        return (self.lost_fraction or 0.0) > MOST_LOST_FRACTION


def busiest(loads: Iterable[MachineLoad | None]) -> MachineLoad | None:
    """The load under which most was lost, of those that are known; None where none is."""
    known = [load for load in loads if load is not None and load.lost_fraction is not None]
    return max(known, key=lambda load: load.lost_fraction or 0.0, default=None)


def look_before(num_ranks: int) -> tuple[MachineLoad | None, list[str]]:
    """How busy the machine is before `num_ranks` ranks start on it, and what is to be said of it; takes half a second.

    None in a job that torchrun or Slurm started: there the other ranks are starting at this moment.
    """
    if in_job():
        return None, []
    cores = usable_cores()
    before = read_counters(cores)
    time.sleep(LOOK_SECONDS)
    # The ranks, which would wait, are not there yet.
    spent = replace(read_counters(cores).plus(before, -1), waited_seconds=None)
    load = replace(load_of([spent]), num_ranks=num_ranks, available_memory_fraction=available_memory_fraction())
    return load, _warnings_before(load)


def load_of_job(watch: Watch) -> MachineLoad:
    """The load that the watches of all ranks saw, the same on every rank, all of which must ask."""
    import torch.distributed as dist

    counted = [watch.counted] * dist.get_world_size()
    dist.all_gather_object(counted, watch.counted)
    return load_of(counted)


def load_of(counted: Sequence[Counters]) -> MachineLoad:
    """The load of the cores whose ranks lost most, from the counters of every rank."""
    shared: dict[tuple[str, tuple[int, ...]], list[Counters]] = {}
    for counters in counted:
        shared.setdefault((counters.host, counters.cores), []).append(counters)
    loads = [_shared_load(ranks) for ranks in shared.values()]
    worst = busiest(loads) or loads[0]
    return worst if len({host for host, _ in shared}) > 1 else replace(worst, host="")


def _shared_load(ranks: Sequence[Counters]) -> MachineLoad:
    """The load of ranks that share their cores."""
    first = ranks[0]
    seconds, num_cores = first.seconds, len(first.cores)
    own_seconds = sum(rank.own_seconds for rank in ranks)
    waited = [rank.waited_seconds / rank.seconds for rank in ranks if rank.waited_seconds is not None]

    def share(counted: float | None, of: int = 1) -> float | None:
        return None if counted is None else max(0.0, counted) / seconds / of

    return MachineLoad(
        seconds=seconds,
        num_ranks=len(ranks),
        num_cores=num_cores,
        other_cores=share(None if first.busy_seconds is None else first.busy_seconds - own_seconds),
        waited_fraction=max(waited, default=None),
        stolen_fraction=share(first.stolen_seconds, num_cores),
        throttled_fraction=share(first.throttled_seconds, len(ranks)),
        stalled_fraction=share(first.stalled_seconds),
        host=first.host,
    )


def causes(load: MachineLoad) -> str:
    """What took time from the ranks, in words that follow "busy"; "" where nothing that is worth telling did."""
    words = []
    if (load.taken_fraction or 0.0) > LEAST_TOLD_FRACTION:
        words.append(f"{load.other_cores:.2g} of {load.num_cores} cores taken by other processes")
    for share, cause in (
        (load.stolen_fraction, "of the cores' time taken by the hypervisor"),
        (load.throttled_fraction, "of the time held back by the container's limit on processor time"),
        (load.stalled_fraction, "of the time some process waited for memory"),
    ):
        if share is not None and share > LEAST_TOLD_FRACTION:
            words.append(f"{format_percent(share)} {cause}")
    return ", ".join(words) + (f", on {load.host}" if load.host else "")


def _warnings_before(load: MachineLoad) -> list[str]:
    said = []
    if load.is_busy:
        said.append(f"busy before the start ({causes(load)}): times will be off, better wait until it is quiet")
    available = load.available_memory_fraction
    if available is not None and available < LEAST_AVAILABLE_FRACTION:
        said.append(f"only {format_percent(available)} of this machine's memory is free: ranks may swap or be killed")
    return said

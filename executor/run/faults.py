"""What stops a run, in sentences: a peer that hangs, memory that is exhausted, a loss that is no number, SIGTERM."""

from __future__ import annotations

import contextlib
import gc
import json
import math
import os
import re
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed as dist
from torch import Tensor

from executor.mesh import coordinates
from planner.plans import Plan
from profiles.errors import LostPeer, RankFailure, Stopped, ToleranceError
from profiles.files import write_text
from profiles.models.profile import SCALED
from profiles.ranks.processes import LAUNCHER_VARIABLE
from profiles.ranks.rank import Rank, heart, is_lost_peer, is_of_messages, job_store
from profiles.units import format_bytes
from profiles.workloads.fake_tensors import FakeTensor
from profiles.workloads.foreign_code import EXHAUSTED

TIMED_OUT = re.compile(r"timed out|timeout", re.IGNORECASE)
# Ranks that wait give up one after the other: whoever has not said so by then is whom they waited for.
GATHER_SECONDS = 10.0
NUM_LISTED = 100
# Memory to say so with, when there is none left.
RESERVE_BYTES = 2**25
_reserve: list[bytearray] = []


class StopSignal:
    """Whether SIGTERM has come; one per process, since signals are."""

    def __init__(self) -> None:
        self.has_come = False

    def listen(self) -> None:
        """Note SIGTERM from now on, rather than dying of it."""
        signal.signal(signal.SIGTERM, self._note)

    def _note(self, *_: object) -> None:
        self.has_come = True


STOP = StopSignal()


def is_finite(loss: Tensor | None) -> bool:
    """Whether the loss is a number, as far as this rank has it."""
    return loss is None or math.isfinite(float(loss))


def agree(device: torch.device, *flags: bool) -> tuple[bool, ...]:
    """Which of the flags any rank has set; collective."""
    votes = torch.tensor([float(flag) for flag in flags], device=device)
    dist.all_reduce(votes, op=dist.ReduceOp.MAX)
    return tuple(bool(vote) for vote in votes.tolist())


def stopped(plan: Plan, step: int, folder: Path) -> Stopped:
    """What a run says that was asked to stop and has saved where it is."""
    return Stopped(f"stopped by SIGTERM after step {step} of plan {plan.id}, saved in {folder}: continue with --resume")


def restarted(number: int, checkpoint: Path | None) -> str:
    """What a run says whose ranks were all started again, and where it goes on."""
    where = f"resuming from {checkpoint}" if checkpoint else "from the first step, as no checkpoint had been saved"
    return f"a rank died and all were restarted (restart {number}), {where}"


def diverged(plan: Plan, step: int, loss: float | None, checkpoint: Path | None = None) -> ToleranceError:
    """What a run says whose loss is no number (on this rank, where it is given); `checkpoint` is the last one saved."""
    value = "not finite" if loss is None else str(loss)
    saved = f"; {checkpoint} was saved before it" if checkpoint else ""
    ends = ", or exceeded fp16's largest value, 65504" if plan.precision == SCALED else ""
    return ToleranceError(f"plan {plan.id}: the loss of step {step} is {value}: training diverged{ends}{saved}")


@contextlib.contextmanager
def explained(
    plan: Plan, rank: Rank, step: int, timeout_seconds: float, predicted_bytes: float, *, between_steps: bool = False
) -> Iterator[None]:
    """Turn what the libraries raise within a step, or before it, into what happened to which rank.

    Raises: RankFailure.
    """
    note_step(plan, rank, step)
    if not _reserve:
        _reserve.append(bytearray(RESERVE_BYTES))
    try:
        yield
    except RuntimeError as error:
        message = _whole_message(error)
        if isinstance(error, torch.OutOfMemoryError) or EXHAUSTED.search(message):
            _reserve.clear()
            raise RankFailure(_exhausted(plan, rank, step, predicted_bytes)) from error
        if TIMED_OUT.search(message) and is_of_messages(error):
            raise RankFailure(_hanging(plan, rank, step, timeout_seconds, between_steps)) from error
        if is_lost_peer(error):
            raise LostPeer(_lost(plan, rank, step)) from error
        raise


def note_step(plan: Plan, rank: Rank, step: int) -> None:
    """Let this rank's signs of life say where it stands, and what is said where others give none."""
    own = heart()
    if own is not None:
        own.step = step
        own.describe = lambda seconds: _silent(plan, rank, own.step, own.timeout_seconds, seconds)


def _whole_message(error: BaseException) -> str:
    """What the error and its causes say: pipeline stages wrap what went wrong in a word without it."""
    said = str(error)
    while error.__cause__ is not None:
        error = error.__cause__
        said += f"\n{error}"
    return said


def _hanging(plan: Plan, rank: Rank, step: int, timeout_seconds: float, between_steps: bool) -> str:
    when = f"before step {step}" if between_steps else f"in step {step}"
    waiting = _waiting_ranks(rank, min(GATHER_SECONDS, timeout_seconds))
    hanging = [other for other in range(rank.num_ranks) if other not in waiting]
    advice = "raise --timeout if a step takes that long"
    if not hanging:
        return (
            f"all {rank.num_ranks} ranks waited {timeout_seconds:g} s for one another {when} of plan {plan.id}: is the "
            f"network between them open? {advice}"
        )
    where, waiter, other = _between(plan, waiting, hanging)
    return (
        f"rank {other} of {rank.num_ranks} hangs: rank {waiter} waited {timeout_seconds:g} s for it"
        f"{'' if between_steps else where} {when} of plan {plan.id}; {advice}"
    )


def _silent(plan: Plan, rank: Rank, step: int, timeout_seconds: float, seconds: Mapping[int, float]) -> str:
    """What is said of ranks that gave no sign of life."""
    where, waiter, other = _between(plan, [a for a in range(rank.num_ranks) if a not in seconds], seconds)
    also = f" (nor did {len(seconds) - 1} more)" if len(seconds) > 1 else ""
    return (
        f"rank {other} of {rank.num_ranks} hangs: it gave no sign of life for {seconds[other]:.0f} s{also} in step "
        f"{step} of plan {plan.id}, and rank {waiter} waits for it{where}; it is stopped, its host is lost, or the "
        f"machine is too busy for --timeout {timeout_seconds:g}"
    )


def _between(plan: Plan, waiting: Iterable[int], hanging: Iterable[int]) -> tuple[str, int, int]:
    """On which axis which rank waits for which: with the fewest axes between them, not for someone who waits itself."""
    hung = list(hanging)
    axes, waiter, other = min((axes_between(plan, a, b), a, b) for a in waiting for b in hung)
    return f" on the {' and '.join(axes[1])} axis" if axes[1] else "", waiter, other


def _lost(plan: Plan, rank: Rank, step: int) -> str:
    """What is said where a connection broke: who beats no more, where that can be told."""
    own = heart()
    # Where a launcher of ours sees all ranks, it knows already.
    gone = (
        []
        if own is None or LAUNCHER_VARIABLE in os.environ
        else _in_time(lambda: own.silent(3 * own.interval), [], 5 * own.interval)
    )
    who = f"rank {gone[0]} of {rank.num_ranks} is gone" if gone else f"a rank that rank {rank.rank} talked to is gone"
    return (
        f"{who}: the connection to it broke in step {step} of plan {plan.id}; continue with --resume where it was saved"
    )


def axes_between(plan: Plan, first: int, second: int) -> tuple[int, tuple[str, ...]]:
    """The axes along which two ranks stand at different places, and before them their number."""
    one, two = coordinates(plan, first), coordinates(plan, second)
    axes = tuple(axis for axis in plan.axis_order if getattr(one, axis) != getattr(two, axis))
    return len(axes), axes


def _waiting_ranks(rank: Rank, seconds: float) -> list[int]:
    """The ranks that gave up waiting, by their word in the job's store, which works where collectives do not."""

    def ask() -> list[int]:
        store = job_store()
        keys = {other: f"trainwright/waiting/{other}" for other in range(rank.num_ranks)}
        store.set(keys[rank.rank], "1")
        time.sleep(seconds)
        return [other for other, key in keys.items() if other == rank.rank or store.check([key])]

    return _in_time(ask, [rank.rank], seconds + GATHER_SECONDS)


def _in_time(ask: Callable[[], list[int]], otherwise: list[int], seconds: float) -> list[int]:
    """What the job's store answers; `otherwise` where its process hangs or is gone: nobody else ends that wait."""
    answers = []

    def listen() -> None:
        with contextlib.suppress(RuntimeError, OSError):
            answers.append(ask())

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    thread.join(seconds)
    return answers[0] if answers else otherwise


def _exhausted(plan: Plan, rank: Rank, step: int, predicted_bytes: float) -> str:
    if rank.device.type == "cuda":
        held, words = float(torch.cuda.max_memory_allocated(rank.device)), "allocated at most"
    else:
        held, words = float(psutil.Process().memory_info().rss), "resident"
    over = ""
    if predicted_bytes:
        over = f", {held / predicted_bytes - 1:+.0%} against the {format_bytes(predicted_bytes)} predicted"
    return (
        f"rank {rank.rank} of {rank.num_ranks} ran out of memory in step {step} of plan {plan.id} with "
        f"{format_bytes(held)} {words}{over}; {_snapshot_words(rank)}; smaller micro-batches, "
        "recomputation or sharding need less"
    )


def _snapshot_words(rank: Rank) -> str:
    """Where what this rank holds is written, or why it is not: whatever stops that, memory ran out."""
    try:
        return f"its allocations are in {_write_snapshot(rank)}"
    except (OSError, RuntimeError, MemoryError, ValueError, TypeError) as error:
        return f"its allocations could not be written ({type(error).__name__})"


def _write_snapshot(rank: Rank) -> Path:
    """What this rank holds: CUDA's allocator tells; on CPU, the largest tensors that Python knows."""
    if rank.device.type == "cuda":
        content: Any = torch.cuda.memory_snapshot()
    else:
        # By type: what pretends to be of another class runs code of its own when it is asked.
        content = _largest_tensors(each for each in gc.get_objects() if issubclass(type(each), Tensor))
    name = f"trainwright-memory-rank{rank.rank}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.json"
    path = Path(tempfile.gettempdir(), name)
    write_text(path, json.dumps(content, default=str))
    return path


def _largest_tensors(tensors: Iterable[Tensor]) -> list[dict[str, Any]]:
    real = (each for each in tensors if not (each.is_meta or issubclass(type(each), FakeTensor)))
    by_storage = {tensor.untyped_storage().data_ptr(): tensor for tensor in real}
    largest = sorted(by_storage.values(), key=lambda tensor: -tensor.untyped_storage().nbytes())[:NUM_LISTED]
    return [
        {"bytes": tensor.untyped_storage().nbytes(), "shape": list(tensor.shape), "dtype": str(tensor.dtype)}
        for tensor in largest
    ]

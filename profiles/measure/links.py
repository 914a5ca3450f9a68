"""Measures collectives over every group size, and how compute and communication slow each other.

All groups of one size communicate at the same time, as the groups of a mesh do. Sends go between the halves of a group,
one message at a time in each pair, all pairs at once: in a group that spans hosts, neighbours would share one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from profiles.laws.curves import fit_link
from profiles.machines.profile import COLLECTIVES, Collective, LinkCurve, Overlap, Sample
from profiles.measure.matrix_kernels import sample
from profiles.measure.timing import Action, Bench, Peers, summarise
from profiles.ranks.collectives import all_gather, reduce_scatter
from profiles.ranks.environment import ranks_per_host
from profiles.ranks.rank import unpinned

MESSAGE_BYTES = tuple(4096 * 4**step for step in range(8))  # 4 KiB to 64 MiB
OVERLAP_BYTES = 32 * 2**20
# Beyond a message that takes this long a curve is a line, and measuring it would take minutes.
LONG_SECONDS = 0.25
# After a size that took this long the next ones are repeated less: most of all the time goes there.
DEAR_SECONDS, DEAR_REPEATS = 0.01, 4
# Products beside an all-reduce are this short against it, so that its end is seen in time.
PRODUCT_SHARE = 1 / 32
PRODUCT_SIZES = (128, 256, 512, 1024, 2048)


def group_sizes(num_ranks: int) -> tuple[int, ...]:
    """Sizes of groups that layouts can make: every size to 4 ranks, else the divisors."""
    return tuple(size for size in range(2, num_ranks + 1) if num_ranks <= 4 or num_ranks % size == 0)


def measure_links(
    bench: Bench, message_bytes: Sequence[int] = MESSAGE_BYTES, on_size: Callable[[float], None] = lambda _: None
) -> list[LinkCurve]:
    """The curve of every collective at every group size; `on_size` hears the fraction done."""
    curves = []
    sizes = group_sizes(bench.peers.num_ranks)
    for position, size in enumerate(sizes):
        group = _group_of_size(size, bench.peers)
        samples: dict[Collective, list[Sample]] = {collective: [] for collective in COLLECTIVES}
        memory = _Memory(max(message_bytes), bench.device)
        longest = 0.0
        for num_bytes in message_bytes:
            # A rank left over by this size only keeps the others company.
            actions = [_action(name, num_bytes, size, group, memory) if group else _idle for name in COLLECTIVES]
            own = replace(bench, repeats=min(bench.repeats, DEAR_REPEATS)) if longest > DEAR_SECONDS else bench
            timings = own.time(actions)
            for collective, timing in zip(COLLECTIVES, timings, strict=True):
                messages = 2 if collective == "send_receive" else 1
                one = replace(timing, seconds=timing.seconds / messages)
                samples[collective].append(sample((_whole_bytes(num_bytes, size),), one))
            longest = max(timing.seconds for timing in timings)
            if longest > LONG_SECONDS:
                break
        curves += [fit_link(collective, size, _span(size), points) for collective, points in samples.items()]
        on_size((position + 1) / len(sizes))
    return curves


def measure_overlap(bench: Bench, links: Sequence[LinkCurve], num_bytes: int = OVERLAP_BYTES) -> Overlap:
    """How an all-reduce in the background and matrix products slow each other, both undisturbed at 0.

    The message has `num_bytes`, or as many as the largest in `links` where they stop before that.
    """
    if bench.peers.num_ranks == 1:
        return Overlap(compute_slowdown_fraction=0.0, communication_slowdown_fraction=0.0)
    num_bytes = int(min(num_bytes, max(one.dims[0] for curve in links for one in curve.samples))) // 4 * 4
    message = torch.zeros(num_bytes // 4, device=bench.device)
    alone_seconds = bench.time_one(lambda: dist.all_reduce(message)).seconds
    multiply, multiply_seconds = _product_of_about(alone_seconds * PRODUCT_SHARE, bench)
    # So few that the all-reduce outlasts them even if they take three times as long beside it.
    calls = max(1, int(alone_seconds / 4 / multiply_seconds))

    def communicate_beside_products() -> None:
        work = dist.all_reduce(message, async_op=True)
        while not work.is_completed():
            multiply()
            _settle(bench.device)
        work.wait()

    columns: list[list[float]] = [[], [], [], []]
    for _ in range(bench.repeats):
        bench.peers.meet()
        columns[0].append(bench.timer.read(multiply, calls).seconds)
        bench.peers.meet()
        columns[1].append(bench.timer.read(lambda: dist.all_reduce(message)).seconds)
        bench.peers.meet()
        work = dist.all_reduce(message, async_op=True)
        columns[2].append(bench.timer.read(multiply, calls).seconds)
        work.wait()
        bench.peers.meet()
        columns[3].append(bench.timer.read(communicate_beside_products).seconds)
    compute, communication, compute_beside, communication_beside = (
        timing.seconds for timing in bench.peers.slowest([summarise(column) for column in columns])
    )
    return Overlap(
        compute_slowdown_fraction=max(0.0, compute_beside / compute - 1),
        communication_slowdown_fraction=max(0.0, communication_beside / communication - 1),
    )


def _product_of_about(seconds: float, bench: Bench) -> tuple[Action, float]:
    """The largest square product that takes at most `seconds` (or the smallest), and what it takes."""
    actions = [_square_product(size, bench.device) for size in PRODUCT_SIZES]
    taken = [timing.seconds for timing in bench.time(actions)]
    fitting = [index for index, each in enumerate(taken) if each <= seconds]
    best = max(fitting, default=0)
    return actions[best], taken[best]


def _square_product(size: int, device: torch.device) -> Action:
    a = torch.randn(size, size, device=device)
    return lambda: torch.mm(a, a)


def _settle(device: torch.device) -> None:
    # Only this stream: the all-reduce has its own.
    if device.type == "cuda":
        torch.cuda.current_stream().synchronize()


def _idle() -> None:
    """What a rank does that belongs to no group."""


def _span(size: int) -> Literal["node", "network"]:
    return "node" if size <= ranks_per_host(size) else "network"


def _group_of_size(size: int, peers: Peers) -> dist.ProcessGroup | None:
    """This rank's group among the groups of `size` neighbouring ranks, None where it is left over."""
    mine = None
    for start in range(0, peers.num_ranks - size + 1, size):
        members = list(range(start, start + size))
        with unpinned():
            group = dist.new_group(members)
        if peers.rank in members:
            mine = group
    return mine


def _whole_bytes(num_bytes: int, size: int) -> float:
    """Bytes of the largest tensor of at most `num_bytes` that splits evenly into fp32 parts."""
    return 4.0 * size * (num_bytes // (4 * size))


class _Memory:
    """What messages are sent from and received into, the same for all: fresh memory takes a CPU longer than sending."""

    def __init__(self, most_bytes: int, device: torch.device) -> None:
        self._sent, self._received = (torch.zeros(most_bytes // 4, device=device) for _ in range(2))

    def of(self, num_bytes: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
        """A rank's part of a message of at most `num_bytes`, the whole of `size` parts, and another such whole."""
        part = num_bytes // (4 * size)
        return self._received[:part], self._sent[: part * size], self._received[: part * size]


def _action(collective: Collective, num_bytes: int, size: int, group: dist.ProcessGroup, memory: _Memory) -> Action:
    part, whole, received = memory.of(num_bytes, size)
    if collective == "all_reduce":
        return lambda: dist.all_reduce(whole, group=group)
    if collective == "all_gather":
        return lambda: all_gather(whole, part, group)
    if collective == "reduce_scatter":
        return lambda: reduce_scatter(part, whole, group)
    if collective == "all_to_all":
        return lambda: dist.all_to_all_single(received, whole, group=group)
    return _there_and_back(whole, group)


def _there_and_back(message: Tensor, group: dist.ProcessGroup) -> Action:
    """A message to the rank half a group away and its answer; the last rank of an odd group has none."""
    rank, half = dist.get_rank(group), dist.get_world_size(group) // 2
    if rank >= 2 * half:
        return _idle
    other = rank + half if rank < half else rank - half
    peer = dist.get_global_rank(group, other)
    order = (dist.isend, dist.irecv) if rank < other else (dist.irecv, dist.isend)

    def send_and_receive() -> None:
        for operation in order:
            for work in dist.batch_isend_irecv([dist.P2POp(operation, message, peer, group)]):
                work.wait()

    return send_and_receive

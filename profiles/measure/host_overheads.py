"""Measures what the software adds on the host: launching an operator, DTensor's dispatch, the pipeline's runtime.

Also how much slower a rank computes when it has to share its core with another.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.pipelining import PipelineStage, ScheduleGPipe
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from profiles.laws.curves import link_seconds
from profiles.machines.profile import LinkCurve, Overlap
from profiles.measure.links import measure_overlap
from profiles.measure.operators_in_training import measure_operator_seconds
from profiles.measure.optimizer_and_codecs import measure_optimizer_tensor_seconds
from profiles.measure.timing import Action, Bench, HostTimer, Peers, host_timer, summarise
from profiles.ranks.rank import join_group, unpinned

# Tokens, and width per rank, of the linears that are split: nothing but overhead, and a message of a megabyte or two.
PARALLEL_SHAPES = ((4, 16), (1024, 192))
TINY_WIDTH = 16
TINY_BATCH = 4
PIPELINE_MICROBATCHES = 16
OVERSUBSCRIBED_SIZE, OVERSUBSCRIBED_CALLS, OVERSUBSCRIBED_REPEATS = 512, 50, 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Overheads:
    """What the software adds on the host, and how compute and communication slow each other."""

    launch_seconds: float
    parallel_linear_seconds: float
    parallel_message_seconds_per_byte: float
    pipeline_action_seconds: float
    operator_seconds: float
    optimizer_tensor_seconds: float
    overlap: Overlap


def measure_overheads(bench: Bench, links_bench: Bench, links: Sequence[LinkCurve], overlap_bytes: int) -> Overheads:
    """All of them; what waits for other ranks with the effort of `links_bench`, as `links` were measured."""
    per_linear, per_byte = measure_parallel_linears(replace(links_bench, repeats=15, sample_seconds=2e-2), links)
    return Overheads(
        launch_seconds=measure_launch_seconds(bench),
        parallel_linear_seconds=per_linear,
        parallel_message_seconds_per_byte=per_byte,
        pipeline_action_seconds=measure_pipeline_action_seconds(links_bench),
        operator_seconds=measure_operator_seconds(bench),
        optimizer_tensor_seconds=measure_optimizer_tensor_seconds(bench),
        overlap=measure_overlap(bench, links, overlap_bytes),
    )


def measure_launch_seconds(bench: Bench) -> float:
    """Host seconds to launch one operator that autograd records; on CPU every curve's latency contains it already."""
    x = torch.ones(1, device=bench.device, requires_grad=True)
    return replace(bench, timer=HostTimer(), max_calls=1000).time_one(lambda: torch.add(x, x)).seconds


def measure_parallel_linears(bench: Bench, links: Sequence[LinkCurve]) -> tuple[float, float]:
    """Seconds that DTensor adds to one tensor-parallel linear, forward and backward, and seconds per message byte.

    Model: a column-wise and a row-wise linear, less the same pair as plain modules and less what `links`, the
    collectives run by themselves in a loop, give for their two messages; per linear, at a tiny and at a common size.
    The second number is what a message costs more in the midst of training: into fresh memory, between ranks that
    come late. (0, 0) without a second rank.
    """
    num_ranks = bench.peers.num_ranks
    if num_ranks == 1:
        return 0.0, 0.0
    all_reduce = next(link for link in links if (link.collective, link.group_size) == ("all_reduce", num_ranks))
    with unpinned():
        mesh = init_device_mesh(bench.device.type, (num_ranks,))
    bench = replace(bench, timer=host_timer(bench.device))
    sizes, added = [], []
    for tokens, width in PARALLEL_SHAPES:
        width *= num_ranks
        pair = nn.Sequential(nn.Linear(width, width), nn.Linear(width, width)).to(bench.device)
        parallel = parallelize_module(pair, mesh, {"0": ColwiseParallel(), "1": RowwiseParallel()})
        shard = width // num_ranks
        plain = nn.Sequential(nn.Linear(width, shard), nn.Linear(shard, width)).to(bench.device)
        message = torch.zeros(tokens, width, device=bench.device)
        with_dtensor, without = bench.time([_train(parallel, message), _train(plain, message)])
        sizes.append(message.nbytes)
        alone = float(link_seconds(all_reduce, message.nbytes))
        added.append(max(0.0, (with_dtensor.seconds - without.seconds) / 2 - alone))
    return added[0], max(0.0, added[1] - added[0]) / (sizes[1] - sizes[0])


def measure_pipeline_action_seconds(bench: Bench) -> float:
    """Host seconds that the pipeline's runtime adds to one forward or backward of one micro-batch.

    Model: GPipe over a tiny stage per rank; the step over its 2 (micro-batches + ranks - 1) consecutive actions, less
    the stage's own compute. It contains the posting of sends and receives; their latency is hidden but for the
    pipeline's filling, which many micro-batches dilute. 0 without a second rank.
    """
    num_ranks, rank = bench.peers.num_ranks, bench.peers.rank
    if num_ranks == 1:
        return 0.0
    module = nn.Linear(TINY_WIDTH, TINY_WIDTH).to(bench.device)
    stage = PipelineStage(module, rank, num_ranks, bench.device)
    schedule = ScheduleGPipe(stage, PIPELINE_MICROBATCHES, loss_fn=_loss, scale_grads=False)
    batch = torch.ones(PIPELINE_MICROBATCHES * TINY_BATCH, TINY_WIDTH, device=bench.device)

    def step() -> None:
        if rank == 0:
            schedule.step(batch)
        elif rank == num_ranks - 1:
            schedule.step(target=batch, losses=[])
        else:
            schedule.step()

    bench = replace(bench, timer=host_timer(bench.device), max_calls=1)
    stepping = bench.time_one(step).seconds
    computing = replace(bench, max_calls=100).time_one(_train(module, batch[:TINY_BATCH])).seconds
    return max(0.0, stepping / (2 * (PIPELINE_MICROBATCHES + num_ranks - 1)) - computing / 2)


def oversubscription_rank(_: None) -> float:
    """As one of more ranks than cores: seconds of a product while all compute, over those while each has a core."""
    with join_group("cpu") as place:
        peers = Peers(device=place.device)
        matrix = torch.randn(OVERSUBSCRIBED_SIZE, OVERSUBSCRIBED_SIZE)
        num_cores = min(peers.num_ranks, os.cpu_count() or 1)

        def multiply() -> Tensor:
            return torch.mm(matrix, matrix)

        alone: list[float] = []
        together: list[float] = []
        for repeat in range(1 + OVERSUBSCRIBED_REPEATS):
            # The first ranks stand on a core each (pinning goes round); the others wait at the next meeting.
            for kept, busy in ((alone, place.rank < num_cores), (together, True)):
                peers.meet()
                reading = HostTimer().read(multiply, OVERSUBSCRIBED_CALLS) if busy else None
                kept += [reading.seconds if reading else 0.0] if repeat else []
        slowest = [peers.largest([summarise(kept).seconds])[0] for kept in (alone, together)]
    return slowest[1] / slowest[0]


def _train(module: nn.Module, example: Tensor) -> Action:
    x = example.clone().requires_grad_()
    return lambda: module(x).sum().backward()


def _loss(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).sum()

"""Measures what averaging gradients adds to a backward pass: a stack of linears under DDP, beside the same without.

An all-reduce in a loop of its own, and products beside it, do not tell: in training the gradients are cold, a codec's
work competes with the backward pass and with the library's threads, and ranks come late. The planner holds its law
against these timings and carries the difference over.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from profiles.codecs.codec import FSDP_STAGES, GRADIENT_BYTES, KNOWN
from profiles.codecs.ddp_hooks import NoNotes, bucket_options, register
from profiles.laws.curves import link_seconds
from profiles.machines.profile import ExchangeTiming, LinkCurve
from profiles.measure.timing import Action, Bench, host_timer
from profiles.ranks.rank import unpinned

# As wide as common models' layers are cut to, and enough of them for two of DDP's buckets.
WIDTH, NUM_LINEARS = 1024, 5
# So many tokens that a backward pass takes about as long as the exchange that it has to hide.
NUM_TOKENS = {"cpu": 256, "cuda": 4096}
# On a slow link fewer linears do: there the message is all that counts.
LONG_SECONDS = 0.25
FEWEST = 2
# DDP sorts its buckets anew after the first step, PowerSGD starts after the second: one more than a bench's own two.
FIRST_STEPS = 1
REPEATS = 4
BACKWARD_SHARE = 2 / 3
# Of ZeRO stage 1 as well: each rank then sends the weights that it updated.
OWNERS_SEND = 1
CASES = (*((name, 0) for name in KNOWN), ("none", OWNERS_SEND), *(("none", stage) for stage in FSDP_STAGES))
# Small tensors, as many to a unit as a block of a transformer has: what each takes besides its bytes. FSDP2 handles
# every one as a DTensor in each hook, and the optimizer does so again.
SMALL_WIDTH, SMALL_UNITS, SMALL_LINEARS = 64, 8, 6
SMALL_TOKENS = 16
SMALL_CASES = (0, *FSDP_STAGES)
LEARNING_RATE = 1e-4
# Timed in turns, beside one pass without: as many as fit in memory easily.
TOGETHER = 4


def measure_exchange(
    bench: Bench, links: Sequence[LinkCurve], width: int = WIDTH, num_linears: int = NUM_LINEARS
) -> list[ExchangeTiming]:
    """A timing of DDP with every known codec, of ZeRO 1 and of FSDP2, over all ranks; none without a second rank."""
    num_ranks = bench.peers.num_ranks
    if num_ranks == 1:
        return []
    bench = replace(bench, timer=host_timer(bench.device), max_calls=1, repeats=min(REPEATS, bench.repeats))
    all_reduce = next(link for link in links if (link.collective, link.group_size) == ("all_reduce", num_ranks))
    one = float(link_seconds(all_reduce, GRADIENT_BYTES * width * width))
    count = max(FEWEST, min(num_linears, math.floor(LONG_SECONDS / one)))
    with unpinned():
        mesh = init_device_mesh(bench.device.type, (num_ranks,))
    timings = []
    for cases in (CASES[start : start + TOGETHER] for start in range(0, len(CASES), TOGETHER)):
        modules = [_linears(bench, width, count) for _ in cases]
        actions = [
            _exchanging(bench, module, mesh, name, zero_stage, width)
            for module, (name, zero_stage) in zip(modules, cases, strict=True)
        ]
        for action in actions * FIRST_STEPS:
            action()
        alone, *averaged = bench.time([_training(bench, _linears(bench, width, count), width), *actions])
        timings += [
            ExchangeTiming(
                codec=name,
                zero_stage=zero_stage,
                group_size=num_ranks,
                num_parameters=float(count * width * width),
                matrix_sides=float(count * 2 * width),
                backward_seconds=BACKWARD_SHARE * alone.seconds,
                added_seconds=timing.seconds - alone.seconds,
                spread_fraction=max(alone.spread_fraction, timing.spread_fraction),
            )
            for (name, zero_stage), timing in zip(cases, averaged, strict=True)
        ]
    return [*timings, *_of_small_tensors(bench, mesh)]


def _of_small_tensors(bench: Bench, mesh: DeviceMesh) -> list[ExchangeTiming]:
    """What averaging, or sharding, adds to a step of many small tensors, the optimizer's part included."""
    modules = [_small(bench) for _ in SMALL_CASES]
    wrapped = [
        _sharded(module, mesh, stage) if stage in FSDP_STAGES else _averaged(module, "none")
        for module, stage in zip(modules, SMALL_CASES, strict=True)
    ]
    actions = [_stepping(bench, module) for module in (_small(bench), *wrapped)]
    for action in actions * FIRST_STEPS:
        action()
    alone, *timings = replace(bench, max_calls=10).time(actions)
    sizes = [parameter.numel() for parameter in _small(bench).parameters()]
    return [
        ExchangeTiming(
            codec="none",
            zero_stage=stage,
            group_size=bench.peers.num_ranks,
            num_parameters=float(sum(sizes)),
            matrix_sides=float(2 * SMALL_WIDTH * SMALL_UNITS * SMALL_LINEARS),
            backward_seconds=BACKWARD_SHARE * alone.seconds,
            added_seconds=timing.seconds - alone.seconds,
            spread_fraction=max(alone.spread_fraction, timing.spread_fraction),
            num_tensors=len(sizes),
            num_units=SMALL_UNITS,
        )
        for stage, timing in zip(SMALL_CASES, timings, strict=True)
    ]


def _small(bench: Bench) -> nn.Sequential:
    units = (
        nn.Sequential(*(nn.Linear(SMALL_WIDTH, SMALL_WIDTH, device=bench.device) for _ in range(SMALL_LINEARS)))
        for _ in range(SMALL_UNITS)
    )
    return nn.Sequential(*units)


def _stepping(bench: Bench, module: nn.Module) -> Action:
    """A whole step of the optimizer."""
    x = torch.randn(SMALL_TOKENS, SMALL_WIDTH, device=bench.device)
    optimizer = torch.optim.AdamW(module.parameters(), lr=LEARNING_RATE, fused=True)

    def step() -> None:
        module(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _linears(bench: Bench, width: int, count: int) -> nn.Sequential:
    return nn.Sequential(*(nn.Linear(width, width, bias=False, device=bench.device) for _ in range(count)))


def _averaged(module: nn.Sequential, name: str) -> nn.Module:
    wrapped = DistributedDataParallel(
        module, gradient_as_bucket_view=True, init_sync=False, **bucket_options(name, module)
    )
    group = dist.group.WORLD
    assert group is not None
    register(wrapped, name, group, NoNotes())
    return wrapped


def _sharded(module: nn.Sequential, mesh: DeviceMesh, zero_stage: int) -> nn.Module:
    for part in (*module, module):
        fully_shard(part, mesh=mesh, reshard_after_forward=zero_stage == max(FSDP_STAGES))
    return module


def _exchanging(
    bench: Bench, module: nn.Sequential, mesh: DeviceMesh, name: str, zero_stage: int, width: int
) -> Action:
    if zero_stage in FSDP_STAGES:
        return _training(bench, _sharded(module, mesh, zero_stage), width)
    train = _training(bench, _averaged(module, name), width)
    if zero_stage != OWNERS_SEND:
        return train

    sizes = [weight.numel() for weight in module.parameters()]
    num_ranks = bench.peers.num_ranks
    shares = [torch.zeros(sum(sizes[owner::num_ranks]), device=bench.device) for owner in range(num_ranks)]

    def train_and_send() -> None:
        train()
        # As torch.distributed.optim.ZeroRedundancyOptimizer does it: all at once, what a rank owns in one message.
        sent = [dist.broadcast(share, src=owner, async_op=True) for owner, share in enumerate(shares) if len(share)]
        for work in sent:
            assert work is not None
            work.wait()

    return train_and_send


def _training(bench: Bench, module: nn.Module, width: int) -> Action:
    """A forward and a backward pass, whose gradients are dropped."""
    x = torch.randn(NUM_TOKENS[bench.device.type], width, device=bench.device)

    def train() -> None:
        module(x).square().mean().backward()
        module.zero_grad(set_to_none=True)

    return train

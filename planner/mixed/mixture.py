"""What is asked about two pools of devices, and the layouts that may lie across both."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from planner.cost.job import Jobs, Names
from planner.schedules.registry import USUAL
from planner.space.layouts import Layouts, Options, divisors, legal_layouts
from planner.space.question import Setting, setting
from planner.space.tables import layout_jobs
from profiles.errors import InputError
from profiles.machines.clusters import Pool
from profiles.models.sizes import ModelSizes
from profiles.models.transformer import Array
from profiles.units import GB

RECOMPUTE = ("none", "selective", "full")
# What crosses pools is slow: schedules of several stages per rank would send it more often.
SCHEDULES = (USUAL,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A pool's devices in a job of all devices; `at` is a setting of the whole job on the pool's kind."""

    at: Setting
    num_devices: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """One question about two pools, which reach each other with so many bytes per second and device."""

    first: Part
    second: Part
    between_bytes_per_second: float

    @property
    def parts(self) -> tuple[Part, Part]:
        """Both pools in the order of their ranks."""
        return self.first, self.second

    @property
    def num_devices(self) -> int:
        """Devices of both pools."""
        return self.first.num_devices + self.second.num_devices

    def turned(self) -> Mixture:
        """The same pools with the second one's ranks first."""
        return replace(self, first=self.second, second=self.first)


def mixture(
    model: ModelSizes,
    pools: tuple[Pool, ...],
    global_batch_size: int,
    sequence_length: int,
    stack: str,
    precision: str,
    network_gb_per_second: float | None,
) -> Mixture:
    """The question about two pools.

    Raises: InputError where there are more, or a kind does not compute in `precision`.
    """
    if len(pools) != 2:
        raise InputError(f"a cluster of {len(pools)} pools: two kinds of devices are planned for")
    total = sum(pool.num_devices for pool in pools)
    parts = []
    for pool in pools:
        if precision not in pool.device.peak_tflops:
            known = ", ".join(sorted(pool.device.peak_tflops))
            raise InputError(f"unknown precision '{precision}' on {pool.device.title}: it has {known}")
        at = setting(model, pool.device, total, global_batch_size, sequence_length, stack, precision, pool.cluster)
        # A pool smaller than what fast links join ends there.
        parts.append(
            Part(
                at=replace(
                    at,
                    fast_domain=min(at.fast_domain, pool.num_devices),
                    devices_per_node=min(at.devices_per_node, pool.num_devices),
                ),
                num_devices=pool.num_devices,
            )
        )
    slowest = min(part.at.network_bytes_per_second for part in parts)
    between = slowest if network_gb_per_second is None else network_gb_per_second * GB
    return Mixture(first=parts[0], second=parts[1], between_bytes_per_second=between)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Layouts with a micro-batch and a way of recomputing all layers. Shapes: one entry per plan."""

    layouts: Layouts
    micro_batch: Array
    count: Array
    recompute: Names

    def __len__(self) -> int:
        return len(self.micro_batch)

    def take(self, index: np.ndarray) -> Rows:
        """The rows at `index`."""
        return Rows(
            layouts=self.layouts.take(index),
            micro_batch=self.micro_batch[index],
            count=self.count[index],
            recompute=self.recompute[index],
        )

    def jobs(self, at: Setting, count: Array | None = None) -> Jobs:
        """The rows as jobs on one kind of device, of so many micro-batches where given."""
        return replace(
            layout_jobs(at, self.layouts),
            micro_batch=self.micro_batch,
            num_microbatches=self.count if count is None else count,
            recompute=self.recompute,
        )


def legal_rows(asked: Mixture) -> tuple[Rows, Rows]:
    """Plans whose stages can be dealt out to the pools whole, and those whose replicas can be.

    The latter need not divide the batch evenly: `count` is how many micro-batches all replicas have together.
    """
    at = asked.first.at
    options = Options(offload=("none",), schedules=SCHEDULES, shard_degrees=(1,))
    layouts, _ = legal_layouts(at, options)
    usual = (layouts.first_fewer == 0) & (layouts.last_fewer == 0)
    usual &= (layouts.sequence_parallel > 0) == (layouts.tensor > 1)
    pipelines = _split(asked, layouts.pipeline) & (layouts.pipeline > 1) & (layouts.data_outside == 0)
    replicas = _split(asked, layouts.data) & ((layouts.data_outside > 0) | (layouts.pipeline == 1))
    # A gradient is scattered in equal shares, which is for devices alike; ZeRO 3 and 2 gather weights in every layer.
    return (
        _with_choices(at, layouts.take(usual & pipelines), per_replica=True),
        _with_choices(at, layouts.take(usual & replicas & (layouts.context == 1)), per_replica=False),
    )


def _split(asked: Mixture, degree: np.ndarray) -> np.ndarray:
    """Whether each pool holds a whole number, at least one, of `degree` equal parts of all devices."""
    held = degree * asked.first.num_devices
    return np.asarray(
        (held % asked.num_devices == 0) & (held >= asked.num_devices) & (held // asked.num_devices < degree)
    )


def _with_choices(at: Setting, layouts: Layouts, per_replica: bool) -> Rows:
    """Every micro-batch that divides a replica's share, and every way of recomputing; at least a pipeline full."""
    index, micro, count = [], [], []
    for row in range(len(layouts)):
        data, pipeline = int(layouts.data[row]), int(layouts.pipeline[row])
        for size in divisors(at.global_batch_size // data):
            number = at.global_batch_size // size // (data if per_replica else 1)
            if number >= pipeline * (1 if per_replica else data):
                index.append(row)
                micro.append(size)
                count.append(number)
    ways = len(RECOMPUTE)
    return Rows(
        layouts=layouts.take(np.repeat(np.array(index, dtype=np.intp), ways)),
        micro_batch=np.repeat(np.array(micro, dtype=np.float64), ways),
        count=np.repeat(np.array(count, dtype=np.float64), ways),
        recompute=np.tile(np.array(RECOMPUTE), len(index)),
    )

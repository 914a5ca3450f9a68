"""Layers of a traced model on a device of a data sheet: its kernels one by one, by the published laws."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from planner.cost.axes import data
from planner.cost.axes.data import Exchange, Sharded, StageParameters
from planner.cost.factors import Factors
from planner.cost.hardware import ELEMENT_BYTES
from planner.cost.job import Jobs
from planner.cost.links import SheetLinks, fabric_of
from planner.cost.measured.kernel_law import published_law
from planner.cost.measured.kernels import TracedKernels
from planner.cost.measured.operators import Law
from planner.cost.measured.traced import Host, TracedLayers
from planner.cost.sheet_kernels import SheetKernels
from planner.cost.software_time import TimeRules
from planner.cost.unit_costs import Kernels, Links
from profiles.machines.devices import MICROSECOND, Device
from profiles.machines.profile import LayerTiming
from profiles.models.layer_profile import LayerProfile
from profiles.models.transformer import Array
from profiles.units import GB


def sheet_law(device: Device, factors: Factors) -> Law:
    """Seconds of kernels on a device, over the factor of products, which all of a layer is multiplied by."""

    def seconds(kind: str, name: str, precision: str, flops: Array, moved: Array, dims: list[Array]) -> Array:
        known = precision if precision in ELEMENT_BYTES else "fp32"
        published = published_law(device, kind, name or "nt", known)
        if published is not None:
            factor = factors.attention / factors.matmul if kind.startswith("attention") else 1.0
            return published(dims) * factor
        rate = device.memory_gb_per_second * GB * factors.traffic_fraction
        return np.asarray((moved / rate + device.kernel_latency_us * MICROSECOND) / factors.matmul)

    return seconds


@dataclass(frozen=True, kw_only=True)
class OnSheet:
    """Layers on a device that is known by its data sheet."""

    device: Device
    layers: TracedLayers
    factors: Factors

    @cached_property
    def law(self) -> Law:
        """The published laws of kernels."""
        return sheet_law(self.device, self.factors)

    @cached_property
    def host(self) -> Host:
        """The host as the data sheet has it, and what DTensor adds unknown."""
        launch = self.device.host_launch_us * MICROSECOND
        return Host(launch_seconds=launch, linear_seconds=0.0, seconds_per_byte=0.0)

    @property
    def memory_bytes_per_second(self) -> float:
        """What element-wise kernels reach of the data sheet's, over the factor of products."""
        return self.device.memory_gb_per_second * GB * self.factors.traffic_fraction * self.factors.matmul

    def timings(self, layer: LayerProfile) -> list[LayerTiming]:
        """Nothing was timed."""
        return []

    def codec(self, jobs: Jobs, factors: Factors, num_parameters: Array) -> Array:
        """Passes over memory."""
        return SheetKernels(jobs=jobs).codec(factors, num_parameters)

    def optimizer(self, jobs: Jobs, rules: TimeRules, factors: Factors, num_parameters: Array) -> Array:
        """Bytes of memory."""
        return SheetKernels(jobs=jobs).optimizer(rules, factors, num_parameters)


@dataclass(frozen=True, slots=True, kw_only=True)
class TracedDevice:
    """A device of a data sheet as a source of unit costs for a traced model."""

    traced: OnSheet

    def kernels(self, jobs: Jobs) -> Kernels:
        """Kernels of the model's layers, by the published laws."""
        return TracedKernels(jobs=jobs, traced=self.traced)

    def links(self, jobs: Jobs) -> Links:
        """The law of collectives."""
        return SheetLinks(fabric=fabric_of(jobs))

    def exchange(self, jobs: Jobs, rules: TimeRules, links: Links, held: StageParameters) -> Exchange:
        """By the law of collectives."""
        return data.exchange(jobs, rules, links, held)

    def sharded(self, jobs: Jobs, rules: TimeRules, links: Links) -> Sharded:
        """By the law of collectives."""
        return data.sharded(jobs, rules, links)

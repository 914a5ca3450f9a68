"""What a traced model's layers are on some hardware, as its kernels are priced: measured, or on a data sheet."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

from planner.cost.factors import Factors
from planner.cost.job import Jobs
from planner.cost.measured.operators import Law
from planner.cost.software_time import TimeRules
from profiles.machines.profile import LayerTiming
from profiles.models.layer_profile import LayerProfile
from profiles.models.profile import ModelProfile
from profiles.models.transformer import Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """What the host adds to kernels: seconds to launch one, of a linear that DTensor splits, of a byte that it sends.

    On a CPU the launch is part of every kernel: 0.
    """

    launch_seconds: float
    linear_seconds: float
    seconds_per_byte: float


@dataclass(frozen=True, kw_only=True)
class TracedLayers:
    """A model's layers at one precision: the layer that stands for each kind, and those at the ends, by their names.

    `shared` are the former as ranks have them that share experts, by how many those are.
    """

    model: ModelProfile
    precision: str
    kinds: dict[str, LayerProfile]
    ends: dict[str, LayerProfile]
    shared: dict[int, dict[str, LayerProfile]] = field(default_factory=dict)

    @cached_property
    def tensors_per_parameter(self) -> float:
        """How many tensors the model's parameters are in, over how many parameters."""
        every = sum(layer.num_parameter_tensors for layer in self.model.each_layer(self.precision))
        return every / max(1, self.model.num_parameters)


class Traced(Protocol):
    """Layers of a traced model on some hardware."""

    @property
    def layers(self) -> TracedLayers:
        """The layers."""

    @property
    def law(self) -> Law:
        """What takes their kernels so long."""

    @property
    def host(self) -> Host:
        """What the host adds."""

    @property
    def memory_bytes_per_second(self) -> float:
        """Of adding gradients up."""

    def timings(self, layer: LayerProfile) -> list[LayerTiming]:
        """What was timed of a layer."""

    def codec(self, jobs: Jobs, factors: Factors, num_parameters: Array) -> Array:
        """Seconds of encoding and decoding the gradients of so many parameters."""

    def optimizer(self, jobs: Jobs, rules: TimeRules, factors: Factors, num_parameters: Array) -> Array:
        """Seconds of updating so many parameters."""

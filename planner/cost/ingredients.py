"""Everything about jobs that no fitted factor changes: kernels and messages, each priced alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planner.cost.axes import context, data, expert, pipeline, tensor
from planner.cost.factors import expected
from planner.cost.job import Jobs
from planner.cost.links import links_of
from planner.cost.sheet_kernels import SheetKernels
from planner.cost.software_time import TimeRules, rules_of
from planner.cost.unit_costs import Kernels
from profiles.laws.collectives import LinkConstants
from profiles.machines.devices import HOST_MEMORY_GB_PER_SECOND
from profiles.models.operators import Phase
from profiles.models.transformer import Array
from profiles.units import GB


@dataclass(frozen=True, slots=True, kw_only=True)
class Ingredients:
    """Everything about jobs that no fitted factor changes. Shapes: one entry per job in every array.

    `layer_sums` take the place of `half_layer` where layers of a task sum by themselves. `expert_layers` are of layers
    with experts.
    """

    jobs: Jobs
    rules: TimeRules
    kernels: Kernels
    counts: pipeline.StageCounts
    held: data.StageParameters
    exchange: data.Exchange
    sharded: data.Sharded
    half_layer: Array
    gather_again: Array
    layer_sums: dict[tuple[str, Phase], Array]
    expert_layers: dict[tuple[str, Phase], Array]
    context_layer: Array
    message: Array
    host_link_rate: Array
    host_memory_rate: Array
    num_nodes: Array


def ingredients_of(jobs: Jobs, constants: LinkConstants | None = None) -> Ingredients:
    """Price every kernel and message of `jobs` alone; link `constants` take the place of those shipped."""
    rules, links = rules_of(jobs, expected()), links_of(jobs, constants)
    source = jobs.source
    counts = pipeline.stage_counts(jobs)
    held = data.stage_parameters(jobs, counts)
    return Ingredients(
        jobs=jobs,
        rules=rules,
        kernels=source.kernels(jobs) if source else SheetKernels(jobs=jobs),
        counts=counts,
        held=held,
        exchange=(source.exchange if source else data.exchange)(jobs, rules, links, held),
        sharded=(source.sharded if source else data.sharded)(jobs, rules, links),
        half_layer=tensor.half_layer_seconds(jobs, links),
        gather_again=tensor.gather_seconds(jobs, links),
        layer_sums=tensor.layer_sums(jobs, links),
        expert_layers=expert.layers_seconds(jobs, links),
        context_layer=context.layer_seconds(jobs, links),
        message=pipeline.message_seconds(jobs, rules, links),
        host_link_rate=jobs.device.read(lambda device: device.host_gb_per_second * GB),
        host_memory_rate=jobs.device.read(
            lambda device: (device.host_memory_gb_per_second or HOST_MEMORY_GB_PER_SECOND) * GB
        ),
        num_nodes=np.maximum(jobs.num_devices / jobs.devices_per_node, 1.0),
    )

"""The question of a setting asked again: about the model that a recipe leaves, and of it as it is stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from planner.compression.recipes import Recipe, smaller
from planner.space.question import Setting
from planner.space.traced_setting import with_traced
from profiles.models.profile import ModelProfile, WorkloadSpec
from profiles.models.sizes import sizes_of

# In which models are stored and judged.
FULL_PRECISION = "fp32"


def as_sent(at: Setting) -> Setting:
    """The setting with gradients sent as they are: compressed models are trained so."""
    if at.source is None:
        return replace(at, codec="none", free_exchange=False)
    return replace(with_traced(at, codec="none"), free_exchange=False)


def left_by(at: Setting, own: Recipe) -> Setting:
    """The setting about the model that a recipe leaves; on a measured machine that is traced, for its kernels' sizes.

    Raises: PlanError where the family cannot have such a model.
    """
    config = smaller(at.model.config, own)
    if config == at.model.config:
        return at
    name = f"{at.model.name} {own.name}"
    if at.source is None:
        return replace(at, model=sizes_of(name, config))
    spec = replace(at.model.workload, name=name, config=config)
    return with_traced(at, model=_traced(spec, tuple(dict.fromkeys((at.precision, FULL_PRECISION)))))


def stored(at: Setting) -> Setting:
    """The setting in the precision that models are stored and judged in."""
    model = at.model.profile
    if at.source is None or model is None:
        return replace(at, precision=FULL_PRECISION)
    if FULL_PRECISION not in model.layers:
        layers = _traced(model.workload, (FULL_PRECISION,)).layers
        model = replace(model, layers=model.layers | layers)
    return with_traced(at, model=model, precision=FULL_PRECISION)


def by_kernels(at: Setting) -> Setting:
    """The setting with every layer summed up from its kernels, also where layers were timed as they are."""
    traced = at.measured
    if traced is None:
        return at
    return with_traced(at, machine=replace(traced.machine, layer_timings=()))


def _traced(spec: WorkloadSpec, precisions: Sequence[str]) -> ModelProfile:
    # Only a trace needs torch, which takes seconds to import.
    from profiles.tracing.trace import trace
    from profiles.workloads.loading import load_workload

    return trace(load_workload(spec), precisions)

"""Adapters of low rank in a layer: beside which linears, of which sizes, and what of a model is trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from planner.cost.job import Jobs
from profiles.models.sizes import ModelSizes
from profiles.models.traced_sizes import TracedSizes
from profiles.models.transformer import ROUTED, Array, Flags, Transformer


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """The two matrices beside one linear, `inputs` by `rank` and `rank` by `outputs`, on one rank of the tensor axis.

    The side that the linear is split on is split with it, the other matrix is whole everywhere. `rank` is 0 of jobs
    that have none here. Shapes: one entry per job.
    """

    rank: Array
    inputs: Array
    outputs: Array

    @property
    def parameters(self) -> Array:
        """Numbers in both."""
        return self.rank * (self.inputs + self.outputs)


def is_frozen(jobs: Jobs) -> Flags:
    """Whether adapters are trained, and not the weights beside them."""
    return jobs.adapters.read(lambda one: float(one.freezes)) > 0


def trains_inputs(jobs: Jobs, *targets: str) -> Array:
    """1 where weight gradients of any of these linears need their inputs, else 0."""
    return jobs.adapters.read(lambda one: one.has_any(*targets))


def pairs_of(jobs: Jobs, kind: str) -> list[Pair]:
    """The adapters of a layer of a kind, those that no job has left out; none of routed experts."""
    if not np.any(is_frozen(jobs)):
        return []

    def rank_of(*targets: str) -> Array:
        return jobs.adapters.read(lambda one: one.rank_of(*targets))

    return [pair for pair in _pairs(jobs.model, jobs.tensor, kind, rank_of) if np.any(pair.rank > 0)]


def adapter_parameters(jobs: Jobs, kind: str) -> Array:
    """Parameters of all adapters of a layer of a kind on one rank."""
    return np.asarray(sum((pair.parameters for pair in pairs_of(jobs, kind)), np.zeros(len(jobs))))


def trained_parameters(jobs: Jobs, kind: str) -> tuple[Array, Array]:
    """Parameters of a layer of a kind that are trained: on one rank of the tensor axis, and all of routed experts."""
    experts, frozen = routed_parameters(jobs, kind), is_frozen(jobs)
    own = np.where(frozen, adapter_parameters(jobs, kind), common_on_rank(jobs, kind) - _frozen_on_rank(jobs, kind))
    return own, np.where(frozen, 0.0, experts)


def routed_parameters(jobs: Jobs, kind: str) -> Array:
    """Parameters of all routed experts of a layer of a kind; those of a task only where ranks share them."""
    model = jobs.model
    if isinstance(model, TracedSizes):
        return model.routed_parameters(kind, jobs.expert)
    return model.parameters_of(kind)[1]


def common_on_rank(jobs: Jobs, kind: str) -> Array:
    """Parameters of a layer of a kind, routed experts aside, on one rank of the tensor axis.

    Model: all are split, but where a trace says what of a task's module is.
    """
    model = jobs.model
    if not isinstance(model, TracedSizes):
        return np.asarray(model.parameters_of(kind)[0] / jobs.tensor)
    if model.profile.splitting.degrees:
        held = model.at(model.layer(kind).num_parameters, np.ones(len(jobs)), jobs.tensor)
    else:
        held = np.asarray(model.parameters_of(kind)[0] / jobs.tensor)
    return held - routed_parameters(jobs, kind)


def _frozen_on_rank(jobs: Jobs, kind: str) -> Array:
    """Parameters of a layer of a task's that its module itself does not train."""
    model = jobs.model
    if not isinstance(model, TracedSizes):
        return np.zeros(len(jobs))
    return model.at(model.layer(kind).num_frozen_parameters, np.ones(len(jobs)), jobs.tensor)


def adapter_count(sizes: ModelSizes) -> float:
    """Parameters of all adapters of a model."""
    model, whole = sizes.transformer, np.ones(1)

    def rank_of(*targets: str) -> Array:
        return np.array([sizes.adapters.rank_of(*targets)])

    each = {kind: sum(pair.parameters for pair in _pairs(model, whole, kind, rank_of)) for kind in model.kinds}
    return float(np.sum([model.num_of(kind) * own for kind, own in each.items()]))


def _pairs(model: Transformer, tensor: Array, kind: str, rank_of: Callable[..., Array]) -> Iterator[Pair]:
    """Beside linears as models are written: of gated ones queries, keys and values, gate and value apart.

    Latent attention has two linears for queries, and two that keys and values share.
    """
    hidden, heads, keys = model.hidden_size, model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    plain = ~model.is_mla
    apart, packed = plain & model.gated, plain & ~model.gated
    latent = {name: (inputs, outputs) for name, inputs, outputs, _ in model.attention_linears}
    ffn = model.shared_ffn_size if kind == ROUTED else model.ffn_size
    whole = np.ones_like(hidden)
    for targets, inputs, outputs, present, rows, columns in (
        (("q",), hidden, heads, apart, whole, tensor),
        (("k",), hidden, keys, apart, whole, tensor),
        (("v",), hidden, keys, apart, whole, tensor),
        (("q", "k", "v"), hidden, heads + 2 * keys, packed, whole, tensor),
        (("q",), *latent["q_down"], model.is_mla, whole, whole),
        (("q",), *latent["q_up"], model.is_mla, whole, tensor),
        (("k", "v"), *latent["kv_down"], model.is_mla, whole, whole),
        (("k", "v"), *latent["kv_up"], model.is_mla, whole, tensor),
        (("o",), *latent["projection"], plain | model.is_mla, tensor, whole),
        (("gate",), hidden, ffn, model.gated, whole, tensor),
        (("up",), hidden, ffn, plain | model.is_mla, whole, tensor),
        (("down",), ffn, hidden, plain | model.is_mla, tensor, whole),
    ):
        there = present & (inputs > 0) & (outputs > 0)
        yield Pair(
            rank=np.where(there, rank_of(*targets), 0.0),
            inputs=inputs / rows,
            outputs=outputs / columns,
        )

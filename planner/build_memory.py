"""What a rank holds while its model is built, before it has taken a step: one layer whole beside what it keeps.

The rules are those of the executor: layers are made one after the other in 32 bits, their frozen matrices lowered to
16 where these are computed with, split and sharded at once.
"""

from __future__ import annotations

from planner.expected_counts import FULL, HALF, RankCounts
from planner.plans import Plan
from profiles.models.profile import MIXED, ModelProfile


def build_peak_bytes(plan: Plan, model: ModelProfile, pipeline_rank: int) -> float:
    """The most that the ranks at one place of the pipeline hold while their layers are made.

    Ignores: layers that share a weight, which are kept whole until both are there.
    """
    own = RankCounts(plan, model, 1, pipeline_rank)
    replicas = plan.data_parallel * plan.context_parallel
    shards = (plan.shard_degree or replicas) if plan.zero_stage >= 2 else 1
    # DDP's buckets hold the gradients of a stage from when it is there.
    has_buckets = replicas > 1 and plan.zero_stage < 2 and not plan.rules.splits_backward
    kept, most = 0.0, 0.0
    for positions in own.positions_by_stage:
        before = kept
        for position in positions:
            whole = own.at(own.layers[position].num_parameters, 1)
            experts = own.at(own.layers[position].num_expert_parameters)
            split = own.parameters(position) - experts + experts / plan.expert_parallel - _spared(own, position)
            # Parts take the place of what is whole one by one; shards, when all of them are there.
            most = max(most, kept + whole, kept + split + (split / shards if shards > 1 else 0.0))
            kept += split / shards
        frozen = sum(own.at(own.layers[place].num_frozen_parameters) - _spared(own, place) for place in positions)
        kept += (kept - before - frozen) if has_buckets else 0.0
    return FULL * most


def _spared(own: RankCounts, position: int) -> float:
    """What frozen matrices of a layer take less in 16 bits, in parameters of 32."""
    if own.plan.precision not in MIXED:
        return 0.0
    layer = own.layers[position]
    # Adapters have no vectors: all of those are frozen where any are.
    matrices = own.at(layer.num_frozen_parameters) - own.at(layer.num_vector_parameters)
    return max(matrices, 0.0) * (1 - HALF / FULL)

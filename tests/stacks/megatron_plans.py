"""Random plans within what a stack says that it can run."""

import random
from collections.abc import Sequence
from dataclasses import replace

from planner.plans import AXES, Plan, recomputable_layers, recomputed_layers
from planner.prediction import PlanFile
from planner.space.to_plans import bounds_of
from profiles.machines.abilities import Abilities
from profiles.models.hf_config import checked

ORDERS = {"tcdp": ("tensor", "context", "data", "pipeline"), "tcpd": ("tensor", "context", "pipeline", "data")}
DEVICES = (8, 16, 32, 64, 128, 256, 512, 1024)


def random_plans(
    files: Sequence[PlanFile], runs: Abilities, count: int, chance: random.Random
) -> list[tuple[PlanFile, Plan]]:
    """So many plans of the models of `files`, each of which obeys `runs` and the sizes of its model."""
    plans: list[tuple[PlanFile, Plan]] = []
    while len(plans) < count:
        file = chance.choice(files)
        plan = _layout(file, runs, chance)
        if plan is not None:
            plan.check(file.num_layers)
            plans.append((file, plan))
    return plans


def meant(plan: Plan, num_layers: int) -> tuple[object, ...]:
    """What a plan means, however it is spelled: axes of one rank have no place, all layers need not be counted."""
    order = tuple(axis for axis in plan.axis_order if plan.degree(axis) > 1)
    again = tuple(len(recomputed_layers(plan, stage, num_layers)) for stage in range(plan.num_stages))
    method = plan.recompute if any(again) else "none"
    return order, again, replace(plan, axis_order=AXES, recompute_layers=(), recompute=method)


def _power(chance: random.Random, most: int) -> int:
    return 2 ** chance.randint(0, most)


def _layout(file: PlanFile, runs: Abilities, chance: random.Random) -> Plan | None:
    """One draw, None where its sizes do not go together."""
    sizes = checked(file.model_name, file.workload.config).sizes  # type: ignore[union-attr]
    experts, layers = int(sizes.get("num_experts", 0)), file.num_layers - 2
    devices = chance.choice(DEVICES)
    tensor, pipeline = _power(chance, 3), chance.choice((1, 1, 2, 4, 8, 16))
    context = _power(chance, 2) if runs.context and not experts else 1
    rest = tensor * pipeline * context
    if devices % rest or pipeline > layers or sizes["num_kv_heads"] % tensor:
        return None
    data = devices // rest
    several = pipeline > 1 and chance.random() < 0.4
    virtual = chance.choice((2, 4)) if several and 4 * pipeline <= layers else 1
    ranks = data * tensor * context
    expert = chance.choice([d for d in (1, 2, 4, 8, 16) if experts and experts % d == 0 and ranks % d == 0] or [1])
    zero = chance.choice(runs.zero_stages if pipeline == 1 else runs.pipeline_zero_stages) if data * context > 1 else 0
    narrow = context == 1 and not experts
    order = chance.choice([one for one in runs.orders if narrow or one not in runs.narrow_orders])
    bounds = _bounds(layers, pipeline * virtual, runs, chance)
    split = chance.choice(runs.sequence_parallel) if tensor > 1 else False
    plan = Plan(
        data_parallel=data, tensor_parallel=tensor, pipeline_parallel=pipeline, context_parallel=context,
        expert_parallel=expert if runs.expert else 1, sequence_parallel=split, vocab_parallel=tensor > 1,
        axis_order=ORDERS[order], micro_batch_size=chance.choice((1, 2, 4)),
        num_microbatches=pipeline * chance.choice((1, 2, 5)), stage_bounds=bounds, virtual_stages=virtual,
        schedule="none" if pipeline == 1 else "interleaved-1f1b" if virtual > 1 else "1f1b", zero_stage=zero,
        shard_degree=data // 2 if zero == 3 and runs.shards_in_part and data % 4 == 0 and not experts and context == 1
        else 0,
        recompute=chance.choice(runs.recompute),
        precision=chance.choice([one for one in runs.precisions if one != "fp32"]),
    )  # fmt: skip
    return _partly(plan, file.num_layers, chance)


def _bounds(layers: int, stages: int, runs: Abilities, chance: random.Random) -> tuple[int, ...]:
    counts = [layers // stages + (stage < layers % stages) for stage in range(stages)]
    if runs.uneven_stages == "any" and stages > 1 and min(counts) > 1 and chance.random() < 0.3:
        moved = chance.randrange(stages)
        counts[moved] -= 1
        counts[moved - 1] += 1
    return bounds_of(counts)


def _partly(plan: Plan, num_layers: int, chance: random.Random) -> Plan:
    """The plan, at times with as many layers of every stage recomputed."""
    if plan.recompute != "full" or chance.random() < 0.5:
        return plan
    present = [len(recomputable_layers(plan, stage, num_layers)) for stage in range(plan.num_stages)]
    most = chance.randint(1, max(present))
    return replace(plan, recompute_layers=tuple(min(most, own) for own in present))

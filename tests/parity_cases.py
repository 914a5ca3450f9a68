"""The combinations of choices that parity is tested on, generated from what a plan can name.

Each axis has its options; cases are every option alone, and every pair of options of two axes. What the rules refuse is
left out, so a choice that becomes executable is tested by existing.
"""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, get_args

from executor.run.checks import facts_of_workload
from planner.legality import refusal
from planner.plans import Plan, Recompute
from planner.schedules.registry import SCHEDULES, schedule
from profiles.models.profile import PRECISIONS
from profiles.workloads.loading import load_workload
from tests.parity_entries import SPECS
from tests.plan_builders import GLOBAL_BATCH, NUM_LAYERS, SEQUENCE

Option = dict[str, Any]
Case = tuple[str, Plan]

# Uneven on purpose.
BOUNDS = {1: (0,), 2: (0, 2), 4: (0, 2, 3, 5)}
LAYOUTS: dict[str, list[Option]] = {
    "data": [{"data_parallel": 2, "zero_stage": stage} for stage in range(4)],
    "tensor": [
        {"tensor_parallel": 2, "sequence_parallel": sequence, "vocab_parallel": vocab}
        for sequence, vocab in itertools.product((False, True), repeat=2)
    ],
    "context": [{"context_parallel": 2}],
    "pipeline": [
        {
            "pipeline_parallel": 2,
            "schedule": name,
            "virtual_stages": 2 if schedule(name).stages.allows(2) else 1,
        }
        for name in SCHEDULES
    ],
}
# Choices that need no ranks of their own.
FREE: list[Option] = [
    *({"recompute": choice} for choice in get_args(Recompute) if choice != "none"),
    *({"precision": choice} for choice in PRECISIONS if choice != "fp32"),
    {"precision": "bf16", "recompute": "full"},
]
# On four ranks alone: sharding over half of the data axis, and degrees of four.
WIDE: list[Option] = [
    *({"data_parallel": 4, "zero_stage": stage} for stage in range(4)),
    *({"data_parallel": 4, "zero_stage": stage, "shard_degree": 2} for stage in (2, 3)),
    {"tensor_parallel": 4, "sequence_parallel": True, "vocab_parallel": True},
    {"context_parallel": 4},
    {"pipeline_parallel": 4, "schedule": "1f1b"},
]
# Choices of a plan that no parity is asked of: lossy codecs are tried by themselves, compiling takes a minute.
ELSEWHERE = {"codec", "compiled"}
# What `make_plan` derives, and what is only planned.
DERIVED = {"micro_batch_size", "num_microbatches", "stage_bounds"}
ONLY_PLANNED = {"offload", "replica_microbatches"}
# Of a mixture of experts, on two ranks and on four.
EXPERTS: list[Option] = [
    {"data_parallel": 2, "expert_parallel": 2},
    {"data_parallel": 2, "expert_parallel": 2, "recompute": "full"},
    {"data_parallel": 2, "expert_parallel": 2, "precision": "bf16"},
    {"data_parallel": 2, "zero_stage": 3},
    {"pipeline_parallel": 2, "schedule": "1f1b"},
]
WIDE_EXPERTS: list[Option] = [
    {"data_parallel": 4, "expert_parallel": 2},
    {"data_parallel": 4, "expert_parallel": 4},
    {"data_parallel": 2, "expert_parallel": 2, "pipeline_parallel": 2, "schedule": "1f1b"},
]


def make_plan(*options: Option) -> Plan:
    """A plan of these choices: four micro-batches through a pipeline, else two, so that gradients add up."""
    fields: Option = {}
    for option in options:
        fields |= option
    pipeline = fields.get("pipeline_parallel", 1)
    own = GLOBAL_BATCH // fields.get("data_parallel", 1)
    count = min(own, 4 if pipeline > 1 else 2)
    bounds = BOUNDS[pipeline * fields.get("virtual_stages", 1)]
    return Plan(**fields, micro_batch_size=own // count, num_microbatches=count, stage_bounds=bounds)


def allowed(cases: Iterable[Case]) -> Iterator[Case]:
    """The cases that the rules let through."""
    for name, plan in cases:
        plan.check(NUM_LAYERS)
        if not refusal(plan, facts_of_workload(load_workload(SPECS[name])), SEQUENCE):
            yield name, plan


def two_ranks(complete: bool) -> list[Case]:
    """Every option of every axis, alone and with every free choice or one of them; other models where they differ."""
    options = [option for axis in LAYOUTS.values() for option in axis]
    cases = [("llama", make_plan(option)) for option in options]
    for index, option in enumerate(options):
        chosen = FREE if complete else FREE[index % len(FREE) :][:1]
        cases += [("llama", make_plan(option, free)) for free in chosen]
    others = options if complete else LAYOUTS["tensor"][1:] + LAYOUTS["context"]
    cases += [("gpt2", make_plan(option)) for option in others]
    cases += [("qwen3", make_plan(option)) for option in LAYOUTS["tensor"][:: 1 if complete else 3]]
    cases.append(("llama", make_plan(LAYOUTS["pipeline"][0], {"recompute": "full", "recompute_layers": (1, 2)})))
    # Sharded weights are gathered in the precision of the passes.
    cases += [("llama", make_plan(LAYOUTS["data"][stage], {"precision": "bf16"})) for stage in (2, 3)]
    cases += [("mixtral", make_plan(option)) for option in (EXPERTS if complete else EXPERTS[:2])]
    cases.append(("odd-mixtral", make_plan({"data_parallel": 2, "zero_stage": 3})))
    cases += adapted(complete)
    return list(allowed(cases))


def adapted(complete: bool = True) -> list[Case]:
    """Adapters alone, with every option of every axis that they go together with, or with some."""
    options = [*LAYOUTS["data"], *LAYOUTS["context"], *LAYOUTS["pipeline"]]
    cases = [("adapted", make_plan(option)) for option in (options if complete else options[:1])]
    cases += [("adapted", make_plan(LAYOUTS["data"][stage], {"precision": "bf16"})) for stage in (1, 3)]
    cases += [("adapted", make_plan(LAYOUTS["data"][3], {"recompute": "full"}))]
    cases += [("adapted-gpt2", make_plan(LAYOUTS["data"][0]))]
    return list(allowed(cases))


def four_ranks(complete: bool) -> list[Case]:
    """Pairs of options of two axes: all of them, or a few that bring every axis together with every other."""
    cases = [("gpt2", make_plan(option)) for option in (WIDE if complete else WIDE[4:])]
    cases += [("mixtral", make_plan(option)) for option in (WIDE_EXPERTS if complete else WIDE_EXPERTS[:1])]
    for first, second in itertools.combinations(LAYOUTS.values(), 2):
        if complete:
            pairs = list(itertools.product(first, second))
        else:
            # Every third step along both lists at once, from their ends: the richest options stand there.
            steps = range(0, max(len(first), len(second)), 3)
            pairs = [(first[-1 - step % len(first)], second[-1 - step % len(second)]) for step in steps]
        # The llama's two heads for keys and values are too few to be split twice: the rules leave those out.
        cases += [(name, make_plan(*pair)) for pair in pairs for name in (("gpt2", "llama") if complete else ("gpt2",))]
    return [*allowed(cases), *(ORDERED if complete else ORDERED[:1])]


def eight_ranks() -> list[Case]:
    """Three axes at once, the richest option of each."""
    data, tensor, context, pipeline = LAYOUTS["data"], LAYOUTS["tensor"], LAYOUTS["context"], LAYOUTS["pipeline"]
    cases = [
        ("gpt2", make_plan(data[stage], tensor[-1], pipeline[where]))
        for stage, where in ((0, 1), (1, 1), (0, 2), (2, 4))
    ]
    cases += [
        ("gpt2", make_plan(data[0], context[0], pipeline[1])),
        ("gpt2", make_plan(data[3], tensor[1], context[0])),
    ]
    cases.append(("mixtral", make_plan({**WIDE_EXPERTS[0], "pipeline_parallel": 2, "schedule": "1f1b"})))
    return list(allowed(cases))


# The axes in another order than neighbours first.
ORDERED: list[Case] = [
    ("llama", replace(make_plan(*options), axis_order=order))
    for options, order in (
        ((LAYOUTS["data"][2], LAYOUTS["pipeline"][1]), ("pipeline", "data", "tensor")),
        ((LAYOUTS["data"][0], LAYOUTS["tensor"][3]), ("data", "tensor", "pipeline")),
        ((LAYOUTS["data"][3], LAYOUTS["context"][0]), ("data", "context", "tensor", "pipeline")),
        ((LAYOUTS["context"][0], LAYOUTS["pipeline"][4]), ("pipeline", "tensor", "context", "data")),
    )
]

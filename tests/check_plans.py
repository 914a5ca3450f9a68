"""Random plans of all that the executor carries out, each with its check: `python -m tests.check_plans --count 150`."""

import argparse
import itertools
import random
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

from executor.run.checks import check_task, facts_of_workload
from planner.legality import refusal
from planner.plans import AXES, Plan, recomputable_layers
from planner.schedules.registry import NONE, SCHEDULES
from profiles.codecs.codec import KNOWN
from profiles.errors import PlanError
from profiles.models.adapters import adapters
from profiles.models.profile import WorkloadSpec
from profiles.workloads.workload import Workload
from tests.plan_builders import GPT2, LLAMA, MIXTRAL, QWEN3, VIT

MODELS: dict[str, WorkloadSpec] = {
    "llama": replace(LLAMA, config={**LLAMA.config, "num_key_value_heads": 4}),
    "grouped-llama": LLAMA,
    "gpt2": GPT2,
    "tied-gpt2": replace(GPT2, config={**GPT2.config, "tie_word_embeddings": True}),
    "qwen3": QWEN3,
    "mixtral": MIXTRAL,
    "odd-mixtral": replace(MIXTRAL, config={**MIXTRAL.config, "num_local_experts": 3}),
    "adapted": replace(LLAMA, adapters=adapters(4, ("q", "v", "down"))),
    "adapted-gpt2": replace(GPT2, adapters=adapters(4, ("q", "down"))),
    "vit": VIT,
}
# Of tests/matrix: a decoder, an encoder, both, and two that read images, one of which keeps statistics.
TASKS = ("task llama", "task roberta", "task t5", "task vit", "task resnet")
PRECISIONS = ("fp32", "bf16", "fp16", "fp8")
# Of a hundred draws, so many are of a model with experts, and so many of a lossy codec.
EXPERTS_SHARE, LOSSY_SHARE = 0.25, 0.35
# A rank's memory of meshes, and time, are bounded: so many plans to a start of the ranks.
PLANS_PER_START = 25


def draw(number: random.Random, num_ranks: int, name: str, workload: Workload) -> Plan:
    """A plan of that many ranks, legal or not."""
    degrees = number.choice([d for d in itertools.product((1, 2, 4), repeat=4) if _product(d) == num_ranks])
    data, tensor, context, pipeline = degrees
    schedule = number.choice(list(SCHEDULES)) if pipeline > 1 else NONE
    virtual = number.choice((1, 2)) if pipeline > 1 else 1
    stages, layers = pipeline * virtual, len(workload.layers)
    bounds = (0, *sorted(number.sample(range(1, layers), stages - 1))) if stages <= layers else (0,) * stages
    zero = number.choice((0, 0, 1, 2, 3)) if data * context > 1 else 0
    expert = number.choice((1, 2, 4)) if workload.num_experts and data > 1 else 1
    zero = 0 if expert > 1 else zero
    lossy = data * context > 1 and expert == 1 and number.random() < LOSSY_SHARE
    recompute = number.choice(("none", "none", "selective", "full"))
    order = list(AXES)
    number.shuffle(order)
    plan = Plan(
        data_parallel=data,
        tensor_parallel=tensor,
        context_parallel=context,
        pipeline_parallel=pipeline,
        expert_parallel=expert,
        shard_degree=2 if data == 4 and zero >= 2 and number.random() < 0.5 else 0,
        sequence_parallel=tensor > 1 and number.random() < 0.5,
        vocab_parallel=tensor > 1 and number.random() < 0.5,
        axis_order=tuple(order) if number.random() < 0.3 else AXES,
        micro_batch_size=number.choice((1, 2, 4)),
        num_microbatches=number.choice((1, 2, 4, 8)),
        stage_bounds=bounds,
        virtual_stages=virtual,
        schedule=schedule,
        zero_stage=zero,
        recompute=recompute,
        codec=number.choice([codec for codec in (*KNOWN, "topk-10") if codec != "none"]) if lossy else "none",
        precision=number.choice(PRECISIONS),
    )
    if recompute != "none" and number.random() < 0.4 and stages <= layers:
        counts = (number.randint(0, len(recomputable_layers(plan, stage, layers))) for stage in range(stages))
        plan = replace(plan, recompute_layers=tuple(counts))
    return plan


def _product(values: tuple[int, ...]) -> int:
    result = 1
    for value in values:
        result *= value
    return result


def plans(seed: int, num_ranks: int) -> Iterator[tuple[str, Plan]]:
    """Legal plans of the executor's whole space, one after the other, none twice."""
    from tests.check_entries import material

    number, seen = random.Random(seed * 1_000 + num_ranks), set()
    workloads: dict[str, tuple[Workload, Any]] = {}
    while True:
        is_mixture = number.random() < EXPERTS_SHARE
        name = number.choice([name for name in (*MODELS, *TASKS) if is_mixture == ("mixtral" in name)])
        if name not in workloads:
            workloads[name] = material(name)
        workload, data = workloads[name]
        plan = draw(number, num_ranks, name, workload)
        try:
            plan.check(len(workload.layers))
            check_task(plan, workload, "cpu")
        except PlanError:
            continue
        sequence = getattr(data, "sequence_length", workload.max_sequence_length)
        if (name, plan.id) in seen or refusal(plan, facts_of_workload(workload), sequence):
            continue
        seen.add((name, plan.id))
        yield name, plan


def check(cases: list[tuple[str, Plan]], num_ranks: int) -> list[dict[str, Any]]:
    """The verdicts on some plans."""
    from profiles.ranks.launcher import launch

    payload = {"cases": [(name, asdict(plan), "") for name, plan in cases]}
    found = launch("tests.check_entries:check_all", payload, num_ranks, "cpu")
    return [{"plan": plan, **one} for (_, plan), one in zip(cases, found, strict=True)]


def main() -> None:
    """Draw, check, and say what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    options = parser.parse_args()
    results: list[dict[str, Any]] = []
    for place, num_ranks in enumerate(options.ranks):
        share = options.count * (place + 1) // len(options.ranks) - options.count * place // len(options.ranks)
        drawn = list(itertools.islice(plans(options.seed, num_ranks), share))
        for first in range(0, share, PLANS_PER_START):
            results += check(drawn[first : first + PLANS_PER_START], num_ranks)
            for one in results[-min(PLANS_PER_START, share - first) :]:
                worst = max((value or 0.0, what) for what, value in (one.get("found") or {"": 0.0}).items())
                print(f"{one['status']:8s} {one['case']:75s} {worst[0]:.2g} {worst[1]}", flush=True)
                if one["status"] != "passed":
                    print(one["reason"], one.get("found", ""), flush=True)
    wrong = [one for one in results if one["status"] != "passed"]
    print(f"{len(results)} plans checked, {len(wrong)} not passed")
    for precision in PRECISIONS:
        for lossy in (False, True):
            own = [r for r in results if r["plan"].precision == precision and (r["plan"].codec != "none") == lossy]
            kinds = {what for one in own for what in one.get("found", {})}
            largest = {what: max(one.get("found", {}).get(what) or 0.0 for one in own) for what in sorted(kinds)}
            words = ", ".join(f"{what} {value:.2g}" for what, value in largest.items())
            print(f"{precision}{' coded' if lossy else ''}: {len(own)} plans; of what is allowed at most {words}")
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()

"""Plans of a stack: what the planner offers for it, and layouts drawn within what it can run."""

import random
from collections.abc import Iterator
from dataclasses import replace

from planner.ask import Request, answer_to
from planner.plans import Plan
from planner.prediction import PlanFile
from planner.space.beside import Questions
from planner.stacks.abilities import known_of, refusal
from profiles.errors import InputError, NoFeasiblePlanError
from profiles.library import load_sizes
from profiles.machines.stacks import Stack, load_stack
from profiles.models.sizes import ModelSizes
from tests.plan_builders import make_plan_file

MODELS = ("llama-3.1-8b", "llama-3.1-70b", "gpt2-xl", "mixtral-8x7b", "mistral-7b", "qwen3-8b", "llama-3.2-1b")
DEVICES = (2, 4, 8, 16, 32, 64, 128, 256)


def models_of(stack: Stack) -> list[str]:
    families = stack.runs.families if stack.runs else ()
    return [name for name in MODELS if not families or load_sizes(name).workload.config["model_type"] in families]


def offered(name: str, seed: int = 0) -> Iterator[tuple[PlanFile, Plan]]:
    """Plans of the planner's own search for a stack, model after model, in turns over sizes of clusters."""
    stack, chosen = load_stack(name), random.Random(seed)
    while True:
        model = chosen.choice(models_of(stack))
        sizes = load_sizes(model)
        devices = chosen.choice(DEVICES)
        sequence = chosen.choice(
            [length for length in (1024, 2048, 4096, 8192) if length <= (sizes.longest_sequence or 8192)]
        )
        request = Request(
            model=model, num_devices=devices, device=chosen.choice(("h100-sxm", "a100-sxm-80gb", "h200-sxm")),
            stack=name, global_batches=(devices * chosen.choice((1, 2, 4, 8)),), sequence_length=sequence, top=12,
            precisions=(chosen.choice([one for one in stack.runs.precisions if one in ("bf16", "fp16")]),),
        )  # fmt: skip
        try:
            file = answer_to(request, Questions()).file
        except (NoFeasiblePlanError, InputError):
            continue
        yield from ((file, each.plan) for each in file.candidates if each.executable)


def drawn(name: str, seed: int = 0) -> Iterator[tuple[PlanFile, Plan]]:
    """Random layouts that nothing in what the stack can run speaks against, whether they fit or not."""
    stack, chosen = load_stack(name), random.Random(seed)
    while True:
        model = chosen.choice(models_of(stack))
        sizes = load_sizes(model)
        plan = random_plan(stack, sizes, chosen)
        sequence = chosen.choice((512, 1000, 1024, 4096))
        known = known_of(sizes.transformer, sequence)
        if refusal(stack, plan, sizes.num_layers + 2, known) or not _is_legal(plan, sizes, stack):
            continue
        file = make_plan_file(
            plan, spec=sizes.workload, sequence=sequence, num_layers=sizes.num_layers + 2, stack=name,
            devices_per_node=chosen.choice((0, 4, 8)), machine_device_kind="cuda",
        )  # fmt: skip
        yield file, plan


def _is_legal(plan: Plan, sizes: ModelSizes, stack: Stack) -> bool:
    """What the search asks of any plan."""
    try:
        plan.check(sizes.num_layers + 2)
    except InputError:
        return False
    model = sizes.transformer
    if int(model.num_heads[0]) % plan.tensor_parallel or int(model.ffn_size[0]) % plan.tensor_parallel:
        return False
    return plan.pipeline_parallel == 1 or plan.num_microbatches % plan.pipeline_parallel == 0


def random_plan(stack: Stack, sizes: ModelSizes, chosen: random.Random) -> Plan:
    runs = stack.runs
    degrees = dict.fromkeys(("tensor", "context", "pipeline"), 1)
    for axis in degrees:
        if getattr(runs, axis) and chosen.random() < 0.4:
            degrees[axis] = chosen.choice((2, 4, 8))
    data = chosen.choice((1, 2, 4, 8, 16))
    replicas = data * degrees["context"]
    zeros = runs.pipeline_zero_stages if degrees["pipeline"] > 1 else runs.zero_stages
    zero = chosen.choice(zeros) if replicas > 1 else 0
    schedule, chunks, bounds = "none", 1, (0,)
    if degrees["pipeline"] > 1:
        schedule = chosen.choice(stack.schedules)
        chunks = 2 if schedule == "interleaved-1f1b" else 1
        bounds = _bounds(sizes.num_layers, degrees["pipeline"] * chunks, chosen, runs.uneven_stages == "any")
    tensor = degrees["tensor"]
    return Plan(
        data_parallel=data, tensor_parallel=tensor, context_parallel=degrees["context"],
        pipeline_parallel=degrees["pipeline"], zero_stage=zero,
        shard_degree=data // 2 if zero == 3 and data > 2 and runs.shards_in_part and chosen.random() < 0.3 else 0,
        sequence_parallel=tensor > 1 and chosen.choice(runs.sequence_parallel),
        vocab_parallel=tensor > 1 and chosen.choice(runs.vocab_parallel),
        micro_batch_size=chosen.choice((1, 2, 4)), num_microbatches=chosen.choice((1, 2, 8, 16, 32)),
        schedule=schedule, virtual_stages=chunks, stage_bounds=bounds, recompute=chosen.choice(runs.recompute),
        offload=chosen.choice(runs.offload), compiled=runs.compiles and chosen.random() < 0.3,
        codec=chosen.choice(runs.codecs), precision=chosen.choice(runs.precisions),
    )  # fmt: skip


def _bounds(blocks: int, stages: int, chosen: random.Random, is_uneven: bool) -> tuple[int, ...]:
    if stages > blocks:
        return (0,)
    if is_uneven and chosen.random() < 0.5:
        return (0, *sorted(chosen.sample(range(2, blocks + 1), stages - 1)))
    return (0, *(1 + blocks * stage // stages for stage in range(1, stages)))


def both(name: str, count: int, seed: int = 0) -> Iterator[tuple[PlanFile, Plan, str]]:
    """Half of the plans as offered, half as drawn; each with which it is."""
    search, layouts = offered(name, seed), drawn(name, seed)
    for number in range(count):
        file, plan = next(search if number % 2 == 0 else layouts)
        yield replace(file, created=""), plan, "offered" if number % 2 == 0 else "drawn"

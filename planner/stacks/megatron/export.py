"""A plan handed over to Megatron: a launch script, its arguments in YAML, and what the user adds."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import yaml

from planner.plans import Plan
from planner.prediction import Candidate, PlanFile, PlannedFor
from planner.stacks.handover import Handover
from planner.stacks.job_files import steps_notes, steps_of
from planner.stacks.megatron.say_layout import FSDP_STAGES, say_layout
from planner.stacks.megatron.say_model import Settings, Value, say_model
from planner.stacks.megatron.say_software import ENGINE, LOCAL, environment, say_software
from planner.stacks.megatron.words import LAYOUT, SOFTWARE
from planner.stacks.unsized import BASE, EPSILON, LLAMA3, rope_of, scaling_of, unsaid
from profiles.errors import PlanError
from profiles.machines.stacks import Stack, load_stack

SCRIPT, ARGUMENTS = "launch.sh", "arguments.yaml"
NODE = 8
# Whose layers the stacks have, in Megatron's word.
LAYERS = {"megatron-core": ENGINE, "megatron-lm": LOCAL}
# What is neither model nor plan, by the usual of large models: the user's to change.
USUAL_STEPS = 50
TRAINING: Settings = {
    "train-iters": USUAL_STEPS,
    "lr": 0.00015,
    "min-lr": 0.000015,
    "lr-decay-style": "cosine",
    "lr-warmup-iters": 5,
    "optimizer": "adam",
    "weight-decay": 0.1,
    "clip-grad": 1.0,
    "adam-beta1": 0.9,
    "adam-beta2": 0.95,
    "init-method-std": 0.02,
    "seed": 1234,
    "eval-iters": 0,
    "log-interval": 1,
    "log-throughput": True,
    "distributed-timeout-minutes": 60,
}
ARGUMENT_OF = {BASE: "rotary-base", EPSILON: "norm-epsilon"}
MOCK: Settings = {"mock-data": True, "tokenizer-type": "NullTokenizer"}
USER_DATA = "DATA='--data-path /data/my_text_document --tokenizer-type HuggingFaceTokenizer ...'"


def exporter(stack: str) -> Callable[[PlanFile, Candidate], Handover]:
    """What writes plans down for one of Megatron's stacks."""

    def export(file: PlanFile, candidate: Candidate) -> Handover:
        return export_to(load_stack(stack), LAYERS[stack], file, candidate.plan)

    return export


def settings_of(stack: Stack, layers: str, file: PlannedFor, plan: Plan) -> Settings:
    """All arguments but those of data, by name.

    Raises: InputError, PlanError for what Megatron has no argument for.
    """
    model = say_model(file.workload, file.sequence_length)
    layout = say_layout(plan, file.num_layers, has_experts="num-experts" in model)
    sequence: Settings = {"seq-length": file.sequence_length}
    software = say_software(file, plan, stack, layers)
    if layers == ENGINE and "num-experts" in model:
        software["moe-grouped-gemm"] = True
    return {**model, **sequence, **layout, **software}


def export_to(stack: Stack, layers: str, file: PlanFile, plan: Plan) -> Handover:
    """A plan as Megatron takes it.

    Raises: InputError, PlanError for what Megatron has no argument for.
    """
    settings = settings_of(stack, layers, file, plan)
    nodes, per_node = _nodes(file, plan)
    needed = environment(plan)
    training = {**TRAINING, "train-iters": steps_of(file, USUAL_STEPS)}
    title = f"{plan.id} of {file.model_name} for {stack.title}"
    files = {
        SCRIPT: _script(title, settings, training, needed, nodes, per_node),
        ARGUMENTS: _yaml(title, {**settings, **training}, needed),
    }
    return Handover(
        stack=stack.name,
        version=stack.runs.version if stack.runs else "",
        files=files,
        command=f"NODE_RANK=0 MASTER_ADDR=first-node bash {SCRIPT}" if nodes > 1 else f"bash {SCRIPT}",
        environment=needed,
        notes=tuple(_notes(file, plan, layers, nodes)),
    )


def argv(settings: Settings) -> list[str]:
    """Arguments as a command line has them."""
    words: list[str] = []
    for name, value in settings.items():
        words += [f"--{name}", *_texts(value)]
    return words


def _texts(value: Value) -> list[str]:
    if value is True:
        return []
    if isinstance(value, tuple):
        return list(value)
    return [f"{value:.12g}" if isinstance(value, float) else str(value)]


def _nodes(file: PlannedFor, plan: Plan) -> tuple[int, int]:
    """Nodes, and devices of each."""
    per_node = min(plan.num_devices, file.devices_per_node or NODE)
    if plan.num_devices % per_node:
        raise PlanError(
            f"plan with {plan.num_devices} devices: torchrun starts as many on every node, and nodes have {per_node}"
        )
    return plan.num_devices // per_node, per_node


def _script(
    title: str, settings: Settings, training: Settings, needed: dict[str, str], nodes: int, per_node: int
) -> str:
    layout, software = ({word.name for word in words} for words in (LAYOUT, SOFTWARE))
    groups = {
        "MODEL": {name: value for name, value in settings.items() if name not in layout | software},
        "LAYOUT": {name: value for name, value in settings.items() if name in layout},
        "SOFTWARE": {name: value for name, value in settings.items() if name in software},
        "TRAINING": training,
    }
    lines = [
        "#!/usr/bin/env bash",
        f"# Written by Trainwright: {title}.",
        "# Run it on every node, with NODE_RANK and MASTER_ADDR set; MEGATRON is a checkout of Megatron-LM.",
        f"# Mock data unless DATA is set: {USER_DATA}",
        "set -euo pipefail",
        *(f"export {name}={shlex.quote(value)}" for name, value in needed.items()),
        f"NNODES={nodes}",
        f"GPUS_PER_NODE={per_node}",
        "NODE_RANK=${NODE_RANK:-0}",
        "MASTER_ADDR=${MASTER_ADDR:-127.0.0.1}",
        "MASTER_PORT=${MASTER_PORT:-29500}",
        "MEGATRON=${MEGATRON:-.}",
        f"DATA=${{DATA:-{shlex.join(argv(MOCK))}}}",
    ]
    for name, group in groups.items():
        rows = [shlex.join(argv({key: value})) for key, value in group.items()]
        lines += [f"{name}=(", *(f"  {row}" for row in rows), ")"]
    lines += [
        'torchrun --nnodes "$NNODES" --nproc-per-node "$GPUS_PER_NODE" --node-rank "$NODE_RANK" \\',
        '  --master-addr "$MASTER_ADDR" --master-port "$MASTER_PORT" "$MEGATRON/pretrain_gpt.py" \\',
        "  " + " ".join(f'"${{{name}[@]}}"' for name in groups) + " $DATA",
    ]
    return "\n".join(lines) + "\n"


def _yaml(title: str, settings: Settings, needed: dict[str, str]) -> str:
    """Arguments as Megatron's functional tests and Megatron-Bridge's translator read them."""
    every = {**settings, **MOCK}
    arguments = {f"--{name}": " ".join(value) if isinstance(value, tuple) else value for name, value in every.items()}
    text: str = yaml.safe_dump({"ENV_VARS": needed, "MODEL_ARGS": arguments}, sort_keys=False)
    return f"# Written by Trainwright: {title}.\n{text}"


def _notes(file: PlanFile, plan: Plan, layers: str, nodes: int) -> list[str]:
    steps = steps_notes(file)
    usual = "learning rate and warm-up" if steps else "learning rate, warm-up and number of steps"
    notes = [
        "data is mock data without a tokenizer unless the variable DATA says otherwise",
        f"{usual} are placeholders, and gradients are clipped to a norm of {TRAINING['clip-grad']:g}: set your own",
        *steps,
    ]
    if nodes > 1:
        notes.append(f"start {SCRIPT} on all {nodes} nodes, NODE_RANK from 0 to {nodes - 1}, MASTER_ADDR the first's")
    if plan.zero_stage in FSDP_STAGES:
        notes.append(f"zero_stage={plan.zero_stage} is Megatron-FSDP, whose checkpoints have a format of their own")
    if layers == LOCAL:
        notes.append("Megatron's own layers, which were planned for instead of TransformerEngine's, need NVIDIA's apex")
    return [*notes, *_unsized_notes(file.workload.config, unsaid(file.workload))]


def _unsized_notes(config: Mapping[str, Any], missing: Sequence[str]) -> Iterator[str]:
    """What is to be set of the model: it takes no time, but matters for quality."""
    if missing:
        words = " and ".join(f"--{ARGUMENT_OF[field]}" for field in missing)
        yield f"the model's configuration lacks {' and '.join(missing)}: set {words} as it was published"
    kind, rope = scaling_of(config), rope_of(config)
    if kind not in ("default", "llama3"):
        yield f"rotary positions scaled by {kind} are left out: they take no time, but affect quality"
    others = [
        f"{name} {rope[name]:g}"
        for name, usual in LLAMA3.items()
        if kind == "llama3" and name in rope and rope[name] != usual
    ]
    if others:
        yield f"Megatron's --use-rope-scaling has other numbers than the model's {', '.join(others)}"

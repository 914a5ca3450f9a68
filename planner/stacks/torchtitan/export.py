"""A plan as torchtitan is given it: a config function in Python, and the launch line."""

from __future__ import annotations

from typing import Any

from planner.plans import Plan
from planner.prediction import Candidate, PlanFile
from planner.stacks import job_files
from planner.stacks.handover import Handover
from planner.stacks.said import nested
from planner.stacks.torchtitan.words import STACK, WORDS
from planner.stacks.unsized import unsaid_notes
from planner.stacks.words import Facts, written
from profiles.errors import PlanError
from profiles.machines.stacks import Stack

MODULE, FUNCTION = "trainwright_plan", "plan"
CLASSES = {"training": "TrainingConfig", "parallelism": "ParallelismConfig", "compile": "CompileConfig"}
HEAD = """# {title}
# {command}
from torchtitan.components.loss import CrossEntropyLoss
from torchtitan.components.metrics import MetricsProcessor
from torchtitan.components.optimizer import default_adamw
from torchtitan.config import CompileConfig, ParallelismConfig, TrainingConfig
from torchtitan.distributed.activation_checkpoint import FullAC, SelectiveAC
from torchtitan.hf_datasets.text_datasets import HuggingFaceTextDataLoader
from torchtitan.trainer import Trainer

from titan_model import VOCABULARY, model_spec


def {function}() -> Trainer.Config:
    return Trainer.Config(
"""


def export(file: PlanFile, candidate: Candidate) -> Handover:
    """A plan for torchtitan.

    Raises: PlanError where it has no word for something in the plan.
    """
    stack, plan = job_files.stack_of(STACK, file, candidate), candidate.plan
    _refuse(file, plan)
    command = job_files.torchrun(file, f"-m torchtitan.train --module {MODULE} --config {FUNCTION}")
    return Handover(
        stack=STACK,
        version=job_files.version_of(stack),
        files={
            f"{MODULE}.py": function(file, plan, stack, command),
            job_files.MODEL_FILE: job_files.model_json(file, stack),
            job_files.JOB_FILE: job_files.job_json(file, stack),
            "titan_model.py": job_files.script("titan_model.py", stack),
        },
        command=command,
        environment={"PYTORCH_ALLOC_CONF": "expandable_segments:True", "PYTHONPATH": "."},
        notes=_notes(file),
    )


def function(file: PlanFile, plan: Plan, stack: Stack, command: str) -> str:
    """The config function of a plan, with the version that it is for."""
    settings = nested(written(WORDS, facts_of(file, plan)))
    settings["training"] |= {"steps": job_files.steps_of(file), "disable_cuda_graphs": True}
    lines = [HEAD.format(title=f"{job_files.written_by(stack)}: {plan.id}", command=command, function=FUNCTION)]
    lines.append(f"        model_spec=model_spec({_arguments(settings['model_spec'])}),\n")
    for section, name in CLASSES.items():
        if section in settings:
            lines.append(f"        {section}={name}(\n")
            lines += [f"            {key}={value!r},\n" for key, value in settings[section].items()]
            lines.append("        ),\n")
    mode = settings["activation_checkpoint"]["mode"]
    lines += [
        f"        activation_checkpoint={mode if mode == 'None' else mode + '.Config()'},\n",
        "        loss=CrossEntropyLoss.Config(global_vocab_size=VOCABULARY),\n",
        "        optimizer=default_adamw(lr=1e-4),\n",
        '        dataloader=HuggingFaceTextDataLoader.Config(dataset="c4"),\n',
        '        hf_assets_path="./tokenizer",\n',
        "        metrics=MetricsProcessor.Config(log_freq=1),\n",
        "    )\n",
    ]
    return "".join(lines)


def _arguments(settings: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value!r}" for key, value in settings.items())


def facts_of(file: PlanFile, plan: Plan) -> Facts:
    """What torchtitan is told of a plan."""
    is_piped = plan.pipeline_parallel > 1
    shards = (plan.shard_degree or plan.data_parallel) if plan.zero_stage else 1
    facts: Facts = {
        "local_batch": plan.micro_batch_size * (plan.num_microbatches if is_piped else 1),
        "samples": plan.global_batch_size,
        "sequence_length": file.sequence_length,
        "precision": "bf16" if plan.precision == "fp8" else plan.precision,
        "fp8": True if plan.precision == "fp8" else None,
        "replicas": plan.data_parallel // shards,
        "shards": shards,
        "tensor_parallel": plan.tensor_parallel,
        "context_parallel": plan.context_parallel,
        "zero_stage": plan.zero_stage if plan.zero_stage else None,
        "recompute": plan.recompute,
        "compiled": plan.compiled or None,
        "attention": file.attention_kernel or "flex",
        # It is on where nothing is said.
        "sequence_parallel": plan.sequence_parallel if plan.tensor_parallel > 1 else None,
    }
    if is_piped:
        facts |= {
            "pipeline_parallel": plan.pipeline_parallel,
            "schedule": plan.schedule,
            "piece": plan.micro_batch_size,
            "modules": modules_of(plan, file.num_layers),
        }
    return facts


def modules_of(plan: Plan, num_layers: int) -> list[list[str]]:
    """The modules of each stage, in model order; layers count embedding and head."""
    names = ["tok_embeddings", *(f"layers.{block}" for block in range(num_layers - 2))]
    ends = (*plan.stage_bounds[1:], num_layers - 1)
    parts = [names[start:end] for start, end in zip(plan.stage_bounds, ends, strict=True)]
    parts[-1] = [*parts[-1], "norm", "lm_head"]
    return parts


def _refuse(file: PlanFile, plan: Plan) -> None:
    """Refuse what is no matter of the stack alone.

    Raises: PlanError.
    """
    kernel = file.attention_kernel or "flex"
    known = next(word.words for word in WORDS if word.fact == "attention")
    if kernel not in known:
        raise PlanError(f"attention by {kernel}: torchtitan has {', '.join(known)}: plan with --attention-kernel")
    if plan.context_parallel > 1 and kernel != "flex":
        raise PlanError(f"plan {plan.id}: context parallelism works with flex attention only, not {kernel}")
    config = file.workload.config
    heads = config.get("num_attention_heads", 1)
    if config.get("head_dim") and config["head_dim"] * heads != config.get("hidden_size"):
        raise PlanError(
            f"model {file.model_name}: heads of {config['head_dim']} are not hidden_size / {heads}: not supported"
        )


def _notes(file: PlanFile) -> tuple[str, ...]:
    return (
        "put a Hugging Face tokenizer into ./tokenizer, and name your data set in place of c4",
        "the loss is plain, as priced; ChunkedLossWrapper would take less memory. CUDA graphs are off, as priced",
        job_files.ADD_OPTIMIZER_OF_CLIPPING,
        *job_files.steps_notes(file),
        *unsaid_notes(file.workload),
        *job_files.node_notes(file),
    )

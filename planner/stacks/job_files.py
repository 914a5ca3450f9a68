"""What exports share: checks, the model's configuration, launch lines, scripts; and what stands beside a file."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from planner.plans import Plan
from planner.prediction import Candidate, PlanFile
from planner.stacks.abilities import refusal_of
from planner.stacks.handover import Given
from profiles.errors import InputError, PlanError
from profiles.inputs.foreign import read_json
from profiles.machines.stacks import Stack, load_stack
from profiles.models.families import VISION_FAMILIES
from profiles.models.profile import WorkloadSpec
from profiles.models.sizes import sizes_of
from profiles.version import version


@dataclass(frozen=True, slots=True, kw_only=True)
class Filled(Given):
    """What is given, filled in from files beside, which count less than the file itself.

    `asked` is the user's own; `attention` the kernel that a script of ours was told, None where that is the usual one.
    """

    asked: Given = Given()
    attention: str | None = None


SCRIPTS = Path(__file__).parent / "scripts"
MODEL_FILE, JOB_FILE = "config.json", "job.json"
# What the scripts have made-up batches for.
TASKS = (
    "causal-lm", "masked-lm", "sequence-classification", "token-classification", "question-answering",
    "image-classification",
)  # fmt: skip
# How transformers calls kernels of attention; its usual one is that of torch.
USUAL_ATTENTION = "sdpa"
ATTENTION = {
    "": USUAL_ATTENTION, "flash2": USUAL_ATTENTION, "flash": USUAL_ATTENTION, "unfused": "eager",
    "flash3": "flash_attention_3", "flex": "flex_attention",
}  # fmt: skip
PORT = 29500
# Of a job that is only tried.
USUAL_STEPS = 20
ADD_DATA = "batches are random: put your data where job.py says so"
PLACEHOLDERS = "learning rate and weight decay are placeholders"
ADD_OPTIMIZER = f"{PLACEHOLDERS}, and gradients are not clipped: set your own"
# Of software that clips unless it is told otherwise; a plan's price knows of no clipping.
ADD_OPTIMIZER_OF_CLIPPING = f"{PLACEHOLDERS}, and gradients are clipped to a norm of 1, as is usual there: set your own"


def written_by(stack: Stack) -> str:
    """Who wrote a file, and for which version of the software."""
    return f"written by trainwright {version()} for {stack.name} {version_of(stack)}"


def version_of(stack: Stack) -> str:
    """The version whose own checks accepted such files."""
    return stack.runs.version if stack.runs else ""


def stack_of(name: str, file: PlanFile, candidate: Candidate) -> Stack:
    """The stack that a plan is handed over to, once nothing speaks against it.

    Raises: PlanError where it has no word for something in the plan, or the model is none that a script can build.
    """
    stack, plan = load_stack(name), candidate.plan
    if why := refusal_of(stack, plan, file):
        raise PlanError(f"plan {plan.id} cannot be written for {name}: {why}: choose another plan or other software")
    task_of(file.workload)
    if file.workload.adapters.freezes:
        raise PlanError(
            f"model {file.model_name} has frozen weights: jobs with adapters are not written for {name}, leave them out"
        )
    return stack


def task_of(workload: WorkloadSpec) -> str:
    """What a model is trained for, by the name that scripts have for it.

    Raises: PlanError for a model that transformers does not build, or a task without made-up batches.
    """
    if workload.kind == "module":
        raise PlanError(
            f"model {workload.factory}: a module of yours is not written for other software: copy it by hand"
        )
    is_vision = workload.config.get("model_type") in VISION_FAMILIES
    task = workload.task or ("image-classification" if is_vision else "causal-lm")
    if task not in TASKS:
        raise PlanError(f"task {task}: scripts have no batches for it, only for {', '.join(TASKS)}")
    return task


def as_json(content: Mapping[str, Any]) -> str:
    """A file of JSON."""
    return json.dumps(content, indent=2) + "\n"


def model_json(file: PlanFile, stack: Stack) -> str:
    """The model's configuration, as transformers reads it."""
    return as_json({"_written_by": written_by(stack), **file.workload.config})


def attention_word(file: PlanFile) -> str:
    """How transformers calls the kernel that a plan was priced with.

    Raises: PlanError where it has no such kernel.
    """
    if file.attention_kernel not in ATTENTION:
        known = ", ".join(one for one in ATTENTION if one)
        raise PlanError(f"attention by {file.attention_kernel}: scripts have {known}: plan with --attention-kernel")
    return ATTENTION[file.attention_kernel]


def attention_of(given: Given) -> str | None:
    """The kernel of attention that a script of ours was told, where that is not the usual one."""
    return given.attention if isinstance(given, Filled) else None


def job_json(file: PlanFile, stack: Stack, **more: Any) -> str:
    """What scripts read beside the software's own file, and readers what that leaves out."""
    return as_json(
        {
            "_written_by": written_by(stack),
            "stack": stack.name,
            "version": version_of(stack),
            "model": file.model_name,
            "task": task_of(file.workload),
            "sequence_length": file.sequence_length,
            "num_devices": file.num_devices,
            **more,
        }
    )


def script(name: str, stack: Stack) -> str:
    """A script of ours, which reads all that differs between plans from files beside it."""
    text = (SCRIPTS / f"{name}.txt").read_text(encoding="utf-8")
    return f"# {written_by(stack)}\n{text}"


def nodes_of(file: PlanFile) -> tuple[int, int]:
    """How many nodes, and devices on each."""
    per_node = min(file.devices_per_node or file.num_devices, file.num_devices)
    return -(-file.num_devices // per_node), per_node


def torchrun(file: PlanFile, arguments: str) -> str:
    """The launch line of one node; `MASTER_ADDR` names the first one where there are several."""
    nodes, per_node = nodes_of(file)
    if nodes == 1:
        return f"torchrun --standalone --nproc-per-node {per_node} {arguments}"
    where = f'--rdzv-backend c10d --rdzv-endpoint "$MASTER_ADDR:{PORT}"'
    return f"torchrun --nnodes {nodes} --nproc-per-node {per_node} {where} {arguments}"


def node_notes(file: PlanFile) -> tuple[str, ...]:
    """What has to be known where there are several nodes."""
    nodes, _ = nodes_of(file)
    return (
        (f"run the line on each of {nodes} nodes, with MASTER_ADDR set to the first node's name",) if nodes > 1 else ()
    )


def steps_of(file: PlanFile, usual: int = USUAL_STEPS) -> int:
    """Optimizer steps: those of the tokens or samples that were asked about, a few to look at where none were."""
    if file.answers.cost is None:
        return usual
    return math.ceil(file.answers.cost.tokens / (file.global_batch_size * file.sequence_length))


def steps_notes(file: PlanFile) -> tuple[str, ...]:
    """Whence the number of steps is, where tokens or samples were asked about."""
    if file.answers.cost is None:
        return ()
    tokens = file.answers.cost.tokens
    each = f"{file.global_batch_size} samples of {file.sequence_length}"
    return (f"{steps_of(file)} steps: {tokens:.4g} {file.size_unit or 'samples'} in steps of {each}",)


def steps_words(file: PlanFile) -> str:
    """What the launch line tells a script of ours, "" where that has its few usual steps."""
    return "" if file.answers.cost is None else f" --steps {steps_of(file)}"


def blocks_of(workload: WorkloadSpec) -> int:
    """Transformer blocks of a model; 0 where its configuration does not say."""
    if workload.reads_text and workload.config:
        return sizes_of(workload.name, workload.config).num_layers
    return int(workload.config.get("num_hidden_layers", 0))


def even_bounds(blocks: int, stages: int) -> tuple[int, ...]:
    """The first layer of each stage where all have as many blocks; the embedding goes with the first one.

    Raises: InputError where they cannot.
    """
    if stages < 1 or blocks % stages:
        raise InputError(f"{blocks} blocks cannot be cut into {stages} equal stages: say where stages begin")
    return (0, *(1 + blocks // stages * stage for stage in range(1, stages)))


def beside(path: Path, given: Given) -> tuple[Given, list[str]]:
    """What is given, filled in from the config.json and our job.json beside a file; and what was taken from there."""
    folder = folder_with(path, JOB_FILE)
    whole = filled(given, _content(folder / JOB_FILE), _content(folder / MODEL_FILE), folder.name)
    taken = [
        name for name in ("num_devices", "sequence_length", "workload") if getattr(whole, name) != getattr(given, name)
    ]
    files = {name: MODEL_FILE if name == "workload" else JOB_FILE for name in taken}
    return whole, [f"{name.replace('_', ' ')} from {file} beside it" for name, file in files.items()]


def filled(given: Given, job: Mapping[str, Any], config: Mapping[str, Any], name: str) -> Filled:
    """What is given, filled in from the content of our job.json and of a config.json of a model with a name."""
    found = {each: getattr(given, each) for each in Given.__dataclass_fields__}
    for each in ("num_devices", "sequence_length"):
        if not found[each] and isinstance(job.get(each), int):
            found[each] = job[each]
    if given.workload is None and "model_type" in config:
        found["workload"] = workload_from(config, str(job.get("model") or name), str(job.get("task", "")))
    kernels = {word: kernel for kernel, word in ATTENTION.items() if word != USUAL_ATTENTION}
    return Filled(**found, asked=asked_of(given), attention=kernels.get(str(job.get("attention"))))


def asked_of(given: Given) -> Given:
    """What the user says."""
    return given.asked if isinstance(given, Filled) else given


def folder_with(path: Path, name: str) -> Path:
    """The folder that a file's settings stand in: its own, or that of the job whose output it is."""
    own = path.parent
    return next((folder for folder in (own, own.parent, own.parent.parent) if (folder / name).is_file()), own)


def workload_from(config: Mapping[str, Any], name: str, task: str = "") -> WorkloadSpec:
    """The workload of a configuration; tasks that its family has anyway are left out."""
    own = {key: value for key, value in config.items() if not key.startswith("_")}
    spec = WorkloadSpec(kind="transformers", name=name, config=own)
    return spec if task in ("", task_of(spec)) else replace(spec, task=task)


def _content(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    content = read_json(path, "give a file that its own software reads")
    return content if isinstance(content, dict) else {}


def known_model(path: Path, given: Given) -> WorkloadSpec:
    """The model of a job.

    Raises: InputError where nobody says which it is.
    """
    if given.workload is None:
        raise InputError(f"{path}: it does not name the model to train: give --model, or its config.json beside it")
    return given.workload


def known_length(path: Path, given: Given, stated: int = 0) -> int:
    """Tokens of a sample, as a file states or as it is given.

    Raises: InputError where nobody says, or they differ.
    """
    asked = asked_of(given).sequence_length
    if stated and asked not in (0, stated):
        raise InputError(f"{path}: its samples have {stated} tokens, not --sequence-length {asked}")
    if not (stated or given.sequence_length):
        raise InputError(f"{path}: it does not say how long samples are: give --sequence-length")
    return stated or given.sequence_length


def replicas_of(path: Path, devices: int, plan: Plan) -> int:
    """Data-parallel replicas of a job, whose plan has its other axes.

    Raises: InputError where they do not divide the devices.
    """
    of_one = plan.tensor_parallel * plan.context_parallel * plan.pipeline_parallel
    if devices % of_one or devices < of_one:
        raise InputError(
            f"{path}: a replica takes {of_one} devices, which do not divide the job's {devices}: check both"
        )
    return devices // of_one

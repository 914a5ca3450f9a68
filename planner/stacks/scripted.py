"""Software that has no file of settings: a script of ours reads job.json, whose words are these, for both ways."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from planner.plans import Plan
from planner.prediction import Candidate, PlanFile
from planner.stacks import job_files
from planner.stacks.batches import batch_of, devices_of, replicas_from
from planner.stacks.handover import Given, Handover, StackJob
from planner.stacks.said import Settings, nested
from planner.stacks.unsized import scaling_of, unsaid_notes
from planner.stacks.words import Facts, Word, number, read_facts, written
from profiles.errors import InputError, PlanError
from profiles.machines.stacks import Stack, load_stack

TITLE = "a job.json that trainwright wrote for Horovod or TensorFlow"
MICRO, COUNT = "settings.micro_batch_size", "settings.num_microbatches"
PRECISION = Word(key="settings.precision", fact="precision", words={"fp32": "float32", "bf16": "bfloat16"})
WORDS: Mapping[str, tuple[Word, ...]] = {
    "horovod": (
        number(MICRO, "micro_batch_size"),
        number(COUNT, "num_microbatches"),
        PRECISION,
        Word(key="settings.compression", fact="codec", words={"none": "none", "fp16": "fp16"}),
        Word(key="settings.recompute", fact="recompute", words={"none": False, "full": True}),
    ),
    "tensorflow": (number(MICRO, "micro_batch_size"), number(COUNT, "num_microbatches"), PRECISION),
}
UNPRICED = ("stack", "version", "model", "task", "attention")
# A worker of TensorFlow waits for the others on this port.
WORKER_PORT = 12345


def facts_of(plan: Plan) -> Facts:
    """What a script is told of a plan."""
    return {
        "micro_batch_size": plan.micro_batch_size,
        "num_microbatches": plan.num_microbatches,
        "precision": plan.precision,
        "codec": plan.codec,
        "recompute": plan.recompute,
    }


def _files(file: PlanFile, plan: Plan, stack: Stack, script: str, **more: str) -> dict[str, str]:
    settings = nested(written(WORDS[stack.name], facts_of(plan))) | more
    return {
        job_files.JOB_FILE: job_files.job_json(file, stack, **settings),
        job_files.MODEL_FILE: job_files.model_json(file, stack),
        "train.py": job_files.script(script, stack),
    }


def export_horovod(file: PlanFile, candidate: Candidate) -> Handover:
    """A plan for Horovod: a script, and the line that starts it on all nodes.

    Raises: PlanError where it has no word for something in the plan.
    """
    stack, plan = job_files.stack_of("horovod", file, candidate), candidate.plan
    nodes, per_node = job_files.nodes_of(file)
    hosts = "" if nodes == 1 else ' -H "$HOSTS" --start-timeout 300'
    more = (f"run the line once; HOSTS names all nodes, as node0:{per_node},node1:{per_node}",) if nodes > 1 else ()
    return Handover(
        stack=stack.name,
        version=job_files.version_of(stack),
        files={
            **_files(file, plan, stack, "train_horovod.py", attention=job_files.attention_word(file)),
            "job.py": job_files.script("job.py", stack),
        },
        command=f"horovodrun -np {plan.num_devices}{hosts} python train.py{job_files.steps_words(file)}",
        notes=(
            "to build 0.28.1 for today's torch, set CMAKE_CXX_STANDARD 20 in CMakeLists.txt and torch/CMakeLists.txt",
            job_files.ADD_DATA,
            job_files.ADD_OPTIMIZER,
            *job_files.steps_notes(file),
            *unsaid_notes(file.workload),
            *more,
        ),
    )


def export_tensorflow(file: PlanFile, candidate: Candidate) -> Handover:
    """A plan for TensorFlow: a script with the model's sizes, TF_CONFIG of each node's worker, the launch line.

    Raises: PlanError where it has no word for something in the plan.
    """
    stack, plan = job_files.stack_of("tensorflow", file, candidate), candidate.plan
    if file.attention_kernel not in ("", "unfused"):
        raise PlanError(f"attention by {file.attention_kernel}: TensorFlow's is unfused: leave --attention-kernel out")
    nodes, per_node = job_files.nodes_of(file)
    names = [f"worker-{node}:{WORKER_PORT}" for node in range(nodes)]
    workers = {
        f"tf_config.{node}.json": json.dumps(
            {"cluster": {"worker": names}, "task": {"type": "worker", "index": node}}
        )
        for node in range(nodes)
    }  # fmt: skip
    return Handover(
        stack=stack.name,
        version=job_files.version_of(stack),
        files=_files(file, plan, stack, "train_tensorflow.py") | workers,
        command=f'TF_CONFIG="$(cat tf_config.${{NODE_RANK:-0}}.json)" python train.py{job_files.steps_words(file)}',
        environment={"TF_GPU_ALLOCATOR": "cuda_malloc_async"},
        notes=(
            f"run the line on each of {nodes} nodes, NODE_RANK counted from 0; a worker has its node's {per_node} GPUs",
            "write the nodes' names where tf_config.N.json says worker-N",
            "batches are random: put your data where train.py says so",
            job_files.ADD_OPTIMIZER,
            *job_files.steps_notes(file),
            *unsaid_notes(file.workload),
            *_scaled_notes(file),
        ),
    )


def _scaled_notes(file: PlanFile) -> tuple[str, ...]:
    """What the script of TensorFlow leaves out of the model, which takes no time and matters for quality."""
    kind = scaling_of(file.workload.config)
    return () if kind == "default" else (f"rotary positions scaled by {kind} are left out of train.py: add them",)


def recognises(path: Path, text: str) -> bool:
    """Whether a file is a job.json whose settings are its own."""
    return path.name == job_files.JOB_FILE and any(f'"stack": "{name}"' in text for name in WORDS)


def job_of(settings: Settings, given: Given, assumed: list[str]) -> StackJob:
    """The job that a job.json states.

    Raises: InputError where it contradicts itself, or does not say enough.
    """
    path, name = settings.path, str(settings.take("stack"))
    if name not in WORDS:
        raise InputError(f"{path}: it is for {name}, whose configuration holds the plan: give that file")
    facts = read_facts(WORDS[name], settings, assumed)
    length, stated = settings.take("sequence_length", 0), settings.take("num_devices", 0)
    devices = devices_of(path, given, stated, 1, replicas_from(facts), assumed)
    batch = batch_of(facts, settings, ("--global-batch", MICRO, COUNT), devices, given, assumed)
    version = str(settings.take("version") or "")
    known = job_files.version_of(load_stack(name))
    if version not in ("", known):
        assumed.append(f"{name} {version} was not tried: read as {known}")
    return StackJob(
        stack=name,
        version=version,
        workload=job_files.known_model(path, given),
        plan=Plan(
            data_parallel=devices,
            micro_batch_size=batch.micro,
            num_microbatches=batch.count,
            precision=facts.get("precision", "fp32"),
            codec=facts.get("codec", "none"),
            recompute=facts.get("recompute", "none"),
        ),
        num_devices=devices,
        global_batch_size=batch.samples,
        sequence_length=job_files.known_length(path, given, length),
        attention_kernel=job_files.attention_of(given),
        unpriced=settings.take_known(UNPRICED),
        unread=settings.unread,
        assumed=tuple(assumed),
    )

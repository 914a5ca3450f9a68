"""Accelerate's YAML and transformers' TrainingArguments, each read as a job with the other beside it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from planner.plans import Plan
from planner.stacks import job_files
from planner.stacks.accelerate.export import ARGUMENTS, CONFIG
from planner.stacks.accelerate.words import (
    ARGUMENT_WORDS,
    ARGUMENTS_UNPRICED,
    BATCH,
    HYBRID,
    KIND,
    MIXED,
    PROCESSES,
    RESHARD,
    STACK,
    STRATEGY,
    YAML_UNPRICED,
    YAML_WORDS,
)
from planner.stacks.batches import batch_of, devices_of
from planner.stacks.deepspeed import reading as deepspeed
from planner.stacks.handover import Given, StackJob
from planner.stacks.said import Settings, from_yaml
from planner.stacks.words import Facts, read_facts
from profiles.errors import InputError
from profiles.inputs.foreign import read_text
from profiles.machines.stacks import load_stack

YAML_TITLE = "Accelerate's configuration (YAML)"
ARGUMENTS_TITLE = "transformers' TrainingArguments (JSON)"
DEEPSPEED_FILE = "deepspeed_config.deepspeed_config_file"
OTHERS = {
    "MEGATRON_LM": "give Megatron's own arguments", "TPU": "TPUs are not priced", "XLA": "TPUs are not priced",
}  # fmt: skip
# Optimizers by the name that a table of runs has for them.
OPTIMIZERS = {"sgd": "sgd", "adafactor": "adafactor", "adamw_8bit": "adam8bit", "adamw_bnb_8bit": "adam8bit",
              "paged_adamw_8bit": "adam8bit"}  # fmt: skip


def recognises_yaml(path: Path, text: str) -> bool:
    """Whether a file looks like Accelerate's configuration."""
    return path.suffix in (".yaml", ".yml") and f"{KIND}:" in text and "compute_environment" in text


def recognises_arguments(path: Path, text: str) -> bool:
    """Whether a file looks like TrainingArguments."""
    return path.suffix == ".json" and '"per_device_train_batch_size"' in text and '"log_history"' not in text


def read_config(path: Path, text: str, given: Given) -> StackJob:
    """The job of Accelerate's YAML; batches are from the TrainingArguments beside it.

    Raises: InputError where it contradicts itself, or does not say enough.
    """
    given, taken = job_files.beside(path, given)
    return job_of(from_yaml(path, text), _beside(path, ARGUMENTS, taken), given, taken)


def read_arguments(path: Path, text: str, given: Given) -> StackJob:
    """The job of TrainingArguments; how ranks share the work is from Accelerate's YAML beside them.

    Raises: InputError where they contradict themselves, or do not say enough.
    """
    given, taken = job_files.beside(path, given)
    return job_of(_beside(path, CONFIG, taken), from_yaml(path, text), given, taken)


def _beside(path: Path, name: str, taken: list[str]) -> Settings | None:
    other = path.parent / name
    if not other.is_file() or other == path:
        return None
    taken.append(f"{name} beside it was read as well")
    return from_yaml(other, read_text(other, "give a file that its own software reads"))


def job_of(config: Settings | None, arguments: Settings | None, given: Given, assumed: list[str]) -> StackJob:
    """The job that both state together.

    Raises: InputError.
    """
    facts = _config_facts(config, assumed) if config else {}
    if config and (facts.get("kind") == "deepspeed" or config.has("deepspeed_config")):
        return _with_deepspeed(config, facts, given, assumed)
    if arguments:
        facts = _joined(facts, config, arguments, assumed)
    settings = config or arguments
    assert settings is not None
    axes = _axes(facts, settings, given, assumed)
    batch = batch_of(facts, arguments or settings, BATCH, axes.data_parallel, given, assumed)
    if "precision" not in facts:
        assumed.append("computes in fp32: no setting says otherwise")
    assumed.append(f"the file names no version: read as {job_files.version_of(load_stack(STACK))}")
    unpriced = (*(config.take_known(YAML_UNPRICED) if config else ()),
                *(arguments.take_known(ARGUMENTS_UNPRICED) if arguments else ()))  # fmt: skip
    return StackJob(
        stack="fsdp" if facts.get("fsdp_version") == 1 else STACK,
        workload=job_files.known_model(settings.path, given),
        plan=_plan(axes, facts, batch.micro, batch.count),
        num_devices=axes.num_devices,
        global_batch_size=batch.samples,
        sequence_length=job_files.known_length(settings.path, given),
        attention_kernel=job_files.attention_of(given),
        cells=_cells(facts, arguments),
        unpriced=unpriced,
        unread=(*(config.unread if config else ()), *(arguments.unread if arguments else ())),
        assumed=tuple(assumed),
    )


def _config_facts(config: Settings, assumed: list[str]) -> Facts:
    kind = config.take(KIND)
    if kind in OTHERS:
        raise config.contradiction((KIND,), OTHERS[str(kind)])
    facts = read_facts(YAML_WORDS, config, assumed)
    is_sharded = facts.get("kind") == "fsdp"
    if is_sharded:
        facts.setdefault("zero_stage", 3)
        # The first version is meant where none is named.
        facts.setdefault("fsdp_version", 1)
    elif config.has("fsdp_config.fsdp_version") or config.has(STRATEGY):
        raise config.contradiction(
            (KIND, "fsdp_config.fsdp_version", STRATEGY), "only FSDP shards parameters: leave one of them out"
        )
    if facts.get("context_parallel", 1) > 1 and facts.get("ulysses", 1) > 1:
        keys = [key for key in config.names if key.endswith(("cp_size", "sp_size"))]
        raise config.contradiction(keys, "they exclude each other")
    if config.take(STRATEGY) in HYBRID or config.take(RESHARD) in HYBRID:
        facts["is_hybrid"] = True
    return facts


def _joined(facts: Facts, config: Settings | None, arguments: Settings, assumed: list[str]) -> Facts:
    own = read_facts(ARGUMENT_WORDS, arguments, assumed)
    if own.get("bf16") and own.get("fp16"):
        raise arguments.contradiction(("bf16", "fp16"), "only one precision can be enabled")
    precision = own.pop("bf16", None) or own.pop("fp16", None)
    if config and precision and facts.get("precision", "fp32") not in ("fp32", precision):
        named = f"{arguments.path}: {arguments.find(precision)}"
        raise InputError(f"{config.path}: {config.find(MIXED)} contradicts {named}: leave one of them out")
    joined = facts | own
    if precision:
        joined["precision"] = precision
    if own.get("recompute_replicas"):
        joined["recompute"] = "full"
    for key in ("deepspeed", "fsdp"):
        if arguments.take(key) and not config:
            assumed.append(f"{arguments.find(key)}: give accelerate.yaml beside it for how ranks share the work")
    return joined


def _axes(facts: Facts, settings: Settings, given: Given, assumed: list[str]) -> Plan:
    """The degrees of all axes.

    Raises: InputError where they are not those of the devices.
    """
    context = max(facts.get("context_parallel", 1), facts.get("ulysses", 1))
    tensor = facts.get("tensor_parallel", 1)
    axes = Plan(context_parallel=context, tensor_parallel=tensor)
    stated = (facts.get("replicas", 0) or 1) * facts.get("shards", 0) * context * tensor
    devices = devices_of(settings.path, given, facts.get("devices", 0) or stated, context * tensor, 0, assumed)
    data = job_files.replicas_of(settings.path, devices, axes)
    shards, replicas = facts.get("shards") or data, facts.get("replicas", 1)
    if facts.get("kind") == "fsdp" and not facts.get("shards") and replicas > 1:
        shards = data // replicas
    if facts.get("kind") == "fsdp" and facts.get("is_hybrid"):
        shards = max(1, data // facts.get("nodes", 1))
        assumed.append(f"HYBRID shards within a node, over {shards} ranks")
    if facts.get("kind") == "fsdp" and data % shards:
        raise InputError(f"{settings.path}: {shards} shards do not divide {data} replicas: correct the sizes")
    if facts.get("shards") and shards * replicas != data:
        keys = [key for key in settings.names if key.startswith("parallelism_config.")]
        raise settings.contradiction((*keys, PROCESSES), f"their product is not {devices} devices")
    hybrid = shards if 1 <= shards < data and context == 1 and facts.get("kind") == "fsdp" else 0
    return Plan(context_parallel=context, tensor_parallel=tensor, data_parallel=data, shard_degree=hybrid)


def _plan(axes: Plan, facts: Facts, micro: int, count: int) -> Plan:
    is_replicated = axes.data_parallel * axes.context_parallel > 1
    return replace(
        axes,
        micro_batch_size=micro,
        num_microbatches=count,
        zero_stage=facts.get("zero_stage", 0) if is_replicated and facts.get("kind") == "fsdp" else 0,
        shard_degree=axes.shard_degree,
        recompute=facts.get("recompute") or "none",
        offload=facts.get("offload") or "none",
        compiled=bool(facts.get("compiled")),
        precision=facts.get("precision", "fp32"),
    )


def _cells(facts: Facts, arguments: Settings | None) -> dict[str, str]:
    cells = {"parameter_offload": "yes"} if facts.get("offload") == "optimizer" else {}
    optimizer = arguments.take("optim") if arguments else None
    return cells | ({"optimizer": OPTIMIZERS[optimizer]} if optimizer in OPTIMIZERS else {})


def _with_deepspeed(config: Settings, facts: Facts, given: Given, assumed: list[str]) -> StackJob:
    """The job of a file that hands over to DeepSpeed: by its section, or by the file that it names beside it."""
    devices = devices_of(config.path, given, facts.get("devices", 0), 1, 0, assumed)
    given = replace(given, num_devices=devices)
    named = config.take(DEEPSPEED_FILE)
    if named is not None:
        other = config.path.parent / Path(str(named)).name
        text = read_text(other, f"{config.path} names it: put it beside that file")
        found = deepspeed.job_of(from_yaml(other, text), given, [])
        return replace(
            found,
            assumed=(*assumed, *found.assumed),
            unpriced=(*config.take_known(YAML_UNPRICED), *found.unpriced),
            unread=(*config.unread, *found.unread),
        )
    batch = batch_of(facts, config, BATCH, devices, given, assumed)
    plan = Plan(
        data_parallel=devices,
        zero_stage=facts.get("zero_stage", 2) if devices > 1 else 0,
        offload=facts.get("offload") or "none",
        micro_batch_size=batch.micro,
        num_microbatches=batch.count,
        precision=facts.get("precision", "fp32"),
    )
    offloads = config.take("deepspeed_config.offload_param_device") in ("cpu", "nvme")
    return StackJob(
        stack="deepspeed",
        workload=job_files.known_model(config.path, given),
        plan=plan,
        num_devices=devices,
        global_batch_size=batch.samples,
        sequence_length=job_files.known_length(config.path, given),
        cells={"parameter_offload": "yes"} if offloads else {},
        unpriced=config.take_known(YAML_UNPRICED),
        unread=config.unread,
        assumed=tuple(assumed),
    )

"""torchtitan's config functions, TOML files and launch scripts read as jobs."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import cast

from planner.plans import Plan, Recompute
from planner.schedules.registry import NONE
from planner.stacks import job_files
from planner.stacks.handover import Given, StackJob
from planner.stacks.said import Settings, from_toml
from planner.stacks.said_code import from_flags, from_python
from planner.stacks.torchtitan.batches import batch_of
from planner.stacks.torchtitan.words import (
    FIRST_FEWER,
    FLAVORS,
    LAST_FEWER,
    LAYERS_PER_STAGE,
    MODULES,
    RECOMPUTE_OPTION,
    SHARDS,
    SPLITS,
    STACK,
    STAGES,
    UNPRICED,
    WORDS,
    canonical,
)
from planner.stacks.words import Facts, read_facts
from profiles.errors import InputError
from profiles.library import load_sizes
from profiles.machines.stacks import load_stack
from profiles.models.profile import WorkloadSpec

TITLE = "torchtitan's config function (Python), TOML file or launch script"
SIGNS = {
    ".py": ("ParallelismConfig", "torchtitan"),
    ".toml": ("[parallelism]", "[experimental]", "data_parallel_shard_degree"),
    ".sh": ("--parallelism.", "--training.", "torchtitan"),
}
# What torchtitan takes where nothing is said.
USUAL_LENGTH = 2048
USUAL_FEWER = 1
BLOCK = re.compile(r"layers\.(\d+)")


def recognises(path: Path, text: str) -> bool:
    """Whether a file looks like torchtitan's."""
    return any(sign in text for sign in SIGNS.get(path.suffix, ()))


def read(path: Path, text: str, given: Given) -> StackJob:
    """The job of a config function, a TOML file or a launch script; nothing of it is executed.

    Raises: InputError where it contradicts itself, or does not say enough.
    """
    given, taken = job_files.beside(path, given)
    how = {".py": from_python, ".toml": from_toml}.get(path.suffix, from_flags)
    job = job_of(how(path, text, canonical), given, taken)
    # Versions that read TOML called scaled_dot_product_attention.
    return replace(job, attention_kernel=job.attention_kernel or "flash2") if path.suffix == ".toml" else job


def job_of(settings: Settings, given: Given, assumed: list[str], version: str = "") -> StackJob:
    """The job that settings of torchtitan state.

    Raises: InputError.
    """
    facts = read_facts(WORDS, settings, assumed)
    workload = _model(settings, given)
    blocks = job_files.blocks_of(workload)
    length = job_files.known_length(settings.path, given, _length(facts, given, assumed))
    devices = _devices(facts, settings, given)
    axes = _axes(facts, settings, devices)
    bounds = _bounds(facts, settings, blocks, axes)
    micro, count, passes = batch_of(facts, settings, axes, length, given, assumed)
    if not version:
        assumed.append(f"the file names no version: read as {job_files.version_of(load_stack(STACK))}")
    low = _is_low(facts, settings)
    return StackJob(
        stack=STACK,
        version=version,
        workload=workload,
        plan=replace(
            axes,
            micro_batch_size=micro,
            num_microbatches=count,
            stage_bounds=bounds,
            virtual_stages=len(bounds) // axes.pipeline_parallel,
            schedule=_schedule(facts, len(bounds) // axes.pipeline_parallel),
            zero_stage=_zero(facts, axes),
            recompute=cast(Recompute, _recompute(facts, settings, assumed)),
            compiled=bool(facts.get("compiled")),
            offload=facts.get("offload") or "none",
            precision="fp8" if low else facts.get("precision", "bf16"),
        ),
        num_devices=devices,
        global_batch_size=axes.data_parallel * micro * count,
        sequence_length=length,
        attention_kernel=facts.get("attention"),
        overlaps_tensor=facts.get("overlaps_tensor"),
        cells=_cells(facts, settings, passes),
        unpriced=settings.take_known(UNPRICED),
        unread=settings.unread,
        assumed=tuple(assumed),
    )


def _model(settings: Settings, given: Given) -> WorkloadSpec:
    """The model that is named, unless one is given.

    Raises: InputError where nobody says.
    """
    name = str(settings.take("model.name") or settings.take("module") or settings.take("MODULE") or "")
    flavor = str(settings.take("model.flavor") or settings.take("model_registry.0") or "")
    config = str(settings.take("config") or settings.take("CONFIG") or "")
    if not flavor and name and config.startswith(f"{name}_"):
        flavor = config[len(name) + 1 :]
    if given.workload is not None:
        return given.workload
    names = [known for (of, which), known in FLAVORS.items() if which == flavor.lower() and of in (name or "llama3")]
    sizes = load_sizes(names[0]) if names else None
    return sizes.workload if sizes else job_files.known_model(settings.path, given)


def _length(facts: Facts, given: Given, assumed: list[str]) -> int:
    stated = int(facts.get("sequence_length", 0))
    if not stated and not given.sequence_length:
        assumed.append(f"samples of {USUAL_LENGTH} tokens: torchtitan's default")
        return USUAL_LENGTH
    return stated


def _devices(facts: Facts, settings: Settings, given: Given) -> int:
    """Devices that are given, or that the degrees or the launch line amount to.

    Raises: InputError where nobody says.
    """
    per_node = settings.take("nproc_per_node") or settings.take("nproc-per-node") or settings.take("NGPU")
    nodes = settings.take("nnodes", 1)
    stated = per_node * nodes if isinstance(per_node, int) and isinstance(nodes, int) else 0
    shards = facts.get("shards", -1)
    product = facts.get("replicas", 1) * max(shards, 0)
    for axis in ("tensor_parallel", "context_parallel", "pipeline_parallel"):
        product *= facts.get(axis, 1)
    asked = job_files.asked_of(given).num_devices
    if asked and stated not in (0, asked):
        raise InputError(f"{settings.path}: it starts {stated} ranks, not --gpus {asked}: leave one of the two out")
    devices = asked or stated or product or given.num_devices
    if not devices:
        raise InputError(f"{settings.path}: it does not say how many devices it is for: give --gpus")
    return int(devices)


def _axes(facts: Facts, settings: Settings, devices: int) -> Plan:
    """The degrees of all axes.

    Raises: InputError where they are not those of the devices.
    """
    tensor = facts.get("tensor_parallel", 1)
    axes = Plan(
        tensor_parallel=tensor,
        context_parallel=facts.get("context_parallel", 1),
        pipeline_parallel=facts.get("pipeline_parallel", 1),
        expert_parallel=facts.get("expert_parallel", 1),
        sequence_parallel=tensor > 1 and facts.get("sequence_parallel", True),
        vocab_parallel=tensor > 1 and not facts.get("whole_loss"),
    )
    data = job_files.replicas_of(settings.path, devices, axes)
    replicas = facts.get("replicas", 1)
    shards = facts.get("shards", -1)
    shards = data // replicas if shards == -1 else shards
    if shards * replicas != data:
        raise settings.contradiction((SHARDS, STAGES), f"degrees of data parallelism do not make {data} replicas")
    is_hybrid = 1 < shards < data and axes.context_parallel == 1
    return replace(axes, data_parallel=data, shard_degree=shards if is_hybrid else 0)


def _zero(facts: Facts, axes: Plan) -> int:
    """ZeRO's stage: 3 where weights are given back after a forward pass, as they are without a pipeline."""
    replicas = facts.get("replicas", 1)
    is_whole = replicas == axes.data_parallel and axes.context_parallel == 1
    if is_whole or axes.data_parallel * axes.context_parallel == 1:
        return 0
    return int(facts.get("zero_stage") or (2 if axes.pipeline_parallel > 1 else 3))


def _bounds(facts: Facts, settings: Settings, blocks: int, axes: Plan) -> tuple[int, ...]:
    """The first layer of each stage: as modules are listed, or shared out as torchtitan does.

    Raises: InputError where they cannot be.
    """
    stages = axes.pipeline_parallel
    if stages == 1:
        return (0,)
    if "modules" in facts:
        return _listed(facts["modules"], settings, stages)
    if points := settings.take(SPLITS):
        named = points if isinstance(points, list) else str(points).split(",")
        return _listed([["layers.0"], *([str(point).strip()] for point in named)], settings, stages)
    fewer = [int(settings.take(key, USUAL_FEWER)) for key in (FIRST_FEWER, LAST_FEWER)]
    per_stage = settings.take(LAYERS_PER_STAGE)
    is_single = facts.get("schedule", "1f1b") in ("1f1b", "gpipe")
    count = -(-(blocks + sum(fewer)) // per_stage) if per_stage else stages * (1 if is_single else 2)
    if count % stages or count > blocks:
        raise settings.contradiction((STAGES, LAYERS_PER_STAGE), f"{blocks} blocks cannot be cut into {count} stages")
    whole = blocks + sum(fewer)
    counts = [whole // count + (stage < whole % count) for stage in range(count)]
    counts[0] -= fewer[0]
    counts[-1] -= fewer[1]
    starts = [sum(counts[:stage]) + 1 for stage in range(1, count)]
    return (0, *starts)


def _listed(modules: list[list[str]], settings: Settings, stages: int) -> tuple[int, ...]:
    firsts = []
    for names in modules:
        found = [int(match[1]) for name in names if (match := BLOCK.fullmatch(str(name)))]
        if not found:
            raise settings.contradiction((MODULES,), "stages without a block are not priced")
        firsts.append(min(found))
    if firsts != sorted(set(firsts)) or firsts[0] != 0 or len(firsts) % stages:
        raise settings.contradiction((MODULES, STAGES), "its blocks are out of order, or no whole number on each rank")
    return (0, *(first + 1 for first in firsts[1:]))


def _schedule(facts: Facts, chunks: int) -> str:
    if facts.get("pipeline_parallel", 1) == 1:
        return NONE
    return str(facts.get("schedule") or ("1f1b" if chunks == 1 else "interleaved-1f1b"))


def _recompute(facts: Facts, settings: Settings, assumed: list[str]) -> str:
    option = settings.take(RECOMPUTE_OPTION)
    if facts.get("recompute") == "selective" and option not in (None, "op"):
        assumed.append(f"{settings.find(RECOMPUTE_OPTION)}: recomputation of some blocks, read as of operators")
    if "recompute" not in facts:
        assumed.append("recomputation is selective by default")
    return str(facts.get("recompute", "selective"))


def _is_low(facts: Facts, settings: Settings) -> bool:
    converters = settings.take("model.converters") or []
    named = converters if isinstance(converters, list) else [converters]
    enabled = [settings.take(key) for key in ("float8.enable_float8_linear", "float8.enable_fsdp_float8_all_gather")]
    settings.take_known(("float8.*", "quantize.*"))
    return (
        bool(facts.get("fp8"))
        or "float8" in named
        or enabled[0] is True
        or settings.has("Float8LinearConverter.Config")
    )


def _cells(facts: Facts, settings: Settings, passes: int) -> dict[str, str]:
    cells = {"pipeline_passes_per_step": str(passes)} if passes > 1 else {}
    if facts.get("offload"):
        # Weights and gradients go there with the states.
        cells["parameter_offload"] = "yes"
    if facts.get("dtype") == "bf16":
        # Weights, gradients and moments are all as wide as what computes.
        cells |= {"master_weights": "no", "gradient_dtype": "bf16"}
    if facts.get("expert_tensor", 1) > 1:
        cells["etp"] = str(facts["expert_tensor"])
    if settings.has("ChunkedLossWrapper.Config") or settings.take("loss") == "ChunkedLossWrapper.Config":
        cells["fused_loss"] = "chunked"
    return cells

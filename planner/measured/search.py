"""Every legal plan for a model on a machine, priced and ranked; what is not legal is counted by its reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.legality import FSDP_CODECS
from planner.measured.estimate import Estimate, Pricing, estimate, pricing
from planner.measured.table import PlanTable, schedule_names
from planner.schedules.registry import NONE
from planner.space.layouts import divisors
from profiles.errors import InputError, UnknownNameError
from profiles.inputs import limits
from profiles.machines.profile import MachineProfile
from profiles.models.profile import ModelProfile


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """What the search may choose from."""

    num_devices: int
    global_batch_size: int
    sequence_length: int
    precisions: tuple[str, ...]
    codecs: tuple[str, ...] = ("none", "bf16", "powersgd-1", "powersgd-4")
    zero_stages: tuple[int, ...] = (0, 1, 2, 3)
    recompute: tuple[int, ...] = (0, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Degrees:
    """One way to spread the devices, and why it is not legal ("" where it is)."""

    data: int
    tensor: int
    pipeline: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Priced:
    """All legal plans of one precision with their price; `fits` tells which stay within memory."""

    shared: Pricing
    table: PlanTable
    estimate: Estimate
    fits: NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """The outcome: priced plans by precision, illegal degrees, and counts of all rejections by reason."""

    machine: MachineProfile
    model: ModelProfile
    choices: Choices
    priced: tuple[Priced, ...]
    illegal: tuple[Degrees, ...]
    rejected: dict[str, int]

    @property
    def num_legal(self) -> int:
        """Legal plans, whether they fit or not."""
        return sum(len(priced.table) for priced in self.priced)


def search(machine: MachineProfile, model: ModelProfile, choices: Choices) -> Search:
    """Enumerate and price every plan that `choices` allows.

    Raises: InputError where the sequence or the precision does not suit the model or the machine.
    """
    _check(machine, model, choices)
    degrees = list(_degrees(model, choices))
    legal = [item for item in degrees if not item.reason]
    rejected = Counter(item.reason for item in degrees if item.reason)
    priced = []
    for precision in choices.precisions:
        table, dropped = _enumerate(machine, choices, precision, legal)
        rejected.update(dropped)
        if len(table):
            shared = pricing(machine, model, table, choices.sequence_length)
            estimated = estimate(shared, table)
            fits = estimated.peak_bytes <= machine.memory_bytes
            rejected["does not fit in memory"] += int((~fits).sum())
            priced.append(Priced(shared=shared, table=table, estimate=estimated, fits=fits))
    return Search(
        machine=machine,
        model=model,
        choices=choices,
        priced=tuple(priced),
        illegal=tuple(item for item in degrees if item.reason),
        rejected={reason: count for reason, count in rejected.most_common() if count},
    )


def _check(machine: MachineProfile, model: ModelProfile, choices: Choices) -> None:
    limits.check("--gpus", choices.num_devices, 1, limits.DEVICES)
    limits.check("--global-batch", choices.global_batch_size, 1, limits.SAMPLES)
    longest = model.max_sequence_length
    if choices.sequence_length < 1 or (longest and choices.sequence_length > longest):
        raise InputError(
            f"--sequence-length {choices.sequence_length}: {model.name} takes 1 to {longest or 'any number of'} tokens"
        )
    for precision in choices.precisions:
        if precision not in model.layers:
            raise UnknownNameError("precision", precision, model.layers)
        if precision not in machine.peak_flops_per_second:
            raise InputError(
                f"machine {machine.name} has no measured rate for {precision}: profile it at that precision"
            )


def _degrees(model: ModelProfile, choices: Choices) -> Iterator[Degrees]:
    for tensor in divisors(choices.num_devices):
        for pipeline in divisors(choices.num_devices // tensor):
            data = choices.num_devices // tensor // pipeline
            reason = _illegal(model, choices, data, tensor, pipeline)
            yield Degrees(data=data, tensor=tensor, pipeline=pipeline, reason=reason)


def _illegal(model: ModelProfile, choices: Choices, data: int, tensor: int, pipeline: int) -> str:
    """The first rule that these degrees break, or ""."""
    if choices.global_batch_size % data:
        return f"global batch {choices.global_batch_size} is not divisible by data parallel {data}"
    if tensor > 1 and not model.can_tensor_parallel:
        return "no tensor-parallel split is known for this model"
    for what, size in (("heads", model.num_heads), ("kv-heads", model.num_kv_heads), ("ffn size", model.ffn_size)):
        if tensor > 1 and size % tensor:
            return f"{what} {size} not divisible by tensor parallel {tensor}"
    if pipeline > 1 and model.tied_embeddings:
        return "tied embedding and head would sit on different pipeline stages"
    if pipeline > 1 and not model.can_pipeline:
        return "the model is not a sequence of layers that can be cut into stages"
    if pipeline > model.num_layers:
        return f"fewer layers than {pipeline} pipeline stages"
    return ""


def _enumerate(
    machine: MachineProfile, choices: Choices, precision: str, legal: Sequence[Degrees]
) -> tuple[PlanTable, Counter[str]]:
    """All rows of legal degrees, and how many combinations were dropped for which reason."""
    rows: list[tuple[int, ...]] = []
    dropped: Counter[str] = Counter()
    for item in legal:
        if precision == "fp8" and item.tensor > 1:
            dropped["tensor parallel in fp8, which the executor does not run"] += 1
            continue
        local = choices.global_batch_size // item.data
        for micro_batch in divisors(local):
            count = local // micro_batch
            if item.pipeline > count:
                dropped["fewer micro-batches than pipeline stages"] += 1
                continue
            head = (item.data, item.tensor, item.pipeline, micro_batch, count)
            rows += [(*head, *tail) for tail in _variants(machine, choices, item)]
    columns = np.array(rows, dtype=np.int64).reshape(len(rows), 10).T
    names = (
        "data_parallel",
        "tensor_parallel",
        "pipeline_parallel",
        "micro_batch_size",
        "num_microbatches",
        "schedule",
        "zero_stage",
        "recompute",
        "codec",
        "axis_order",
    )
    table = PlanTable(**dict(zip(names, columns, strict=True)), codec_names=choices.codecs, precision=precision)
    return table, dropped


def _variants(machine: MachineProfile, choices: Choices, item: Degrees) -> Iterator[tuple[int, ...]]:
    """Schedule, ZeRO stage, recomputation, codec and axis order that make sense for these degrees."""
    schedules = [i for i, name in enumerate(schedule_names()) if (name == NONE) == (item.pipeline == 1)]
    several_nodes = choices.num_devices > machine.devices_per_node
    orders = (0, 1) if several_nodes and item.data > 1 and item.pipeline > 1 else (0,)
    for zero in choices.zero_stages if item.data > 1 else (0,):
        if zero >= 2 and item.pipeline > 1:
            continue  # every micro-batch would gather parameters or reduce gradients again
        known = choices.codecs if item.data > 1 and not zero else FSDP_CODECS if zero >= 2 else ("none",)
        codecs = [index for index, name in enumerate(choices.codecs) if name in known]
        for code in codecs:
            for schedule in schedules:
                for recompute in choices.recompute:
                    for order in orders:
                        yield schedule, zero, recompute, code, order

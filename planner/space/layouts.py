"""Every legal way to spread a job over its devices: degrees, sharding, offload and order of the axes, as columns.

Illegal degrees are never made; they are counted by the rule that they break.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields

import numpy as np
from numpy.typing import NDArray

from planner.cost.layers import SHARDED
from planner.legality import FSDP_CODECS
from planner.schedules.registry import SCHEDULES
from planner.space.question import Setting
from profiles.codecs.codec import codec
from profiles.errors import InputError
from profiles.machines.stacks import THIS_PROGRAM
from profiles.models.splitting import Splitting

Ints = NDArray[np.int64]
# As many take a gigabyte; 100,000 devices have a third of them at the most.
MOST_LAYOUTS = 2**22


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the search may choose from, beside the degrees. None of `shard_degrees` given means all that divide.

    `vocab_parallel` is whether tensor-parallel ranks also split embedding and head, or both ways. `as_stack_runs`:
    nothing that the stack has no words for. `short_pipelines`: also 1F1B of fewer micro-batches than stages.
    """

    zero_stages: tuple[int, ...] = (0, 1, 2, 3)
    recompute: tuple[str, ...] = ("none", "selective", "full")
    partial_recompute: bool = True
    schedules: tuple[str, ...] = field(default_factory=lambda: tuple(SCHEDULES))
    offload: tuple[str, ...] = ("none", "optimizer", "activations")
    shard_degrees: tuple[int, ...] = ()
    vocab_parallel: tuple[int, ...] = (1,)
    as_stack_runs: bool = False
    short_pipelines: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Layouts:
    """Shapes: one entry per layout. `data_outside` tells whether data parallelism, not the pipeline, is outermost.

    `shard` is over how many of the data- and context-parallel ranks ZeRO stage 3 shards, 1 for other stages;
    `expert` ranks share the experts. The first and the last stage have so many layers fewer than the others.
    """

    tensor: Ints
    sequence_parallel: Ints
    vocab_parallel: Ints
    context: Ints
    expert: Ints
    pipeline: Ints
    data: Ints
    zero_stage: Ints
    shard: Ints
    optimizer_offload: Ints
    activation_offload: Ints
    data_outside: Ints
    first_fewer: Ints
    last_fewer: Ints

    def __len__(self) -> int:
        return len(self.tensor)

    def row(self, index: int) -> dict[str, int]:
        """One layout by field."""
        return {field.name: int(getattr(self, field.name)[index]) for field in fields(self)}

    def take(self, index: NDArray[np.intp] | NDArray[np.bool_]) -> Layouts:
        """The layouts at `index`."""
        return Layouts(**{field.name: getattr(self, field.name)[index] for field in fields(self)})

    def micro_batches(self, global_batch_size: int) -> list[int]:
        """The sizes of a micro-batch that any of the layouts allows, ascending."""
        local = {global_batch_size // data for data in set(self.data.tolist())}
        return sorted({size for samples in local for size in divisors(samples)})


def divisors(number: int) -> list[int]:
    """All divisors, ascending."""
    small = [candidate for candidate in range(1, int(number**0.5) + 1) if number % candidate == 0]
    return small + [number // candidate for candidate in reversed(small) if candidate * candidate != number]


def legal_layouts(at: Setting, options: Options) -> tuple[Layouts, Counter[str]]:
    """All layouts of a setting, and how many degrees break which rule.

    Raises: InputError where there are more than can be held.
    """
    rows: list[tuple[int, ...]] = []
    broken: Counter[str] = Counter()
    for tensor, context, pipeline, data in _degrees(at):
        reason = illegal_degrees(at, tensor, context, pipeline, data)
        if reason:
            broken[reason] += 1
            continue
        tails = list(_variants(at, options, tensor, context, pipeline, data))
        for expert in _expert_degrees(at, data * context * tensor):
            head = (tensor, context, expert, pipeline, data)
            rows += [_columns(head, tail) for tail in tails]
        for expert in _task_degrees(at, tensor, context, pipeline, data):
            head = (tensor, context, expert, pipeline, data)
            rows += [_columns(head, tail) for tail in tails if _is_plain(tail)]
        if len(rows) > MOST_LAYOUTS:
            raise InputError(
                f"--gpus {at.num_devices} has more than {MOST_LAYOUTS:,} layouts: give a number with fewer divisors"
            )
    names = [field.name for field in fields(Layouts)]
    table = np.array(rows, dtype=np.int64).reshape(len(rows), len(names)).T
    return Layouts(**dict(zip(names, np.ascontiguousarray(table), strict=True))), broken


def _columns(head: tuple[int, ...], tail: tuple[int, ...]) -> tuple[int, ...]:
    tensor, context, expert, pipeline, data = head
    sequence_parallel, vocab_parallel, *rest = tail
    return (tensor, sequence_parallel, vocab_parallel, context, expert, pipeline, data, *rest)


def _is_plain(tail: tuple[int, ...]) -> bool:
    """Whether a variant neither shards nor offloads anything."""
    _, _, zero, _, optimizer, activations, *_ = tail
    return not (zero or optimizer or activations)


def _degrees(at: Setting) -> Iterator[tuple[int, int, int, int]]:
    for tensor in divisors(at.num_devices):
        for context in divisors(at.num_devices // tensor):
            rest = at.num_devices // tensor // context
            for pipeline in divisors(rest):
                yield tensor, context, pipeline, rest // pipeline


def illegal_degrees(at: Setting, tensor: int, context: int, pipeline: int, data: int) -> str:
    """The first rule that these degrees break, or ""."""
    model, traced = at.model.transformer, at.model.profile
    if traced is not None and tensor > 1 and not traced.can_tensor_parallel and not traced.num_experts:
        why = traced.splitting.refusal
        return f"no tensor-parallel split: {why}" if why else "no tensor-parallel split is known for this model"
    if traced is not None and pipeline > 1 and not traced.can_pipeline:
        why = traced.cutting.refusal
        return f"no stages: {why}" if why else "the model is not a sequence of layers that can be cut into stages"
    if context > 1 and not at.model.workload.reads_text:
        return "the model's attention, which context parallel splits, cannot be located"
    if traced is not None and traced.workload.task:
        why = _illegal_of_task(at, traced.splitting, tensor, pipeline)
        return why or _illegal_anyhow(at, tensor, context, pipeline, data)
    heads, kv_heads = int(model.num_heads[0]), int(model.num_kv_heads[0])
    widths = {"ffn size": int(model.ffn_size[0]), "shared ffn size": int(model.shared_ffn_size[0])}
    if heads % tensor:
        return "heads not divisible by tensor parallel"
    if kv_heads % tensor and tensor % kv_heads:
        return "kv heads not divisible by tensor parallel, nor the reverse"
    for what, width in widths.items():
        if width % tensor:
            return f"{what} not divisible by tensor parallel"
    if at.model.workload.reads_text and at.sequence_length % (context * tensor):
        return "sequence not divisible by context x tensor parallel"
    return _illegal_anyhow(at, tensor, context, pipeline, data)


def _illegal_of_task(at: Setting, splitting: Splitting, tensor: int, pipeline: int) -> str:
    """What is asked of the tensor degree of a task's module."""
    if tensor > 1 and tensor not in splitting.degrees:
        return "tensor parallel over more ranks than the model is known to split over"
    return "pipeline stages of a task cannot be tensor parallel" if tensor > 1 and pipeline > 1 else ""


def _illegal_anyhow(at: Setting, tensor: int, context: int, pipeline: int, data: int) -> str:
    """What is asked of the degrees of all models."""
    traced = at.model.profile
    if pipeline > at.model.num_layers:
        return "fewer layers than pipeline stages"
    if traced is not None and traced.cutting.positions and pipeline > len(traced.cutting.positions) + 1:
        return "fewer places to cut the model than pipeline stages"
    if at.global_batch_size % data:
        return "global batch not divisible by data parallel"
    if at.compresses and data * context == 1:
        return "no gradients between replicas that a codec could compress"
    if tensor > 1 and not at.free_exchange and codec(at.codec).gathered:
        return "tensor parallel with a codec whose messages mix whole gradients with parts"
    return ""


def _expert_degrees(at: Setting, ranks: int) -> Sequence[int]:
    experts = int(at.model.transformer.num_experts[0])
    return [1] if not experts else [degree for degree in divisors(experts) if ranks % degree == 0]


def _task_degrees(at: Setting, tensor: int, context: int, pipeline: int, data: int) -> Iterator[int]:
    """Over how many ranks a task's experts are shared out, beside plain data parallelism alone, as the executor has it.

    Other software has ways of its own, of which nothing is known here.
    """
    traced = at.model.profile
    is_plain = tensor == context == pipeline == 1 and at.stack.name == THIS_PROGRAM and at.codec == "none"
    if traced is not None and is_plain and at.precision != "fp8":
        yield from (degree for degree in traced.sharing.at(at.precision) if data % degree == 0)


def _variants(
    at: Setting, options: Options, tensor: int, context: int, pipeline: int, data: int
) -> Iterator[tuple[int, ...]]:
    """Sequence parallelism, sharding, offload, order and ends of the pipeline that make sense for these degrees."""
    data_outside = (0, 1) if pipeline > 1 and data > 1 and at.num_devices > at.fast_domain else (0,)
    # The memory of CPUs is the host's: there is nowhere to offload to.
    names = ("none",) if at.device_kind == "cpu" else options.offload
    offloads = [(int(name == "optimizer"), int(name == "activations")) for name in names]
    splits = list(itertools.product((0, 1), options.vocab_parallel)) if tensor > 1 else [(0, 0)]
    if not at.model.workload.reads_text:
        # Where its norms and its vocabulary are is not known.
        splits = [(0, 0)]
    for split in splits:
        for zero, shard in _shardings(at, options, data, context, pipeline):
            for offload in offloads:
                for outside in data_outside:
                    for ends in _ends(at.model.num_layers, pipeline):
                        yield (*split, zero, shard, *offload, outside, *ends)


def _shardings(at: Setting, options: Options, data: int, context: int, pipeline: int) -> Iterator[tuple[int, int]]:
    """ZeRO stage and shard degree: of stage 3 all replicas, or fewer of the data axis (HSDP).

    Stage 2 with a pipeline would reduce every micro-batch, where the software does not add gradients up whole: stage 1
    is as small. A codec works on whole gradients, but for those that FSDP has itself.
    """
    replicas = data * context
    adds_up = at.stack.memory.accumulates_whole
    for zero in options.zero_stages if replicas > 1 else (0,):
        if zero >= 2 and at.compresses and (at.free_exchange or at.codec not in FSDP_CODECS):
            continue
        if zero == 3:
            degrees = set(options.shard_degrees or divisors(data)) | {replicas}
            yield from (
                (3, shard) for shard in sorted(degrees) if shard > 1 and (shard == replicas or data % shard == 0)
            )
        elif zero != 2 or pipeline == 1 or adds_up:
            yield zero, 1


def _ends(num_layers: int, pipeline: int) -> Iterator[tuple[int, int]]:
    """How many layers fewer the first and the last stage have: none, or what makes the others even.

    Embedding and head take time as layers do. Where layers divide evenly, a whole round more is also shared out.
    """
    yield 0, 0
    missing = -num_layers % pipeline
    even = -(-num_layers // pipeline)
    if pipeline > 1 and missing and (missing + 1) // 2 < even:
        yield missing // 2, missing - missing // 2


def groups_of(layouts: Layouts) -> list[Ints]:
    """Layouts that share their variants and are alike in what blocks ask of the first of them."""
    keys = np.stack([layouts.pipeline, layouts.data, layouts.zero_stage == SHARDED, layouts.activation_offload], axis=1)
    _, inverse = np.unique(keys, axis=0, return_inverse=True)
    order = np.argsort(inverse.reshape(-1), kind="stable")
    ends = np.flatnonzero(np.diff(inverse.reshape(-1)[order])) + 1
    return np.split(order, ends)

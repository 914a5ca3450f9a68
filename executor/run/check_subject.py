"""What the check of a plan trains: fewer layers of the same kinds and widths, short samples, and weights that matter.

A trained model hangs on every token's place and on what it may attend to; small initial weights hardly do, and a fault
in either would drown in rounding. Layers of a known family are left out as far as the plan's stages allow; a user's own
module is checked whole.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor, nn

from executor.run.batches import Data, Text
from planner.plans import Plan, recomputable_layers
from planner.schedules.steps import Shape
from profiles.models.families import EXPERT_FAMILIES
from profiles.workloads.workload import Workload

# Blocks of a model that is not cut into stages, at least and at most: one of each kind.
LEAST_BLOCKS, MOST_BLOCKS = 2, 4
LEAST_TOKENS, MOST_SAMPLES, MANY_MICROBATCHES = 32, 2, 64
# Standard deviation of a product of normed inputs, and of what is added to norms and biases.
GAIN, NOISE = 1.5, 0.1
# Of a user's own module, whose attention may not be divided by anything.
OWN_GAIN = 0.7
# Of token embeddings that are a projection too, over the root of the width: so that logits stay moderate.
TIED_GAIN = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A plan and a model to check it on; `words` say how that differs from what is trained."""

    plan: Plan
    workload: Workload
    data: Data
    words: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EnlargedWorkload(Workload):
    """A workload whose initial weights are enlarged, the same on every rank."""

    def each(self, start: int, stop: int, seed: int) -> Iterator[nn.Module]:
        """Layers `start` to `stop` with their enlarged weights."""
        # Together, for a weight may be of two layers.
        layers = list(Workload.each(self, start, stop, seed))
        enlarge(nn.Sequential(*layers), start, GAIN if self.whole is None else OWN_GAIN)
        yield from layers


def subject_of(plan: Plan, workload: Workload, data: Data) -> Subject:
    """The plan and the model that it is checked on."""
    num_layers = len(workload.layers)
    kept = kept_layers(plan, workload)
    small, bounds = _fewer_layers(workload, kept), _bounds(plan, len(kept), num_layers)
    count = _num_microbatches(plan)
    size = min(plan.micro_batch_size, MOST_SAMPLES if plan.data_parallel * count <= MANY_MICROBATCHES else 1)
    reduced = replace(plan, stage_bounds=bounds, num_microbatches=count, micro_batch_size=size, recompute_layers=())
    if plan.recompute_layers:
        present = [len(recomputable_layers(reduced, stage, len(kept))) for stage in range(plan.num_stages)]
        counts = tuple(min(pair) for pair in zip(plan.recompute_layers, present, strict=True))
        reduced = replace(reduced, recompute_layers=counts)
    if isinstance(data, Text):
        data = replace(data, sequence_length=_num_tokens(plan, data.sequence_length))
    words = f"on {len(kept)} of {num_layers} layers" if len(kept) < num_layers else ""
    return Subject(plan=reduced, workload=enlarged(small), data=data, words=words)


def kept_layers(plan: Plan, workload: Workload) -> tuple[int, ...]:
    """Positions of the layers that are kept: both ends, and blocks of every kind, as many as the plan has stages."""
    last = len(workload.layers) - 1
    blocks = range(1, last)
    if workload.spec.kind != "transformers" or workload.task is not None:
        return tuple(range(last + 1))
    kinds: dict[object, int] = {}
    for position in blocks if workload.spec.config.get("model_type") in EXPERT_FAMILIES else ():
        kinds.setdefault(_kind(workload, position), position)
    first = sorted(kinds.values())[:MOST_BLOCKS]
    wanted = max(LEAST_BLOCKS, len(first), plan.num_stages)
    more = [position for position in blocks if position not in first][: wanted - len(first)]
    return (0, *sorted([*first, *more]), last)


def _kind(workload: Workload, position: int) -> object:
    with torch.device("meta"):
        layer = workload.build_layer(position)
    return tuple((name, tuple(parameter.shape)) for name, parameter in layer.named_parameters())


def _fewer_layers(workload: Workload, kept: tuple[int, ...]) -> Workload:
    return replace(workload, layers=tuple(workload.layers[position] for position in kept))


def _bounds(plan: Plan, num_kept: int, num_layers: int) -> tuple[int, ...]:
    """Where stages begin: as planned where all layers are kept, else one block each, the rest with the last."""
    stages = plan.num_stages
    if num_kept == num_layers or stages == 1:
        return plan.stage_bounds
    return (0, *range(2, stages + 1))


def _num_microbatches(plan: Plan) -> int:
    """Two where gradients are added up; twice as many as stages through a pipeline, if its schedule takes that."""
    wanted = 2 * plan.num_stages if plan.pipeline_parallel > 1 else 2
    for count in range(min(wanted, plan.num_microbatches), plan.num_microbatches):
        if plan.rules.counts.allows(Shape(plan.schedule, plan.pipeline_parallel, plan.virtual_stages, count)):
            return count
    return plan.num_microbatches


def _num_tokens(plan: Plan, sequence_length: int) -> int:
    """Tokens of a sample: few, but as many pieces as the plan cuts them into."""
    pieces = plan.tensor_parallel * plan.context_parallel
    return min(sequence_length, -(-LEAST_TOKENS // pieces) * pieces)


def enlarged(workload: Workload) -> Workload:
    """The workload with enlarged weights."""
    if workload.task is None:
        own = {field.name: getattr(workload, field.name) for field in fields(Workload)}
        return EnlargedWorkload(**own)
    build = workload.task.build

    def built() -> nn.Module:
        module = build()
        enlarge(module, 0, OWN_GAIN)
        return module

    return replace(workload, task=replace(workload.task, build=built, skeleton=None))


@torch.no_grad()
def enlarge(module: nn.Module, first: int, gain: float) -> None:
    """Give matrices products of deviation `gain` where theirs is less, and norms and biases some noise.

    `first` is the position of the module's first layer: what is added depends on global names alone.
    """
    owners: dict[nn.Parameter, list[nn.Module]] = {}
    for part in module.modules():
        for parameter in part.parameters(recurse=False):
            owners.setdefault(parameter, []).append(part)
    for path, parameter in module.named_parameters():
        if not parameter.is_floating_point() or parameter.dim() == 0:
            continue
        generator = torch.Generator().manual_seed(_seed(path, first))
        if parameter.dim() == 1:
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter), alpha=NOISE)
            continue
        wanted, found = _deviation(parameter, owners[parameter], gain), float(parameter.square().mean().sqrt())
        if found == 0.0:
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter), alpha=wanted)
        elif found < wanted:
            parameter.mul_(wanted / found)


def _seed(path: str, first: int) -> int:
    position, _, rest = path.partition(".")
    name = f"{first + int(position)}.{rest}" if position.isdigit() else path
    return zlib.crc32(name.encode())


def _deviation(parameter: Tensor, owners: list[nn.Module], gain: float) -> float:
    """What the weights of a matrix deviate by, for its products to deviate by `gain`."""
    if any(isinstance(owner, nn.Embedding) for owner in owners):
        is_tied = len(owners) > 1
        return TIED_GAIN / float(parameter.shape[-1]) ** 0.5 if is_tied else 1.0
    is_kernel = any(isinstance(owner, nn.modules.conv._ConvNd) for owner in owners)
    inputs = parameter.numel() // parameter.shape[0] if is_kernel else parameter.shape[-1]
    return float(gain / inputs**0.5)

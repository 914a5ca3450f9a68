"""Times a workload's real layers, forward and backward apart, as one micro-batch of a training step runs them.

Layers are timed in context: all distinct ones in turns and a repeated one as a chain of several instances, so that
weights are no hotter in the caches than in training. Gradients accumulate into existing ones, as they do for every
micro-batch but the first and, in DDP's buckets, for that one too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import torch
from torch import Tensor, nn

from profiles.machines.profile import LayerTiming
from profiles.measure.timing import Action, Bench
from profiles.models.layer_profile import LayerProfile
from profiles.models.operators import PHASES, evaluate
from profiles.models.profile import ModelProfile
from profiles.workloads.blocks import shrink_to_shard
from profiles.workloads.foreign_code import calling_foreign_code
from profiles.workloads.loading import load_workload
from profiles.workloads.precision import computing, lower
from profiles.workloads.workload import Workload

LONGEST_CHAIN = 4
# A layer's time is used as it is, so it is worth waiting for a calm moment.
PATIENCE_SECONDS = 1.0
# But not for one that is no part of a step to speak of, as an embedding.
SMALL_SHARE = 0.01
# What a rank's memory may be filled to by a chain, or a task's module, and its activations.
MEMORY_FRACTION = 0.6


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One setting in which all distinct layers are timed."""

    precision: str
    micro_batch_size: int
    sequence_length: int
    tensor_parallel: int

    @property
    def size(self) -> tuple[int, int, int]:
        """What the sizes of a LayerProfile are functions of."""
        return self.micro_batch_size, self.sequence_length, self.tensor_parallel


@dataclass(slots=True, kw_only=True)
class Segment:
    """A chain of instances of one layer with the input it gets; the last forward's output waits for its backward."""

    modules: list[nn.Module]
    value: Tensor
    target: Tensor | None
    loss: Callable[[Tensor, Tensor], Tensor]
    precision: str
    output: Tensor = field(init=False)
    gradient: Tensor = field(init=False)

    def forward(self) -> None:
        """Run the chain and, in the last layer, the loss."""
        value = self.value
        with computing(self.precision, value.device.type):
            for module in self.modules:
                value = module(value)
            self.output = value if self.target is None else self.loss(value, self.target)

    def infer(self) -> None:
        """Run the chain with nothing kept, and no loss."""
        value = self.value.detach()
        with torch.inference_mode(), computing(self.precision, value.device.type):
            for module in self.modules:
                value = module(value)

    def backward(self) -> None:
        """Run the chain backward from a gradient that was made before."""
        self.output.backward(self.gradient)


def measure_layers(
    bench: Bench,
    models: Sequence[ModelProfile],
    cases: Sequence[Case],
    memory_bytes: float,
    seconds: float,
    on_case: Callable[[float], None] = lambda _: None,
    trusted: Sequence[str] = (),
) -> tuple[list[LayerTiming], int]:
    """Timings of every distinct layer in every case, and how many cases were left out: by memory, or past `seconds`.

    `on_case` hears the fraction done; modules of users are imported where they are `trusted`.
    """
    bench = replace(bench, max_calls=1, patience_seconds=PATIENCE_SECONDS, small_share=SMALL_SHARE)
    timings: list[LayerTiming] = []
    left_out = 0
    spent = 0.0
    # The layers of a user's own module are not built one by one.
    for number, model in enumerate(model for model in models if not model.workload.task):
        workload = load_workload(model.workload, trusted)
        for position, case in enumerate(cases):
            on_case((number + position / len(cases)) / len(models))
            if not _can_split(workload, case) or case.precision not in model.layers:
                continue
            if _needed_bytes(model, case) > MEMORY_FRACTION * memory_bytes or spent > seconds:
                left_out += 1
                continue
            with calling_foreign_code(workload.spec, f"{workload.spec.title} does not run"):
                found, taken = _time_case(bench, workload, model, case)
            timings += found
            spent += taken
    return timings, left_out


def _time_case(bench: Bench, workload: Workload, model: ModelProfile, case: Case) -> tuple[list[LayerTiming], float]:
    layers = model.layers[case.precision]
    segments = list(_segments(workload, model, case, bench.device))
    actions: list[Action] = [segment.forward for segment in segments]
    actions += [segment.backward for segment in reversed(segments)]
    # An answer to one question is what inference is timed for; linears in fp8 are for training alone.
    asks = case.micro_batch_size == case.tensor_parallel == 1 and case.precision != "fp8"
    alone = [timing.seconds for timing in bench.time([segment.infer for segment in segments])] if asks else []
    times = bench.time(actions)
    found = [
        LayerTiming(
            workload=workload.spec.digest,
            layer=layer.name,
            precision=case.precision,
            micro_batch_size=case.micro_batch_size,
            sequence_length=case.sequence_length,
            tensor_parallel=case.tensor_parallel,
            forward_seconds=forward.seconds / len(segment.modules),
            backward_seconds=backward.seconds / len(segment.modules),
            spread_fraction=max(forward.spread_fraction, backward.spread_fraction),
            inference_seconds=inferred / len(segment.modules),
        )
        for layer, segment, forward, backward, inferred in zip(
            layers, segments, times, reversed(times), alone or [0.0] * len(segments), strict=False
        )
    ]
    return found, sum(time.seconds for time in times) * 2 * bench.repeats


def _segments(workload: Workload, model: ModelProfile, case: Case, device: torch.device) -> Iterator[Segment]:
    """A segment per distinct layer, each fed with what the layer before it gives."""
    outputs: dict[int, Tensor] = {-1: workload.example_input(case.micro_batch_size, case.sequence_length).to(device)}
    structure = (-1, *model.structure)
    for index in range(len(model.layers[case.precision])):
        position = model.structure.index(index)
        is_last = position == model.num_layers - 1
        repeats = any(pair == (index, index) for pair in pairwise(structure))
        count = min(LONGEST_CHAIN, model.structure.count(index)) if repeats else 1
        value = outputs[structure[position]].detach().clone()
        segment = Segment(
            modules=[_module(workload, position, case).to(device) for _ in range(count)],
            value=value.requires_grad_(value.is_floating_point()),
            target=workload.example_targets(outputs[-1]) if is_last else None,
            loss=workload.loss,
            precision=case.precision,
        )
        segment.forward()
        segment.gradient = torch.ones_like(segment.output)
        outputs[index] = segment.output.detach()
        yield segment


def _module(workload: Workload, position: int, case: Case) -> nn.Module:
    layer = shrink_to_shard(workload.build_layer(position), workload.layers[position].styles, case.tensor_parallel)
    return lower(layer, case.precision, position == len(workload.layers) - 1)


def _can_split(workload: Workload, case: Case) -> bool:
    degree = case.tensor_parallel
    if case.precision == "fp8" and degree > 1:
        return False
    splits = workload.can_tensor_parallel and workload.num_heads % degree == 0 and workload.num_kv_heads % degree == 0
    return degree == 1 or splits


def _needed_bytes(model: ModelProfile, case: Case) -> float:
    """Bytes of all chains at once: parameters and gradients, and what forward leaves for backward."""

    def of_layer(index: int, layer: LayerProfile) -> float:
        kept = 8.0 * evaluate(layer.num_parameters, *case.size) + evaluate(layer.saved_bytes, *case.size)
        return min(LONGEST_CHAIN, model.structure.count(index)) * float(kept)

    layers = model.layers[case.precision]
    peak = max(
        float(evaluate(getattr(layer, f"{phase}_peak_bytes"), *case.size)) for layer in layers for phase in PHASES
    )
    return sum(of_layer(index, layer) for index, layer in enumerate(layers)) + peak

"""Times a task's own module, whole, and tells its segments apart: what runs before the blocks, each of them, the rest.

Segments are those that tracing cuts. Forward passes are cut where blocks begin and end; of backward passes each moment
belongs to the segment whose output's gradient came last. Gradients add up in those that are there, as they do in the
buckets of DDP, so that what runs is what a training step runs, as warm or cold in the caches.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from profiles.machines.profile import LayerTiming
from profiles.measure.layers import MEMORY_FRACTION
from profiles.measure.timing import FEWEST_OWN, OWN_FRACTION, Bench
from profiles.models.operators import PHASES, evaluate
from profiles.models.profile import ModelProfile
from profiles.workloads.foreign_code import calling_foreign_code
from profiles.workloads.precision import computing
from profiles.workloads.repeated_blocks import repeated_blocks
from profiles.workloads.task import Batch, Task
from profiles.workloads.task_loading import load_task

SEED = 1
# Bytes of a parameter and of its gradient.
HELD_BYTES = 8.0

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskCase:
    """One setting in which a module is timed."""

    precision: str
    micro_batch_size: int


@dataclass(slots=True, kw_only=True)
class SegmentClock:
    """Seconds of each segment of one pass forward and backward, in the order in which the segments run."""

    blocks: Sequence[nn.Module]
    synchronise: Callable[[], object] = lambda: None
    clock: Callable[[], float] = time.perf_counter
    seconds: dict[str, list[float]] = field(default_factory=dict)
    _depth: int = 0
    _place: int = 0
    _phase: str = PHASES[0]
    _mark: float = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Watch the blocks of one pass."""
        handles: list[Any] = []
        for block in self.blocks:
            handles.append(block.register_forward_pre_hook(self._enter, with_kwargs=True))
            handles.append(block.register_forward_hook(self._leave))
        self._depth = self._place = 0
        self.seconds = {PHASES[0]: [0.0], PHASES[1]: [0.0]}
        self._phase = PHASES[0]
        self._now()
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def turn(self) -> None:
        """The forward pass is over, and the backward pass begins."""
        self._note()
        self._phase = PHASES[1]

    def stop(self) -> None:
        """The backward pass is over."""
        self._note()

    def _now(self) -> None:
        self.synchronise()
        self._mark = self.clock()

    def _note(self) -> None:
        """Give the time since the last mark to the segment at work."""
        before = self._mark
        self._now()
        self.seconds[self._phase][self._place] += self._mark - before

    def _enter(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._depth += 1
        if self._phase == PHASES[0] and self._depth == 1 and self._place == 0:
            self._cut((args, kwargs))

    def _leave(self, block: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._depth -= 1
        if self._phase == PHASES[0] and self._depth == 0:
            self._cut(output)

    def _cut(self, made: Any) -> None:
        """End a segment that made some tensors: when a gradient comes for one of them, its backward begins."""
        own = self._place

        def begin(gradient: Tensor) -> None:
            # Where several come, later ones of a segment that is over do not bring it back.
            if self._phase == PHASES[1] and own < self._place:
                self._note()
                self._place = own

        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor) and leaf.requires_grad:
                leaf.register_hook(begin)
        self._note()
        self._place += 1
        for times in self.seconds.values():
            times.append(0.0)


@dataclass(slots=True, kw_only=True)
class Pass:
    """A module with a batch, which goes forward and backward once at a call."""

    task: Task
    module: nn.Module
    batch: Batch
    precision: str
    clock: SegmentClock

    def __call__(self) -> None:
        """Go forward and backward."""
        first = next(self.module.parameters())
        with self.clock.running():
            with computing(self.precision, first.device.type):
                loss = self.task.loss(self.module, self.batch)
            self.clock.turn()
            loss.backward()
            self.clock.stop()

    @property
    def seconds(self) -> list[float]:
        """Of the last call: forward of all segments, then backward of all."""
        return [second for phase in PHASES for second in self.clock.seconds[phase]]


def measure_task_layers(
    bench: Bench,
    models: Sequence[ModelProfile],
    cases: Sequence[TaskCase],
    memory_bytes: float,
    seconds: float,
    on_case: Callable[[float], None] = lambda _: None,
    trusted: Sequence[str] = (),
) -> tuple[list[LayerTiming], int]:
    """Timings of every distinct layer of tasks in every case, and how many cases were left out, for memory or time.

    Samples have the size that is usual for the model. Each model may take so many `seconds`.
    """
    timings: list[LayerTiming] = []
    left_out = 0
    tasks = [model for model in models if model.workload.task]
    for number, model in enumerate(tasks):
        spent = 0.0
        size = model.usual_size
        with calling_foreign_code(model.workload, f"{model.workload.title} does not run"):
            task = load_task(model.workload, trusted, size=size)
            module = _module(task, bench.device)
        for position, case in enumerate(cases):
            on_case((number + position / len(cases)) / len(tasks))
            if case.precision not in model.layers:
                continue
            needed = _needed_bytes(model, case)
            if needed > MEMORY_FRACTION * memory_bytes or spent > seconds:
                left_out += 1
                continue
            start = time.perf_counter()
            found = _time_case(bench, task, module, model, case)
            left_out += not found
            timings += found
            (spent,) = bench.peers.largest([spent + time.perf_counter() - start])
    return timings, left_out


def _module(task: Task, device: torch.device) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return task.build().train().to(device)


def _time_case(bench: Bench, task: Task, module: nn.Module, model: ModelProfile, case: TaskCase) -> list[LayerTiming]:
    """Timings of the layers, none where the module's blocks are not those of its trace."""
    with calling_foreign_code(model.workload, f"{model.workload.title} does not run"):
        batch = task.collate(task.batches(bench.peers.rank, case.micro_batch_size)[: case.micro_batch_size])
        step = Pass(
            task=task,
            module=module,
            batch=tree_map(lambda leaf: leaf.to(bench.device) if isinstance(leaf, Tensor) else leaf, batch),
            precision=case.precision,
            clock=SegmentClock(
                blocks=tuple(repeated_blocks(module).values()),
                synchronise=torch.cuda.synchronize if bench.device.type == "cuda" else lambda: None,
            ),
        )
        times, spread = _medians(bench, step)
    count = model.num_layers
    if len(times) != 2 * count:
        return []
    structure = np.array(model.structure)
    return [
        LayerTiming(
            workload=model.workload.digest,
            layer=layer.name,
            precision=case.precision,
            micro_batch_size=case.micro_batch_size,
            sequence_length=max(1, model.usual_size),
            tensor_parallel=1,
            forward_seconds=max(float(times[:count][structure == index].mean()), 1e-9),
            backward_seconds=float(times[count:][structure == index].mean()),
            spread_fraction=spread,
        )
        for index, layer in enumerate(model.layers[case.precision])
    ]


def _medians(bench: Bench, step: Pass) -> tuple[Array, float]:
    """Seconds of each segment forward and backward on the rank that takes longest, and the spread of the whole.

    Model: a segment has its mean share of the passes, whose median counts.
    """
    # The first makes the gradients; the second adds to them.
    for _ in range(2):
        step()
    rows: list[list[float]] = []
    own: list[float] = []
    for _ in range(bench.repeats):
        bench.peers.meet()
        reading = bench.timer.read(step)
        rows.append(step.seconds)
        own.append(reading.own_fraction)
    kept = [row for row, share in zip(rows, own, strict=True) if share > OWN_FRACTION]
    chosen = np.array(kept if bench.has_own_core and len(kept) >= FEWEST_OWN else rows)
    totals = chosen.sum(axis=1)
    low, median, high = np.percentile(totals, (25, 50, 75))
    shares = (chosen / totals[:, None]).mean(axis=0)
    everyone = bench.peers.gather([*(median * shares), (high - low) / median])
    slowest = int(everyone[:, :-1].sum(axis=1).argmax())
    return everyone[slowest, :-1], float(everyone[slowest, -1])


def _needed_bytes(model: ModelProfile, case: TaskCase) -> float:
    """Bytes of a module with its gradients, and of what a pass holds at its worst."""
    at = (case.micro_batch_size, max(1, model.usual_size), 1)
    layers = list(model.each_layer(case.precision))
    saved = sum(float(evaluate(layer.saved_bytes, *at)) for layer in layers)
    peak = max(float(evaluate(getattr(layer, f"{phase}_peak_bytes"), *at)) for layer in layers for phase in PHASES)
    return HELD_BYTES * model.num_parameters + saved + peak

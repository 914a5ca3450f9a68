"""Records what a module does: its kernels, the storages they make, and how long those live.

Nothing here knows of micro-batches or degrees: a recording holds plain numbers. `trace` and `task_trace`, beside,
compare recordings of several sizes and turn the numbers into polynomials. Fake tensors are enough, real ones will do.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from profiles.models.operators import ATTENTION_FLOPS, Kind, Phase
from profiles.tracing.kernel_kinds import classify
from profiles.tracing.storages import UNNUMBERED, Storages, size_of, tensors_in
from profiles.workloads.fake_tensors import storage_of
from profiles.workloads.repeats import watched_by

DTYPES = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float8_e4m3fn: "fp8",
    torch.float8_e5m2: "fp8",
}
INPUT = -1
LOOKUPS = ("embedding", "nll_loss_forward")
ONCE = (0, 1)
ALLOCATIONS = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")


@dataclass(slots=True)
class RecordedOperator:
    """One kernel call with plain numbers; `outputs` are the indices of the storages it made, in one `segment`.

    `repeated` is the stretch that it was noted in, and for how many it stands there.
    """

    name: str
    kind: Kind
    phase: Phase
    path: str
    dtype: str
    layout: str
    dims: tuple[int, ...]
    read_bytes: int
    written_bytes: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    segment: int = 0
    repeated: tuple[int, int] = ONCE

    @property
    def flops(self) -> int:
        """Multiply-adds of products, counted twice."""
        per_place = {"matmul": 2, "attention": int(ATTENTION_FLOPS[self.phase])}.get(self.kind, 0)
        return per_place * math.prod(self.dims)

    @property
    def signature(self) -> tuple[str, ...]:
        """What must be equal in recordings of different sizes."""
        return (self.name, self.kind, self.phase, self.path, self.dtype, self.layout)


@dataclass(slots=True)
class Recording:
    """Everything seen while a module ran; storages are numbered in the order of their making.

    A layer's input is 0. A module may be cut into segments: `saved` gives for each storage that backward needs the one
    that saved it first, `peaks` are the most that lives in each beside what others saved. `copies` are how many a
    storage stands for, where those are several.
    """

    operators: list[RecordedOperator] = field(default_factory=list)
    storage_bytes: list[int] = field(default_factory=list)
    copies: dict[int, int] = field(default_factory=dict)
    saved: dict[int, int] = field(default_factory=dict)
    peaks: dict[tuple[int, Phase], tuple[int, frozenset[int]]] = field(default_factory=dict)
    linears: list[tuple[str, int, int]] = field(default_factory=list)
    adopted: list[int] = field(default_factory=list)

    def bytes_of(self, index: int) -> int:
        """Bytes of a storage and of all that it stands for."""
        return self.storage_bytes[index] * self.copies.get(index, 1)


class Recorder(TorchDispatchMode):
    """A dispatch mode that fills a Recording; views are not kernels and are left out."""

    def __init__(self, module: nn.Module, products: str = "fp32") -> None:
        """Record `module`, whose products of fp32 numbers are computed in the precision `products`."""
        super().__init__()
        self._products = products
        self.recording = Recording()
        self.phase: Phase = "forward"
        self.segment = 0
        self._module = module
        self._path = ""
        self._permanent = {storage_of(tensor) for tensor in (*module.parameters(), *module.buffers())}
        self._producer: dict[int, int] = {}
        self._storages = Storages()
        self.recording.storage_bytes, self.recording.copies = self._storages.num_bytes, self._storages.copies
        self._repeated, self._stretches, self._first_repeated = ONCE, 0, 0

    def adopt(self, tensor: Tensor) -> None:
        """Count a tensor made elsewhere (the layer's input, the incoming gradient) among the layer's storages."""
        self.recording.adopted.append(self._storages.number(tensor))
        self._note_peak()

    def forget(self, tensors: Iterable[Tensor | None]) -> None:
        """Leave out storages that other accounts hold (the parameters' gradients)."""
        gone = {self._storages.living(tensor) for tensor in tensors if tensor is not None}
        for place, (_, members) in self.recording.peaks.items():
            kept = members - gone
            self.recording.peaks[place] = (sum(map(self.recording.bytes_of, kept)), kept)

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Record kernels, module paths and what autograd saves, inside the block."""
        handles = [hook for name, child in self._module.named_modules() for hook in self._path_hooks(name, child)]
        with watched_by(self), torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor), self:
            try:
                yield
            finally:
                for handle in handles:
                    handle.remove()
        if self._stretches:
            self.recording.operators = _written_out(self.recording.operators)

    def begin_repeated(self, count: int, *_: Any) -> None:
        """From now on each kernel stands for `count` of them, and so does what it makes and what outlives it."""
        if self._repeated == ONCE:
            self._stretches += 1
            self._repeated, self._first_repeated = (self._stretches, count), len(self._storages.num_bytes)

    def end_repeated(self, given: Sequence[Tensor], made: Sequence[Tensor]) -> None:
        """Until here; on the way back, from what was `made` to what was `given`, kernels will stand for many again."""
        ends = {tensor.grad_fn for tensor in given if tensor.grad_fn is not None}
        count, waiting, seen = self._repeated[1], [tensor.grad_fn for tensor in made], set(ends)
        while waiting:
            node = waiting.pop()
            if node is not None and node not in seen:
                seen.add(node)
                node.register_prehook(functools.partial(self.begin_repeated, count))
                waiting.extend(after for after, _ in node.next_functions)
        for node in ends:
            node.register_prehook(self._stop_repeating)
        self._stop_repeating()

    def _stop_repeating(self, *_: Any) -> None:
        if self._repeated != ONCE:
            self._storages.multiply(self._first_repeated, self._repeated[1])
            self._repeated = ONCE
            self._note_peak()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run `func` and record it."""
        if any(hasattr(kind, "__tensor_flatten__") for kind in types):
            # A wrapper, such as torchao's numbers with their scale, goes first; its own kernels come back here.
            return NotImplemented
        if func.namespace != "aten":
            return func(*args, **(kwargs or {}))
        result = self._call(func, args, kwargs or {})
        inputs, outputs = tensors_in((args, kwargs)), tensors_in(result)
        known = {storage_of(tensor) for tensor in inputs}
        made = [tensor for tensor in outputs if storage_of(tensor) not in known]
        if made or func._schema.is_mutable:
            self._record(func, args, inputs, outputs, made)
            self._note_peak()
        return result

    def _call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return func(*args, **kwargs)

    def _record(
        self, func: Any, args: tuple[Any, ...], inputs: list[Tensor], outputs: list[Tensor], made: list[Tensor]
    ) -> None:
        name = func.overloadpacket.__name__
        indices = tuple(self._storages.number(tensor) for tensor in made)
        if name in ALLOCATIONS:
            return
        sources = {self._producer.get(self._storages.living(tensor), INPUT) for tensor in inputs} - {INPUT}
        for tensor in outputs:
            self._producer[self._storages.living(tensor)] = len(self.recording.operators)
        self._producer.pop(UNNUMBERED, None)  # parameters and buffers: no kernel of the layer makes them
        kind, layout, dims = classify(name, args, outputs)
        written = sum(map(size_of, made or outputs))
        read = sum(map(size_of, inputs))
        if name in LOOKUPS:  # reads the rows it returns, not the table
            read += written - max(map(size_of, inputs))
        self.recording.operators.append(
            RecordedOperator(
                name=name,
                kind=kind,
                phase=self.phase,
                path=self._path,
                dtype=self._precision(kind, inputs, outputs),
                layout=layout,
                dims=dims,
                read_bytes=read,
                written_bytes=written,
                inputs=tuple(sorted(sources)),
                outputs=indices,
                segment=self.segment,
                repeated=self._repeated,
            )
        )

    def _precision(self, kind: Kind, inputs: list[Tensor], outputs: list[Tensor]) -> str:
        if not outputs:
            return "other"
        name = DTYPES.get((outputs if kind == "memory" else inputs)[0].dtype, "other")
        return self._products if (kind, name) == ("matmul", "fp32") else name

    def _note_peak(self) -> None:
        place, live = (self.segment, self.phase), self._storages.live_bytes(self.segment)
        if live > self.recording.peaks.get(place, (-1, frozenset()))[0]:
            self.recording.peaks[place] = (live, self._storages.live(self.segment))

    def _pack(self, tensor: Tensor) -> Tensor:
        if self.phase == "forward" and storage_of(tensor) not in self._permanent:
            number = self._storages.number(tensor)
            if number not in self.recording.saved:
                self.recording.saved[number] = self.segment
                self._storages.save(number, self.segment)
        return tensor

    def _path_hooks(self, name: str, child: nn.Module) -> list[torch.utils.hooks.RemovableHandle]:
        def enter(_: nn.Module, __: Any) -> None:
            self._path = name

        def leave(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            self._path = name.rpartition(".")[0]
            if isinstance(child, nn.Linear) and inputs and isinstance(output, Tensor):
                self.recording.linears.append((name, size_of(inputs[0]), size_of(output)))

        return [child.register_forward_pre_hook(enter), child.register_forward_hook(leave)]


def _written_out(operators: Sequence[RecordedOperator]) -> list[RecordedOperator]:
    """All kernels, each stretch of those that stand for many as often as it runs.

    A copy reads what the copy of the same number made, the first of a backward pass what the last of a forward pass
    did; any other kernel reads what all of them made.
    """
    made: list[RecordedOperator] = []
    places: list[list[int]] = []
    start = 0
    while start < len(operators):
        repeated = operators[start].repeated
        end = start + 1
        while end < len(operators) and operators[end].repeated == repeated:
            end += 1
        stretch, (_, times) = operators[start:end], repeated
        first = len(made)
        places.extend([first + copy * len(stretch) + place for copy in range(times)] for place in range(len(stretch)))
        for copy in range(times):
            for op in stretch:
                sources = set[int]()
                for source in op.inputs:
                    own = places[source][:: 1 if operators[source].phase == op.phase else -1]
                    sources.update([own[copy]] if len(own) == times else own)
                made.append(replace(op, inputs=tuple(sorted(sources))))
        start = end
    return made

"""Records what a module does: its kernels, the storages they make, and how long those live.

Nothing here knows of micro-batches or degrees: a recording holds plain numbers. `trace` and `task_trace`, beside,
compare recordings of several sizes and turn the numbers into polynomials. Fake tensors are enough, real ones will do.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from profiles.models.operators import ATTENTION_FLOPS, Kind, Phase
from profiles.tracing.kernel_kinds import classify

DTYPES = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float8_e4m3fn: "fp8",
    torch.float8_e5m2: "fp8",
}
INPUT = -1
UNNUMBERED = -1
LOOKUPS = ("embedding", "nll_loss_forward")
ALLOCATIONS = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")


@dataclass(slots=True)
class RecordedOperator:
    """One kernel call with plain numbers; `outputs` are the indices of the storages it made, in one `segment`."""

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
    that saved it first, `peaks` are the most that lives in each beside what others saved.
    """

    operators: list[RecordedOperator] = field(default_factory=list)
    storage_bytes: list[int] = field(default_factory=list)
    saved: dict[int, int] = field(default_factory=dict)
    peaks: dict[tuple[int, Phase], tuple[int, frozenset[int]]] = field(default_factory=dict)
    linears: list[tuple[str, int, int]] = field(default_factory=list)
    adopted: list[int] = field(default_factory=list)


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
        self._permanent = {StorageWeakRef(t.untyped_storage()).cdata for t in (*module.parameters(), *module.buffers())}
        self._index: dict[int, int] = {}
        self._producer: dict[int, int] = {}
        self._alive: dict[int, StorageWeakRef] = {}

    def adopt(self, tensor: Tensor) -> None:
        """Count a tensor made elsewhere (the layer's input, the incoming gradient) among the layer's storages."""
        self.recording.adopted.append(self._number(tensor))
        self._note_peak()

    def forget(self, tensors: Iterable[Tensor | None]) -> None:
        """Leave out storages that other accounts hold (the parameters' gradients)."""
        gone = {self._living(tensor) for tensor in tensors if tensor is not None}
        for place, (_, members) in self.recording.peaks.items():
            kept = members - gone
            self.recording.peaks[place] = (sum(self.recording.storage_bytes[i] for i in kept), kept)

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Record kernels, module paths and what autograd saves, inside the block."""
        handles = [hook for name, child in self._module.named_modules() for hook in self._path_hooks(name, child)]
        with torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor), self:
            try:
                yield
            finally:
                for handle in handles:
                    handle.remove()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run `func` and record it."""
        if any(hasattr(kind, "__tensor_flatten__") for kind in types):
            # A wrapper, such as torchao's numbers with their scale, goes first; its own kernels come back here.
            return NotImplemented
        result = self._call(func, args, kwargs or {})
        if func.namespace != "aten":
            return result
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
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
        indices = tuple(self._number(tensor) for tensor in made)
        if name in ALLOCATIONS:
            return
        sources = {self._producer.get(self._living(tensor), INPUT) for tensor in inputs} - {INPUT}
        for tensor in outputs:
            self._producer[self._living(tensor)] = len(self.recording.operators)
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
            )
        )

    def _precision(self, kind: Kind, inputs: list[Tensor], outputs: list[Tensor]) -> str:
        if not outputs:
            return "other"
        name = DTYPES.get((outputs if kind == "memory" else inputs)[0].dtype, "other")
        return self._products if (kind, name) == ("matmul", "fp32") else name

    def _living(self, tensor: Tensor) -> int:
        # An address alone does not name a storage: a new one may be given the place of a dead one.
        index = self._index.get(storage_of(tensor), UNNUMBERED)
        return index if index in self._alive else UNNUMBERED

    def _number(self, tensor: Tensor) -> int:
        reference = StorageWeakRef(tensor.untyped_storage())
        index = self._living(tensor)
        if index == UNNUMBERED:
            index = len(self.recording.storage_bytes)
            self.recording.storage_bytes.append(tensor.untyped_storage().nbytes())
            self._index[reference.cdata] = index
            self._alive[index] = reference
        return index

    def _note_peak(self) -> None:
        for index in [index for index, reference in self._alive.items() if reference.expired()]:
            del self._alive[index]
        counted, place = self._counted(), (self.segment, self.phase)
        live = sum(self.recording.storage_bytes[index] for index in counted)
        if live > self.recording.peaks.get(place, (-1, frozenset()))[0]:
            self.recording.peaks[place] = (live, frozenset(counted))

    def _counted(self) -> Collection[int]:
        """Storages that are alive, and not held by other accounts."""
        return self._alive

    def _pack(self, tensor: Tensor) -> Tensor:
        if self.phase == "forward" and storage_of(tensor) not in self._permanent:
            self.recording.saved.setdefault(self._number(tensor), self.segment)
        return tensor

    def _path_hooks(self, name: str, child: nn.Module) -> list[torch.utils.hooks.RemovableHandle]:
        def enter(_: nn.Module, __: Any) -> None:
            self._path = name

        def leave(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            self._path = name.rpartition(".")[0]
            if isinstance(child, nn.Linear) and inputs and isinstance(output, Tensor):
                self.recording.linears.append((name, size_of(inputs[0]), size_of(output)))

        return [child.register_forward_pre_hook(enter), child.register_forward_hook(leave)]


def storage_of(tensor: Tensor) -> int:
    """A number that names the tensor's storage while it lives."""
    return int(StorageWeakRef(tensor.untyped_storage()).cdata)


def size_of(tensor: Tensor) -> int:
    """Bytes that the tensor's elements take."""
    # An expanded tensor has more elements than its storage holds.
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())

"""Records what one layer does under fake tensors: its kernels, the storages they make, and how long those live.

Nothing here knows of micro-batches or degrees: a recording holds plain numbers. `trace`, beside, compares recordings of
several sizes and turns the numbers into polynomials.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from profiles.models.operators import Kind, Phase

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
    """One kernel call with plain numbers; `outputs` are the indices of the storages it made."""

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

    @property
    def signature(self) -> tuple[str, ...]:
        """What must be equal in recordings of different sizes."""
        return (self.name, self.kind, self.phase, self.path, self.dtype, self.layout)


@dataclass(slots=True)
class Recording:
    """Everything seen while one layer ran; storages are numbered in the order of their making, the input is 0."""

    operators: list[RecordedOperator] = field(default_factory=list)
    storage_bytes: list[int] = field(default_factory=list)
    saved: set[int] = field(default_factory=set)
    peaks: dict[Phase, tuple[int, frozenset[int]]] = field(default_factory=dict)
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
        for phase, (_, members) in self.recording.peaks.items():
            kept = members - gone
            self.recording.peaks[phase] = (sum(self.recording.storage_bytes[i] for i in kept), kept)

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
        result = func(*args, **(kwargs or {}))
        if func.namespace != "aten":
            return result
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        known = {_storage_id(tensor) for tensor in inputs}
        made = [tensor for tensor in outputs if _storage_id(tensor) not in known]
        if made or func._schema.is_mutable:
            self._record(func, args, inputs, outputs, made)
            self._note_peak()
        return result

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
        kind, layout, dims = _classify(name, args)
        written = sum(map(_bytes, made or outputs))
        read = sum(map(_bytes, inputs))
        if name in LOOKUPS:  # reads the rows it returns, not the table
            read += written - max(map(_bytes, inputs))
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
            )
        )

    def _precision(self, kind: Kind, inputs: list[Tensor], outputs: list[Tensor]) -> str:
        if not outputs:
            return "other"
        name = DTYPES.get((outputs if kind == "memory" else inputs)[0].dtype, "other")
        return self._products if (kind, name) == ("matmul", "fp32") else name

    def _living(self, tensor: Tensor) -> int:
        # An address alone does not name a storage: a new one may be given the place of a dead one.
        index = self._index.get(_storage_id(tensor), UNNUMBERED)
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
        live = sum(self.recording.storage_bytes[index] for index in self._alive)
        if live > self.recording.peaks.get(self.phase, (-1, frozenset()))[0]:
            self.recording.peaks[self.phase] = (live, frozenset(self._alive))

    def _pack(self, tensor: Tensor) -> Tensor:
        if self.phase == "forward" and _storage_id(tensor) not in self._permanent:
            self.recording.saved.add(self._number(tensor))
        return tensor

    def _path_hooks(self, name: str, child: nn.Module) -> list[torch.utils.hooks.RemovableHandle]:
        def enter(_: nn.Module, __: Any) -> None:
            self._path = name

        def leave(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            self._path = name.rpartition(".")[0]
            if isinstance(child, nn.Linear):
                self.recording.linears.append((name, _bytes(inputs[0]), _bytes(output)))

        return [child.register_forward_pre_hook(enter), child.register_forward_hook(leave)]


def _storage_id(tensor: Tensor) -> int:
    return int(StorageWeakRef(tensor.untyped_storage()).cdata)


def _bytes(tensor: Tensor) -> int:
    # An expanded tensor has more elements than its storage holds.
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


def _classify(name: str, args: tuple[Any, ...]) -> tuple[Kind, str, tuple[int, ...]]:
    """Kind, layout and dims of a kernel: products by their sizes, fused attention by its own, the rest memory-bound."""
    if name in ("mm", "addmm", "bmm", "baddbmm", "_scaled_mm"):
        a, b = (args[1], args[2]) if name in ("addmm", "baddbmm") else (args[0], args[1])
        batch = a.shape[0] if a.dim() == 3 else 1
        return "matmul", _letter(a) + _letter(b), (batch, a.shape[-2], b.shape[-1], a.shape[-1])
    if name in ("convolution", "convolution_backward"):
        return _classify_convolution(name, args)
    if "dot_product" in name or name.startswith(("_flash_attention", "_efficient_attention")):
        query, key = (args[1], args[2]) if name.endswith("backward") else (args[0], args[1])
        causal = any(arg is True for arg in args)
        batch, heads, queries, size = query.shape
        return "attention", "causal" if causal else "full", (batch, heads, queries, key.shape[-2], size)
    return "memory", "", ()


def _classify_convolution(name: str, args: tuple[Any, ...]) -> tuple[Kind, str, tuple[int, ...]]:
    """A convolution as the product it amounts to; its backward pass is one such product per gradient asked for."""
    if name == "convolution":
        image, weight, stride, padding, dilation = args[0], args[1], args[3], args[4], args[5]
        pairs = zip(image.shape[2:], weight.shape[2:], stride, padding, dilation, strict=False)
        positions = image.shape[0]
        for size, kernel, step, pad, gap in pairs:
            positions *= (size + 2 * pad - gap * (kernel - 1) - 1) // step + 1
        products = 1
    else:
        gradient, weight = args[0], args[2]
        positions = gradient.shape[0] * gradient.shape[2:].numel()
        products = sum(args[-1][:2])
    return "matmul", "conv", (products, positions, weight.shape[0], weight[0].numel())


def _letter(matrix: Tensor) -> str:
    # "n": rows are contiguous, "t": columns are, as BLAS calls them.
    return "n" if matrix.stride(-1) == 1 or matrix.shape[-1] == 1 else "t"

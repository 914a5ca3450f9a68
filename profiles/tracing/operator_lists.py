"""Lists the kernels of a module's training step from two batch sizes under fake tensors: nothing is computed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from profiles.errors import InputError
from profiles.models.operator_list import Kind, Linear, ListedOperator, OperatorList
from profiles.models.operators import Phase
from profiles.workloads.fake_tensors import FakeTensorMode

DTYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
PRODUCTS = {"mm": (0, 1), "bmm": (0, 1), "addmm": (1, 2), "baddbmm": (1, 2)}
LOOKUPS = ("embedding", "embedding_bag", "_embedding_bag", "index_select", "gather")
ALLOCATIONS = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "lift_fresh")
SIZES = (2, 4)
# Name, kind and dims of a kernel.
Kernel = tuple[str, Kind, tuple[float, ...]]

Build = Callable[[], nn.Module]
Example = Callable[[int], Mapping[str, Any]]
Loss = Callable[[nn.Module, Mapping[str, Any]], Tensor]


@dataclass(slots=True)
class _Call:
    """One kernel with plain numbers."""

    name: str
    kind: Kind
    phase: Phase
    dtype: str
    dims: tuple[float, ...]
    read_bytes: float
    written_bytes: float

    @property
    def key(self) -> tuple[str, ...]:
        """What must be equal at every batch size."""
        return (self.name, self.kind, self.phase, self.dtype)


@dataclass(slots=True)
class _Log:
    calls: list[_Call] = field(default_factory=list)
    saved_bytes: float = 0.0
    peak_bytes: float = 0.0


class _Lister(TorchDispatchMode):
    """A dispatch mode that fills a log; views are no kernels."""

    def __init__(self, permanent: set[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.log = _Log()
        self.phase: Phase = "forward"
        self._permanent = permanent
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self._live_bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run `func` and list it."""
        result = func(*args, **(kwargs or {}))
        if func.namespace != "aten":
            return result
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        known = {_storage(tensor) for tensor in inputs}
        made = [tensor for tensor in outputs if _storage(tensor) not in known]
        self._hold(made)
        name = func.overloadpacket.__name__
        if (made or func._schema.is_mutable) and name not in ALLOCATIONS:
            self._list(name, args, inputs, made or outputs)
        return result

    def close_forward(self) -> None:
        """Note what is kept for the backward pass, which comes next."""
        self._sweep()
        self.log.saved_bytes = self._live_bytes
        self.phase = "backward"

    def _list(self, name: str, args: tuple[Any, ...], inputs: list[Tensor], outputs: list[Tensor]) -> None:
        written = float(sum(map(_bytes, outputs)))
        read = float(sum(map(_bytes, inputs)))
        if name in LOOKUPS and inputs:
            read = min(read, read - max(map(_bytes, inputs)) + written)
        floats = [tensor for tensor in (*inputs, *outputs) if tensor.dtype in DTYPES]
        dtype = DTYPES.get((inputs if name in PRODUCTS else floats)[0].dtype, "other") if floats else "other"
        if name == "convolution_backward" and len(args) > 1:
            dtype = DTYPES.get(args[1].dtype, "other")
        for part, kind, dims in _classify(name, args):
            self.log.calls.append(_Call(part, kind, self.phase, dtype, dims, read, written))

    def _hold(self, made: list[Tensor]) -> None:
        for tensor in made:
            reference = StorageWeakRef(tensor.untyped_storage())
            if reference.cdata in self._permanent:
                continue
            size = tensor.untyped_storage().nbytes()
            old = self._alive.get(reference.cdata)
            self._live_bytes += size - (old[1] if old else 0)
            self._alive[reference.cdata] = (reference, size)
        if self._live_bytes > self.log.peak_bytes:
            self._sweep()
            self.log.peak_bytes = max(self.log.peak_bytes, self._live_bytes)

    def _sweep(self) -> None:
        for key, (reference, size) in list(self._alive.items()):
            if reference.expired():
                del self._alive[key]
                self._live_bytes -= size


def _storage(tensor: Tensor) -> int:
    return int(StorageWeakRef(tensor.untyped_storage()).cdata)


def _bytes(tensor: Tensor) -> int:
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


def _classify(name: str, args: tuple[Any, ...]) -> list[Kernel]:
    """Names, kinds and dims of the kernels behind one call: gradients of a convolution are two."""
    if name in PRODUCTS:
        a, b = (args[place] for place in PRODUCTS[name])
        batch = a.shape[0] if a.dim() == 3 else 1
        return [(name, "matmul", (batch, a.shape[-2], b.shape[-1], a.shape[-1]))]
    if name == "convolution":
        image, weight, stride, transposed, groups = args[0], args[1], args[3], args[6], args[8]
        return [("convolution", "convolution", _convolution(image, weight, stride, transposed, groups, args[4:6]))]
    if name == "convolution_backward":
        _, image, weight, _, stride, padding, dilation, transposed, _, groups, wanted = args
        dims = _convolution(image, weight, stride, transposed, groups, (padding, dilation))
        names = ("convolution_data_gradient", "convolution_weight_gradient")
        return [(one, "convolution", dims) for one, is_wanted in zip(names, wanted[:2], strict=True) if is_wanted]
    if name.startswith("mkldnn_rnn_layer"):
        image, inner, outer = args[0], args[1], args[2]
        units = outer.shape[-1]
        return [(name, "recurrent", (image.shape[1], image.shape[0], inner.shape[-1], units, outer.shape[0] / units))]
    if "scaled_dot_product" in name:
        query, key = (args[1], args[2]) if "backward" in name else (args[0], args[1])
        batch, heads, queries, size = query.shape
        return [(name, "attention", (batch, heads, queries, key.shape[-2], size))]
    return [(name, "pass", ())]


def _convolution(
    image: Tensor, weight: Tensor, stride: list[int], transposed: bool, groups: int, rest: tuple[Any, ...]
) -> tuple[float, ...]:
    """Dims of a convolution; of a transposed one, of the convolution whose gradient it is."""
    padding, dilation = (list(one) * (image.dim() - 2) if len(one) == 1 else list(one) for one in rest)
    steps = list(stride) * (image.dim() - 2) if len(stride) == 1 else list(stride)
    sizes = image.shape[2:]
    reach = [gap * (kernel - 1) + 1 for kernel, gap in zip(weight.shape[2:], dilation, strict=True)]
    if transposed:
        out = [
            (size - 1) * step - 2 * pad + one for size, step, pad, one in zip(sizes, steps, padding, reach, strict=True)
        ]
    else:
        out = [
            (size + 2 * pad - one) // step + 1
            for size, step, pad, one in zip(sizes, steps, padding, reach, strict=True)
        ]
    channels = (image.shape[1], weight.shape[1] * groups if transposed else weight.shape[0])
    ends = (math.prod(sizes), math.prod(out))
    if transposed:
        channels, ends = channels[::-1], ends[::-1]
    rest_of = (weight[0, 0].numel(), math.prod(steps), math.prod(dilation))
    return (image.shape[0], *channels, groups, *ends, *rest_of)


def _run(module: nn.Module, batch: Mapping[str, Any], loss: Loss, amp: bool) -> _Log:
    permanent = {_storage(tensor) for tensor in (*module.parameters(), *module.buffers())}
    lister = _Lister(permanent)
    with lister:
        with torch.autocast("cpu", torch.bfloat16) if amp else nullcontext():
            value = loss(module, batch)
        lister.close_forward()
        value.backward()
    for parameter in module.parameters():
        parameter.grad = None
    return lister.log


def _line(sizes: tuple[int, int], values: tuple[float, float]) -> Linear:
    slope = (values[1] - values[0]) / (sizes[1] - sizes[0])
    return (round(values[0] - slope * sizes[0], 6), round(slope, 6))


def _merge(sizes: tuple[int, int], logs: tuple[_Log, _Log]) -> tuple[ListedOperator, ...]:
    """Calls of two sizes as lines, equal ones counted."""
    counts: dict[tuple[Any, ...], int] = {}
    for first, second in zip(logs[0].calls, logs[1].calls, strict=True):
        if first.key != second.key:
            raise InputError(f"{first.name} runs at one batch size and {second.name} at another: it cannot be listed")
        dims = tuple(_line(sizes, pair) for pair in zip(first.dims, second.dims, strict=True))
        read = _line(sizes, (first.read_bytes, second.read_bytes))
        written = _line(sizes, (first.written_bytes, second.written_bytes))
        key = (*first.key, dims, read, written)
        counts[key] = counts.get(key, 0) + 1
    return tuple(
        ListedOperator(
            name=name, kind=kind, phase=phase, dtype=dtype, count=count, dims=dims,
            read_bytes=read, written_bytes=written,
        )
        for (name, kind, phase, dtype, dims, read, written), count in counts.items()
    )  # fmt: skip


def list_operators(name: str, build: Build, example: Example, loss: Loss, precision: str) -> OperatorList:
    """The list of a module that `build` makes on the meta device, for batches of `example(samples)`.

    Model: one forward and backward pass at two batch sizes; every size is a line through both. `precision` fp32, or
    amp: products in 16 bits by autocast.
    Raises: InputError where the two sizes run different kernels.
    """
    with torch.device("meta"):
        module = build()
    with FakeTensorMode(allow_non_fake_inputs=True):
        module = module.to_empty(device="cpu").train()
        logs = tuple(_run(module, example(size), loss, precision != "fp32") for size in SIZES)
    if len(logs[0].calls) != len(logs[1].calls):
        raise InputError(f"{name} runs {len(logs[0].calls)} kernels at one batch size, {len(logs[1].calls)} at another")
    return OperatorList(
        name=name,
        precision=precision,
        num_parameters=sum(parameter.numel() for parameter in module.parameters()),
        num_parameter_tensors=len(list(module.parameters())),
        operators=_merge(SIZES, (logs[0], logs[1])),
        saved_bytes=_line(SIZES, (logs[0].saved_bytes, logs[1].saved_bytes)),
        peak_bytes=_line(SIZES, (logs[0].peak_bytes, logs[1].peak_bytes)),
    )

"""Measures memory-bound operators by the name under which tracing records them, each at several sizes.

On CPU a tanh or a softmax runs far below the speed of memory, so bytes alone do not tell its time. Bytes are counted by
the recorder that traces models, so that a curve and the operators it prices mean the same bytes. An operator without
an entry here falls to the general curve "", which is a plain copy.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from profiles.laws.curves import fit_kernel
from profiles.machines.profile import KernelCurve, Sample
from profiles.measure.matrix_kernels import TORCH_DTYPES, TURNS, sample
from profiles.measure.operands import Operands
from profiles.measure.timing import Action, Bench
from profiles.measure.vision_kernels import VISION_OPERATORS
from profiles.models.profile import ModelProfile
from profiles.tracing.operator_recorder import Recorder

aten = torch.ops.aten
# Dense where operands leave the caches: between there the rate falls several times.
SIZES = (2**12, 2**15, 2**18, 2**20, 2**21, 2**23)
# As many tensors of its size as a layer has, other tensors pass through the caches before one is used again. Of 1 to 16
# this was nearest to the same kernels replayed in the order of nine training steps (8 to 39 % less, one 30 to 57).
TENSORS_BETWEEN, MOST_BYTES_BETWEEN = 16, 2**25
# Operators that are timed in turns: two operands and a result each, all of which a rank has to have memory for.
MOST_BYTES_TOGETHER = 2**28
ALL_TRUE = [True, True, True]


def _of_one(function: Callable[[Tensor], object]) -> Callable[[Operands], Action]:
    def make(operands: Operands) -> Action:
        x = operands.rows()
        return lambda: function(x)

    return make


def _of_two(function: Callable[[Tensor, Tensor], object]) -> Callable[[Operands], Action]:
    def make(operands: Operands) -> Action:
        x, y = operands.rows(), operands.rows()
        return lambda: function(x, y)

    return make


def _layer_norm(operands: Operands) -> Action:
    x, weight = operands.rows(), operands.row()
    return lambda: aten.native_layer_norm(x, [operands.shape[1]], weight, weight, 1e-5)


def _layer_norm_backward(operands: Operands) -> Action:
    x, weight = operands.rows(), operands.row()
    _, mean, deviation = aten.native_layer_norm(x, [operands.shape[1]], weight, weight, 1e-5)
    width = [operands.shape[1]]
    return lambda: aten.native_layer_norm_backward(x, x, width, mean, deviation, weight, weight, ALL_TRUE)


def _to_copy(operands: Operands) -> Action:
    other = torch.bfloat16 if operands.dtype == torch.float32 else torch.float32
    x = operands.rows().to(other)
    return lambda: aten._to_copy(x, dtype=operands.dtype)


def _embedding(operands: Operands) -> Action:
    table, labels = operands.rows(), torch.randint(0, operands.shape[0], (operands.shape[0],), device=operands.device)
    return lambda: functional.embedding(labels, table)


def _embedding_backward(operands: Operands) -> Action:
    gradient, count = operands.rows(), operands.shape[0]
    labels = torch.randint(0, count, (count,), device=operands.device)
    return lambda: aten.embedding_dense_backward(gradient, labels, count, -1, False)


def _nll_loss(operands: Operands) -> Action:
    x, labels = operands.rows(), operands.labels()
    return lambda: aten.nll_loss_forward(x, labels, None, 1, -100)


def _nll_loss_backward(operands: Operands) -> Action:
    x, labels = operands.rows(), operands.labels()
    loss, weight = aten.nll_loss_forward(x, labels, None, 1, -100)
    return lambda: aten.nll_loss_backward(loss, x, labels, None, 1, -100, weight)


def _softmax_backward(function: Callable[..., Tensor]) -> Callable[[Operands], Action]:
    return _of_two(lambda x, y: function(x, y, -1, x.dtype))


def _copy(operands: Operands) -> Action:
    x, y = operands.rows(), operands.rows()
    return lambda: y.copy_(x)


OPERATORS: dict[str, Callable[[Operands], Action]] = {
    "": _of_one(torch.clone),
    "_log_softmax": _of_one(lambda x: aten._log_softmax(x, -1, False)),
    "_log_softmax_backward_data": _softmax_backward(aten._log_softmax_backward_data),
    "_safe_softmax": _of_one(lambda x: aten._safe_softmax(x, -1)),
    "_softmax": _of_one(lambda x: aten._softmax(x, -1, False)),
    "_softmax_backward_data": _softmax_backward(aten._softmax_backward_data),
    "_to_copy": _to_copy,
    "add": _of_two(torch.add),
    "add_": _of_two(lambda x, y: x.add_(y)),
    "bernoulli_": _of_one(lambda x: x.bernoulli_(0.9)),
    "cat": _of_two(lambda x, y: torch.cat((x, y), dim=-1)),
    "clone": _of_one(torch.clone),
    "copy_": _copy,
    "cos": _of_one(torch.cos),
    "div": _of_two(torch.div),
    "div_": _of_one(lambda x: x.div_(0.9)),
    "embedding": _embedding,
    "embedding_dense_backward": _embedding_backward,
    "exp": _of_one(torch.exp),
    "fill_": _of_one(lambda x: x.fill_(1.0)),
    "gelu": _of_one(functional.gelu),
    "gelu_backward": _of_two(aten.gelu_backward),
    "mean": _of_one(lambda x: torch.mean(x, -1, keepdim=True)),
    "mul": _of_two(torch.mul),
    "native_layer_norm": _layer_norm,
    "native_layer_norm_backward": _layer_norm_backward,
    "neg": _of_one(torch.neg),
    "new_zeros": _of_one(lambda x: x.new_zeros(x.shape)),
    "nll_loss_backward": _nll_loss_backward,
    "nll_loss_forward": _nll_loss,
    "ones_like": _of_one(torch.ones_like),
    "pow": _of_one(lambda x: torch.pow(x, 3.0)),
    "relu": _of_one(torch.relu),
    "rsqrt": _of_one(torch.rsqrt),
    "sigmoid": _of_one(torch.sigmoid),
    "sigmoid_backward": _of_two(aten.sigmoid_backward),
    "silu": _of_one(functional.silu),
    "silu_backward": _of_two(aten.silu_backward),
    "sin": _of_one(torch.sin),
    "slice_backward": _of_one(lambda x: aten.slice_backward(x, [x.shape[0], 2 * x.shape[1]], 1, 0, x.shape[1], 1)),
    "sqrt": _of_one(torch.sqrt),
    "sub": _of_two(torch.sub),
    "sum": _of_one(lambda x: torch.sum(x, 0, keepdim=True)),
    "tanh": _of_one(torch.tanh),
    "tanh_backward": _of_two(aten.tanh_backward),
    "threshold_backward": _of_two(lambda x, y: aten.threshold_backward(x, y, 0)),
    "zeros_like": _of_one(torch.zeros_like),
    **VISION_OPERATORS,
}


def measure_memory_operators(
    bench: Bench, precision: str, models: Sequence[ModelProfile], sizes: Sequence[int] = SIZES
) -> list[KernelCurve]:
    """The curve of every operator that `models` have (all known ones where there are none) and of the plain copy."""
    samples: dict[str, list[Sample]] = {name: [] for name in wanted_names(models, precision)}
    for elements in sizes:
        tensor_bytes = elements * TORCH_DTYPES[precision].itemsize
        together = max(1, min(TURNS, MOST_BYTES_TOGETHER // (3 * num_between(tensor_bytes) * tensor_bytes)))
        for start in range(0, len(samples), together):
            names = tuple(samples)[start : start + together]
            with torch.no_grad():
                actions = [in_turns(OPERATORS[name], elements, precision, bench.device) for name in names]
                timings = bench.time(actions)
                for name, action, timing in zip(names, actions, timings, strict=True):
                    samples[name].append(sample((moved_bytes(action, name),), timing))
    return [fit_kernel("memory", name, precision, points) for name, points in samples.items()]


def in_turns(make: Callable[[Operands], Action], elements: int, precision: str, device: torch.device) -> Action:
    """An operator on other operands in each call, whose results are kept, as those of a layer are.

    On the same ones over and over all of it would be in the nearest cache, where in training other tensors were since.
    """
    dtype = TORCH_DTYPES[precision]
    count = num_between(elements * dtype.itemsize)
    turns = itertools.cycle([make(Operands(elements, dtype, device)) for _ in range(count)])
    kept: deque[object] = deque(maxlen=count)
    return lambda: kept.append(next(turns)())


def num_between(tensor_bytes: int) -> int:
    """How many tensors of so many bytes pass through the caches before one is used again."""
    return max(1, min(TENSORS_BETWEEN, MOST_BYTES_BETWEEN // tensor_bytes))


def wanted_names(models: Sequence[ModelProfile], precision: str) -> tuple[str, ...]:
    """Operators to measure: the general one, and those that the models run at this precision and that are known."""
    present = {
        operator.name
        for model in models
        for layers in model.layers.values()
        for layer in layers
        for operator in layer.operators
        if operator.kind == "memory" and operator.dtype == precision
    }
    return tuple(name for name in OPERATORS if not models or name == "" or name in present)


def moved_bytes(action: Action, name: str) -> float:
    """Bytes that `action` reads and writes in the operator `name`, counted as tracing counts them."""
    recorder = Recorder(nn.Identity())
    with recorder.watch():
        action()
    operators = recorder.recording.operators
    return float(sum(op.read_bytes + op.written_bytes for op in operators if op.name == (name or "clone")))

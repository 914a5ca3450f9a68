"""What torch itself says of one step of a task: FLOPs by its counter, bytes that autograd saves."""

import math

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import FlopCounterMode, conv_backward_flop, sdpa_backward_flop_count, sdpa_flop_count

from profiles.tracing.known_values import KnownValues, NumbersOf
from profiles.tracing.module_copies import fake_like, forget_cached, replace_tensors, without_weights
from profiles.workloads.fake_tensors import FakeTensorMode, matched_in_order, seen_as_real
from profiles.workloads.task import Task

SEED = 3
aten = torch.ops.aten


def _convolution_backward(
    gradient, image, weight, bias, stride, padding, dilation, transposed, more, groups, mask, **kw
):
    """torch's own but for groups, where it counts the gradient of the weights once for each."""
    if groups == 1:
        return conv_backward_flop.__wrapped__(  # what it decorates takes shapes
            gradient, image, weight, bias, stride, padding, dilation, transposed, more, groups, mask, **kw
        )
    smaller = image if transposed else gradient
    return sum(mask[:2]) * 2 * smaller[0] * math.prod(smaller[2:]) * math.prod(weight)


def _with_heads(query, shape):
    return shape[0], query[1], *shape[2:]


def _attention(query, key, value, *args, **kw):
    return sdpa_flop_count(query, *(_with_heads(query, shape) for shape in (key, value)))


def _attention_backward(gradient, query, key, value, *args, **kw):
    return sdpa_backward_flop_count(gradient, query, *(_with_heads(query, shape) for shape in (key, value)))


def _recurrent(inputs, of_input, of_hidden, *args, **kw):
    """A product of the inputs and one of the states in each step, which torch's counter does not know."""
    return 2 * inputs[0] * inputs[1] * (math.prod(of_input) + math.prod(of_hidden))


# torch's counter knows no attention and no recurrent layer of CPUs.
FORMULAS = {
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    aten.convolution_backward: _convolution_backward,
    aten.mkldnn_rnn_layer: _recurrent,
    aten.mkldnn_rnn_layer_backward: lambda *args, **kw: 2 * _recurrent(*args),
}


def measured(task: Task, samples: int, size: int) -> tuple[int, int]:
    """FLOPs of a real step, both directions, and the bytes of storages that its forward pass saves."""
    torch.manual_seed(SEED)
    module = task.build().train()
    batch = task.example(samples, size)
    saved: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with FlopCounterMode(display=False, custom_mapping=FORMULAS) as counter:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = task.loss(module, batch)
        kept = dict(saved)
        loss.backward()
    permanent = {tensor.untyped_storage().data_ptr() for tensor in _permanent(module)}
    return counter.get_total_flops(), sum(s.nbytes() for pointer, s in kept.items() if pointer not in permanent)


def _permanent(module: nn.Module) -> list[torch.Tensor]:
    return [*module.parameters(), *module.buffers()]


class _Known(TorchDispatchMode):
    """Runs kernels as the tracer does where a module reads a value of its inputs."""

    def __init__(self, known):
        super().__init__()
        self._known = known

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return self._known.call(func, args, kwargs or {})


def counted(task: Task, samples: int, size: int) -> int:
    """FLOPs of a step of the whole module, both directions, by torch's counter, without weights."""
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with without_weights():
        module = task.build().train()
    known = KnownValues(fake)

    def faked(leaf):
        if not isinstance(leaf, torch.Tensor):
            return leaf
        made = fake.from_tensor(leaf)
        known.tell(made, leaf)
        return made

    with fake, seen_as_real(), matched_in_order(), NumbersOf(known):
        replace_tensors(module, fake_like)
        batch = tree_map(faked, task.example(samples, size))
        with _Known(known), FlopCounterMode(display=False, custom_mapping=FORMULAS) as counter:
            task.loss(module, batch).backward()
    forget_cached(module)
    return counter.get_total_flops()

"""Records a whole module and cuts the recording where its blocks begin and end, forward and backward.

Segment 0 is what runs before the first block; every block is a segment, with what runs between the one before it and
itself; the last segment is what runs behind the last block. A kernel of the backward pass belongs to the segment of the
autograd node that runs it: that in which the node was first found behind a tensor that blocks took or gave.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.utils._pytree import tree_leaves

from profiles.tracing.known_values import KnownValues
from profiles.tracing.operator_recorder import Recorder
from profiles.tracing.storages import size_of
from profiles.workloads.fake_tensors import storage_of


@dataclass(slots=True)
class Cut:
    """What is known of a segment beside its kernels: its block's path, bytes that go in and come out.

    `takes` and `gives` are the shapes of its block's tensors that gradients pass through. `kept_bytes` live behind it
    that nothing saved.
    """

    path: str = ""
    input_bytes: int = 0
    output_bytes: int = 0
    kept_bytes: int = 0
    takes: list[tuple[int, ...]] = field(default_factory=list)
    gives: list[tuple[int, ...]] = field(default_factory=list)


@dataclass(slots=True)
class Cuts:
    """The segments in order, and where each parameter's storage is used first."""

    segments: list[Cut] = field(default_factory=lambda: [Cut()])
    first_used: dict[int, int] = field(default_factory=dict)


class SegmentRecorder(Recorder):
    """A recorder that knows the blocks of its module."""

    def __init__(
        self,
        module: nn.Module,
        blocks: Mapping[str, nn.Module],
        products: str = "fp32",
        known: KnownValues | None = None,
    ) -> None:
        """Record `module`, cut at `blocks`, whose products of fp32 numbers are computed in the precision `products`.

        `known` are values of fake tensors.
        """
        super().__init__(module, products)
        self._known = known
        self.cuts = Cuts()
        self.blocks = blocks
        self._parameters = {storage_of(parameter) for parameter in module.parameters()}
        self._nodes: dict[Node, int] = {}
        self._depth = 0

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Record kernels, and where blocks begin and end, inside the block."""
        handles: list[Any] = []
        for path, block in self.blocks.items():
            enter = functools.partial(self._enter, path)
            handles.append(block.register_forward_pre_hook(enter, with_kwargs=True))
            handles.append(block.register_forward_hook(self._leave))
        for parameter in self._module.parameters():
            if parameter.requires_grad:
                handles.append(parameter.register_post_accumulate_grad_hook(self._set_apart))
        try:
            with super().watch():
                yield
        finally:
            for handle in handles:
                handle.remove()

    def backward(self, loss: Tensor) -> None:
        """The backward pass, each kernel in the segment that it belongs to."""
        self._claim([loss])
        self.cuts.segments[-1].output_bytes = size_of(loss)
        self.phase = "backward"
        for node, segment in self._nodes.items():
            node.register_prehook(functools.partial(self._go_to, segment))
        self._nodes.clear()
        loss.backward()
        self.forget(parameter.grad for parameter in self._module.parameters())

    def _call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return func(*args, **kwargs) if self._known is None else self._known.call(func, args, kwargs)

    def _record(self, func: Any, args: tuple[Any, ...], inputs: list[Tensor], *rest: list[Tensor]) -> None:
        for tensor in inputs:
            place = storage_of(tensor)
            if place in self._parameters:
                self.cuts.first_used.setdefault(place, self.segment)
        super()._record(func, args, inputs, *rest)

    def _enter(self, path: str, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._depth += 1
        if self._depth > 1:
            return
        given = _tensors((args, kwargs))
        if self.segment == 0:
            self._claim(given)
            self.cuts.segments[0].output_bytes = _bytes_of(given)
            self._next()
        own = self.cuts.segments[self.segment]
        own.path, own.input_bytes = path, _bytes_of(given)
        own.takes = [tuple(tensor.shape) for tensor in given]

    def _leave(self, block: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._depth -= 1
        if self._depth:
            return
        made = _tensors(output)
        self._claim(made)
        own = self.cuts.segments[self.segment]
        own.output_bytes, own.gives = _bytes_of(made), [tuple(tensor.shape) for tensor in made]
        own.kept_bytes = self._storages.free_bytes()
        self._next()
        self.cuts.segments[self.segment].input_bytes = _bytes_of(made)

    def _next(self) -> None:
        self.segment += 1
        self.cuts.segments.append(Cut())

    def _claim(self, tensors: Iterable[Tensor]) -> None:
        """Give all nodes behind some tensors, which are in no segment yet, to this one."""
        waiting = [tensor.grad_fn for tensor in tensors if tensor.grad_fn is not None]
        while waiting:
            node = waiting.pop()
            if node not in self._nodes:
                self._nodes[node] = self.segment
                waiting.extend(after for after, _ in node.next_functions if after is not None)

    def _go_to(self, segment: int, gradients: Any) -> None:
        self.segment = segment

    def _set_apart(self, parameter: Tensor) -> None:
        if parameter.grad is not None:
            self._storages.leave_out(self._storages.living(parameter.grad))


def _tensors(values: Any) -> list[Tensor]:
    """Tensors among some values that gradients pass through."""
    leaves = tree_leaves(values)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.requires_grad]


def _bytes_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of tensors, those in one storage once."""
    return sum({storage_of(tensor): size_of(tensor) for tensor in tensors}.values())

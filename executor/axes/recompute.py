"""Recomputation: what runs again in the backward pass draws the same random numbers and counts nothing twice."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint, noop_context_fn

from profiles.workloads.buffers import saved_buffers
from profiles.workloads.randomness import host_random, host_random_at


class Recomputed:
    """A module's forward pass that keeps its inputs alone; `draws` tells whether it draws random numbers.

    Statistics that the module keeps in buffers are those of one run, as without recomputation.
    """

    def __init__(self, module: nn.Module, draws: bool, forward: Callable[..., Any] | None = None) -> None:
        self.module, self.draws, self.forward = module, draws, forward or module
        self.owners = [tuple(path.rpartition(".")[::2]) for path in saved_buffers(module)]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the forward pass gives."""
        return checkpoint(
            self.forward,
            *args,
            use_reentrant=False,
            preserve_rng_state=self.draws,
            context_fn=self._contexts if self.owners or self.draws else noop_context_fn,
            **kwargs,
        )

    def _contexts(self) -> tuple[contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]]:
        return contextlib.nullcontext(), self._again(host_random())

    @contextlib.contextmanager
    def _again(self, state: tuple[Any, Any]) -> Iterator[None]:
        # torch keeps its own random numbers alone.
        with host_random_at(state), self._buffers_kept():
            yield

    @contextlib.contextmanager
    def _buffers_kept(self) -> Iterator[None]:
        owners = [(self.module.get_submodule(path), name) for path, name in self.owners]
        before = [(owner, name, owner.get_buffer(name)) for owner, name in owners]
        values = [buffer.clone() for _, _, buffer in before]
        try:
            yield
        finally:
            for (owner, name, buffer), value in zip(before, values, strict=True):
                # Autograd, which may have saved the buffer, would take a plain copy for a change.
                buffer.data.copy_(value)
                setattr(owner, name, buffer)

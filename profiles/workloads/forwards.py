"""What a module runs when it is called, replaced for a while."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from torch import nn


def replace_forward(undo: ExitStack, part: nn.Module, forward: Callable[..., Any]) -> None:
    """Let a module run `forward`, which has the signature of what it replaces, until `undo` is closed."""
    before = part.__dict__.get("forward")
    functools.update_wrapper(forward, part.forward)
    part.__dict__["forward"] = forward
    undo.callback(_restore, part, before)


def _restore(part: nn.Module, forward: Callable[..., Any] | None) -> None:
    part.__dict__.pop("forward", None)
    if forward is not None:
        part.__dict__["forward"] = forward

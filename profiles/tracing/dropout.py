"""Dropout as GPUs do it: one kernel that keeps a byte for each number, within attention none that keeps its scores."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

DROPOUTS = (torch.dropout, functional.dropout)
# Where attention has its rate among its arguments.
ATTENTION_RATE = 4


class Dropout(TorchFunctionMode):
    """While entered, dropout is seen, and is what GPUs have for it where it is `fused`."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.fused, self.seen = fused, False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        """Run `func`, or what stands for it."""
        kwargs = dict(kwargs or {})
        if func in DROPOUTS:
            return self._dropout(func, args, kwargs)
        if func is functional.scaled_dot_product_attention and self._rate(args, kwargs):
            self.seen = True
            if not self.fused:
                return func(*args, **kwargs)
            if len(args) > ATTENTION_RATE:
                args = (*args[:ATTENTION_RATE], 0.0, *args[ATTENTION_RATE + 1 :])
            else:
                kwargs["dropout_p"] = 0.0
        return func(*args, **kwargs)

    def _rate(self, args: Any, kwargs: dict[str, Any]) -> float:
        return float(args[ATTENTION_RATE] if len(args) > ATTENTION_RATE else kwargs.get("dropout_p", 0.0))

    def _dropout(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        given = dict(zip(("input", "p", "training", "inplace"), args, strict=False)) | kwargs
        rate, training = given.get("p", 0.5), given.get("training", given.get("train", True))
        if not training or not 0 < rate < 1:
            return func(*args, **kwargs)
        self.seen = True
        if not self.fused or given.get("inplace"):
            return func(*args, **kwargs)
        return torch.native_dropout(given["input"], rate, True)[0]

"""What tracing needs of torch at private paths, named here and nowhere else: tensors of shapes and types alone.

Each name has a test in tests/test_fake_tensors.py, which fails when torch moves it.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    FakeTensor,
    FakeTensorMode,
    in_kernel_invocation_manager,
    unset_fake_temporarily,
)

__all__ = [
    "FakeTensor",
    "FakeTensorMode",
    "fake_of",
    "in_kernel_invocation_manager",
    "matched_in_order",
    "schema_of",
    "seen_as_real",
    "storage_of",
    "told_by_the_error",
    "unset_fake_temporarily",
    "without_modes",
]
# What detectors match predictions with answers by: which belong together depends on values, how many do not.
MATCHING = "linear_sum_assignment"
# Where transformers asks whether a tensor is fake, and then takes ways that it does not take in training.
LIBRARY, QUESTION = "transformers.utils.import_utils", "is_fake_tensor"


def without_modes() -> Any:
    """What is entered where kernels run past every mode of dispatch."""
    return torch._C._DisableTorchDispatch()


def fake_of(mode: FakeTensorMode, plain: Tensor, device: torch.device) -> Tensor:
    """A tensor on meta as a fake one of a mode that says it is on a device; entered `without_modes`."""
    made: Tensor = FakeTensor(mode, plain, device)
    return made


def schema_of(kernel: Any) -> Any:
    """What a kernel declares of what it is given and gives."""
    return kernel._schema


def storage_of(tensor: Tensor) -> int:
    """A number that names the tensor's storage while it lives."""
    return int(tensor.untyped_storage()._cdata)


@contextmanager
def seen_as_real() -> Iterator[None]:
    """While entered, transformers does with fake tensors what it does with real ones."""
    module = sys.modules.get(LIBRARY)
    if module is None or not hasattr(module, QUESTION):
        yield
        return
    with mock.patch.object(module, QUESTION, return_value=False):
        yield


@contextmanager
def told_by_the_error() -> Iterator[None]:
    """While entered, torch does not log what fails under fake tensors beside raising it: another way may be tried."""
    log = logging.getLogger(FakeTensorMode.__module__)
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)


@contextmanager
def matched_in_order() -> Iterator[None]:
    """While entered, rows and columns of a fake matrix of costs are matched in order, as many as would be."""
    scipy = sys.modules.get("scipy.optimize")
    if scipy is None:
        yield
        return
    solve: Callable[..., Any] = getattr(scipy, MATCHING)
    with contextlib.ExitStack() as stack:
        for module in list(sys.modules.values()):
            if getattr(module, "__dict__", {}).get(MATCHING) is solve:
                stack.enter_context(mock.patch.object(module, MATCHING, functools.partial(_matched, solve)))
        yield


def _matched(solve: Callable[..., Any], costs: Any, *args: Any, **kwargs: Any) -> Any:
    if not isinstance(costs, FakeTensor):
        return solve(costs, *args, **kwargs)
    places = numpy.arange(min(costs.shape))
    return places, places.copy()

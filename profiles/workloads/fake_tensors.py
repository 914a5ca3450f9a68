"""Tensors that have shapes and types alone: torch's own, at a private path that is named here and nowhere else."""

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
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily

__all__ = [
    "FakeTensor",
    "FakeTensorMode",
    "matched_in_order",
    "seen_as_real",
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

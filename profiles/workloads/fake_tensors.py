"""Tensors that have shapes and types alone: torch's own, at a private path that is named here and nowhere else."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily

__all__ = ["FakeTensor", "FakeTensorMode", "seen_as_real", "unset_fake_temporarily"]
# Where transformers asks whether a tensor is fake, and then takes ways that it does not take in training.
LIBRARY, QUESTION = "transformers.utils.import_utils", "is_fake_tensor"


@contextmanager
def seen_as_real() -> Iterator[None]:
    """While entered, transformers does with fake tensors what it does with real ones."""
    module = sys.modules.get(LIBRARY)
    if module is None or not hasattr(module, QUESTION):
        yield
        return
    with mock.patch.object(module, QUESTION, return_value=False):
        yield

"""Tensors that have shapes and types alone: torch's own, at a private path that is named here and nowhere else."""

from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily

__all__ = ["FakeTensor", "FakeTensorMode", "unset_fake_temporarily"]

"""Modules that do on the second rank what they do not on the first, which a comparison has to find."""

import os

import torch
from torch import Tensor, nn

from profiles.workloads.task import Sample, Task, user_task

IS_SECOND = os.environ.get("RANK") == "1"


def _samples(step: int, count: int) -> list[Sample]:
    drawn = torch.randn(count, 4, generator=torch.Generator().manual_seed(step))
    return [{"x": row} for row in drawn]


class _Alike(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).square().mean()


class _Scaled(_Alike):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (1.001 if IS_SECOND else 1.0)


class _OfGradient(torch.autograd.Function):
    @staticmethod
    def forward(context: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(context: object, gradient: Tensor) -> Tensor:
        return gradient * (1.001 if IS_SECOND else 1.0)


class _GradientScaled(_Alike):
    """Its loss is right on both."""

    def forward(self, x: Tensor) -> Tensor:
        return _OfGradient.apply(super().forward(x))


class _Fails(_Alike):
    def forward(self, x: Tensor) -> Tensor:
        if IS_SECOND:
            raise ValueError("not on this rank")
        return super().forward(x)


def alike() -> Task:
    return user_task(_Alike, _samples)


def scaled() -> Task:
    return user_task(_Scaled, _samples)


def gradient_scaled() -> Task:
    return user_task(_GradientScaled, _samples)


def fails() -> Task:
    return user_task(_Fails, _samples)

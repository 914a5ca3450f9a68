"""What an operator is called on when it is measured: numbers of some count and type, as rows or as images."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

WIDTH = 1024
# Channels, height and width of an image: the first that the numbers fill.
IMAGES = ((64, 28, 28), (16, 16, 16), (4, 8, 8), (1, 4, 4), (1, 1, 1))


@dataclass(frozen=True, slots=True)
class Operands:
    """What an operator can be called on: `x` and `y` of `elements` numbers in rows of WIDTH (or one shorter row)."""

    elements: int
    dtype: torch.dtype
    device: torch.device

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and width."""
        width = min(WIDTH, self.elements)
        return self.elements // width, width

    def rows(self) -> Tensor:
        """Random numbers away from 0, which every function here takes."""
        row = torch.rand(self.shape[1], device=self.device).add_(0.5).to(self.dtype)
        return row.expand(self.shape).contiguous()

    def row(self) -> Tensor:
        """One row: a bias or a norm's weight."""
        return torch.ones(self.shape[1], dtype=self.dtype, device=self.device)

    def column(self) -> Tensor:
        """One number per row, as a statistic is."""
        return torch.ones(self.shape[0], 1, dtype=self.dtype, device=self.device)

    def labels(self) -> Tensor:
        """One class per row."""
        return torch.randint(0, self.shape[1], (self.shape[0],), device=self.device)

    def images(self) -> Tensor:
        """About so many random numbers as images. Shapes: (image, channel, height, width)."""
        shape = next(own for own in IMAGES if math.prod(own) <= self.elements)
        row = torch.rand(shape[-1], device=self.device).add_(0.5).to(self.dtype)
        return row.expand(self.elements // math.prod(shape), *shape).contiguous()

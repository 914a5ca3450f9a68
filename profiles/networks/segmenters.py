"""Segmenters with skip connections over images and volumes: U-Net, 3D U-Net, V-Net."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional


class UNet(nn.Module):
    """A U-Net of two convolutions per level; `axes` 2 or 3, `padded` keeps the size, `has_norms` in volumes."""

    def __init__(
        self, inputs: int = 1, classes: int = 2, widths: Sequence[int] = (64, 128, 256, 512, 1024), axes: int = 2,
        padded: bool = False, has_norms: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.axes = axes
        make = nn.Conv2d if axes == 2 else nn.Conv3d
        turn = nn.ConvTranspose2d if axes == 2 else nn.ConvTranspose3d
        self.pad = int(padded)

        def pair(a: int, b: int) -> nn.Sequential:
            layers: list[nn.Module] = []
            for one in (a, b):
                layers.append(make(one, b, 3, padding=self.pad, bias=not has_norms))
                if has_norms:
                    layers.append(nn.InstanceNorm3d(b, affine=True))
                layers.append(nn.ReLU(inplace=True))
            return nn.Sequential(*layers)

        self.down = nn.ModuleList(pair(a, b) for a, b in zip((inputs, *widths), widths, strict=False))
        self.turn = nn.ModuleList(turn(b, a, 2, 2) for a, b in pairwise(widths))
        self.up = nn.ModuleList(pair(2 * a, a) for a in widths[:-1])
        self.head = make(widths[0], classes, 1)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Cross entropy and Dice of every place."""
        pool = functional.max_pool2d if self.axes == 2 else functional.max_pool3d
        kept, state = [], pixel_values
        for i, block in enumerate(self.down):
            state = block(pool(state, 2) if i else state)
            kept.append(state)
        for i in range(len(self.up) - 1, -1, -1):
            state = self.turn[i](state)
            wide = kept[i]
            cut = [slice((a - b) // 2, (a - b) // 2 + b) for a, b in zip(wide.shape[2:], state.shape[2:], strict=True)]
            state = self.up[i](torch.cat([wide[(slice(None), slice(None), *cut)], state], 1))
        scores = self.head(state).float()
        target = torch.zeros(scores.shape[0], *scores.shape[2:], dtype=torch.long)
        share = torch.softmax(scores, 1)
        return functional.cross_entropy(scores, target) - (share * share).sum()


class VNet(nn.Module):
    """Residual blocks of three convolutions over volumes, as wide after a skip as both parts together."""

    def __init__(self, width: int = 16, levels: int = 3, depth: int = 3) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(levels + 1)]
        self.stem = self.layer(1, width)
        self.shrink = nn.ModuleList(self.layer(a, b, 2, 2) for a, b in pairwise(widths))
        self.down = nn.ModuleList(self.block(b, depth) for b in widths[1:])
        inputs = [widths[-1], *(2 * a for a in reversed(widths[1:-1]))]
        self.turn = nn.ModuleList(
            nn.ConvTranspose3d(a, b, 2, 2) for a, b in zip(inputs, reversed(widths[:-1]), strict=True)
        )
        self.up = nn.ModuleList(self.block(2 * a, depth) for a in reversed(widths[1:-1]))
        self.head = nn.Conv3d(width, 3, 3, padding=1)

    def layer(self, inputs: int, outputs: int, size: int = 3, stride: int = 1) -> nn.Sequential:
        """A convolution with its norm."""
        padding = size // 2 if stride == 1 else 0
        return nn.Sequential(
            nn.Conv3d(inputs, outputs, size, stride, padding), nn.BatchNorm3d(outputs), nn.ReLU(inplace=True)
        )

    def block(self, width: int, depth: int) -> nn.Sequential:
        """Layers of one width."""
        return nn.Sequential(*(self.layer(width, width) for _ in range(depth)))

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Dice of every place."""
        state = self.stem(pixel_values) + pixel_values
        kept = [state]
        for shrink, block in zip(self.shrink, self.down, strict=True):
            state = shrink(state)
            state = block(state) + state
            kept.append(state)
        kept.pop()
        for i, turn in enumerate(self.turn):
            state = functional.relu(turn(state))
            skip = kept.pop()
            if i < len(self.up):
                state = torch.cat([state, skip], 1)
                state = self.up[i](state) + state
        share = torch.softmax(self.head(state).float(), 1)
        return -(share * share).sum() / (share.sum() + 1)

"""Modules as users write them, large enough to be timed: recurrent layers, a U-Net and a diffusion transformer."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from profiles.workloads.task import Batch, Sample, Task, user_task
from tests.matrix.user_modules import Recurrent, Translator

WORDS, LENGTH, WIDTH, SIDE, CLASSES, PATCH = 2048, 64, 384, 160, 10, 10


def _random(step: int, position: int) -> torch.Generator:
    return torch.Generator().manual_seed(1000 * step + position)


def text(step: int, samples: int) -> list[Sample]:
    """Tokens, and those that follow."""
    ids = [torch.randint(WORDS, (LENGTH + 1,), generator=_random(step, i)) for i in range(samples)]
    return [{"tokens": own[:-1], "targets": own[1:]} for own in ids]


def pictures(step: int, samples: int) -> list[Sample]:
    """Pixels, and a class for each of them."""
    made = []
    for i in range(samples):
        random = _random(step, i)
        mask = torch.randint(CLASSES, (SIDE, SIDE), generator=random)
        made.append({"image": torch.rand(3, SIDE, SIDE, generator=random), "mask": mask})
    return made


def noise(step: int, samples: int) -> list[Sample]:
    """Noisy pixels, a time, and the noise."""
    made = []
    for i in range(samples):
        random = _random(step, i)
        own = torch.randn(2, 3, SIDE, SIDE, generator=random)
        made.append({"noisy": own[0], "time": torch.rand(1, generator=random), "noise": own[1]})
    return made


class Level(nn.Sequential):
    """Two convolutions with batch norm."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(),
        )  # fmt: skip


class UNet(nn.Module):
    """Down by pooling, up by transposed convolutions, and what was there before beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList(Level(a, b) for a, b in ((3, 16), (16, 32), (32, 64)))
        self.widen = nn.ModuleList(nn.ConvTranspose2d(a, a // 2, 2, 2) for a in (64, 32))
        self.up = nn.ModuleList(Level(a, a // 2) for a in (64, 32))
        self.head = nn.Conv2d(16, CLASSES, 1)

    def forward(self, image: Tensor) -> Tensor:
        kept: list[Tensor] = []
        for index, level in enumerate(self.down):
            image = level(functional.max_pool2d(image, 2) if index else image)
            kept.append(image)
        for widen, level, beside in zip(self.widen, self.up, (kept[1], kept[0]), strict=True):
            image = level(torch.cat([widen(image), beside], 1))
        return self.head(image)


class Block(nn.Module):
    """A block of a diffusion transformer: attention and a network, scaled and shifted by the time."""

    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.change = heads, nn.Linear(width, 4 * width)
        self.first, self.second = (nn.LayerNorm(width, elementwise_affine=False) for _ in range(2))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.network = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, hidden: Tensor, time: Tensor) -> Tensor:
        a, b, c, d = self.change(time)[:, None].chunk(4, dim=-1)
        mixed = self.qkv(self.first(hidden) * (1 + a) + b).unflatten(-1, (3, self.heads, -1))
        q, k, v = mixed.permute(2, 0, 3, 1, 4)
        hidden = hidden + self.out(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return hidden + self.network(self.second(hidden) * (1 + c) + d)


class Denoiser(nn.Module):
    """A diffusion transformer over patches."""

    def __init__(self, width: int = 256) -> None:
        super().__init__()
        self.patches, self.time = nn.Conv2d(3, width, PATCH, PATCH), nn.Linear(1, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(5))
        self.head = nn.ConvTranspose2d(width, 3, PATCH, PATCH)

    def forward(self, noisy: Tensor, time: Tensor) -> Tensor:
        hidden, own = self.patches(noisy).flatten(2).transpose(1, 2), self.time(time)
        for block in self.blocks:
            hidden = block(hidden, own)
        return self.head(hidden.transpose(1, 2).unflatten(2, (SIDE // PATCH, SIDE // PATCH)))


def _of_mask(module: nn.Module, batch: Batch) -> Tensor:
    return functional.cross_entropy(module(batch["image"]), batch["mask"])


def _of_noise(module: nn.Module, batch: Batch) -> Tensor:
    return functional.mse_loss(module(batch["noisy"], batch["time"]), batch["noise"])


def lstm() -> Task:
    return user_task(lambda: Recurrent(nn.LSTM, WORDS, WIDTH), text, name="lstm")


def gru() -> Task:
    return user_task(lambda: Recurrent(nn.GRU, WORDS, WIDTH), text, name="gru")


def translator() -> Task:
    return user_task(lambda: Translator(WORDS, WIDTH, WIDTH), text, name="translator")


def unet() -> Task:
    return user_task(UNet, pictures, loss=_of_mask, name="unet")


def denoiser() -> Task:
    return user_task(Denoiser, noise, loss=_of_noise, name="denoiser")

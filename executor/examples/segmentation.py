"""What every pixel belongs to: a U-Net on scenes of digits. Real pixels, synthetic scenes: see `digits`."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from executor.examples.digits import INK, NUM_CLASSES, SCENE, Scene, digits, scene, seeds
from executor.examples.one_size import task_of
from executor.examples.quality import Quality, outputs
from profiles.workloads.task import Batch, Sample, Task

# Steps that train it within a minute on two cores, and samples of each.
STEPS, SAMPLES = 600, 32
HELD_OUT = 200
BACKGROUND = NUM_CLASSES


class UNet(nn.Module):
    """Classes of pixels: the side halved three times, doubled back, and what was seen on the way down seen again.

    Shapes: pixels (batch, 1, SCENE, SCENE) -> (batch, 11, SCENE, SCENE).
    """

    def __init__(self, widths: tuple[int, ...] = (1, 32, 64, 64)) -> None:
        super().__init__()
        pairs = list(itertools.pairwise(widths))
        self.down = nn.ModuleList(convolution(one, other, stride=2) for one, other in pairs)
        self.up = nn.ModuleList(nn.ConvTranspose2d(other, other, 2, stride=2) for _, other in reversed(pairs))
        self.merge = nn.ModuleList(convolution(one + other, max(one, 16)) for one, other in reversed(pairs))
        self.head = nn.Conv2d(16, NUM_CLASSES + 1, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        """Scores of the classes of every pixel."""
        seen = []
        for halve in self.down:
            seen.append(pixels)
            pixels = halve(pixels)
        for double, merge in zip(self.up, self.merge, strict=True):
            pixels = merge(torch.cat([double(pixels), seen.pop()], 1))
        classes: Tensor = self.head(pixels)
        return classes


def convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Module:
    """One, normalised."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, padding=1), nn.GroupNorm(8, outputs), nn.ReLU())


def answers(made: Scene) -> np.ndarray:
    """What each pixel of a scene belongs to."""
    wanted = np.full((SCENE, SCENE), BACKGROUND)
    for mask, label in zip(made.masks, made.labels, strict=True):
        wanted[mask] = label
    return wanted


def sample(seed: int, held_out: bool = False) -> Sample:
    """A scene and what its pixels belong to."""
    made = scene(seed, held_out)
    return {"pixels": torch.from_numpy(made.pixels[None]), "labels": torch.from_numpy(answers(made))}


def loss(module: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy, digits weighing more than the background that most pixels are."""
    weight = torch.ones(NUM_CLASSES + 1, device=batch["labels"].device)
    weight[BACKGROUND] = 0.1
    found = functional.cross_entropy(module(batch["pixels"]), batch["labels"], weight, reduction="none")
    return found.mean()


def batches(step: int, samples: int) -> list[Sample]:
    """New scenes in every step."""
    return [sample(seed) for seed in seeds(step, samples)]


def task() -> Task:
    """What `plan --model executor.examples.segmentation:task` trains."""
    return task_of("segmentation", UNet, batches, "pixels", SCENE, loss)


def quality(module: nn.Module) -> Quality:
    """The mean over classes of intersection over union on held-out scenes, against a threshold of brightness."""
    scenes = [scene(seed, held_out=True) for seed in range(HELD_OUT)]
    samples = [sample(seed, held_out=True) for seed in range(HELD_OUT)]
    wanted = np.stack([one["labels"].numpy() for one in samples])
    found = outputs(task(), module, samples, lambda module, batch: module(batch["pixels"]).argmax(1))
    usual = int(np.bincount(digits(held_out=False)[1]).argmax())
    bright = np.stack([np.where(one.pixels > INK, usual, BACKGROUND) for one in scenes])
    return Quality(
        measure="mean IoU of classes on held-out scenes",
        value=mean_iou(torch.cat(found).numpy(), wanted),
        baseline="what is bright is the most frequent digit",
        baseline_value=mean_iou(bright, wanted),
    )


def mean_iou(found: np.ndarray, wanted: np.ndarray) -> float:
    """Intersection over union of each class over all pixels, and the mean of these."""
    pairs = [(found == label, wanted == label) for label in range(NUM_CLASSES + 1)]
    return float(np.mean([(one & other).sum() / max((one | other).sum(), 1) for one, other in pairs]))

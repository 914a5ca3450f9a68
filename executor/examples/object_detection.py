"""Where digits are and which: a detector without anchors, every cell of a grid saying what has its middle there.

Real pixels, synthetic scenes: see `digits`.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional

from executor.examples.digits import INK, NUM_CLASSES, SCENE, Scene, digits, scene, seeds
from executor.examples.one_size import task_of
from executor.examples.quality import Quality, outputs
from profiles.workloads.task import Batch, Sample, Task

# Steps that train it within a minute on two cores, and samples of each.
STEPS, SAMPLES = 700, 32
# Pixels of a cell, and held-out scenes.
CELL, HELD_OUT = 4, 200
GRID = SCENE // CELL
NOTHING = NUM_CLASSES
# Boxes, classes and scores of one scene, the surest first.
Found: TypeAlias = tuple[Tensor, Tensor, Tensor]


class Detector(nn.Module):
    """For each cell what is in its middle, nothing being a class too, and the sides' distances from the cell's middle.

    Shapes: pixels (batch, 1, SCENE, SCENE) -> classes (batch, 11, GRID, GRID), distances (batch, 4, GRID, GRID).
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stages = nn.ModuleList([stage(1, width), stage(width, 2 * width)])
        self.context = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        self.classes = nn.Conv2d(2 * width, NUM_CLASSES + 1, 1)
        self.distances = nn.Conv2d(2 * width, 4, 1)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Scores of the classes of every cell, and distances in cells."""
        for one in self.stages:
            pixels = one(pixels)
        found = functional.relu(self.context(pixels))
        return self.classes(found), self.distances(found)


def stage(inputs: int, outputs: int) -> nn.Module:
    """Half the side of an image."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.GroupNorm(8, outputs), nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3, padding=1), nn.GroupNorm(8, outputs), nn.ReLU(),
    )  # fmt: skip


def sample(seed: int, held_out: bool = False) -> Sample:
    """A scene with the answer of every cell. Shapes: classes (GRID, GRID), distances (4, GRID, GRID), in cells."""
    made = scene(seed, held_out)
    classes, distances = np.full((GRID, GRID), NOTHING), np.zeros((4, GRID, GRID), dtype=np.float32)
    for (left, top, right, bottom), label in zip(made.boxes, made.labels, strict=True):
        row, column = (top + bottom) // 2 // CELL, (left + right) // 2 // CELL
        classes[row, column] = label
        x, y = (column + 0.5) * CELL, (row + 0.5) * CELL
        distances[:, row, column] = np.array([x - left, y - top, right - x, bottom - y]) / CELL
    return {
        "pixels": torch.from_numpy(made.pixels[None]),
        "classes": torch.from_numpy(classes),
        "distances": torch.from_numpy(distances),
    }


def loss(module: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy of all cells, and the error of distances where a digit is; the mean of the samples' own means."""
    classes, distances = module(batch["pixels"])
    of_classes = functional.cross_entropy(classes, batch["classes"], reduction="none").mean((1, 2))
    error = functional.smooth_l1_loss(distances, batch["distances"], reduction="none").mean(1)
    there = (batch["classes"] != NOTHING).float()
    of_distances = (error * there).sum((1, 2)) / there.sum((1, 2))
    whole: Tensor = 10 * of_classes + of_distances
    return whole.mean()


def batches(step: int, samples: int) -> list[Sample]:
    """New scenes in every step."""
    return [sample(seed) for seed in seeds(step, samples)]


def task() -> Task:
    """What `plan --model executor.examples.object_detection:task` trains."""
    return task_of("detection", Detector, batches, "pixels", SCENE, loss)


def answer(module: nn.Module, batch: Batch) -> list[Found]:
    """Of each scene the boxes, classes and scores of cells that have something, the surest first."""
    classes, distances = module(batch["pixels"])
    scores, kinds = classes.softmax(1)[:, :NOTHING].max(1)
    middles = (torch.arange(GRID) + 0.5) * CELL
    y, x = torch.meshgrid(middles, middles, indexing="ij")
    left, top, right, bottom = (distances * CELL).unbind(1)
    boxes = torch.stack([x - left, y - top, x + right, y + bottom], -1)
    found = []
    for one, kind, score in zip(boxes.flatten(1, 2), kinds.flatten(1), scores.flatten(1), strict=True):
        order = score.argsort(descending=True)
        found.append((one[order], kind[order], score[order]))
    return found


def quality(module: nn.Module) -> Quality:
    """Mean average precision at an IoU of 0.5 on held-out scenes, against boxes around what is bright."""
    scenes = [scene(seed, held_out=True) for seed in range(HELD_OUT)]
    samples = [sample(seed, held_out=True) for seed in range(HELD_OUT)]
    found = [one for batch in outputs(task(), module, samples, answer) for one in batch]
    usual = int(np.bincount(digits(held_out=False)[1]).argmax())
    return Quality(
        measure="mean average precision at IoU 0.5 on held-out scenes",
        value=mean_average_precision(found, scenes),
        baseline="boxes around what is bright, each called the most frequent digit",
        baseline_value=mean_average_precision([bright(one, usual) for one in scenes], scenes),
    )


def bright(made: Scene, label: int) -> Found:
    """A box around every connected spot of ink, the largest first."""
    spots = ndimage.find_objects(ndimage.label(made.pixels > INK, np.ones((3, 3)))[0])
    boxes = torch.tensor([[columns.start, rows.start, columns.stop, rows.stop] for rows, columns in spots]).float()
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    order = areas.argsort(descending=True)
    return boxes[order], torch.full((len(spots),), label), areas[order]


def mean_average_precision(found: list[Found], scenes: list[Scene]) -> float:
    """The mean over classes of the area under precision over recall."""
    return float(np.mean([average_precision(found, scenes, label) for label in range(NUM_CLASSES)]))


def average_precision(found: list[Found], scenes: list[Scene], label: int) -> float:
    """Precision at every digit found, summed over all that are there; a digit is found once, by the surest box."""
    hits, total = [], 0
    for (boxes, kinds, scores), made in zip(found, scenes, strict=True):
        wanted = torch.from_numpy(made.boxes[made.labels == label]).float()
        total += len(wanted)
        free = torch.ones(len(wanted), dtype=torch.bool)
        for box, score in zip(boxes[kinds == label], scores[kinds == label], strict=True):
            overlap = iou(box, wanted) * free
            is_hit = bool((overlap > 0.5).any())
            if is_hit:
                free[overlap.argmax()] = False
            hits.append((float(score), is_hit))
    right = np.array([is_hit for _, is_hit in sorted(hits, reverse=True)], dtype=float)
    precision = right.cumsum() / (np.arange(len(right)) + 1)
    return float((precision * right).sum() / max(total, 1))


def iou(box: Tensor, others: Tensor) -> Tensor:
    """Intersection over union. Shapes: (4,), (other, 4) -> (other,)."""
    corners = torch.cat([torch.maximum(box[:2], others[:, :2]), torch.minimum(box[2:], others[:, 2:])], 1)
    both, one, other = ((area[:, 2:] - area[:, :2]).clamp(min=0).prod(1) for area in (corners, box[None], others))
    return both / (one + other - both)

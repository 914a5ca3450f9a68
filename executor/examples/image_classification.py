"""Which digit an image shows: a small ResNet on scikit-learn's handwritten digits."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from transformers import ResNetConfig, ResNetForImageClassification

from executor.examples.digits import NUM_CLASSES, Floats, Ints, digits
from executor.examples.one_size import task_of
from executor.examples.quality import Quality, outputs
from profiles.workloads.task import Sample, Task, seeded

# Steps that train it within a minute on two cores, and samples of each.
STEPS, SAMPLES = 300, 64
# Of an image, twice that of a digit.
SIDE = 16


def build() -> nn.Module:
    """A network of transformers, its weights new."""
    module: nn.Module = ResNetForImageClassification(
        ResNetConfig(
            num_channels=1, embedding_size=16, hidden_sizes=[32, 64], depths=[1, 1], layer_type="basic",
            num_labels=NUM_CLASSES,
        )
    )  # fmt: skip
    return module


def sample(index: int, held_out: bool) -> Sample:
    """One image and its label, by the names that the module's forward has for them."""
    images, labels = digits(held_out)
    larger = np.kron(images[index], np.ones((2, 2), np.float32))
    return {"pixel_values": torch.from_numpy(larger[None]), "labels": torch.tensor(labels[index])}


def batches(step: int, samples: int) -> list[Sample]:
    """Images of one step, drawn at random."""
    count = len(digits(held_out=False)[1])
    chosen = torch.randint(count, (samples,), generator=seeded(step, 0))
    return [sample(int(index), held_out=False) for index in chosen]


def task() -> Task:
    """What `plan --model executor.examples.image_classification:task` trains."""
    return task_of("image-classification", build, batches, "pixels", SIDE)


def quality(module: nn.Module) -> Quality:
    """The share of held-out images named rightly, against naming each after the nearest mean image."""
    images, labels = digits(held_out=True)
    samples = [sample(index, held_out=True) for index in range(len(labels))]
    named = outputs(task(), module, samples, lambda module, batch: module(batch["pixel_values"]).logits.argmax(1))
    return Quality(
        measure="accuracy on held-out digits",
        value=float((torch.cat(named).numpy() == labels).mean()),
        baseline="the nearest mean image",
        baseline_value=float((nearest_mean(images) == labels).mean()),
    )


def nearest_mean(images: Floats) -> Ints:
    """The digit whose mean training image is nearest. Shapes: (image, 8, 8) -> (image,)."""
    known, labels = digits(held_out=False)
    means = np.stack([known[labels == label].mean(0) for label in range(NUM_CLASSES)])
    distances = np.square(images[:, None] - means).sum((2, 3))
    nearest: Ints = distances.argmin(1)
    return nearest

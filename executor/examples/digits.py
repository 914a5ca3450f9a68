"""Handwritten digits from scikit-learn's wheel (1,797 of 8 x 8 pixels), and scenes made of them.

The pixels of a scene are real, the scene is not: up to five digits at random places that do not overlap, each
as bright as it happens to be, on a background of noise.
"""

from __future__ import annotations

import functools
import importlib.util
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from profiles.errors import EnvironmentFailure
from profiles.workloads.task import seeded

NUM_CLASSES = 10
# Grey levels of a digit. The last fifth, by other writers than the rest, is held out.
LEVELS, HELD_OUT = 16.0, 0.2
DIGIT, SCENE, MOST_DIGITS = 8, 32, 5
INK = 0.4
# Of the noise and of the brightest digit.
NOISE, DIMMEST = 0.15, 0.6

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


@functools.cache
def digits(held_out: bool) -> tuple[Floats, Ints]:
    """Images from 0 to 1 and what they show. Shapes: (image, 8, 8), (image,).

    Raises: EnvironmentFailure where scikit-learn is missing.
    """
    if importlib.util.find_spec("sklearn") is None:
        raise EnvironmentFailure("the digits come from scikit-learn: pip install 'trainwright[examples]'")
    from sklearn.datasets import load_digits

    found = load_digits()
    cut = int(len(found.target) * (1 - HELD_OUT))
    part = slice(cut, None) if held_out else slice(cut)
    return (found.images[part] / LEVELS).astype(np.float32), found.target[part].astype(np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A scene. Shapes: pixels (SCENE, SCENE); boxes (digit, 4) as left, top, right, bottom; masks, labels (digit, ...).

    A mask says where a digit's ink is.
    """

    pixels: Floats
    boxes: Ints
    labels: Ints
    masks: npt.NDArray[np.bool_]


def seeds(step: int, samples: int) -> list[int]:
    """The seeds of the scenes of a step."""
    return [int(torch.randint(2**62, (), generator=seeded(step, place))) for place in range(samples)]


def scene(seed: int, held_out: bool) -> Scene:
    """The scene of a seed, of digits for training or of those held out; boxes fit the ink."""
    random = np.random.default_rng([seed, held_out])
    images, answers = digits(held_out)
    pixels = random.uniform(0, NOISE, (SCENE, SCENE)).astype(np.float32)
    boxes, labels, masks = [], [], []
    taken = np.zeros((SCENE, SCENE), dtype=bool)
    for _ in range(random.integers(2, MOST_DIGITS + 1)):
        chosen = random.integers(len(answers))
        left, top = random.integers(0, SCENE - DIGIT + 1, 2)
        here = np.s_[top : top + DIGIT, left : left + DIGIT]
        if taken[here].any():
            continue
        taken[here] = True
        pixels[here] = np.maximum(pixels[here], images[chosen] * random.uniform(DIMMEST, 1))
        ink = np.zeros((SCENE, SCENE), dtype=bool)
        ink[here] = images[chosen] > INK
        rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
        boxes.append([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
        labels.append(answers[chosen])
        masks.append(ink)
    return Scene(pixels=pixels, boxes=np.array(boxes), labels=np.array(labels), masks=np.array(masks))

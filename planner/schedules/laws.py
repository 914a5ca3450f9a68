"""What pipeline schedules leave of 1F1B's bubble, and what they hold meanwhile, as functions of arrays.

All broadcast. `pipeline` is ranks, `chunks` the stages of one of them, `count` micro-batches, `stage` the rank's place.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from profiles.models.transformer import Array

# Share of 1F1B's bubble that is left, of `pipeline` and of how a micro-batch's seconds are shared out: forward (F) and
# weight gradients (W); input gradients (I) are the rest.
BubbleLeft = Callable[[Array, Array, Array], Array]
# Micro-batches whose activations a rank holds, in whole ranks' worth, of `pipeline`, `chunks`, `count` and `stage`.
Held = Callable[[Array, Array, Array, Array], Array]
# Chunks of a rank whose backward passes have begun and are not done, of `pipeline`, `chunks` and `count`.
OpenChunks = Callable[[Array, Array, Array], Array]
# Gradients of what a layer's linears gave, over what the layer keeps for backward: rehearsed, 0.55 to 0.6 of a llama's.
WAITING_SHARE = 0.57


def whole_bubble(pipeline: Array, forward: Array, weight: Array) -> Array:
    """All of it, where a backward pass is one."""
    return np.ones_like(1 - forward - weight)


def bubble_of_zb_h1(pipeline: Array, forward: Array, weight: Array) -> Array:
    """ZB-H1's share: F + I - W, but not less than I where steps wait for all ranks. Source: arXiv 2401.10241."""
    return np.asarray((1 - forward - weight) + np.maximum(forward - weight, 0.0))


def bubble_of_zb_h2(pipeline: Array, forward: Array, weight: Array) -> Array:
    """ZB-H2's share: F + I - 2W. Source: Qi et al. 2024 (arXiv 2401.10241)."""
    return np.maximum((1 - forward - weight) + forward - 2 * weight, 0.0)


def bubble_of_zbv(pipeline: Array, forward: Array, weight: Array) -> Array:
    """ZB-V's share, read off replays of its lists of steps."""
    inputs = 1 - forward - weight
    return np.maximum(inputs, 2 * (inputs - weight))


def bubble_of_dualpipev(pipeline: Array, forward: Array, weight: Array) -> Array:
    """DualPipeV's share, read off replays of its lists of steps."""
    inputs = 1 - forward - weight
    late = np.maximum(inputs - forward * pipeline / np.maximum(pipeline - 1, 1), 0.0)
    return np.asarray(inputs + forward - weight + late)


def bubble_of_v_half(pipeline: Array, forward: Array, weight: Array) -> Array:
    """V-Half's share, where F, I and W take equally long. Source: Qi et al. 2024 (arXiv 2405.15362)."""
    return np.full_like(1 - forward - weight, 1 / 2)


def bubble_of_v_min(pipeline: Array, forward: Array, weight: Array) -> Array:
    """V-Min's share, where F, I and W take equally long. Source: Qi et al. 2024 (arXiv 2405.15362)."""
    return np.full_like(1 - forward - weight, 2 / 3)


def held_in_turns(pipeline: Array, chunks: Array, count: Array, stage: Array) -> Array:
    """What 1F1B and interleaved 1F1B hold. Source: Narayanan et al. 2021 (arXiv 2104.04473)."""
    after, parts = np.maximum(pipeline - stage, 1.0), np.maximum(chunks, 1.0)
    return np.where(parts > 1, (2 * (after - 1) + (parts - 1) * pipeline + 1) / parts, after)


def held_by_gpipe(pipeline: Array, chunks: Array, count: Array, stage: Array) -> Array:
    """All of a step."""
    return count


def held_by_zb_h1(pipeline: Array, chunks: Array, count: Array, stage: Array) -> Array:
    """What ZB-H1 holds on every rank: as much as 1F1B on its first. Source: Qi et al. 2024 (arXiv 2401.10241)."""
    return pipeline


def held_by_zb_h2(pipeline: Array, chunks: Array, count: Array, stage: Array) -> Array:
    """What ZB-H2 holds on every rank, to fill all of the bubble. Source: Qi et al. 2024 (arXiv 2401.10241)."""
    return 2 * pipeline - 1


def held_by_interleaved_zb(pipeline: Array, chunks: Array, count: Array, stage: Array) -> Array:
    """What ZB-H1 over several stages holds: of what waits, one chunk more on each rank.

    Source: its lists of steps, and rehearsals.
    """
    parts = np.maximum(chunks, 1.0)
    return np.asarray(pipeline + WAITING_SHARE * np.minimum(stage + 1, count * parts) / parts)


def held_by_zbv(pipeline: Array, chunks: Array, count: Array, stage: Array) -> Array:
    """What ZB-V holds: the more waits the later the rank. Source: its lists of steps, and rehearsals."""
    late = pipeline + stage + WAITING_SHARE * (2 * stage + 1)
    return np.asarray(np.maximum(2 * pipeline + WAITING_SHARE, late) / 2)


def held_by_v_half(pipeline: Array, chunks: Array, count: Array, stage: Array) -> Array:
    """What V-Half holds on every rank. Source: Qi et al. 2024 (arXiv 2405.15362)."""
    return np.floor((pipeline + 2) / 2)


def held_by_v_min(pipeline: Array, chunks: Array, count: Array, stage: Array) -> Array:
    """What V-Min holds on every rank. Source: Qi et al. 2024 (arXiv 2405.15362)."""
    return np.floor((pipeline + 4) / 3)


def held_by_dualpipev(pipeline: Array, chunks: Array, count: Array, stage: Array) -> Array:
    """What DualPipeV holds: one chunk more than the ranks. Source: its lists of steps, and rehearsals."""
    return pipeline + 0.5


def all_open(pipeline: Array, chunks: Array, count: Array) -> Array:
    """Every chunk of a rank is under way: there is but one, or two there and back through a V."""
    return np.maximum(chunks, 1.0)


def open_in_rounds(pipeline: Array, chunks: Array, count: Array) -> Array:
    """Chunks dealt out in turns: a chunk's micro-batches of one round go backward one after another.

    In a single round a chunk is done before the next begins.
    """
    return np.where(count < 2 * pipeline, 1.0, np.maximum(chunks, 1.0))

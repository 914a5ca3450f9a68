"""Where a module draws random numbers while it trains, and how it trains without them."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

# What random numbers of a user's code begin with that is run without a seed of its own.
SEED_OF_CODE = 0
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


def begin_random(seed: int) -> None:
    """Let random numbers begin with `seed`: torch's, and NumPy's and Python's, by which some modules mask and drop."""
    # torch.manual_seed formats a traceback for each kind of device that is not there, 1 ms, and keeps one of them.
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


def host_random() -> tuple[Any, Any]:
    """Where the random numbers of Python and NumPy are."""
    return random.getstate(), np.random.get_state()


@contextlib.contextmanager
def host_random_at(state: tuple[Any, Any]) -> Iterator[None]:
    """While entered, random numbers of Python and NumPy go on from `state`; afterwards from where they were."""
    before = host_random()
    try:
        random.setstate(state[0])
        np.random.set_state(state[1])
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])


@contextlib.contextmanager
def random_kept() -> Iterator[None]:
    """While entered, random numbers may be drawn; afterwards all are where they were, on GPUs that are in use too."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices), host_random_at(host_random()):
        yield


@contextlib.contextmanager
def random_alike() -> Iterator[None]:
    """While entered, random numbers are the same in every process, for a user's code that all ranks run.

    A process that has just started draws others than the next: torch seeds itself anew in each.
    """
    with random_kept():
        begin_random(SEED_OF_CODE)
        yield


def holds_dropout(module: nn.Module) -> bool:
    """Whether a part of the module says of itself that it drops something: a layer for it, or a number called so."""
    return any(_drops(part) for part in module.modules())


def _drops(part: nn.Module) -> bool:
    if isinstance(part, DROPOUTS):
        return part.p > 0
    values = ((name, value) for name, value in vars(part).items() if "drop" in name.lower())
    return any(isinstance(value, float) and value > 0 for _, value in values)


def silence(module: nn.Module) -> None:
    """Let the module train without drawing random numbers, from now on.

    Everything is told that it does not train, but for norms that keep statistics, which would compute something else,
    and recurrent layers, which cuDNN trains only where they do; of those the dropout is taken.
    """
    for part in module.modules():
        if isinstance(part, nn.RNNBase):
            part.dropout = 0.0
        elif not any(name.startswith("running_") for name, _ in part.named_buffers(recurse=False)):
            part.training = False

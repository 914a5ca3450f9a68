"""Whole weights out of any layout, as safetensors in a folder that transformers reads."""

from __future__ import annotations

import copy
import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch.distributed as dist
from huggingface_hub import save_torch_state_dict
from torch import Tensor, nn

from executor.run.checkpoint import Trained, load_tensors, save_weights
from executor.run.checkpoint_refused import by_first, for_all
from profiles.files import ensure_folder

# One process writes while the others wait.
WRITE_SECONDS = 3600.0
# Of exports, which all ranks count alike.
_numbers = itertools.count()


class Exported(Trained, Protocol):
    """What is exported: a trained part, and the user's module that it is of."""

    module: nn.Module


def export_weights(folder: Path, job: Exported) -> Path:
    """Write the whole weights and buffers into `folder`, with the module's configuration where it has one; collective.

    One process holds them whole in host memory.
    """
    write_whole(folder, job, lambda weights: _write(folder, weights, job.module))
    return folder


def write_whole(folder: Path, job: Trained, write: Callable[[dict[str, Tensor]], None]) -> None:
    """Let one process write the whole weights and buffers, by their global names, into `folder`; collective.

    Every rank writes its part into a folder beside, one reads them all: it holds the whole weights in host memory. The
    others wait for longer than a collective would.

    Raises: EnvironmentFailure, on all ranks, where it cannot be written.
    """
    ensure_folder(folder)
    if not dist.is_initialized():
        values: dict[str, Tensor] = {**job.named_parameters, **job.buffers}
        write({name: value.detach().cpu() for name, value in values.items()})
        return
    parts = folder / ".parts"

    def begin() -> None:
        shutil.rmtree(parts, ignore_errors=True)
        parts.mkdir()

    def end() -> None:
        try:
            write(load_tensors(parts))
        finally:
            shutil.rmtree(parts, ignore_errors=True)

    for_all(begin)
    save_weights(parts, job)
    by_first(f"export/{next(_numbers)}", end, WRITE_SECONDS)


def _write(folder: Path, weights: dict[str, Tensor], module: nn.Module) -> None:
    whole = {name: value.contiguous() for name, value in weights.items()}
    save_torch_state_dict(whole, folder, metadata={"format": "pt"})
    config: Any = getattr(module, "config", None)
    if hasattr(config, "save_pretrained"):
        named = copy.deepcopy(config)
        named.architectures = [type(module).__name__]
        named.save_pretrained(folder)

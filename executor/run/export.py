"""Whole weights out of any layout, as safetensors in a folder that transformers reads."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any, Protocol

import torch.distributed as dist
from huggingface_hub import save_torch_state_dict
from torch import Tensor, nn

from executor.run.checkpoint import Trained, load_tensors, save_weights
from profiles.files import ensure_folder


class Exported(Trained, Protocol):
    """What is exported: a trained part, and the user's module that it is of."""

    module: nn.Module


def export_weights(folder: Path, job: Exported) -> Path:
    """Write the whole weights and buffers into `folder`, with the module's configuration where it has one; collective.

    Every rank writes its part into a folder beside, one reads them all: it holds the whole weights in host memory.
    """
    ensure_folder(folder)
    parts = folder / ".parts"
    if not dist.is_initialized():
        values: dict[str, Tensor] = {**job.named_parameters, **job.buffers}
        _write(folder, {name: value.detach().cpu() for name, value in values.items()}, job.module)
        return folder
    if dist.get_rank() == 0:
        shutil.rmtree(parts, ignore_errors=True)
        parts.mkdir()
    dist.barrier()
    save_weights(parts, job)
    if dist.get_rank() == 0:
        _write(folder, load_tensors(parts), job.module)
        shutil.rmtree(parts, ignore_errors=True)
    dist.barrier()
    return folder


def _write(folder: Path, weights: dict[str, Tensor], module: nn.Module) -> None:
    whole = {name: value.contiguous() for name, value in weights.items()}
    save_torch_state_dict(whole, folder, metadata={"format": "pt"})
    config: Any = getattr(module, "config", None)
    if hasattr(config, "save_pretrained"):
        named = copy.deepcopy(config)
        named.architectures = [type(module).__name__]
        named.save_pretrained(folder)

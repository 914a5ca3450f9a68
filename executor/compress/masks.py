"""Zeros handed over as torch.nn.utils.prune keeps them, and read back: `weight_orig` and `weight_mask` of each module.

The mask is True where a weight is not zero. What a pruned weight was before is not kept: it is zero in both.
"""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from profiles.errors import InputError
from profiles.files import replacing

ORIGINAL, MASK = "_orig", "_mask"
# What a file that torch reads, and that holds something else, leads to.
OF_ANOTHER_KIND = (TypeError, ValueError, AttributeError)
# From where torch has kernels for two zeros of every four.
LEAST_CAPABILITY = (8, 0)


def pruned_state(model: nn.Module) -> dict[str, Tensor]:
    """The model's state with every matrix as torch.nn.utils.prune keeps it; the rest under its own name."""
    state = {name: value.detach().cpu() for name, value in model.state_dict().items()}
    for module_name, name in _matrices(model):
        whole = f"{module_name}.{name}" if module_name else name
        value = state.pop(whole)
        state[whole + ORIGINAL], state[whole + MASK] = value, (value != 0).to(value.dtype)
    return state


def _matrices(model: nn.Module) -> list[tuple[str, str]]:
    """Modules and names of their matrices; one that several modules share stands at each."""
    return [
        (module_name, name)
        for module_name, module in model.named_modules()
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.dim() == 2
    ]


def write_pruned(model: nn.Module, path: Path) -> None:
    """Write the state for `torch.load(path, weights_only=True)`."""
    with replacing(path, binary=True) as stream:
        torch.save(pruned_state(model), stream)


def prune_from(model: nn.Module, path: Path) -> None:
    """Put masks on the model by torch.nn.utils.prune, and the weights of the file under them.

    Raises: InputError where the file is none, or of another model.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        for key in [key for key in state if key.endswith(MASK)]:
            module_name, _, name = key.removesuffix(MASK).rpartition(".")
            prune.custom_from_mask(model.get_submodule(module_name), name, state[key])
        model.load_state_dict(state)
    except (OSError, EOFError, UnpicklingError, RuntimeError, LookupError, *OF_ANOTHER_KIND) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise InputError(f"{path} has no pruned weights of this model ({reason}): give a file of --export") from None


def semi_structured(model: nn.Module) -> nn.Module | None:
    """The model in fp16 with the kernels for two zeros of every four; None where the device has none.

    The model that is given is changed. Not yet tried on a GPU.
    """
    device = next(model.parameters()).device
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < LEAST_CAPABILITY:
        return None
    model.half()
    for module in model.modules():
        if isinstance(module, nn.Linear):
            sparse = torch.sparse.to_sparse_semi_structured(module.weight.detach())
            module.weight = nn.Parameter(sparse, requires_grad=False)
    return model

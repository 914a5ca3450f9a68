"""Structured pruning: a smaller dense model with the weights of a larger one that matter most.

What matters is judged on a batch of the data: of a channel or a head, how large its activations and the weights that
read them are; of a layer, how much it turns the hidden states. Sources: Sun et al. 2023 (Wanda), Men et al. 2024.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from planner.compression.recipes import Recipe
from profiles.workloads.workload import Workload

# Linears of a block by the end of their names: the dimension that goes with the channels, and with the heads.
CHANNEL_DIMS = {"gate_proj": 0, "up_proj": 0, "down_proj": 1, "c_fc": 0, "mlp.c_proj": 1, "fc1": 0, "fc2": 1}
QUERY_DIMS, KEY_DIMS = {"q_proj": 0, "o_proj": 1}, {"k_proj": 0, "v_proj": 0}
READERS = {"ffn": ("down_proj", "mlp.c_proj", "fc2"), "heads": ("o_proj",)}


@dataclass(slots=True)
class Seen:
    """What a batch showed: mean squares of what reaches each reader, and by how much each layer turns its input."""

    squares: dict[tuple[int, str], Tensor] = field(default_factory=dict)
    turned: dict[int, float] = field(default_factory=dict)


def shrink(whole: nn.Sequential, workload: Workload, left: Workload, own: Recipe, tokens: Tensor) -> nn.Sequential:
    """The model `left` with what matters of `whole`, both complete on this device. Shapes: tokens (batch, sequence)."""
    seen = _look(whole, own, tokens)
    smaller = left.build(0, len(left.layers), seed=0).to(tokens.device)
    blocks = range(1, len(whole) - 1)
    if own.part == "layers":
        count = len(left.layers) - 2
        kept = sorted(sorted(blocks, key=lambda position: -seen.turned[position])[:count])
    else:
        kept = list(blocks)
    for position, source in enumerate([0, *kept, len(whole) - 1]):
        parts = _parts(whole[source], own, workload, left, seen, source) if own.part != "layers" else {}
        state = {name: _selected(name, value, parts) for name, value in whole[source].state_dict().items()}
        smaller[position].load_state_dict(state)
    return smaller


def _look(whole: nn.Sequential, own: Recipe, tokens: Tensor) -> Seen:
    """Run the batch through the model and note what pruning asks for."""
    seen = Seen()
    with _watched(whole, own, seen), torch.no_grad():
        whole(tokens)
    return seen


@contextlib.contextmanager
def _watched(whole: nn.Sequential, own: Recipe, seen: Seen) -> Iterator[None]:
    hooks = []
    for position, layer in enumerate(whole):

        def turn(module: nn.Module, given: tuple[Tensor, ...], gave: Tensor, position: int = position) -> None:
            if given[0].shape == gave.shape:
                alike = nn.functional.cosine_similarity(given[0].float(), gave.float(), dim=-1)
                seen.turned[position] = 1 - float(alike.mean())

        hooks.append(layer.register_forward_hook(turn))
        for name, module in layer.named_modules():
            if name.endswith(READERS.get(own.part, ())) and isinstance(module, nn.Linear):

                def square(
                    module: nn.Module, given: tuple[Tensor, ...], key: tuple[int, str] = (position, name)
                ) -> None:
                    seen.squares[key] = given[0].float().square().flatten(0, -2).mean(dim=0)

                hooks.append(module.register_forward_pre_hook(square))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _parts(
    layer: nn.Module, own: Recipe, workload: Workload, left: Workload, seen: Seen, position: int
) -> dict[str, tuple[int, Tensor]]:
    """By the end of a linear's name, the dimension that shrinks and the places that stay."""
    found = next((key for key in seen.squares if key[0] == position), None)
    if found is None:
        return {}
    reader = layer.get_submodule(found[1])
    assert isinstance(reader, nn.Linear)
    importance = seen.squares[found].sqrt() * reader.weight.detach().norm(dim=0)
    if own.part == "ffn":
        places = importance.topk(left.ffn_size).indices.sort().values
        return {name: (dim, places) for name, dim in CHANNEL_DIMS.items()}
    groups = workload.num_kv_heads
    per_group = importance.numel() // groups
    kept = importance.view(groups, per_group).norm(dim=1).topk(left.num_kv_heads).indices.sort().values
    head_size = per_group // (workload.num_heads // groups)
    queries = (kept[:, None] * per_group + torch.arange(per_group, device=kept.device)).flatten()
    keys = (kept[:, None] * head_size + torch.arange(head_size, device=kept.device)).flatten()
    return {name: (dim, queries) for name, dim in QUERY_DIMS.items()} | {
        name: (dim, keys) for name, dim in KEY_DIMS.items()
    }


def _selected(name: str, value: Tensor, parts: dict[str, tuple[int, Tensor]]) -> Tensor:
    path = name.rpartition(".")[0]
    for ending, (dim, places) in parts.items():
        if path.endswith(ending):
            # A bias belongs to the outputs: where the inputs shrink it stays as it is.
            return value.index_select(dim, places) if dim < value.dim() else value
    return value

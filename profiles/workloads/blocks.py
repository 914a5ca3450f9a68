"""The layers of a workload as modules, and how a layer shrinks to what one tensor-parallel rank holds."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from profiles.models.families import Style

# The name under which transformers finds `attention`.
ATTENTION = "trainwright"
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class SequencePart:
    """Which part of the sequence a rank works on.

    Attention sees `gathered` times as many tokens as come in; they are the `index`-th piece of that length.
    """

    gathered: int = 1
    index: int = 0

    def positions(self, length: int, device: torch.device) -> Tensor:
        """Positions of the tokens that attention sees where `length` tokens come in."""
        seen = length * self.gathered
        return torch.arange(self.index * seen, (self.index + 1) * seen, device=device)


class Embedding(nn.Module):
    """Token embedding, plus learned positions where `num_positions` is not 0, some of it dropped in training."""

    def __init__(self, vocab_size: int, hidden_size: int, num_positions: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout) if dropout else None
        self.tokens = nn.Embedding(vocab_size, hidden_size)
        self.positions = nn.Embedding(num_positions, hidden_size) if num_positions else None
        self.part = SequencePart()

    def forward(self, token_ids: Tensor) -> Tensor:
        """Token ids (batch, sequence) to hidden states (batch, sequence, hidden)."""
        hidden: Tensor = self.tokens(token_ids)
        if self.positions is not None:
            hidden = hidden + self.positions(self.part.positions(token_ids.shape[1], token_ids.device))
        return as_computed(hidden if self.dropout is None else self.dropout(hidden))


class RotaryBlock(nn.Module):
    """A transformers decoder layer with its own rotary embedding, so that it can stand on any stage."""

    def __init__(self, block: nn.Module, rotary: nn.Module) -> None:
        super().__init__()
        self.block, self.rotary = block, rotary
        self.part = SequencePart()

    def forward(self, hidden: Tensor) -> Tensor:
        """Hidden states (batch, sequence, hidden) to the same shape; attention is causal."""
        positions = self.part.positions(hidden.shape[1], hidden.device)[None]
        output = self.block(hidden, position_embeddings=self.rotary(hidden, positions), position_ids=positions)
        return _hidden_of(output)


class PlainBlock(nn.Module):
    """A transformers block that needs nothing but hidden states."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, hidden: Tensor) -> Tensor:
        """Hidden states (batch, sequence, hidden) to the same shape; attention is causal."""
        output = self.block(hidden)
        return _hidden_of(output)


class Head(nn.Module):
    """Final norm and projection to the vocabulary."""

    def __init__(self, norm: nn.Module, hidden_size: int, vocab_size: int) -> None:
        super().__init__()
        self.norm = norm
        self.projection = nn.Linear(hidden_size, vocab_size, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """Hidden states (batch, sequence, hidden) to logits (batch, sequence, vocabulary)."""
        logits: Tensor = self.projection(as_computed(self.norm(hidden)))
        return logits


def as_computed(hidden: Tensor) -> Tensor:
    """`hidden` in the precision that autocast computes products in, where it is on.

    Autocast leaves embeddings and norms in 32 bits, and every linear behind them would cast, send and keep a copy of
    its own. Hidden states in 16 bits are what training in mixed precision means everywhere else.
    """
    kind = hidden.device.type
    return hidden.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else hidden


def norms_as_computed(layer: nn.Module, paths: Iterable[str]) -> nn.Module:
    """`layer` itself, what its norms at `paths` give being `as_computed`."""
    for path in paths:
        layer.get_submodule(path).register_forward_hook(lambda module, inputs, output: as_computed(output))
    return layer


def _hidden_of(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    # Blocks return a tensor or a tuple whose first item it is, by transformers version.
    return output[0] if isinstance(output, tuple) else output


def register_attention() -> None:
    """Make `attention` known to transformers, which blocks of any family then call; again and again does no harm."""
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION, attention)


def attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Scaled dot-product attention as transformers computes it, or what `set_attention_core` put around it.

    Shapes: query, key, value (batch, heads, sequence, head size); the result (batch, sequence, heads, head size).
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        result: Tensor = sdpa_attention_forward(module, query, key, value, mask, **options)[0]
        return result

    core: Callable[[Attend, Tensor, Tensor, Tensor], Tensor] | None = module.__dict__.get("attention_core")
    return (attend(query, key, value) if core is None else core(attend, query, key, value)), None


def set_attention_core(module: nn.Module, core: Callable[[Attend, Tensor, Tensor, Tensor], Tensor]) -> None:
    """Let this attention call `core(attend, query, key, value)` in place of `attend(query, key, value)`."""
    module.__dict__["attention_core"] = core


def linears_for_conv1d(module: nn.Module) -> nn.Module:
    """Replace transformers' Conv1D (a linear with a transposed weight) by nn.Linear, which DTensor can split."""
    from transformers.pytorch_utils import Conv1D

    for name, child in module.named_children():
        if isinstance(child, Conv1D):
            setattr(module, name, nn.Linear(child.weight.shape[0], child.weight.shape[1]))
        else:
            linears_for_conv1d(child)
    return module


def shrink_to_shard(layer: nn.Module, styles: dict[str, Style], degree: int) -> nn.Module:
    """`layer` itself, each linear of `styles` replaced by a new one of the size a tensor-parallel rank holds."""
    for path, style in styles.items() if degree > 1 else ():
        parent_path, _, name = path.rpartition(".")
        parent = layer.get_submodule(parent_path)
        linear = layer.get_submodule(path)
        assert isinstance(linear, nn.Linear)
        rows, columns = linear.out_features, linear.in_features
        rows, columns = (rows, columns // degree) if style == "rowwise" else (rows // degree, columns)
        setattr(parent, name, nn.Linear(columns, rows, bias=linear.bias is not None, dtype=linear.weight.dtype))
        set_local_split(parent, style, degree)
    return layer


def set_local_split(parent: nn.Module, style: Style, degree: int) -> None:
    """Tell an attention that cuts a fused query-key-value into parts that each part is now 1/`degree` as wide."""
    if style == "colwise_qkv":
        parent.__dict__["split_size"] //= degree

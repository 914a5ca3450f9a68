"""Small models that tests build, run and trace."""

import torch
from torch import nn

from profiles.model import WorkloadSpec

LLAMA = WorkloadSpec(
    kind="transformers",
    name="tiny-llama",
    config={
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 256,
        "max_position_embeddings": 256,
        "tie_word_embeddings": False,
    },
)
GPT2 = WorkloadSpec(
    kind="transformers",
    name="tiny-gpt2",
    config={
        "model_type": "gpt2",
        "n_embd": 64,
        "n_layer": 3,
        "n_head": 4,
        "n_positions": 256,
        "vocab_size": 256,
        "tie_word_embeddings": False,
    },
)


class Residual(nn.Module):
    """A layer of a user's own model."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden + self.down(torch.relu(self.up(hidden)))


def own_model() -> nn.Module:
    """What a user's factory may look like."""
    return nn.Sequential(nn.Embedding(256, 32), Residual(32), Residual(32), nn.Linear(32, 256))

"""Small models that tests build, run and trace."""

from pathlib import Path

import torch
from torch import Tensor, nn

from executor.compress.export_onnx import onnxruntime_session
from profiles.models.profile import WorkloadSpec

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


def plain_model() -> nn.Module:
    """Layers that hand on what they compute: under bf16 the first block alone gets fp32, from the embedding."""
    blocks = (nn.Sequential(nn.Linear(32, 32), nn.GELU()) for _ in range(3))
    return nn.Sequential(nn.Embedding(256, 32), *blocks, nn.Linear(32, 256))


class Picture(nn.Module):
    """A model that is no sequence and no language model."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, stride=4)
        self.mix = nn.Conv2d(8, 16, 3, padding=1)
        self.head = nn.Linear(16, 10)
        self.vocab_size = 10

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.mix(torch.relu(self.stem(image)))).mean(dim=(2, 3)))

    def example_input(self, batch: int, sequence: int) -> torch.Tensor:
        return torch.randn(batch, 3, 32, sequence)

    def loss(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return output.float().pow(2).mean()


def onnxruntime_logits(path: Path, inputs: Tensor) -> Tensor:
    """What ONNX Runtime answers. Shapes: (batch, sequence) to (batch, sequence, vocabulary)."""
    session = onnxruntime_session(path)
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: inputs.numpy()})[0])

"""A user's own module and data, as another package would hold them."""

import torch
from torch import Tensor, nn


class Tower(nn.Module):
    """Numbers in, one number out: no text, no vocabulary, dropout of a function, an output that is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(3))
        self.head = nn.Linear(6, 1)

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        for layer in self.layers:
            x = x + nn.functional.dropout(layer(x), 0.1, self.training)
        out = self.head(x)[:, 0]
        return {"guess": out, "loss": nn.functional.mse_loss(out, y)}


def samples(step: int, count: int) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(step)
    drawn = torch.randn(count, 6, generator=generator)
    return [{"x": row, "y": row.sum()} for row in drawn]


def tower():
    from executor import Task

    torch.manual_seed(0)
    return Task(Tower(), samples)


class Regression(nn.Sequential):
    """One tensor in, one out, and a loss of its own over float targets."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 1))
        self.vocab_size = 10

    def example_input(self, batch: int, sequence: int) -> Tensor:
        return torch.randn(batch, 6)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return nn.functional.mse_loss(output[:, 0], target.float())


def pairs(step: int, count: int) -> list[tuple[Tensor, Tensor]]:
    return [(sample["x"], sample["y"]) for sample in samples(step, count)]

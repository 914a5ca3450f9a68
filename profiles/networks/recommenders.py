"""Recommenders: neural collaborative filtering, DLRM, and an autoencoder of items."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

# Elements of a vector that matrix units load at once.
VECTOR = 8


def linears(sizes: Sequence[int], last: bool = True) -> nn.Sequential:
    """Linears with rectifiers between; `last` without one."""
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(pairwise(sizes)):
        layers.append(nn.Linear(a, b))
        if not (last and i == len(sizes) - 2):
            layers.append(nn.ReLU())
    return nn.Sequential(*layers)


class Ncf(nn.Module):
    """Neural collaborative filtering over MovieLens 20M: products of factors beside a perceptron."""

    def __init__(self, users: int = 138493, items: int = 26744, factors: int = 64) -> None:
        super().__init__()
        widths = (256, 256, 128, 64)
        self.users = nn.ModuleList((nn.Embedding(users, factors), nn.Embedding(users, widths[0] // 2)))
        self.items = nn.ModuleList((nn.Embedding(items, factors), nn.Embedding(items, widths[0] // 2)))
        self.deep, self.last = linears(widths, last=False), nn.Linear(factors + widths[-1], 1)

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        """The loss of pairs."""
        shallow = self.users[0](users) * self.items[0](items)
        deep = torch.cat([self.users[1](users), self.items[1](items)], -1)
        for layer in self.deep:
            deep = functional.dropout(layer(deep), 0.5) if isinstance(layer, nn.ReLU) else layer(deep)
        score = self.last(torch.cat([shallow, deep], -1)).float()
        return functional.binary_cross_entropy_with_logits(score[:, 0], torch.zeros(score.shape[0]))


class Dlrm(nn.Module):
    """26 tables and 13 numbers, their pairwise products, and a perceptron above.

    The products' rows are padded to whole vectors, as kernels written for them do.
    """

    def __init__(self, width: int = 128, rows: int = 100000, tables: int = 26) -> None:
        super().__init__()
        self.tables, self.table = tables, nn.Embedding(rows * tables, width)
        self.bottom = linears((13, 512, 256, width), last=False)
        pairs = (tables + 1) * tables // 2
        self.top = linears((pairs + width + 1, 1024, 1024, 512, 256, 1))
        self.width = width

    def forward(self, numbers: Tensor, words: Tensor) -> Tensor:
        """The loss of samples."""
        dense = self.bottom(numbers)
        empty = torch.zeros(dense.shape[0], -(self.tables + 1) % VECTOR, self.width, dtype=dense.dtype)
        rows = torch.cat([dense[:, None], self.table(words).to(dense.dtype), empty], 1)
        products = torch.bmm(rows, rows.transpose(1, 2)).flatten(1)
        pairs = products[:, : (self.tables + 1) * self.tables // 2]
        score = self.top(torch.cat([dense, pairs, dense[:, :1]], 1)).float()
        return functional.binary_cross_entropy_with_logits(score[:, 0], torch.zeros(score.shape[0]))


class Autoencoder(nn.Module):
    """A variational autoencoder of a user's items (MovieLens 20M)."""

    def __init__(self, items: int = 20108, hidden: int = 600, latent: int = 200) -> None:
        super().__init__()
        self.encoder, self.decoder = linears((items, hidden, 2 * latent)), linears((latent, hidden, items))
        self.latent = latent

    def forward(self, items: Tensor) -> Tensor:
        """The loss of rows of items."""
        mean, spread = self.encoder(functional.dropout(functional.normalize(items), 0.5)).split(self.latent, 1)
        state = mean + torch.exp(0.5 * spread) * torch.zeros_like(spread)
        return -(functional.log_softmax(self.decoder(state).float(), 1) * items).sum(1).mean()

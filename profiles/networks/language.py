"""Transformer-XL with its memory and adaptive softmax, and GNMT, a translator of LSTM layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

# Word classes of WikiText-103 in the adaptive softmax, and all of its words.
CUTOFFS, VOCABULARY = (19997, 39997, 199997), 267735


class RelativeAttention(nn.Module):
    """Attention over the memory and the segment with relative positions, unfused."""

    def __init__(self, hidden: int, heads: int, size: int) -> None:
        super().__init__()
        self.heads, self.size = heads, size
        self.project = nn.Linear(hidden, 3 * heads * size, bias=False)
        self.position = nn.Linear(hidden, heads * size, bias=False)
        self.output = nn.Linear(heads * size, hidden, bias=False)
        self.norm = nn.LayerNorm(hidden)

    def forward(self, words: Tensor, memory: Tensor, places: Tensor, biases: tuple[Tensor, Tensor]) -> Tensor:
        """Time, batch, hidden: the attended words."""
        length, batch, _ = words.shape
        whole = torch.cat([memory, words])
        span = whole.shape[0]
        query, key, value = self.project(whole).chunk(3, -1)
        query = query[-length:].reshape(length, batch * self.heads, self.size)
        key, value = (one.reshape(span, batch * self.heads, self.size) for one in (key, value))
        place = self.position(places).view(span, self.heads, self.size)
        first = (query.view(length, batch, self.heads, self.size) + biases[0]).view(length, -1, self.size)
        second = (query.view(length, batch, self.heads, self.size) + biases[1]).reshape(length, batch, self.heads, -1)
        content = torch.bmm(first.transpose(0, 1), key.permute(1, 2, 0))
        shifted = torch.einsum("ibnd,jnd->bnij", second, place)
        padded = functional.pad(shifted, (1, 0)).view(batch, self.heads, span + 1, length)
        shifted = padded[:, :, 1:].reshape(batch, self.heads, length, span)
        scores = (content.view(batch, self.heads, length, span) + shifted) * self.size**-0.5
        scores = scores.float().masked_fill(places[:, :1, 0].view(1, 1, 1, span) > 1e4, float("-inf")).type_as(scores)
        share = functional.dropout(torch.softmax(scores, -1), 0.0)
        mixed = torch.bmm(share.view(batch * self.heads, length, span).to(value.dtype), value.transpose(0, 1))
        mixed = mixed.transpose(0, 1).reshape(length, batch, self.heads * self.size)
        result: Tensor = self.norm(words + functional.dropout(self.output(mixed), 0.1))
        return result


class XLLayer(nn.Module):
    """Attention and its two linears."""

    def __init__(self, hidden: int, heads: int, size: int, inner: int) -> None:
        super().__init__()
        self.attention = RelativeAttention(hidden, heads, size)
        self.up, self.down, self.norm = nn.Linear(hidden, inner), nn.Linear(inner, hidden), nn.LayerNorm(hidden)

    def forward(self, words: Tensor, memory: Tensor, places: Tensor, biases: tuple[Tensor, Tensor]) -> Tensor:
        """The layer's result."""
        words = self.attention(words, memory, places, biases)
        inner = functional.dropout(functional.relu(self.up(words), inplace=True), 0.1)
        result: Tensor = self.norm(words + functional.dropout(self.down(inner), 0.1))
        return result


class TransformerXL(nn.Module):
    """A language model of segments with a memory as long; `shrink` is by how much rare words' vectors are narrower.

    `is_whole` computes the softmax over all words at once.
    """

    def __init__(
        self, layers: int, hidden: int, heads: int, size: int, inner: int, shrink: int, is_whole: bool = False
    ) -> None:
        super().__init__()
        self.hidden, self.is_whole = hidden, is_whole
        self.layers = nn.ModuleList(XLLayer(hidden, heads, size, inner) for _ in range(layers))
        ends = (0, VOCABULARY) if is_whole else (0, *CUTOFFS, VOCABULARY)
        widths = [hidden // shrink**i for i in range(len(ends) - 1)]
        self.tables = nn.ModuleList(
            nn.Embedding(end - start, width) for start, end, width in zip(ends, ends[1:], widths, strict=False)
        )
        self.widen = nn.ModuleList(nn.Linear(width, hidden, bias=False) for width in widths)
        self.clusters = nn.Linear(hidden, len(CUTOFFS))
        self.biases = nn.ParameterList(nn.Parameter(torch.empty(heads, size)) for _ in range(2))

    def forward(self, words: Tensor, memory: Tensor) -> Tensor:
        """The loss of (time, batch) words after a memory of (layers, time, batch, hidden)."""
        # Of the words some are rare: about 3 % of the text are outside of the two first classes.
        sample = words.reshape(-1)
        rows = functional.embedding(sample, self.table(0))
        rows = rows if self.is_whole else rows @ self.wide(0).t()
        state = functional.dropout(rows.view(*words.shape, -1) * self.hidden**0.5, 0.1)
        span = words.shape[0] + memory.shape[1]
        places = torch.zeros(span, 1, self.hidden, dtype=state.dtype)
        for layer, kept in zip(self.layers, memory, strict=True):
            state = layer(state, kept.to(state.dtype), places, (self.biases[0], self.biases[1]))
        return self.loss(functional.dropout(state, 0.1).reshape(-1, self.hidden), sample)

    def table(self, place: int) -> Tensor:
        """Vectors of a class of words."""
        weight = self.tables[place].weight
        assert isinstance(weight, Tensor)
        return weight

    def wide(self, place: int) -> Tensor:
        """What makes vectors of a class as wide as the layers."""
        weight = self.widen[place].weight
        assert isinstance(weight, Tensor)
        return weight

    def loss(self, state: Tensor, target: Tensor) -> Tensor:
        """Adaptive softmax: frequent words and three classes, and of rare words their share of rows."""
        if self.is_whole:
            scores = functional.linear(state, self.table(0)).float()
            return functional.nll_loss(functional.log_softmax(scores, 1), target)
        head = state @ self.wide(0)
        weight = torch.cat([self.table(0), self.clusters.weight[:, : self.table(0).shape[1]]])
        total = -functional.log_softmax((head @ weight.t()).float(), 1).gather(1, target[:, None] % 10).mean()
        for i, share in ((1, 16), (2, 16), (3, 64)):
            rows = state[: max(state.shape[0] // share, 1)] @ self.wide(i)
            scores = (rows @ self.table(i).t()).float()
            total = total - functional.log_softmax(scores, 1).gather(1, target[: rows.shape[0], None] % 10).mean()
        return total


class Gnmt(nn.Module):
    """Encoder and decoder of LSTM layers with attention over the encoder, 1024 units wide."""

    def __init__(self, vocabulary: int = 31794, units: int = 1024, layers: int = 4) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, units)
        self.both = nn.LSTM(units, units, bidirectional=True)
        self.encoder = nn.ModuleList(nn.LSTM(2 * units if i == 0 else units, units) for i in range(layers - 1))
        self.first = nn.LSTM(units, units)
        self.decoder = nn.ModuleList(nn.LSTM(2 * units, units) for _ in range(layers - 1))
        self.query, self.key = nn.Linear(units, units, bias=False), nn.Linear(units, units, bias=False)
        self.score = nn.Parameter(torch.empty(units))
        self.head = nn.Linear(units, vocabulary)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """The loss of (time, batch) words in both languages."""
        state = functional.dropout(self.both(functional.dropout(self.words(source), 0.2))[0], 0.2)
        for i, layer in enumerate(self.encoder):
            after = functional.dropout(layer(state)[0], 0.2)
            state = after + state if i > 0 else after
        words, _ = self.first(functional.dropout(self.words(target), 0.2))
        seen = self.attend(words, state)
        for layer in self.decoder:
            after = functional.dropout(layer(torch.cat([words, seen], -1))[0], 0.2)
            words = after + words
        scores = self.head(words).float()
        return functional.nll_loss(functional.log_softmax(scores.flatten(0, 1), -1), target.flatten())

    def attend(self, words: Tensor, state: Tensor) -> Tensor:
        """Bahdanau's attention: a sum of squashed pairs."""
        pairs = self.query(words).transpose(0, 1)[:, :, None] + self.key(state).transpose(0, 1)[:, None]
        share = torch.softmax(torch.tanh(pairs) @ self.score.to(pairs.dtype), -1)
        return torch.bmm(share.to(state.dtype), state.transpose(0, 1)).transpose(0, 1)

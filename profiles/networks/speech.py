"""WaveGlow, a flow from spectrograms to sound, and Tacotron 2, from letters to spectrograms."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

MEL, GROUP, EARLY_EVERY, EARLY_SIZE, FLOWS = 80, 8, 4, 2, 12


class WaveNet(nn.Module):
    """Dilated convolutions with gates, conditioned on the spectrogram."""

    def __init__(self, half: int, channels: int, layers: int) -> None:
        super().__init__()
        self.start, self.end = nn.Conv1d(half, channels, 1), nn.Conv1d(channels, 2 * half, 1)
        self.channels = channels
        self.inner = nn.ModuleList(
            nn.Conv1d(channels, 2 * channels, 3, dilation=2**i, padding=2**i) for i in range(layers)
        )
        self.condition = nn.ModuleList(nn.Conv1d(MEL * GROUP, 2 * channels, 1) for _ in range(layers))
        self.out = nn.ModuleList(nn.Conv1d(channels, (2 if i < layers - 1 else 1) * channels, 1) for i in range(layers))

    def forward(self, sound: Tensor, spectrum: Tensor) -> Tensor:
        """Scale and shift of the other half."""
        sound = self.start(sound)
        total = None
        for inner, condition, out in zip(self.inner, self.condition, self.out, strict=True):
            both = inner(sound) + condition(spectrum)
            gated = torch.tanh(both[:, : self.channels]) * torch.sigmoid(both[:, self.channels :])
            result = out(gated)
            if result.shape[1] > self.channels:
                sound, result = result[:, : self.channels] + sound, result[:, self.channels :]
            total = result if total is None else total + result
        result = self.end(total)
        assert isinstance(result, Tensor)
        return result


class WaveGlow(nn.Module):
    """Twelve flows over groups of eight samples."""

    def __init__(self, channels: int = 512, layers: int = 8) -> None:
        super().__init__()
        self.upsample = nn.ConvTranspose1d(MEL, MEL, 1024, 256)
        sizes, size = [], GROUP
        for flow in range(FLOWS):
            if flow and flow % EARLY_EVERY == 0:
                size -= EARLY_SIZE
            sizes.append(size)
        self.mix = nn.ModuleList(nn.Conv1d(size, size, 1, bias=False) for size in sizes)
        self.nets = nn.ModuleList(WaveNet(size // 2, channels, layers) for size in sizes)

    def forward(self, spectrum: Tensor, sound: Tensor) -> Tensor:
        """The loss of spectrograms and sound."""
        spectrum = self.upsample(spectrum)[:, :, : sound.shape[1]]
        spectrum = spectrum.unfold(2, GROUP, GROUP).permute(0, 2, 1, 3).flatten(2).permute(0, 2, 1)
        state = sound.unfold(1, GROUP, GROUP).permute(0, 2, 1)
        logs, early = torch.zeros(()), []
        for flow, (mix, net) in enumerate(zip(self.mix, self.nets, strict=True)):
            if flow and flow % EARLY_EVERY == 0:
                early.append(state[:, :EARLY_SIZE])
                state = state[:, EARLY_SIZE:]
            state = mix(state)
            half = state.shape[1] // 2
            kept, moved = state[:, :half], state[:, half:]
            scale, shift = net(kept, spectrum).chunk(2, 1)
            state = torch.cat([kept, torch.exp(scale) * moved + shift], 1)
            logs = logs + scale.float().sum()
        early.append(state)
        return (torch.cat(early, 1).float() ** 2).sum() - logs


class Tacotron2(nn.Module):
    """Letters through convolutions and an LSTM, frames by two LSTM cells a step with attention, then convolutions."""

    def __init__(self, letters: int = 148, width: int = 512, units: int = 1024) -> None:
        super().__init__()
        self.letters = nn.Embedding(letters, width)
        self.encoder = nn.ModuleList(self.block(width, width) for _ in range(3))
        self.reader = nn.LSTM(width, width // 2, bidirectional=True)
        first, second = nn.Linear(MEL, 256, bias=False), nn.Linear(256, 256, bias=False)
        self.prenet = nn.Sequential(first, nn.ReLU(), second, nn.ReLU())
        self.attention, self.decoder = nn.LSTMCell(256 + width, units), nn.LSTMCell(units + width, units)
        self.query, self.key, self.score = nn.Linear(units, 128), nn.Linear(width, 128), nn.Linear(128, 1)
        self.place, self.location = nn.Conv1d(2, 32, 31, padding=15, bias=False), nn.Linear(32, 128, bias=False)
        self.frame, self.gate = nn.Linear(units + width, MEL), nn.Linear(units + width, 1)
        sizes = (MEL, width, width, width, width, MEL)
        self.postnet = nn.ModuleList(self.block(a, b) for a, b in pairwise(sizes))

    def block(self, inputs: int, outputs: int) -> nn.Sequential:
        """A convolution with its norm."""
        return nn.Sequential(nn.Conv1d(inputs, outputs, 5, padding=2), nn.BatchNorm1d(outputs))

    def forward(self, text: Tensor, frames: Tensor, steps: int) -> Tensor:
        """The loss of (batch, letters) and (batch, bands, frames), of which `steps` are decoded."""
        state = self.letters(text).transpose(1, 2)
        for block in self.encoder:
            state = functional.dropout(functional.relu(block(state)), 0.5)
        memory = self.reader(state.permute(2, 0, 1))[0].transpose(0, 1)
        keys = self.key(memory)
        batch, length = text.shape
        inputs = functional.dropout(self.prenet(frames.permute(2, 0, 1)), 0.5)
        zeros = [memory.new_zeros(batch, 1024) for _ in range(4)]
        (h1, c1, h2, c2), seen = zeros, memory.new_zeros(batch, memory.shape[2])
        share = total = memory.new_zeros(batch, length)
        results = []
        for step in range(steps):
            h1, c1 = self.attention(torch.cat([inputs[step], seen], -1), (h1, c1))
            h1 = functional.dropout(h1, 0.1)
            place = self.location(self.place(torch.stack([share, total], 1)).transpose(1, 2))
            scores = self.score(torch.tanh(self.query(h1)[:, None] + keys + place))[..., 0]
            share = torch.softmax(scores.float(), -1).to(memory.dtype)
            total = total + share
            seen = torch.bmm(share[:, None], memory)[:, 0]
            h2, c2 = self.decoder(torch.cat([h1, seen], -1), (h2, c2))
            h2 = functional.dropout(h2, 0.1)
            both = torch.cat([h2, seen], -1)
            results.append(torch.cat([self.frame(both), self.gate(both)], -1))
        made = torch.stack(results, 2)[:, :MEL]
        after = made
        for block in self.postnet:
            after = functional.dropout(torch.tanh(block(after)), 0.5)
        wanted = frames[:, :, :steps]
        return functional.mse_loss(made.float(), wanted) + functional.mse_loss((made + after).float(), wanted)

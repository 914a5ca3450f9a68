"""WaveGlow, a flow from spectrograms to sound."""

from __future__ import annotations

import torch
from torch import Tensor, nn

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

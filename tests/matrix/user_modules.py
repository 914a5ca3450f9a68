"""Modules as users write them, each with its task: other inputs, outputs, layers and losses than models of text."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from profiles.workloads.task import Batch, Sample, Task, user_task

WIDTH, WORDS, LENGTH, SIDE, CLASSES = 16, 32, 12, 16, 5


def _random(step: int, position: int) -> torch.Generator:
    return torch.Generator().manual_seed(1000 * step + position)


def text(step: int, samples: int) -> list[Sample]:
    """Tokens, and those that follow."""
    ids = [torch.randint(WORDS, (LENGTH + 1,), generator=_random(step, i)) for i in range(samples)]
    return [{"tokens": own[:-1], "targets": own[1:]} for own in ids]


def pictures(step: int, samples: int) -> list[Sample]:
    """Pixels, a class, and a class for each pixel."""
    made = []
    for i in range(samples):
        random = _random(step, i)
        mask = torch.randint(CLASSES, (SIDE, SIDE), generator=random)
        made.append({"image": torch.rand(3, SIDE, SIDE, generator=random), "label": mask[0, 0], "mask": mask})
    return made


def numbers(step: int, samples: int) -> list[Sample]:
    """Features and what they should give."""
    return [
        {"x": torch.randn(WIDTH, generator=_random(step, i)), "y": torch.randn(1, generator=_random(step, i + 500))}
        for i in range(samples)
    ]


class Block(nn.Module):
    """A transformer block."""

    def __init__(self, dropout: float = 0.0, causal: bool = True) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(
            nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)
        )
        self.dropout, self.causal = nn.Dropout(dropout), causal

    def forward(self, hidden: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(hidden)).unflatten(-1, (3, 2, WIDTH // 2)).permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        hidden = hidden + self.dropout(self.out(attended.transpose(1, 2).flatten(2)))
        return hidden + self.dropout(self.mlp(hidden))


class Language(nn.Module):
    """A small GPT; its head may be the embedding, its blocks may drop out."""

    def __init__(self, tied: bool = False, dropout: float = 0.0, form: str = "loss", scale: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, WIDTH)
        self.blocks = nn.ModuleList(Block(dropout) for _ in range(4))
        self.head = nn.Linear(WIDTH, WORDS, bias=False)
        if tied:
            self.head.weight = self.embedding.weight
        self.form, self.temperature = form, nn.Parameter(torch.tensor(1.0)) if scale else 1.0

    def forward(self, tokens: Tensor, targets: Tensor) -> object:
        hidden = self.embedding(tokens)
        for block in self.blocks:
            hidden = block(hidden)
        logits = self.head(hidden) * self.temperature
        loss = functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        return {"loss": loss, "dict": {"loss": loss, "logits": logits}, "tuple": (loss, logits)}[self.form]


class Recurrent(nn.Module):
    """An LSTM or a GRU over an embedding."""

    def __init__(self, kind: type[nn.LSTM | nn.GRU], words: int = WORDS, width: int = WIDTH) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(words, width), nn.Linear(width, words)
        self.layers = kind(width, width, num_layers=2, batch_first=True)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        logits = self.head(self.layers(self.embedding(tokens))[0])
        return functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


class Translator(nn.Module):
    """An LSTM that reads, and one that writes from the state of the first."""

    def __init__(self, words: int = WORDS, width: int = WIDTH, inner: int = 2 * WIDTH) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(words, width), nn.Linear(inner, words)
        self.encoder = nn.LSTM(width, inner, batch_first=True)
        self.decoder = nn.LSTM(width, inner, batch_first=True)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        _, state = self.encoder(self.embedding(tokens))
        logits = self.head(self.decoder(self.embedding(tokens), state)[0])
        return functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


class Convolutions(nn.Module):
    """Convolutions with batch norm; depthwise ones, where `groups` says so."""

    def __init__(self, groups: int = 1) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, WIDTH, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=groups), nn.BatchNorm2d(WIDTH), nn.ReLU())
            for _ in range(3)
        )
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        hidden = self.first(image)
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return self.head(hidden.mean((2, 3)))


class UNet(nn.Module):
    """Down, up by transposed convolutions, and what was there before beside it."""

    def __init__(self) -> None:
        super().__init__()
        sizes = [8, 16, 32]
        self.down = nn.ModuleList(nn.Conv2d(a, b, 3, 2, 1) for a, b in zip([3, *sizes], sizes, strict=False))
        self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, 2) for a, b in [(16, 32), (8, 32), (8, 16)])
        self.head = nn.Conv2d(8, CLASSES, 1)

    def forward(self, image: Tensor) -> Tensor:
        kept: list[Tensor] = []
        for layer in self.down:
            image = functional.relu(layer(image))
            kept.append(image)
        image = self.up[0](kept[2])
        image = self.up[1](torch.cat([image, kept[1]], 1))
        image = self.up[2](torch.cat([image, kept[0]], 1))
        return self.head(image)


class Denoiser(nn.Module):
    """A diffusion transformer: noise is found in patches, given the time and a class."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.classes = nn.Conv2d(3, WIDTH, 4, 4), nn.Embedding(CLASSES, WIDTH)
        self.time = nn.Linear(1, WIDTH)
        self.blocks = nn.ModuleList(Block(causal=False) for _ in range(3))
        self.head = nn.ConvTranspose2d(WIDTH, 3, 4, 4)

    def forward(self, noisy: Tensor, time: Tensor, label: Tensor) -> Tensor:
        hidden = self.patches(noisy).flatten(2).transpose(1, 2) + (self.time(time) + self.classes(label))[:, None]
        for block in self.blocks:
            hidden = block(hidden)
        return self.head(hidden.transpose(1, 2).unflatten(2, (SIDE // 4, SIDE // 4)))


class Towers(nn.Module):
    """Two towers whose answers are held against each other's over the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.text = Convolutions(), nn.EmbeddingBag(WORDS, CLASSES)

    def forward(self, image: Tensor, tokens: Tensor) -> Tensor:
        scores = self.image(image) @ self.text(tokens).T
        return functional.cross_entropy(scores, torch.arange(len(scores), device=scores.device))


def _pair(step: int, samples: int) -> list[Sample]:
    made = zip(pictures(step, samples), text(step, samples), strict=True)
    return [{"image": picture["image"], "tokens": own["tokens"]} for picture, own in made]


def _noise(step: int, samples: int) -> list[Sample]:
    made = []
    for i, own in enumerate(pictures(step, samples)):
        random = _random(step, i + 500)
        time, noise = torch.rand(1, generator=random), torch.randn(3, SIDE, SIDE, generator=random)
        made.append({"noisy": own["image"], "time": time, "label": own["label"], "noise": noise})
    return made


def _of_label(module: nn.Module, batch: Batch) -> Tensor:
    return functional.cross_entropy(module(batch["image"]), batch["label"])


def _of_mask(module: nn.Module, batch: Batch) -> Tensor:
    return functional.cross_entropy(module(batch["image"]), batch["mask"])


def _of_number(module: nn.Module, batch: Batch) -> Tensor:
    return functional.mse_loss(module(batch["x"]), batch["y"])


def _of_noise(module: nn.Module, batch: Batch) -> Tensor:
    return functional.mse_loss(module(batch["noisy"], batch["time"], batch["label"]), batch["noise"])


def _autoencoder_loss(module: nn.Module, batch: Batch) -> Tensor:
    return functional.mse_loss(module(batch["image"]), batch["image"])


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))


def _autoencoder() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(),
        nn.ConvTranspose2d(16, 8, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(8, 3, 4, 2, 1, groups=1), nn.Sigmoid(),
    )  # fmt: skip


class _Tagger(nn.Module):
    """torch's own encoder, given which tokens are there."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, 2, 32, dropout=0.1, batch_first=True)
        self.embedding, self.head = nn.Embedding(WORDS, WIDTH), nn.Linear(WIDTH, WORDS)
        self.encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        logits = self.head(self.encoder(self.embedding(tokens), src_key_padding_mask=tokens == 0))
        return functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def gpt() -> Task:
    return user_task(Language, text)


def tied() -> Task:
    return user_task(lambda: Language(tied=True), text)


def dropout() -> Task:
    return user_task(lambda: Language(dropout=0.1), text)


def gives_dict() -> Task:
    return user_task(lambda: Language(form="dict"), text)


def gives_tuple() -> Task:
    return user_task(lambda: Language(form="tuple"), text)


def scalar_parameter() -> Task:
    return user_task(lambda: Language(scale=True), text)


def lstm() -> Task:
    return user_task(lambda: Recurrent(nn.LSTM), text)


def gru() -> Task:
    return user_task(lambda: Recurrent(nn.GRU), text)


def translator() -> Task:
    return user_task(Translator, text)


def tagger() -> Task:
    return user_task(_Tagger, text)


def convolutions() -> Task:
    return user_task(Convolutions, pictures, loss=_of_label)


def depthwise() -> Task:
    return user_task(lambda: Convolutions(groups=WIDTH), pictures, loss=_of_label)


def unet() -> Task:
    return user_task(UNet, pictures, loss=_of_mask)


def autoencoder() -> Task:
    return user_task(_autoencoder, pictures, loss=_autoencoder_loss)


def denoiser() -> Task:
    return user_task(Denoiser, _noise, loss=_of_noise)


def towers() -> Task:
    return user_task(Towers, _pair)


def regression() -> Task:
    return user_task(_mlp(), numbers, loss=_of_number)


MODULES = (
    gpt, tied, dropout, gives_dict, gives_tuple, scalar_parameter, lstm, gru, translator, tagger, convolutions,
    depthwise, unet, autoencoder, denoiser, towers, regression,
)  # fmt: skip

"""A vision transformer (ViT) as layers: patches of an image in, one answer per image out.

A sample is its patches as rows of pixels, behind a blank one in the place of the class token: tokens are patches + 1.
Source: Dosovitskiy et al. 2021 (arXiv 2010.11929); blocks are transformers' own.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from profiles.errors import InputError
from profiles.models.families import VIT_PATHS, VIT_STYLE
from profiles.workloads.blocks import PlainBlock, as_computed, norms_as_computed
from profiles.workloads.workload import LayerSpec


class PatchEmbedding(nn.Module):
    """Patches projected, the class token before them, learned positions added."""

    def __init__(self, num_pixels: int, hidden_size: int, num_patches: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout) if dropout else None
        self.projection = nn.Linear(num_pixels, hidden_size)
        self.class_token = nn.Parameter(torch.zeros(1, hidden_size))
        self.positions = nn.Embedding(num_patches + 1, hidden_size)

    def forward(self, patches: Tensor) -> Tensor:
        """Patches (batch, 1 + patch, pixel) to hidden states (batch, 1 + patch, hidden)."""
        projected = self.projection(patches)[:, 1:]
        first = self.class_token.to(projected.dtype).expand(len(patches), 1, -1)
        hidden = torch.cat([first, projected], dim=1)
        hidden = hidden + self.positions(torch.arange(hidden.shape[1], device=hidden.device))
        return as_computed(hidden if self.dropout is None else self.dropout(hidden))


class ClassHead(nn.Module):
    """Final norm and projection of the class token to the labels."""

    def __init__(self, norm: nn.Module, hidden_size: int, num_labels: int) -> None:
        super().__init__()
        self.norm = norm
        self.projection = nn.Linear(hidden_size, num_labels)

    def forward(self, hidden: Tensor) -> Tensor:
        """Hidden states (batch, sequence, hidden) to logits (batch, label)."""
        logits: Tensor = self.projection(as_computed(self.norm(hidden)[:, 0]))
        return logits


def patch_sizes(config: Any) -> tuple[int, int]:
    """Pixels of a patch, all channels, and patches of an image.

    Raises: InputError where patches do not cover the image.
    """
    image, patch = int(config.image_size), int(config.patch_size)
    if image % patch:
        raise InputError(f"image_size={image} is not a multiple of patch_size={patch}: patches must cover the image")
    return int(config.num_channels) * patch**2, (image // patch) ** 2


def vit_layers(config: Any) -> tuple[LayerSpec, ...]:
    """The layers of a ViTConfig."""
    from transformers.models.vit.modeling_vit import ViTLayer

    num_pixels, num_patches = patch_sizes(config)
    hidden = int(config.hidden_size)
    return (
        LayerSpec(
            name="embedding",
            build=lambda: PatchEmbedding(num_pixels, hidden, num_patches, float(config.hidden_dropout_prob)),
        ),
        *(
            LayerSpec(
                name="block",
                build=lambda: norms_as_computed(PlainBlock(ViTLayer(config)), VIT_PATHS.all_norms),
                styles={f"block.{path}": style for path, style in VIT_STYLE.items()},
                paths=VIT_PATHS,
            )
            for _ in range(config.num_hidden_layers)
        ),
        LayerSpec(
            name="head",
            build=lambda: ClassHead(nn.LayerNorm(hidden, eps=config.layer_norm_eps), hidden, int(config.num_labels)),
        ),
    )


def vit_fields(config: Any) -> dict[str, Any]:
    """What a workload says of a ViTConfig beside its sizes."""
    num_pixels, num_patches = patch_sizes(config)
    return {
        "vocab_size": int(config.num_labels),
        "max_sequence_length": num_patches + 1,
        "tied_embeddings": False,
        "example_input": functools.partial(_random_patches, num_pixels),
        "loss": class_loss,
        "answers_once": True,
    }


def class_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy in fp32. Shapes: logits (batch, label), labels (batch,)."""
    return nn.functional.cross_entropy(logits.float(), labels)


def patches_of(images: Tensor, patch_size: int) -> Tensor:
    """Images cut into patches, row by row, behind a blank one.

    Shapes: (image, channel, height, width) to (image, 1 + patch, pixel).
    """
    patches = nn.functional.unfold(images, patch_size, stride=patch_size).transpose(1, 2)
    return nn.functional.pad(patches, (0, 0, 1, 0)).contiguous()


def _random_patches(num_pixels: int, batch: int, sequence: int) -> Tensor:
    return torch.rand(batch, sequence, num_pixels)

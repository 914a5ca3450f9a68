"""Batches that hold more than one kind of thing, made up: images in a text, points on an image, speech beside text."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from profiles.workloads.examples import (
    NO_ANSWER,
    USUAL_PIXELS,
    Shape,
    first_of,
    image_shape,
    images,
    text_shape,
    tokens,
)
from profiles.workloads.task import Batch, Sample, samples_of, stack

# Words of a text beside the places of its image.
LEAST_WORDS = 16
# Values that have a row for each part of an image, of which a sample has several.
ROWS = ("pixel_values", "image_grid_thw")
BOXES = 2


def mask_generation(config: Any, samples: int, size: int, random: torch.Generator) -> Batch:
    """Images, boxes on each, and what is within each, a fourth as fine as the image."""
    corners = torch.rand(samples, BOXES, 4, generator=random).sort(dim=-1)[0] * size
    masks = (torch.rand(samples, BOXES, size // 4, size // 4, generator=random) > 0.5).float()
    return {"pixel_values": images(config, samples, size, random), "input_boxes": corners, "masks": masks}


def mask_loss(module: nn.Module, batch: Batch) -> Tensor:
    """Binary cross-entropy of the one mask asked for of each box. Shapes: masks (sample, box, height, width)."""
    inputs = {name: value for name, value in batch.items() if name != "masks"}
    predicted = module(**inputs, multimask_output=False).pred_masks[:, :, 0]
    masks = nn.functional.interpolate(batch["masks"], predicted.shape[-2:])
    return nn.functional.binary_cross_entropy_with_logits(predicted.float(), masks)


def contrastive_loss(module: nn.Module, batch: Batch) -> Tensor:
    """How well each text finds its image among those of the batch."""
    loss: Tensor = module(**batch, return_loss=True).loss
    return loss


def places_of_image(config: Any) -> int:
    """Tokens of a text that an image takes the place of."""
    vision = config.vision_config
    side = first_of(vision, "image_size", default=USUAL_PIXELS) // first_of(vision, "patch_size", default=14)
    places = side * side + (getattr(config, "vision_feature_select_strategy", "default") == "full")
    return places if not in_rows(config) else places // first_of(vision, "spatial_merge_size", default=1) ** 2


def in_rows(config: Any) -> bool:
    """Whether images come as rows of patches, of any number, as Qwen2-VL's do."""
    return bool(getattr(config.vision_config, "spatial_merge_size", 0))


def image_text_shape(config: Any) -> Shape:
    """Text with one image in it."""
    least = places_of_image(config) + LEAST_WORDS
    shape = text_shape(config)
    return Shape(unit="tokens", size=max(shape.size, least + 64), least=least, longest=shape.longest)


def image_text(config: Any, samples: int, size: int, random: torch.Generator) -> Batch:
    """Text that is continued, in which an image stands; the model is not asked for the image's places."""
    places = places_of_image(config)
    ids = tokens(config, samples, size, random)
    word = first_of(config, "image_token_id", "image_token_index")
    ids[:, 1 : 1 + places] = word
    labels = ids.masked_fill(ids == word, NO_ANSWER)
    batch: Batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    if not in_rows(config):
        return batch | {"pixel_values": images(config, samples, image_shape(config, USUAL_PIXELS, 1).size, random)}
    vision = config.vision_config
    patch = first_of(vision, "patch_size", default=14)
    side = first_of(vision, "image_size", default=USUAL_PIXELS) // patch
    width = first_of(vision, "in_channels", "in_chans", default=3) * patch**2
    width *= first_of(vision, "temporal_patch_size", default=1)
    return batch | {
        "mm_token_type_ids": (ids == word).long(),
        "pixel_values": torch.randn(samples * side * side, width, generator=random),
        "image_grid_thw": torch.tensor([[1, side, side]] * samples),
    }


def image_text_samples(batch: Batch) -> list[Sample]:
    """Samples of a batch; rows of patches are shared out evenly."""
    count = len(batch["input_ids"])
    if "image_grid_thw" not in batch:
        return samples_of(batch)
    rows = {name: value.unflatten(0, (count, -1)) if name in ROWS else value for name, value in batch.items()}
    return samples_of(rows)


def collate_image_text(samples: list[Sample]) -> Batch:
    """A batch of samples; rows of patches follow each other."""
    batch = stack(samples)
    if "image_grid_thw" in batch:
        batch |= {name: batch[name].flatten(0, 1) for name in ROWS}
    return batch


def speech_text_shape(config: Any) -> Shape:
    """Text that is said."""
    longest = first_of(config, "max_target_positions", default=448)
    return Shape(unit="tokens", size=min(128, longest), longest=longest)

"""Batches of each task, made up: of the shapes and the ranges that a model's configuration asks for.

What they hold is random, but for what models check: padding, spans within the text, boxes within the image, as many
places for an image in a text as the image has parts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from profiles.workloads.task import Batch, Unit

# What a sample has where the configuration does not say.
USUAL_TOKENS = 512
USUAL_PIXELS = 224
DETECTION_PIXELS = 640
SEGMENTATION_PIXELS = 512
USUAL_VALUES = 16_000
NO_ANSWER = -100
# Tokens below it have meanings in most vocabularies.
FIRST_TOKEN = 5
OBJECTS = 3
# Speech: values of a signal for each letter that is said, and frames of features for each token.
VALUES_PER_LETTER = 1_600


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What the samples of a task are like: their unit, the usual size, what sizes are multiples of, least and most."""

    unit: Unit
    size: int
    step: int = 1
    least: int = 0
    longest: int = 0


Example = Callable[[int, int, torch.Generator], Batch]


def first_of(config: Any, *names: str, default: int = 0) -> int:
    """The first of a configuration's fields that is a number above 0."""
    for name in names:
        value = getattr(config, name, None)
        if isinstance(value, list | tuple) and value:
            value = value[0]
        if isinstance(value, int) and value > 0:
            return value
    return default


def tokens(config: Any, samples: int, length: int, random: torch.Generator) -> Tensor:
    """Random tokens that stand for words. Shapes: (sample, token)."""
    text = config.get_text_config()
    vocabulary = first_of(text, "vocab_size", default=256)
    first = FIRST_TOKEN if vocabulary > 2 * FIRST_TOKEN else 0
    ids = torch.randint(first, vocabulary, (samples, length), generator=random)
    said = [getattr(text, name, None) for name in ("pad_token_id", "bos_token_id", "eos_token_id")]
    said += [getattr(config, f"{kind}_token_{end}", None) for kind in ("image", "video") for end in ("id", "index")]
    said += [getattr(config, f"vision_{end}_token_id", None) for end in ("start", "end")]
    # A text may end in one of several.
    special = {word for own in said for word in (own if isinstance(own, list | tuple) else [own])}
    for word in special:
        if isinstance(word, int):
            ids[ids == word] = first + 1 if word == first else first
    return ids


def text_shape(config: Any, usual: int = USUAL_TOKENS) -> Shape:
    """Text as long as positions allow, or as is usual."""
    text = config.get_text_config()
    positions = first_of(text, "max_position_embeddings", "n_positions", "max_seq_len", "context_length")
    # RoBERTa and its kin count positions from behind the padding token.
    learned = text.model_type in ("roberta", "camembert", "xlm-roberta", "longformer", "mpnet", "deberta")
    longest = positions - 2 if learned and positions else positions
    size = min(usual, longest or usual)
    chunk = first_of(text, "chunk_size", default=1)
    step = chunk if size % chunk == 0 else 1
    return Shape(unit="tokens", size=size, step=step, longest=longest)


def language(config: Any, samples: int, size: int, random: torch.Generator) -> Batch:
    """Text that is continued."""
    ids = tokens(config, samples, size, random)
    return {"input_ids": ids, "labels": ids.clone()}


def masked_language(config: Any, samples: int, size: int, random: torch.Generator) -> Batch:
    """Text some of whose words are asked for."""
    ids = tokens(config, samples, size, random)
    labels = ids.clone()
    labels[:, 1:][torch.rand(labels[:, 1:].shape, generator=random) > 0.15] = NO_ANSWER
    return {"input_ids": ids, "attention_mask": padding(samples, size), "labels": labels}


def padding(samples: int, size: int) -> Tensor:
    """Which tokens are there: the first sample is shorter than the others. Shapes: (sample, token)."""
    mask = torch.ones(samples, size, dtype=torch.long)
    mask[0, size - size // 8 :] = 0
    return mask


def translation(config: Any, samples: int, size: int, random: torch.Generator) -> Batch:
    """Text and its translation, of one length."""
    mask = padding(samples, size)
    labels = tokens(config, samples, size, random).masked_fill(mask == 0, NO_ANSWER)
    return {"input_ids": tokens(config, samples, size, random), "attention_mask": mask, "labels": labels}


def question_answering(config: Any, samples: int, size: int, random: torch.Generator) -> Batch:
    """Text with a question before it, and where the answer begins and ends."""
    ends = torch.randint(size // 2, max(size // 2 + 1, size - size // 8), (2, samples), generator=random).sort(dim=0)[0]
    return {
        "input_ids": tokens(config, samples, size, random),
        "attention_mask": padding(samples, size),
        "start_positions": ends[0],
        "end_positions": ends[1],
    }


def classes(config: Any) -> int:
    """How many labels there are."""
    return max(1, int(getattr(config, "num_labels", 0) or 1))


def sequence_classification(config: Any, samples: int, size: int, random: torch.Generator) -> Batch:
    """Text and its class."""
    ids = tokens(config, samples, size, random)
    labels = torch.randint(0, classes(config), (samples,), generator=random)
    return {"input_ids": ids, "attention_mask": padding(samples, size), "labels": labels}


def token_classification(config: Any, samples: int, size: int, random: torch.Generator) -> Batch:
    """Text and the class of each token."""
    ids = tokens(config, samples, size, random)
    labels = torch.randint(0, classes(config), (samples, size), generator=random)
    return {"input_ids": ids, "attention_mask": padding(samples, size), "labels": labels}


def multiple_choice(config: Any, samples: int, size: int, random: torch.Generator) -> Batch:
    """Texts of which one is right."""
    ids = tokens(config, 2 * samples, size, random).unflatten(0, (samples, 2))
    return {"input_ids": ids, "labels": torch.randint(0, 2, (samples,), generator=random)}


def image_shape(config: Any, usual: int, step: int) -> Shape:
    """Square images: of the configuration's size where it has one, which may be the only one that it takes."""
    vision = getattr(config, "vision_config", None) or config
    size = first_of(vision, "image_size", "input_size")
    step = step if size % step == 0 else 1
    return Shape(unit="pixels", size=size or usual, step=step, least=_least_pixels(vision))


def _least_pixels(config: Any) -> int:
    """Pixels of the smallest image: Swin's biases are of a whole window, which the last of its maps has to hold.

    As a backbone it fills windows up.
    """
    window, depths = first_of(config, "window_size"), getattr(config, "depths", None)
    if not window or not depths:
        return 0
    return window * first_of(config, "patch_size", default=1) * int(2 ** (len(depths) - 1))


def images(config: Any, samples: int, side: int, random: torch.Generator) -> Tensor:
    """Random pixels. Shapes: (sample, channel, height, width)."""
    vision = getattr(config, "vision_config", None) or config
    channels = first_of(vision, "num_channels", "in_channels", "in_chans", default=3)
    return torch.rand(samples, channels, side, side, generator=random)


def image_classification(config: Any, samples: int, size: int, random: torch.Generator) -> Batch:
    """Images and their classes."""
    labels = torch.randint(0, classes(config), (samples,), generator=random)
    return {"pixel_values": images(config, samples, size, random), "labels": labels}


def object_detection(config: Any, samples: int, size: int, random: torch.Generator) -> Batch:
    """Images, and the classes and boxes (centre, width, height, as shares of the image) of what is on each."""
    sides = torch.rand(samples, OBJECTS, 4, generator=random) * 0.4 + 0.3
    sides[..., 2:] *= 0.5
    kinds = torch.randint(0, classes(config), (samples, OBJECTS), generator=random)
    return {
        "pixel_values": images(config, samples, size, random),
        "labels": [{"class_labels": kind, "boxes": box} for kind, box in zip(kinds, sides, strict=True)],
    }


def semantic_segmentation(config: Any, samples: int, size: int, random: torch.Generator) -> Batch:
    """Images and the class of each pixel."""
    labels = torch.randint(0, classes(config), (samples, size, size), generator=random)
    return {"pixel_values": images(config, samples, size, random), "labels": labels}


def universal_segmentation(config: Any, samples: int, size: int, random: torch.Generator) -> Batch:
    """Images, and a mask and a class for each object."""
    kinds = torch.randint(0, classes(config), (samples, OBJECTS), generator=random)
    masks = (torch.rand(samples, OBJECTS, size, size, generator=random) > 0.5).float()
    return {
        "pixel_values": images(config, samples, size, random),
        "mask_labels": list(masks),
        "class_labels": list(kinds),
    }


def speech_letters(config: Any, samples: int, size: int, random: torch.Generator) -> Batch:
    """A signal, and the letters that are said."""
    letters = max(1, size // VALUES_PER_LETTER)
    labels = torch.randint(1, max(2, first_of(config, "vocab_size", default=32)), (samples, letters), generator=random)
    return {"input_values": torch.randn(samples, size, generator=random), "labels": labels}


def speech_text(config: Any, samples: int, size: int, random: torch.Generator) -> Batch:
    """Features of a signal, as long as the encoder's positions allow, and the text that is said."""
    bands = first_of(config, "num_mel_bins", "input_feat_per_channel", default=80)
    frames = 2 * first_of(config, "max_source_positions", default=1500)
    return {
        "input_features": torch.randn(samples, bands, frames, generator=random),
        "labels": tokens(config, samples, size, random),
    }


def contrastive(config: Any, samples: int, size: int, random: torch.Generator) -> Batch:
    """Images and texts that belong to each other."""
    return {
        "input_ids": tokens(config, samples, size, random),
        "attention_mask": padding(samples, size),
        "pixel_values": images(config, samples, image_shape(config, USUAL_PIXELS, 1).size, random),
    }

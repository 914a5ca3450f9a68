"""Modules and batches of named networks: what is listed of each, by its name and its sizes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from profiles.errors import InputError
from profiles.models.profile import WorkloadSpec
from profiles.networks.detectors import Rcnn, RetinaNet, Ssd
from profiles.networks.language import Gnmt, TransformerXL
from profiles.networks.recommenders import Autoencoder, Dlrm, Ncf
from profiles.networks.residual import Classifier, Residual
from profiles.networks.segmenters import UNet, VNet
from profiles.networks.speech import GROUP, MEL, WaveGlow
from profiles.workloads.foreign_code import foreign_code
from profiles.workloads.hf_task import read_transformers_config

Batch = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """How a network's step is made: its module, a batch of so many samples, and the loss of both."""

    build: Callable[[], nn.Module]
    example: Callable[[int], Batch]
    loss: Callable[[nn.Module, Batch], Tensor]


def own_loss(module: nn.Module, batch: Batch) -> Tensor:
    """The loss that a module returns, itself or in the field `loss`."""
    result = module(**batch)
    value = result if isinstance(result, Tensor) else getattr(result, "loss", None)
    if not isinstance(value, Tensor):
        raise InputError(f"{type(module).__name__} gives no loss of {', '.join(batch)}")
    return value


def images(*sizes: int, channels: int = 3, labels: bool = False) -> Callable[[int], Batch]:
    """Batches of images, with labels where asked for."""

    def example(samples: int) -> Batch:
        batch = {"pixel_values": torch.empty(samples, channels, *sizes)}
        return batch | ({"labels": torch.zeros(samples, dtype=torch.long)} if labels else {})

    return example


def subject(network: str, sizes: tuple[int, ...]) -> Subject:
    """The network that `network` names, as `family:options`, at image sizes or lengths.

    Raises: KeyError for an unknown one.
    """
    family, _, text = network.partition(":")
    if family == "hf":
        return hugging_face(json.loads(text), sizes)
    return FAMILIES[family](text.split(",") if text else [], sizes)


def backbone_of(name: str, stages: int = 4, **options: Any) -> Residual:
    """A backbone by its name: resnet50, resnext101_32x8d, se_resnext101_32x4d."""
    squeeze, plain = name.startswith("se_"), name.removeprefix("se_")
    kind, _, shape = plain.partition("_")
    depth = int("".join(letter for letter in kind if letter.isdigit()))
    groups, width = (int(one) for one in shape.removesuffix("d").split("x")) if shape else (1, 64)
    return Residual(depth, groups, width, squeeze, stages=stages, **options)


def _classifier(options: list[str], sizes: tuple[int, ...]) -> Subject:
    side = sizes or (224, 224)
    return Subject(build=lambda: Classifier(backbone_of(options[0])), example=images(*side, labels=True), loss=own_loss)


def _rcnn(options: list[str], sizes: tuple[int, ...]) -> Subject:
    backbone, neck, boxes, masks = options[0], options[1], int(options[2]), int(options[3])
    dilated: dict[str, Any] = {"strides": (1, 2, 2, 1), "gaps": (1, 1, 1, 2)} if neck == "dc5" else {}

    def build() -> nn.Module:
        stages = 3 if neck == "c4" else 4
        body = backbone_of(backbone, stages, **dilated)
        flags = {"proposes": "fast" not in options, "by_scale": "scale" in options}
        return Rcnn(body, neck, boxes=boxes, masks=masks, **flags)

    return Subject(build=build, example=images(*sizes), loss=own_loss)


def _retina(options: list[str], sizes: tuple[int, ...]) -> Subject:
    return Subject(
        build=lambda: RetinaNet(backbone_of(options[0]), by_scale="scale" in options),
        example=images(*sizes),
        loss=own_loss,
    )


def _ssd(options: list[str], sizes: tuple[int, ...]) -> Subject:
    return Subject(
        build=lambda: Ssd(backbone_of(options[0], 3, strides=(1, 2, 1, 1))), example=images(*sizes), loss=own_loss
    )


def _unet(options: list[str], sizes: tuple[int, ...]) -> Subject:
    if options[0] == "volume":
        widths = (32, 64, 128, 256, 320, 320)
        made = images(*sizes, channels=4)
        return Subject(build=lambda: UNet(4, 4, widths, 3, padded=True, has_norms=True), example=made, loss=own_loss)
    if options[0] == "industrial":
        wide = (32, 64, 128, 256, 512)
        return Subject(build=lambda: UNet(1, 2, wide, padded=True), example=images(*sizes, channels=1), loss=own_loss)
    return Subject(build=UNet, example=images(*sizes, channels=1), loss=own_loss)


def _vnet(_: list[str], sizes: tuple[int, ...]) -> Subject:
    return Subject(build=VNet, example=images(*sizes, channels=1), loss=own_loss)


def _transformer_xl(options: list[str], sizes: tuple[int, ...]) -> Subject:
    layers, hidden, heads, inner, shrink = (int(one) for one in options[:5])
    length, is_whole = sizes[0], "whole" in options

    def example(samples: int) -> Batch:
        memory = torch.empty(layers, length, samples, hidden)
        return {"words": torch.zeros(length, samples, dtype=torch.long), "memory": memory}

    return Subject(
        build=lambda: TransformerXL(layers, hidden, heads, 64, inner, shrink, is_whole), example=example, loss=own_loss
    )


def _gnmt(_: list[str], sizes: tuple[int, ...]) -> Subject:
    def example(samples: int) -> Batch:
        words = torch.zeros(sizes[0], samples, dtype=torch.long)
        return {"source": words, "target": words}

    return Subject(build=Gnmt, example=example, loss=own_loss)


def _wave_glow(options: list[str], sizes: tuple[int, ...]) -> Subject:
    channels = int(options[0]) if options else 512

    def example(samples: int) -> Batch:
        length = sizes[0] // GROUP * GROUP
        return {"spectrum": torch.empty(samples, MEL, length // 256), "sound": torch.empty(samples, length)}

    return Subject(build=lambda: WaveGlow(channels), example=example, loss=own_loss)


def _ncf(_: list[str], __: tuple[int, ...]) -> Subject:
    def example(samples: int) -> Batch:
        return {name: torch.zeros(samples, dtype=torch.long) for name in ("users", "items")}

    return Subject(build=Ncf, example=example, loss=own_loss)


def _dlrm(options: list[str], _: tuple[int, ...]) -> Subject:
    rows = int(options[0])

    def example(samples: int) -> Batch:
        return {"numbers": torch.empty(samples, 13), "words": torch.zeros(samples, 26, dtype=torch.long)}

    return Subject(build=lambda: Dlrm(rows=rows), example=example, loss=own_loss)


def _autoencoder(_: list[str], __: tuple[int, ...]) -> Subject:
    return Subject(build=Autoencoder, example=lambda samples: {"items": torch.empty(samples, 20108)}, loss=own_loss)


FAMILIES: dict[str, Callable[[list[str], tuple[int, ...]], Subject]] = {
    "classifier": _classifier,
    "rcnn": _rcnn,
    "retina": _retina,
    "ssd": _ssd,
    "unet": _unet,
    "vnet": _vnet,
    "transformer-xl": _transformer_xl,
    "gnmt": _gnmt,
    "waveglow": _wave_glow,
    "ncf": _ncf,
    "dlrm": _dlrm,
    "autoencoder": _autoencoder,
}


def hugging_face(description: Mapping[str, Any], sizes: tuple[int, ...]) -> Subject:
    """A model of transformers by its type, configuration and head, with unfused attention where it has any.

    The description may come from a table of others: nothing is downloaded, and no code but that of transformers runs.
    Raises: InputError where transformers does not take the configuration, here or once it is built and run.
    """
    kind, head = str(description["type"]), str(description["head"])
    spec = WorkloadSpec(kind="transformers", name=kind, config={**description["config"], "model_type": kind})
    spec.check()
    config = read_transformers_config(spec)
    import transformers

    def build() -> nn.Module:
        with foreign_code(spec, f"{spec.title}: {head} cannot be built"):
            config._attn_implementation = description.get("attention", "eager")
            whole: nn.Module = getattr(transformers, head).from_config(config, trust_remote_code=False)
        return MaskedWords(whole) if _is_masked(head, config) else whole

    def loss(module: nn.Module, batch: Batch) -> Tensor:
        with foreign_code(spec, f"{spec.title}: {head} or its loss does not run"):
            return own_loss(module, batch)

    return Subject(build=build, example=_hugging_face_batch(head, config, sizes), loss=loss)


# Of the words of a sequence, those that are masked and predicted.
MASKED_FRACTION = 0.15625


def _is_masked(head: str, config: Any) -> bool:
    return config.model_type == "bert" and ("PreTraining" in head or "MaskedLM" in head)


class MaskedWords(nn.Module):
    """BERT with a head over masked words only, as its trainers compute it."""

    def __init__(self, whole: nn.Module) -> None:
        super().__init__()
        self.whole = whole

    def forward(self, input_ids: Tensor) -> Tensor:
        """The loss of masked words."""
        state = self.whole.bert(input_ids=input_ids)[0]  # type: ignore[operator]
        place = torch.zeros(round(MASKED_FRACTION * input_ids.shape[1]), dtype=torch.long)
        scores = self.whole.cls.predictions(state[:, place])  # type: ignore[operator,union-attr]
        target = torch.zeros(scores.shape[0] * scores.shape[1], dtype=torch.long)
        return nn.functional.cross_entropy(scores.flatten(0, 1).float(), target)


def _hugging_face_batch(head: str, config: Any, sizes: tuple[int, ...]) -> Callable[[int], Batch]:
    """Batches of a head's task."""

    def words(samples: int, length: int) -> Tensor:
        return torch.zeros(samples, length, dtype=torch.long)

    def example(samples: int) -> Batch:
        if "ImageClassification" in head:
            return images(*sizes, labels=True)(samples)
        batch: dict[str, Any] = {"input_ids": words(samples, sizes[0])}
        if "QuestionAnswering" in head:
            return batch | {
                name: torch.zeros(samples, dtype=torch.long) for name in ("start_positions", "end_positions")
            }
        if "SequenceClassification" in head:
            return batch | {"labels": torch.zeros(samples, dtype=torch.long)}
        if _is_masked(head, config):
            return batch
        return batch | {"labels": words(samples, sizes[-1])}

    return example

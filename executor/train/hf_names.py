"""What transformers calls the weights of layers that stand alone here, and how it lays them out. Torch-free."""

from __future__ import annotations

import re
from dataclasses import dataclass

from profiles.models.families import EXPERT_FAMILIES, LLAMA_FAMILIES, VISION_FAMILIES

BLOCK = re.compile(r"block\.(.+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelNames:
    """Names of a family: of the ends by their path in the first and last layer, and where blocks are listed.

    `transposed` are ends of paths whose matrices stand the other way round.
    """

    auto_class: str
    first: dict[str, str]
    blocks: str
    last: dict[str, str]
    transposed: tuple[str, ...] = ()


_LLAMA = ModelNames(
    auto_class="AutoModelForCausalLM",
    first={"tokens.weight": "model.embed_tokens.weight"},
    blocks="model.layers",
    last={"norm.weight": "model.norm.weight", "projection.weight": "lm_head.weight"},
)
_GPT2 = ModelNames(
    auto_class="AutoModelForCausalLM",
    first={"tokens.weight": "transformer.wte.weight", "positions.weight": "transformer.wpe.weight"},
    blocks="transformer.h",
    last={
        "norm.weight": "transformer.ln_f.weight",
        "norm.bias": "transformer.ln_f.bias",
        "projection.weight": "lm_head.weight",
    },
    # transformers' Conv1D.
    transposed=("c_attn.weight", "c_proj.weight", "c_fc.weight"),
)
_VIT = ModelNames(
    auto_class="AutoModelForImageClassification",
    first={
        "class_token": "vit.embeddings.cls_token",
        "positions.weight": "vit.embeddings.position_embeddings",
        "projection.weight": "vit.embeddings.patch_embeddings.projection.weight",
        "projection.bias": "vit.embeddings.patch_embeddings.projection.bias",
    },
    blocks="vit.layers",
    last={
        "norm.weight": "vit.layernorm.weight",
        "norm.bias": "vit.layernorm.bias",
        "projection.weight": "classifier.weight",
        "projection.bias": "classifier.bias",
    },
)
_NAMES = {
    "gpt2": _GPT2,
    **dict.fromkeys(VISION_FAMILIES, _VIT),
    **dict.fromkeys((*LLAMA_FAMILIES, *EXPERT_FAMILIES), _LLAMA),
}


def names_of(family: str) -> ModelNames | None:
    """The names of a family; None of one that is not known."""
    return _NAMES.get(family)


def name_there(names: ModelNames, ours: str, num_layers: int) -> str | None:
    """What transformers calls `ours`, a position and a path; None for what it has not, such as an adapter."""
    position, _, path = ours.partition(".")
    place = int(position)
    if place == 0:
        return names.first.get(path)
    if place == num_layers - 1:
        return names.last.get(path)
    block = BLOCK.fullmatch(path)
    return f"{names.blocks}.{place - 1}.{block[1]}" if block else None


def is_transposed(names: ModelNames, there: str) -> bool:
    """Whether its matrix stands the other way round there."""
    return there.startswith(f"{names.blocks}.") and there.endswith(names.transposed)

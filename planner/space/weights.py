"""A model's weights by shape, from its configuration alone: how many, and which of them are linears. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from profiles.errors import InputError
from profiles.models.families import VISION_FAMILIES
from profiles.models.hf_config import checked
from profiles.models.hf_records import VitConfig
from profiles.models.sizes import sizes_of

# How often a linear stands in the model, its inputs and its outputs.
Linear = tuple[float, float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """One model's parameters, and its linears: the head's too where it is not the embedding's."""

    name: str
    config: dict[str, Any]
    num_parameters: float
    linears: tuple[Linear, ...]

    @property
    def linear_weights(self) -> float:
        """Weights of all linears, without their biases."""
        return sum(count * inputs * outputs for count, inputs, outputs in self.linears)

    @property
    def linear_rows(self) -> float:
        """Outputs of all linears."""
        return sum(count * outputs for count, _, outputs in self.linears)


def weights_of(name: str, config: dict[str, Any]) -> Weights:
    """The weights that a configuration states.

    Raises: InputError for a mixture of experts, or where a size is missing; UnknownNameError for an unknown family.
    """
    if config.get("model_type") in VISION_FAMILIES:
        return _vit(name, config)
    model = sizes_of(name, config).transformer
    if model.is_moe[0]:
        raise InputError(f"{name}: experts are not compressed yet; plan it without --compress")
    own = [*model.attention_linears, *model.feed_forward_linears(model.ffn_size)]
    # Families have projections that others lack: those give nothing.
    linears = [(float(model.num_layers[0]), float(ins[0]), float(outs[0])) for _, ins, outs, _ in own if outs[0]]
    if not model.tied[0]:
        linears.append((1.0, float(model.hidden_size[0]), float(model.vocab_size[0])))
    return Weights(name=name, config=config, num_parameters=float(model.num_parameters[0]), linears=tuple(linears))


def _vit(name: str, config: dict[str, Any]) -> Weights:
    """Of a vision transformer: patches, class token and positions in front, norms and biases throughout."""
    own = checked(name, config)
    assert isinstance(own, VitConfig)
    hidden, layers, heads, ffn = own.hidden_size, own.num_hidden_layers, own.num_attention_heads, own.intermediate_size
    pixels, patches = own.num_channels * own.patch_size**2, (own.image_size // own.patch_size) ** 2
    labels = own.num_labels or len(own.id2label or ())
    if not labels:
        raise InputError(f"model {name}: its configuration has neither num_labels nor id2label")
    attention = heads * (own.head_dim or hidden // heads)
    blocks: tuple[Linear, ...] = (
        (3 * layers, hidden, attention), (layers, attention, hidden), (layers, hidden, ffn), (layers, ffn, hidden),
    )  # fmt: skip
    linears = ((1, pixels, hidden), *blocks, (1, hidden, labels))
    # Every linear has a bias, unless queries, keys and values are to have none; a norm has two vectors.
    biases = sum(count * outputs for count, _, outputs in linears)
    biases -= 0 if own.qkv_bias else 3 * layers * attention
    norms = (2 * layers + 1) * 2 * hidden
    matrices = sum(count * inputs * outputs for count, inputs, outputs in linears)
    total = matrices + biases + norms + hidden + (patches + 1) * hidden
    return Weights(name=name, config=config, num_parameters=float(total), linears=linears)

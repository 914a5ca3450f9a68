"""What is trained, as torch modules: an ordered list of layers from a transformers configuration or a user's factory.

A layer maps hidden states to hidden states; the first takes token ids (batch, sequence), the last gives logits. Layers
are built one at a time and seeded by position, so that every rank of every layout starts from the same weights and no
rank holds more than its own. Dropout is what a configuration says; what it leaves out is none.
"""

from __future__ import annotations

import functools
import importlib
import logging
import os
from collections.abc import Sequence
from typing import Any

from torch import nn

from profiles.errors import InputError, UnknownNameError
from profiles.models.families import (
    BUILT_FAMILIES,
    EXPERT_FAMILIES,
    GPT2_PATHS,
    GPT2_STYLE,
    LLAMA_STYLE,
    VISION_FAMILIES,
    Style,
    llama_paths,
)
from profiles.models.hf_config import FAMILIES as SIZED_FAMILIES
from profiles.models.hf_config import checked
from profiles.models.hf_words import both_names, check_words
from profiles.models.profile import WorkloadSpec
from profiles.workloads.blocks import (
    ATTENTION,
    Embedding,
    Head,
    PlainBlock,
    RotaryBlock,
    linears_for_conv1d,
    norms_as_computed,
    register_attention,
)
from profiles.workloads.experts import EXPERTS, register_experts
from profiles.workloads.foreign_code import foreign_code
from profiles.workloads.trust import check_trusted
from profiles.workloads.user_module import from_factory
from profiles.workloads.vision import vit_fields, vit_layers
from profiles.workloads.workload import LayerSpec, Workload, next_token_loss, token_ids

# transformers loads torchao where it is installed, which tells of the kernels that it has not for this machine. Fake
# tensors log what they raise, with a traceback.
LOUD = {"torchao": logging.ERROR, "torch.utils._pytree": logging.ERROR, "torch._subclasses.fake_tensor": logging.FATAL}
# What a family drops by its configuration.
DROPOUTS = {
    "gpt2": ("resid_pdrop", "embd_pdrop", "attn_pdrop"),
    "vit": ("hidden_dropout_prob", "attention_probs_dropout_prob"),
}
# At once, because whoever loads this may load a family of transformers before asking for a workload.
for loud, level in LOUD.items():
    logging.getLogger(loud).setLevel(level)


def load_workload(spec: WorkloadSpec, trusted: Sequence[str] = (), where: str = "the file") -> Workload:
    """The workload of `spec`, built by transformers, or by a module that is among the `trusted` ones.

    `where` is what names the model, for errors.
    Raises: InputError where the module is not trusted, the family is not supported, or the code of either fails.
    """
    check_trusted(spec, trusted, where)
    if spec.kind == "module":
        return from_factory(spec)
    return _from_config(spec)


def _from_config(spec: WorkloadSpec) -> Workload:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from transformers import CONFIG_MAPPING, AutoConfig

    fields = dict(spec.config)
    family = str(fields.pop("model_type", ""))
    if family not in BUILT_FAMILIES:
        if family in SIZED_FAMILIES:
            raise InputError(
                f"model {spec.name}: models of the family {family} are planned by their sizes alone, with "
                "`plan --device` or `plan --cluster`; they are not traced or run"
            )
        raise UnknownNameError("model_type", family, BUILT_FAMILIES)
    usual = CONFIG_MAPPING[family]
    names = usual.attribute_map
    checked(spec.name, both_names(spec.config, names), both_names(usual().to_dict(), names))
    check_words(spec.name, spec.config)
    register_attention()
    if family in EXPERT_FAMILIES:
        register_experts()
    # Where a file says nothing of dropout, transformers would take some for some families.
    fields = dict.fromkeys(DROPOUTS.get(family, ()), 0.0) | fields
    with foreign_code(spec, f"model {spec.name}: transformers does not accept its configuration"):
        config = AutoConfig.for_model(family, **fields)
        config._attn_implementation = ATTENTION  # documented as attn_implementation of from_pretrained
        config._experts_implementation = EXPERTS  # the same of experts_implementation
        return _workload(spec, config, family)


def _workload(spec: WorkloadSpec, config: Any, family: str) -> Workload:
    heads = int(config.num_attention_heads)
    ffn_size = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * config.hidden_size
    layers, fields = _layers_and_fields(config, family)
    return Workload(
        spec=spec,
        layers=layers,
        hidden_size=int(config.hidden_size),
        num_heads=heads,
        num_kv_heads=int(getattr(config, "num_key_value_heads", None) or heads),
        ffn_size=int(ffn_size),
        **fields,
    )


def _layers_and_fields(config: Any, family: str) -> tuple[tuple[LayerSpec, ...], dict[str, Any]]:
    """The layers of a configuration, and what a workload says of it beside its sizes."""
    if family in VISION_FAMILIES:
        return vit_layers(config), vit_fields(config)
    return _gpt2_layers(config) if family == "gpt2" else _llama_layers(config, family), {
        "vocab_size": int(config.vocab_size),
        # Within one window attention is to all tokens before, which is what blocks are given.
        "max_sequence_length": min(config.max_position_embeddings, _window(config) or config.max_position_embeddings),
        "tied_embeddings": bool(config.tie_word_embeddings),
        "example_input": functools.partial(token_ids, int(config.vocab_size)),
        "loss": next_token_loss,
        **(_expert_fields(config) if family in EXPERT_FAMILIES else {}),
    }


def _window(config: Any) -> int:
    """Tokens that each token attends to at most, 0 for all."""
    return int(getattr(config, "sliding_window", None) or 0)


def _expert_fields(config: Any) -> dict[str, int]:
    return {
        "num_experts": int(getattr(config, "num_local_experts", None) or config.num_experts),
        "experts_per_token": int(config.num_experts_per_tok),
    }


def _llama_layers(config: Any, family: str) -> tuple[LayerSpec, ...]:
    module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    prefix = EXPERT_FAMILIES.get(family, family.capitalize())
    block = getattr(module, f"{prefix}DecoderLayer")
    rotary = getattr(module, f"{prefix}RotaryEmbedding")
    norm, paths = getattr(module, f"{prefix}RMSNorm"), llama_paths(family)
    styles: dict[str, Style] = {f"block.{path}": style for path, style in LLAMA_STYLE.items()}
    return (
        LayerSpec(name="embedding", build=lambda: Embedding(config.vocab_size, config.hidden_size, 0)),
        *(
            LayerSpec(
                name="block",
                build=functools.partial(
                    lambda i: norms_as_computed(RotaryBlock(block(config, i), rotary(config)), paths.all_norms), index
                ),
                styles={} if family in EXPERT_FAMILIES else styles,
                paths=paths,
            )
            for index in range(config.num_hidden_layers)
        ),
        LayerSpec(
            name="head",
            build=lambda: Head(
                norm(config.hidden_size, eps=config.rms_norm_eps), config.hidden_size, config.vocab_size
            ),
        ),
    )


def _gpt2_layers(config: Any) -> tuple[LayerSpec, ...]:
    from transformers.models.gpt2.modeling_gpt2 import GPT2Block

    return (
        LayerSpec(
            name="embedding",
            build=lambda: Embedding(
                config.vocab_size, config.hidden_size, config.max_position_embeddings, config.embd_pdrop
            ),
        ),
        *(
            LayerSpec(
                name="block",
                build=functools.partial(
                    lambda i: norms_as_computed(
                        PlainBlock(linears_for_conv1d(GPT2Block(config, i))), GPT2_PATHS.all_norms
                    ),
                    index,
                ),
                styles={f"block.{path}": style for path, style in GPT2_STYLE.items()},
                paths=GPT2_PATHS,
            )
            for index in range(config.num_hidden_layers)
        ),
        LayerSpec(
            name="head",
            build=lambda: Head(
                nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon), config.hidden_size, config.vocab_size
            ),
        ),
    )

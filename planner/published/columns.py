"""Every configuration column of a table of runs: its kind, its words, and what an empty cell stands for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType

from planner.schedules.registry import published_names
from profiles.laws.kernels import load_constants
from profiles.machines.stacks import stack_names
from profiles.models.adapters import AS_IT_IS, FORMATS, LARGEST_RANK

NOTHING: Mapping[str, str] = MappingProxyType({})
YES_NO = ("no", "yes")
NO_MAMBA = "layers with a state in place of attention (Mamba) are not priced"
# The layers lie on several devices, of which one computes at a time.
ONE_AT_A_TIME = "naive"


# Tables have the same words in row after row.
@lru_cache(4096)
def spelled(text: str) -> str:
    """A word whatever its case, spaces, hyphens and underscores."""
    return "-".join(text.lower().replace("_", " ").replace("-", " ").split())


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """What all kinds share.

    `field`: of `Jobs`, which gets the cell as it is; "" where whoever reads it makes more of it. `noted`: an empty cell
    is an assumption that the user is told of.
    """

    name: str
    field: str = ""
    noted: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Number(Column):
    """A number from `least` to `most`; an empty cell is `usual`, where that is None the row's other cells decide.

    `zero_is_empty`: 0 says that there is no such size.
    """

    usual: float | None = None
    least: float = 1.0
    most: float = 1e12
    whole: bool = True
    zero_is_empty: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Words(Column):
    """One of `known`; an empty cell is `usual`, where that is None the row's other cells decide.

    `same`: other spellings. `near`: words that may have no price of their own, by the one that is taken for them then,
    which is noted. `refused`: words that nothing stands for, with the reason. `lenient`: any other counts as empty.
    """

    known: tuple[str, ...]
    usual: str | None = None
    same: Mapping[str, str] = field(default_factory=lambda: NOTHING)
    near: Mapping[str, str] = field(default_factory=lambda: NOTHING)
    refused: Mapping[str, str] = field(default_factory=lambda: NOTHING)
    lenient: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Flag(Column):
    """Yes or no; an empty cell is `usual`, where that is None the row's other cells decide."""

    usual: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Text(Column):
    """What is read by a rule of its own: names, lists."""


def _size(name: str, usual: float | None = None, *, noted: bool = True) -> Number:
    """A size, where 0 says that there is none."""
    return Number(name=name, usual=usual, noted=noted, zero_is_empty=True)


def _rate(name: str) -> Number:
    return Number(name=name, least=1e-3, whole=False, zero_is_empty=True)


def _silent(name: str, field: str, known: tuple[str, ...], usual: str = "", **words: Mapping[str, str]) -> Words:
    """What the stack does where the cell is empty, or names what nobody has heard of."""
    return Words(name=name, field=field, known=known, usual=usual, noted=False, lenient=True, **words)


MODEL: tuple[Column, ...] = (
    Words(
        name="arch",
        known=("gpt", "mpt", "bloom-like", "llama", "nemotron4", "moe"),
        same={
            "nemotron": "nemotron4", "nemotron-4": "nemotron4", "bloom": "bloom-like", "gpt2": "gpt", "gpt-2": "gpt",
            "gpt3": "gpt", "gpt-3": "gpt", "llama2": "llama", "llama-2": "llama", "llama3": "llama", "llama-3": "llama",
        },
        near={"opt": "gpt", "gpt-neo": "gpt", "gpt-neox": "gpt", "mistral": "llama", "qwen2": "llama"},
        refused={"hybrid-mamba-moe": NO_MAMBA, "mamba": NO_MAMBA},
    ),
    Number(name="num_layers"),
    Number(name="hidden_size"),
    _size("ffn_size"),
    _size("num_heads"),
    _size("num_kv_heads"),
    _size("head_dim"),
    _size("vocab_size"),
    Number(name="seq_len", usual=2048),
    Words(
        name="mlp_type",
        known=("gelu", "swiglu", "squared_relu"),
        same={"geglu": "swiglu", "silu": "swiglu", "relu2": "squared_relu"},
        near={"reglu": "swiglu", "relu": "gelu"},
    ),
    Flag(name="tied_embeddings"),
    Number(name="num_experts", usual=0, least=0, noted=False),
    _size("moe_topk", 2),
    _size("moe_ffn_size"),
    Number(name="shared_expert_ffn_size", usual=0, least=0),
    Number(name="num_dense_layers", usual=0, least=0),
    _size("dense_ffn_size", noted=False),
    Words(name="attention", known=("mha", "gqa", "mqa", "mla"), usual="gqa", noted=False),
    Number(name="mla_q_lora", usual=1536, least=0),
    _size("mla_kv_lora", 512),
    _size("mla_qk_nope", 128),
    _size("mla_qk_rope", 64),
    _size("mla_v", 128),
    Number(name="sliding_window_alternating", usual=0, least=0),
)  # fmt: skip
MACHINE: tuple[Column, ...] = (
    Words(
        name="attention_kernel",
        known=("unfused", *sorted({kernel for one in load_constants().values() for kernel in one.kernels})),
        same={
            "eager": "unfused", "math": "unfused", "sdpa": "flash2", "fa": "flash", "fa1": "flash1", "fa2": "flash2",
            "fa3": "flash3", "fa4": "flash4", "flash-attention-2": "flash2", "flash-attention-3": "flash3",
            "flex-attention": "flex", "flexattention": "flex", "xformers": "mem_efficient", "te": "cudnn",
            "transformer-engine": "cudnn",
        },
    ),
    Text(name="gpu_type"),
    _size("gpu_mem_gib", 0, noted=False),
    _size("num_gpus"),
    _size("gpus_per_node"),
    Number(name="nvlink_domain_gpus", least=0, noted=False),
    _rate("intra_node_gbytes_per_s_unidir"),
    _rate("nic_gbit_per_s_per_gpu"),
    Number(name="board_power_watts", field="board_power_watts", usual=0, least=0, whole=False, noted=False),
    Number(name="gpu_clock_mhz", field="clock_mhz", usual=0, least=0, whole=False, noted=False),
)  # fmt: skip
LAYOUT: tuple[Column, ...] = (
    _size("tp", 1),
    _size("pp", 1),
    _size("vp", 1),
    _size("dp", noted=False),
    _size("cp", 1),
    _size("ep", 1),
    _size("etp", 1),
    Number(name="zero_stage", least=0, most=3),
    _size("dp_shard"),
    Flag(name="reshard_after_forward", usual=True),
    Flag(name="sequence_parallel"),
    Words(
        name="schedule",
        known=(*published_names(), ONE_AT_A_TIME),
        same={"zb-v": "zbv", "zb-h1": "zb-1p", "zb-h2": "zb-2p"},
    ),
    Number(name="first_stage_fewer_layers", field="first_fewer", usual=0, least=0, noted=False),
    Number(name="last_stage_fewer_layers", field="last_fewer", usual=0, least=0, noted=False),
    _size("pipeline_passes_per_step", 1, noted=False),
    _size("global_batch_size"),
    _size("micro_batch_size"),
    _size("num_microbatches", 1),
)
SOFTWARE: tuple[Column, ...] = (
    Words(
        name="recompute_class",
        known=("none", "selective", "partial", "full"),
        usual="none",
        same={"no": "none", "off": "none", "yes": "full", "layer": "full"},
    ),
    Text(name="recompute_modules"),
    Number(name="recompute_layers_fraction", usual=1, least=0, most=1, whole=False, noted=False),
    Flag(name="parameter_offload", usual=False, noted=False),
    Flag(name="optimizer_offload", field="optimizer_offload", usual=False, noted=False),
    Flag(name="activation_offload", field="activation_offload", usual=False, noted=False),
    Words(
        name="precision_class",
        known=("fp32", "tf32", "fp16", "bf16", "fp8", "mxfp8", "nvfp4", "int8"),
        same={"float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "float8": "fp8", "amp": "fp16"},
    ),
    _silent(
        "fp8_recipe",
        "fp8_recipe",
        ("tensorwise", "current", "delayed", "rowwise", "blockwise", "mxfp8-block32"),
        same={"mxfp8": "mxfp8-block32"},
    ),
    Text(name="low_precision_parts"),
    Flag(name="fp8_param_gather", usual=False, noted=False),
    _silent("gradient_dtype", "", ("bf16", "fp16", "fp32")),
    _silent("master_weights", "master_weights", YES_NO, same={"true": "yes", "false": "no"}),
    _silent(
        "fused_loss", "fused_loss", (*YES_NO, "chunked"),
        same={"true": "yes", "false": "no", "liger": "chunked", "cut-cross-entropy": "chunked"},
    ),
    _silent("fused_norms", "fused_norms", YES_NO, same={"true": "yes", "false": "no"}),
    _silent("moe_dispatcher", "dispatcher", ("alltoall", "deepep", "hybrid", "allgather")),
    Flag(name="synchronous_launches", field="synchronous", usual=False, noted=False),
    _silent(
        "optimizer",
        "optimizer",
        ("adamw", "adam8bit", "sgd", "muon", "adafactor", "adamw_in_backward", "adam8bit_in_backward"),
        "adamw",
        same={"adam": "adamw", "adamw8bit": "adam8bit"},
    ),
    Words(
        name="peft", known=("none", "lora", "qlora"), usual="none", noted=False,
        same={"full": "none", "no": "none"}, near={"adapter": "lora", "dora": "lora"},
    ),
    Text(name="lora_targets"),
    Flag(name="packed", usual=True, noted=False),
    Number(name="lora_rank", usual=0, least=0, most=LARGEST_RANK, noted=False),
    Words(
        name="quantised_base", known=FORMATS, usual=AS_IT_IS, noted=False,
        same={
            "int4-gptq": "int4", "int8-gptq": "int8", "gptq": "int4", "awq": "int4", "bnb-4bit": "nf4",
            "bnb-nf4": "nf4", "bnb-8bit": "int8", "4bit": "nf4", "8bit": "int8",
        },
    ),
    Words(
        name="stack",
        known=tuple(stack_names()),
        same={"fsdp1": "fsdp", "pytorch": "torch", "jax": "xla"},
        near={"internevo": "megatron-core", "colossalai": "deepspeed"},
    ),
    Flag(name="compiled", field="compiled", usual=False),
    Flag(name="overlap_grad"),
    Flag(name="overlap_param"),
    Flag(name="overlap_tp"),
    Flag(name="overlap_pp"),
)  # fmt: skip
COLUMNS: Mapping[str, Column] = MappingProxyType(
    {column.name: column for column in (*MODEL, *MACHINE, *LAYOUT, *SOFTWARE)}
)
NUMBERS = {column.name: column for column in COLUMNS.values() if isinstance(column, Number)}
WORDS = {column.name: column for column in COLUMNS.values() if isinstance(column, Words)}
FLAGS = {column.name: column for column in COLUMNS.values() if isinstance(column, Flag)}
# All that a prediction may read; `row_id` names the row and nothing else.
CONFIGURATION = tuple(COLUMNS)

"""Arguments of Megatron and what they mean here: one table, for plans that are written and for files that are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

# A switch stands alone; all others have one value, and a list has several.
Kind = Literal["switch", "whole", "number", "word", "list"]
NOTHING: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Word:
    """One argument, by its name without dashes in front.

    `means`: a field of a plan (`plan.x`), a size of a model (`sizes.x`), or of the job (`job.x`) that it is by itself;
    "" where several arguments say one thing together. `usual`: what holds where it is absent, as Megatron has it.
    `attribute`: its name in logs and YAML, where it is not the argument's own with underscores; `off`: the attribute is
    true where the switch is absent. `same`: other names of the same argument. `ours`: its values by ours.
    """

    name: str
    kind: Kind
    means: str = ""
    usual: int | float | str | bool | None = None
    attribute: str = ""
    off: bool = False
    same: tuple[str, ...] = ()
    ours: Mapping[str, str] = field(default_factory=lambda: NOTHING)

    @property
    def stored_as(self) -> str:
        """Its name among Megatron's attributes, which logs and YAML files show."""
        return self.attribute or self.name.replace("-", "_")

    def their(self, word: str) -> str | None:
        """Megatron's value for one of ours, the first that means it; None where it has none."""
        return next((theirs for theirs, own in self.ours.items() if own == word), None)


def _size(name: str, means: str = "", usual: int | None = None, **more: str | tuple[str, ...]) -> Word:
    return Word(name=name, kind="whole", means=means, usual=usual, **more)  # type: ignore[arg-type]


def _switch(name: str, means: str = "", *, attribute: str = "", off: bool = False, same: tuple[str, ...] = ()) -> Word:
    return Word(name=name, kind="switch", means=means, usual=False, attribute=attribute, off=off, same=same)


def _choice(name: str, usual: str | None = None, **ours: str) -> Word:
    return Word(name=name, kind="word", usual=usual, ours=MappingProxyType(ours))


LAYOUT: tuple[Word, ...] = (
    _size("tensor-model-parallel-size", "plan.tensor_parallel", 1, same=("model-parallel-size",)),
    _size("pipeline-model-parallel-size", "plan.pipeline_parallel", 1),
    _size("context-parallel-size", "plan.context_parallel", 1),
    _size("expert-model-parallel-size", "plan.expert_parallel", 1),
    _size("expert-tensor-parallel-size"),
    _size("num-distributed-optimizer-instances", usual=1),
    _size("num-layers-per-virtual-pipeline-stage"),
    _size("num-virtual-stages-per-pipeline-rank"),
    _size("virtual-pipeline-model-parallel-size"),
    _size("microbatch-group-size-per-virtual-pipeline-stage", attribute="microbatch_group_size_per_vp_stage"),
    _size("decoder-first-pipeline-num-layers"),
    _size("decoder-last-pipeline-num-layers"),
    Word(name="pipeline-model-parallel-layout", kind="word"),
    _switch("account-for-embedding-in-pipeline-split"),
    _switch("account-for-loss-in-pipeline-split"),
    _switch("sequence-parallel", "plan.sequence_parallel"),
    _switch("use-tp-pp-dp-mapping"),
    _size("micro-batch-size", "plan.micro_batch_size", same=("batch-size",)),
    _size("global-batch-size", "job.global_batch_size"),
    _size("seq-length", "job.sequence_length", same=("encoder-seq-length",)),
    _size("decoder-seq-length"),
    _switch("use-distributed-optimizer"),
    _switch("use-layer-wise-distributed-optimizer"),
    _switch("use-megatron-fsdp", same=("use-custom-fsdp",)),
    _switch("use-torch-fsdp2"),
    _switch("torch-fsdp2-no-reshard-after-forward", attribute="torch_fsdp2_reshard_after_forward", off=True),
    _choice("data-parallel-sharding-strategy", "optim_grads_params", no_shard="0", optim="1", optim_grads="2",
            optim_grads_params="3"),
    _size("world-size"),
    _size("data-parallel-size"),
)  # fmt: skip
MODEL: tuple[Word, ...] = (
    _size("num-layers", "sizes.num_layers"),
    _size("encoder-num-layers"),
    _size("decoder-num-layers"),
    _size("hidden-size", "sizes.hidden_size"),
    _size("ffn-hidden-size", "sizes.ffn_size"),
    _size("num-attention-heads", "sizes.num_heads"),
    _switch("group-query-attention"),
    _size("num-query-groups", usual=1),
    _size("kv-channels", "sizes.head_dim"),
    _size("vocab-size"),
    _size("padded-vocab-size"),
    _size("make-vocab-size-divisible-by", usual=128),
    _size("max-position-embeddings"),
    _choice("position-embedding-type", "learned_absolute"),
    _switch("use-rotary-position-embeddings"),
    _switch("no-position-embedding", attribute="add_position_embedding", off=True),
    Word(name="rotary-base", kind="number", usual=10000),
    _switch("use-rope-scaling"),
    Word(name="rope-scaling-factor", kind="number", usual=8.0),
    _choice("normalization", "LayerNorm"),
    Word(name="norm-epsilon", kind="number", usual=1e-5, attribute="layernorm_epsilon", same=("layernorm-epsilon",)),
    _switch("swiglu"),
    _switch("quick-geglu"),
    _switch("squared-relu"),
    _switch("disable-bias-linear", attribute="add_bias_linear", off=True),
    _switch("add-qkv-bias"),
    _switch("qk-layernorm"),
    _switch("untie-embeddings-and-output-weights"),
    Word(name="attention-dropout", kind="number", usual=0.1),
    Word(name="hidden-dropout", kind="number", usual=0.1),
    _size("num-experts", "sizes.num_experts", same=("num-moe-experts",)),
    _size("moe-router-topk", "sizes.experts_per_token", 2),
    _size("moe-ffn-hidden-size", "sizes.expert_ffn_size"),
    _size("moe-shared-expert-intermediate-size", "sizes.shared_ffn_size"),
    Word(name="moe-layer-freq", kind="word", usual="1"),
    _switch("multi-latent-attention"),
    _size("q-lora-rank", "sizes.mla_q_lora"),
    _size("kv-lora-rank", "sizes.mla_kv_lora", 32),
    _size("qk-head-dim", "sizes.mla_qk_nope", 128),
    _size("qk-pos-emb-head-dim", "sizes.mla_qk_rope", 64),
    _size("v-head-dim", "sizes.mla_v", 128),
    _size("mtp-num-layers"),
    Word(name="hybrid-layer-pattern", kind="word", same=("hybrid-override-pattern",)),
    _choice("tokenizer-type"),
)  # fmt: skip
SOFTWARE: tuple[Word, ...] = (
    _switch("bf16"),
    _switch("fp16"),
    Word(name="fp8-format", kind="word", attribute="fp8"),
    _choice("fp8-recipe", "delayed", delayed="delayed", tensorwise="tensorwise", blockwise="blockwise",
            mxfp8="mxfp8-block32"),
    Word(name="fp4-format", kind="word", attribute="fp4"),
    _switch("fp8-param-gather"),
    _choice("transformer-impl", "transformer_engine"),
    _choice("attention-backend", "auto", fused="cudnn", flash="flash", unfused="unfused", local="unfused"),
    _size("flash-attention-version"),
    _switch("use-flash-attn"),
    _switch("tp-comm-overlap"),
    _switch("overlap-grad-reduce"),
    _switch("overlap-param-gather"),
    _switch("no-overlap-p2p-communication", attribute="overlap_p2p_comm", off=True),
    _switch("grad-reduce-in-bf16"),
    _switch("accumulate-allreduce-grads-in-fp32"),
    _choice("main-grads-dtype", "fp32"),
    _choice("main-params-dtype", "fp32"),
    _switch("use-precision-aware-optimizer"),
    _switch("cross-entropy-loss-fusion"),
    _choice("cross-entropy-fusion-impl", "native"),
    _switch("no-gradient-accumulation-fusion", attribute="gradient_accumulation_fusion", off=True),
    _choice("optimizer", "adam", adam="adamw", sgd="sgd", muon="muon", dist_muon="muon"),
    _switch("optimizer-cpu-offload"),
    _switch("cpu-offloading"),
    _switch("fine-grained-activation-offloading"),
    _choice("recompute-granularity", full="full", selective="selective"),
    _choice("recompute-method"),
    _size("recompute-num-layers"),
    Word(name="recompute-modules", kind="list"),
    _switch("recompute-activations"),
    _switch("checkpoint-activations"),
    _choice("activations-checkpoint-method"),
    _size("activations-checkpoint-num-layers", usual=1),
    _choice("moe-token-dispatcher-type", "allgather", alltoall="alltoall", allgather="allgather",
            alltoall_seq="alltoall"),
    _choice("moe-flex-dispatcher-backend", "deepep", deepep="deepep", hybridep="hybrid"),
    _switch("moe-enable-deepep"),
    _choice("ckpt-format"),
    _switch("use-mcore-models", attribute="deprecated_use_mcore_models"),
)  # fmt: skip
# Optimizers that come with sharded states.
SHARDING_OPTIMIZERS = ("dist_muon",)
WORDS: Mapping[str, Word] = MappingProxyType({word.name: word for word in (*LAYOUT, *MODEL, *SOFTWARE)})
SAME: Mapping[str, str] = MappingProxyType({other: word.name for word in WORDS.values() for other in word.same})
ATTRIBUTES: Mapping[str, Word] = MappingProxyType({word.stored_as: word for word in WORDS.values()})


def of_meaning(subject: str) -> dict[str, Word]:
    """The arguments that are one field each of a plan, a model or a job, by the field."""
    start = f"{subject}."
    return {word.means.removeprefix(start): word for word in WORDS.values() if word.means.startswith(start)}

"""What the words of a plan's id mean, as planner/plans puts them together."""

from __future__ import annotations

import re
from dataclasses import dataclass

from planner.plans import RECOMPUTE_WORDS
from planner.schedules.registry import SCHEDULES
from profiles.codecs.codec import KNOWN, codec

COUNTS = r"\d+(x\d+)?(-\d+(x\d+)?)*"
# Forms of words, the pattern of each, and what it means; N, M, R and S stand for numbers.
DEGREES = (
    ("single", "single", "one device"),
    ("dpN", r"dp\d+", "N data-parallel replicas, each with its share of the batch"),
    ("tpN", r"tp\d+", "N tensor-parallel ranks share the matrices of every layer"),
    ("cpN", r"cp\d+", "N context-parallel ranks share every sequence"),
    ("ppN", r"pp\d+", "N pipeline ranks, each with some of the layers"),
    ("epN", r"ep\d+", "N ranks of the data axis share the experts"),
    ("sp", "sp", "sequence parallel: activations between tensor-parallel layers are split by tokens"),
    ("vocab", "vocab", "embedding and head are split by the vocabulary over the tensor axis"),
    ("mbNxM", r"mb\d+x\d+", "M micro-batches of N samples in a step of each replica"),
    (
        "mbNxMxR-...",
        rf"mb\d+x(?=.*-){COUNTS}",
        "if replicas differ: M micro-batches on each of R replicas, and so on",
    ),
)
STAGES = (
    ("vN", r"v\d+", "N pipeline stages on each pipeline rank"),
    ("zero1", "zero1", "optimizer states are sharded over the data axis"),
    ("zero2", "zero2", "gradients as well"),
    ("zero3", "zero3", "parameters as well (FSDP)"),
    ("shardN", r"shard\d+", "sharded over N ranks of the data axis, not over all of it (HSDP)"),
)
RECOMPUTED = {
    "selective": "attention is run again in backward; what it computed is not kept",
    "full": "layers are run again in backward; what they computed is not kept",
}
OF_LAYERS = (
    "of-N",
    f"of-{COUNTS}",
    "only N layers of each stage are recomputed; of-NxS-M: N on each of S stages, then M",
)
OFFLOADED = {
    "optimizer": "optimizer states are kept in the host's memory",
    "activations": "activations wait in the host's memory for the backward pass",
}
# Codecs whose names end in a number.
NUMBERED_CODECS = {
    "topk": "the largest N % of the entries; the rest is added to the next step's",
    "powersgd": "matrices as products of rank N; the error is added to the next step's (PowerSGD)",
}
PRECISIONS = {
    "fp32": "everything in 32 bits",
    "tf32": "matrix products in TF32, everything else in 32 bits",
    "fp16": "matrix products and activations in fp16",
    "bf16": "matrix products and activations in bf16",
    "fp8": "matrix products in 8 bits, activations in bf16",
    "mxfp8": "matrix products in 8 bits with a scale for each small block, activations in bf16",
    "nvfp4": "matrix products in 4 bits with a scale for each small block, activations in bf16",
}
REST = (
    ("compiled", "compiled", "layers are compiled by torch.compile"),
    (
        "order-A-B-...",
        r"order(-[tcdp])+",
        "axes from neighbouring ranks outwards, where not in the order t(ensor), c(ontext), d(ata), p(ipeline)",
    ),
)


@dataclass(frozen=True, slots=True)
class Word:
    """One kind of word in a plan's id: how it looks, what matches it, and what it means."""

    form: str
    pattern: str
    meaning: str


def legend() -> list[Word]:
    """All kinds of words, in about the order in which they come in an id."""
    schedules = ((name, re.escape(name), f"pipeline: {rules.title}") for name, rules in SCHEDULES.items())
    recomputed = ((word, word, RECOMPUTED[name]) for name, word in RECOMPUTE_WORDS.items())
    offloaded = ((f"offload-{name}", f"offload-{name}", meaning) for name, meaning in OFFLOADED.items())
    plain = [name for name in KNOWN if name != "none" and name.partition("-")[0] not in NUMBERED_CODECS]
    codecs = (
        *((f"grad-{name}", f"grad-{name}", f"gradients are sent {codec(name).title}") for name in plain),
        *((f"grad-{name}-N", rf"grad-{name}-[\d.]+", f"gradients: {words}") for name, words in NUMBERED_CODECS.items()),
    )
    precisions = ((name, name, f"precision: {meaning}") for name, meaning in PRECISIONS.items())
    parts = (DEGREES, schedules, STAGES, recomputed, (OF_LAYERS,), offloaded, codecs, precisions, REST)
    return [Word(*entry) for part in parts for entry in part]

"""What can be done to a model to make it smaller or faster: recipes by name, the model each leaves, and its bytes.

Torch-free: a smaller dense model is a configuration like any other and is priced like one; what a recipe does to stored
bytes follows from the shapes alone, exactly.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal, cast

from planner.plans import Plan
from planner.space.weights import Weights, weights_of
from profiles.artifacts import STRICT
from profiles.errors import InputError, PlanError, UnknownNameError
from profiles.inputs.ranges import Amount, Seconds, Share, Whole
from profiles.laws.curves import LINEAR_SCHEMES

FULL_BYTES, BYTE = 4.0, 1.0
# Channels are removed in multiples of this, so that what is left still fills the device's vector units.
CHANNEL_MULTIPLE = 8
PARTS = ("ffn", "heads", "layers")
SPARSE = re.compile(r"sparse-(?P<percent>[1-9][0-9]?)")
SMALLER = re.compile(
    rf"(?P<method>prune|distil)-(?P<part>{'|'.join(PARTS)})-(?P<percent>[1-9][0-9]?)(?P<hidden>-hidden)?"
)
KNOWN = (
    "none", "prune-ffn-50", "prune-heads-50", "prune-layers-50", "sparse-50", "sparse-2:4", "int8-weights",
    "int8-dynamic", "fp8-weights", "qat-int8", "distil-layers-50", "distil-layers-50-hidden",
)  # fmt: skip
AUTO = (
    "none", "prune-ffn-50", "prune-heads-50", "prune-layers-50", "sparse-50", "int8-weights", "int8-dynamic",
    "qat-int8", "distil-layers-50",
)  # fmt: skip


Method = Literal["none", "prune", "sparse", "quantise", "qat", "distil"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """One way to compress a model.

    `method` is none, prune (remove `fraction` of a `part` for good), sparse (set weights to zero and leave them where
    they are), quantise (after training, in the `scheme`), qat (rounded while it trains, then quantised), or distil
    (train a model that is smaller by `fraction` of a `part` from the whole one; `matches_hidden` states as well).
    """

    __pydantic_config__ = STRICT

    name: str
    method: Method
    part: str = ""
    fraction: Share = 0.0
    scheme: str = ""
    matches_hidden: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressionChoice:
    """One recipe with what is predicted of it. Latency is of one forward pass of one sample, null where it is unknown.

    `plan` is the layout it is trained in, with its `step_seconds` and the `peak_bytes` of the fullest rank; `refusal`
    says why it cannot be, "" where it can. `on_front`: no other is at least as good in step time, bytes and latency,
    and better in one.
    """

    __pydantic_config__ = STRICT

    recipe: Recipe
    plan: Plan
    num_parameters: Whole
    stored_bytes: Amount
    step_seconds: Seconds
    peak_bytes: Amount
    latency_seconds: Seconds | None
    risk: str
    note: str = ""
    refusal: str = ""
    meets_targets: bool = True
    on_front: bool = True


def recipe(name: str) -> Recipe:
    """The recipe called `name`.

    Names: none, prune-PART-P, sparse-P, sparse-2:4, int8-weights, int8-dynamic, fp8-weights, qat-int8,
    distil-PART-P, distil-PART-P-hidden; P is percent, PART one of ffn, heads, layers.

    Raises: UnknownNameError.
    """
    if name == "none":
        return Recipe(name=name, method="none")
    if name in LINEAR_SCHEMES:
        return Recipe(name=name, method="quantise", scheme=name)
    if name == "qat-int8":
        return Recipe(name=name, method="qat", scheme="int8-dynamic")
    if name == "sparse-2:4":
        return Recipe(name=name, method="sparse", part="2:4", fraction=0.5)
    if match := SPARSE.fullmatch(name):
        return Recipe(name=name, method="sparse", part="weights", fraction=int(match["percent"]) / 100)
    match = SMALLER.fullmatch(name)
    if match is None or (match["hidden"] and match["method"] != "distil"):
        raise UnknownNameError("compression", name, KNOWN)
    return Recipe(
        name=name,
        method=cast(Method, match["method"]),
        part=match["part"],
        fraction=int(match["percent"]) / 100,
        matches_hidden=bool(match["hidden"]),
    )


def recipes(text: str) -> tuple[Recipe, ...]:
    """The recipes that `--compress` names: auto, none, or a list with commas; the model as it is always comes first.

    Raises: UnknownNameError; InputError where it names none.
    """
    if not text.strip(" ,"):
        raise InputError("--compress: give auto, none, or names with commas between, such as prune-ffn-50")
    names = AUTO if text == "auto" else tuple(word.strip() for word in text.split(",") if word.strip())
    return tuple(recipe(name) for name in dict.fromkeys(("none", *names)))


def smaller(config: dict[str, Any], own: Recipe) -> dict[str, Any]:
    """The configuration of the model that a recipe leaves: its own where no part is removed.

    Heads go with all queries that share their keys, as many as come nearest to what is asked for.
    Raises: PlanError where the family cannot have such a model.
    """
    if own.method not in ("prune", "distil"):
        return config
    family, keep = str(config.get("model_type", "")), 1 - own.fraction
    is_gpt2 = family == "gpt2"
    changed = dict(config)
    if own.part == "layers":
        key = "n_layer" if is_gpt2 else "num_hidden_layers"
        changed[key] = max(1, round(config[key] * keep))
    elif own.part == "ffn":
        key = "n_inner" if is_gpt2 else "intermediate_size"
        whole = config.get(key) or 4 * config["n_embd"]
        changed[key] = max(CHANNEL_MULTIPLE, round(whole * keep / CHANNEL_MULTIPLE) * CHANNEL_MULTIPLE)
    elif is_gpt2:
        raise PlanError(f"{own.name}: GPT-2's attention is as wide as its hidden states; remove ffn channels or layers")
    else:
        heads = config["num_attention_heads"]
        groups = config.get("num_key_value_heads") or heads
        # transformers takes no number of heads that the hidden size is not a multiple of.
        allowed = [count for count in range(1, groups) if config["hidden_size"] % (heads // groups * count) == 0]
        if not allowed:
            raise PlanError(f"{own.name}: none of the {groups} groups of heads can be removed")
        kept = min(allowed, key=lambda count: abs(count - groups * keep))
        changed |= {
            "num_attention_heads": heads // groups * kept,
            "num_key_value_heads": kept,
            "head_dim": config.get("head_dim") or config["hidden_size"] // heads,
        }
    return changed


def smaller_weights(whole: Weights, own: Recipe) -> Weights:
    """The weights of the model that a recipe leaves.

    Raises: PlanError where the family cannot have such a model.
    """
    if own.method not in ("prune", "distil"):
        return whole
    return weights_of(f"{whole.name} {own.name}", smaller(whole.config, own))


def stored_bytes(whole: Weights, own: Recipe) -> float:
    """Bytes of the compressed model's weights as they are stored: 4 a parameter, and 1 where linears are in 8 bits.

    A row keeps a scale of 4 bytes, and with int8 a zero point of 1. Zeros are stored like any number: sparse weights
    save nothing by themselves.
    """
    left = smaller_weights(whole, own)
    if not own.scheme:
        return FULL_BYTES * left.num_parameters
    rest = left.num_parameters - left.linear_weights
    zero_points = left.linear_rows if own.scheme.startswith("int8") else 0.0
    return FULL_BYTES * (rest + left.linear_rows) + BYTE * (left.linear_weights + zero_points)


# What is known of the quality from others' measurements, and what is not.
_RISKS = {
    "none": "none",
    "int8-weights": "small: weights rounded row by row cost large models little (Dettmers et al. 2022, LLM.int8)",
    "int8-dynamic": "unknown where activations have outliers, which large models have (Dettmers et al. 2022)",
    "fp8-weights": "small: e4m3 weights lost large models little (Micikevicius et al. 2022, FP8 formats)",
    "qat": "small if training goes on: rounding is learned (Jacob et al. 2018)",
    "weights": "unknown: half of a large model's weights went with little loss (Frantar and Alistarh 2023), but there "
    "the others were corrected",
    "2:4": "unknown: more than unstructured zeros at the same share (Frantar and Alistarh 2023)",
    "layers": "unknown: deep layers matter less than their number says (Men et al. 2024), and training has to go on",
    "ffn": "unknown: training has to go on (Ma et al. 2023, LLM-Pruner)",
    "heads": "unknown: many heads can go (Michel et al. 2019), training has to go on",
    "distil": "unknown: depends on student, data and steps (Hinton et al. 2015)",
}


def risk(own: Recipe) -> str:
    """What is known of a recipe's cost in quality, with its source; measured by `execute --compress`."""
    for key in (own.name, own.method, own.part):
        if key in _RISKS:
            return _RISKS[key]
    return "unknown"


def cannot_train(own: Recipe, plan: Plan) -> str:
    """Why a recipe cannot be trained in a layout, naming what can; "" where it can."""
    if plan.pipeline_parallel > 1 or plan.context_parallel > 1 or plan.expert_parallel > 1:
        return f"{own.name} with {plan.id}: compressed models are trained with data and tensor parallelism only"
    if plan.tensor_parallel > 1 and own.method in ("sparse", "qat"):
        return f"{own.name} with {plan.id}: tensor parallelism would cut the rows that are judged; use data parallelism"
    if plan.vocab_parallel and own.method == "distil":
        return f"{own.name} with {plan.id}: a teacher's answers are compared whole; leave vocab_parallel out"
    return ""


def speed_note(own: Recipe, device_kind: str) -> str:
    """Why a recipe makes inference no faster, where it does not; "" where it may."""
    if own.part == "weights":
        return "zeros are multiplied like any number: dense kernels gain nothing"
    if own.part == "2:4" and device_kind == "cpu":
        return "2:4 kernels exist on GPUs only (Ampere and later)"
    if own.scheme in ("int8-weights", "fp8-weights"):
        return "weights are turned back to fp32 for every product: memory only"
    return ""

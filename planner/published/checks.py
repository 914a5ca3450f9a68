"""What the columns of a row say about each other: empty ones that others decide, contradictions that refuse it."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from functools import lru_cache

from planner.published.cells import TRUE, Refused
from planner.published.layout_cells import UNKNOWN_BATCH
from planner.published.row import Row, tidy
from profiles.errors import UnknownNameError
from profiles.inputs import limits
from profiles.machines.devices import Device, catalogue_names, find_device

Job = Mapping[str, float | bool | str]
ALL_RANKS = -1.0
ZERO_OF_DEEPSPEED = 2
USUAL_KV_HEADS = 8
SMALL_HIDDEN, SMALL_HEAD = 2048, 64
# Beyond any run there ever was: a table with such a number has a column out of place.
LARGEST = {
    "num_layers": limits.LAYERS, "hidden_size": limits.HIDDEN, "ffn_size": limits.FFN, "num_heads": limits.HEADS,
    "vocab_size": limits.VOCABULARY, "num_experts": limits.EXPERTS, "head_dim": limits.HIDDEN,
    "expert_ffn_size": limits.FFN, "shared_ffn_size": limits.FFN, "mla_q_lora": limits.HIDDEN,
    "mla_kv_lora": limits.HIDDEN, "mla_qk_nope": limits.HIDDEN, "mla_qk_rope": limits.HIDDEN, "mla_v": limits.HIDDEN,
    "num_devices": 1e7, "pipeline": 1024, "micro_batch": 1e6, "num_microbatches": 1e7,
}  # fmt: skip
SHOWN = {
    "num_devices": "num_gpus", "pipeline": "pp", "micro_batch": "micro_batch_size", "expert_ffn_size": "moe_ffn_size",
    "shared_ffn_size": "shared_expert_ffn_size",
}  # fmt: skip


def complete(row: Row) -> None:
    """Fill the empty columns that other columns decide; all others are left to whoever reads them.

    Raises: Refused where columns contradict each other.
    """
    tidy(row)
    _complete_stack(row)
    _complete_model(row)
    _complete_experts(row)
    _complete_devices(row)
    _complete_links(row)
    _complete_sharding(row)


def _complete_stack(row: Row) -> None:
    """Where the stack is empty, one that does what the other columns ask for; reading knows of tp, pp and sharding."""
    if not row.is_empty("stack"):
        return
    zero = row.number("zero_stage")
    if zero == ZERO_OF_DEEPSPEED:
        row.assume("stack", "deepspeed", "zero_stage is 2")
    elif zero in (None, 0, 1) and row.is_empty("dp_shard"):
        asked = [name for name in ("cp", "vp") if (row.number(name) or 1.0) > 1]
        asked += ["zero_stage"] if zero == 1 else []
        asked += ["sequence_parallel"] if row.word("sequence_parallel") in TRUE else []
        if asked:
            row.assume("stack", "megatron-core", f"{asked[0]} is {row.cells[asked[0]]}")


def _complete_model(row: Row) -> None:
    hidden, heads = row.number("hidden_size"), row.number("num_heads")
    if row.is_empty("arch") and row.word("mlp_type").replace("-", "_") == "squared_relu":
        row.assume("arch", "nemotron4", "the model with this mlp_type")
    if row.is_empty("num_heads") and hidden and SMALL_HEAD <= hidden < SMALL_HIDDEN:
        row.assume("num_heads", round(hidden / SMALL_HEAD))
    if row.is_empty("attention") and (row.number("mla_kv_lora") or 0) > 0:
        row.assume("attention", "mla", "mla_kv_lora is given")
    if row.is_empty("num_kv_heads") and heads:
        if row.word("attention") == "mqa":
            row.assume("num_kv_heads", 1)
        elif row.word("attention") == "gqa" and heads > USUAL_KV_HEADS and heads % USUAL_KV_HEADS == 0:
            row.assume("num_kv_heads", USUAL_KV_HEADS)


def _complete_experts(row: Row) -> None:
    experts = row.number("num_experts")
    if row.word("arch") == "moe" and (row.is_empty("num_experts") or experts == 0):
        raise Refused("num_experts is empty, but arch is moe; give the number of routed experts")
    has_both = not row.is_empty("ffn_size") and not row.is_empty("dense_ffn_size")
    if experts and row.is_empty("moe_ffn_size") and has_both:
        row.assume("moe_ffn_size", row.cells["ffn_size"], "ffn_size")


def _complete_devices(row: Row) -> None:
    degrees = [1.0 if row.word(name) in ("", "none") else row.number(name) for name in ("tp", "pp", "cp")]
    if any(degree is None or degree < 1 for degree in degrees):
        return
    split = math.prod(degree for degree in degrees if degree is not None)
    devices, data = row.number("num_gpus"), row.number("dp")
    if row.is_empty("num_gpus") and data:
        row.compute("num_gpus", split * data, "tp x pp x cp x dp")
    elif row.is_empty("dp") and devices and devices > 0:
        if devices % split:
            shown = " x ".join(f"{degree:g}" for degree in degrees)
            raise Refused(f"num_gpus ({devices:g}) is not divisible by tp x pp x cp ({shown})")
        row.compute("dp", devices / split, "num_gpus / (tp x pp x cp)")


@lru_cache(maxsize=256)
def _device(text: str, memory_gib: float | None) -> Device | None:
    try:
        return find_device(text, memory_gib)
    except UnknownNameError:
        return None


def _unknown_device(text: str) -> str:
    names = catalogue_names()
    near = difflib.get_close_matches(text.lower().replace(" ", "-"), names, n=1, cutoff=0.6)
    hint = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(names)}"
    return f"gpu_type is '{text}', which is not in the catalogue of devices; {hint}"


def _complete_links(row: Row) -> None:
    """Which devices the node's own links join, and how fast, where the row does not say."""
    memory = row.number("gpu_mem_gib")
    if memory is not None and memory >= 1:
        # Usable capacities have fractions ("79.15"); devices are told apart by whole ones.
        row.set("gpu_mem_gib", float(round(memory)))
    if row.is_empty("gpu_type"):
        return
    device = _device(row.cells["gpu_type"], row.number("gpu_mem_gib"))
    if device is None:
        raise Refused(_unknown_device(row.cells["gpu_type"]))
    if row.is_empty("gpus_per_node"):
        row.assume("gpus_per_node", device.devices_per_node)
    per_node, domain = row.number("gpus_per_node"), row.number("nvlink_domain_gpus")
    if per_node is None or per_node < 1:
        return
    has_links = device.link_gb_per_second > 0
    if row.is_empty("nvlink_domain_gpus"):
        is_whole_node = device.fast_domain == device.devices_per_node or not has_links
        row.assume("nvlink_domain_gpus", per_node if is_whole_node else device.fast_domain)
    elif domain is not None and domain in (0, 1):
        # No NVLink: the devices of a node still reach each other, over PCIe.
        row.set("nvlink_domain_gpus", per_node)
        has_links = False
    if row.is_empty("intra_node_gbytes_per_s_unidir") and not has_links:
        row.assume("intra_node_gbytes_per_s_unidir", device.peer_gb_per_second, "PCIe")


def _complete_sharding(row: Row) -> None:
    data, context, shard = row.number("dp"), row.number("cp") or 1.0, row.number("dp_shard")
    if not data or data < 1:
        return
    if shard == ALL_RANKS:
        row.set("dp_shard", data * context)
    elif shard and shard > data * context:
        row.assume("dp_shard", data * context, f"all data- and context-parallel ranks; {shard:g} is more")


def check(row: Row, model: Job, job: Job) -> None:
    """Refuse what no job can be, and note what is filled without changing what is computed.

    Raises: Refused with the columns, their values and what would be allowed.
    """
    for name, largest in LARGEST.items():
        value = float(model[name] if name in model else job[name])
        if value > largest:
            raise Refused(f"{SHOWN.get(name, name)} is {value:.12g}; the largest that can be predicted is {largest:g}")
    ranks = float(job["data"]) * float(job["context"]) * float(job["tensor"])
    split = float(job["expert"]) * float(job["expert_tensor"])
    if float(model["num_experts"]) and ranks % split:
        raise Refused(
            f"ep x etp is {job['expert']:g} x {job['expert_tensor']:g}; it must divide the {ranks:g} ranks of a "
            "pipeline stage (tp x cp x dp)"
        )
    pipeline, fewer = float(job["pipeline"]), max(float(job["first_fewer"]), float(job["last_fewer"]))
    if fewer and pipeline > 1 and fewer > float(model["num_layers"]) / pipeline:
        raise Refused(f"a stage has {fewer:g} layers fewer than the others, but there are only {model['num_layers']:g}")
    if UNKNOWN_BATCH not in job:
        _note_batch(row, job)
    for column in ("optimizer_offload", "activation_offload"):
        if row.is_empty(column):
            row.notes.append(f"{column}: no assumed")
    for column in ("first_stage_fewer_layers", "last_stage_fewer_layers"):
        if row.is_empty(column) and pipeline > 1:
            row.notes.append(f"{column}: 0 assumed")


def _note_batch(row: Row, job: Job) -> None:
    count, given = float(job["num_microbatches"]), row.number("num_microbatches")
    samples = float(job["micro_batch"]) * count * float(job["data"])
    if row.is_empty("global_batch_size"):
        row.notes.append(f"global_batch_size: {samples:.12g} computed (micro_batch_size x num_microbatches x dp)")
    elif given is None:
        row.notes.append(f"num_microbatches: {count:.12g} computed (global_batch_size / (micro_batch_size x dp))")
    elif given != count:
        row.notes.append(f"num_microbatches: {count:.12g} computed from the batch sizes, where the row says {given:g}")

"""The columns that describe the software and the machine."""

from __future__ import annotations

from functools import lru_cache

from planner.published.cells import Cells, Refused
from profiles.errors import UnknownNameError
from profiles.machines.devices import Device, find_device
from profiles.machines.stacks import Stack, load_stack
from profiles.models.adapters import (
    AS_IT_IS,
    EVERYTHING,
    GROUPS,
    NETWORK_TARGETS,
    TARGETS,
    USUAL_RANK,
    USUAL_TARGETS,
    Adapters,
    adapters,
    parse_targets,
)
from profiles.units import GB, GIB

GRADIENT_BYTES = {"": 0.0, "bf16": 2.0, "fp16": 2.0, "fp32": 4.0}
# What a device computes in where it lacks what the row says, if it has that: as near in width as there is.
NEAREST = {"mxfp8": ("fp8",), "int8": ("fp8", "bf16", "fp16"), "nvfp4": ("mxfp8", "fp8")}
EIGHT_BITS = ("fp8", "mxfp8")
LOW_PARTS = ("linear", "grouped", "head")
# Of a card's label the driver keeps about this share.
KEPT_SHARE = 0.01
LABEL_TOLERANCE = 0.1
BITS = 8.0
# Linears by the names that models give them.
TARGET_WORDS = {
    "all-linear": "all", "q-proj": "q", "k-proj": "k", "v-proj": "v", "o-proj": "o", "gate-proj": "gate",
    "up-proj": "up", "down-proj": "down", "qkv": "attention", "attn": "attention",
}  # fmt: skip


def read_stack(cells: Cells) -> Stack:
    """The stack; where it is empty, one that can do what the other columns ask for.

    Raises: Refused for an unknown one.
    """

    def above_one(column: str) -> bool:
        text = cells.text(column)
        return text is not None and text not in ("1", "1.0")

    zero = cells.text("zero_stage")
    sharded = cells.text("dp_shard") is not None or (zero is not None and zero.startswith("3"))
    split = above_one("tp") or above_one("pp") or above_one("ep")
    usual = "fsdp" if sharded else "megatron-core" if split else "torch"
    return load_stack(cells.word("stack", usual))


@lru_cache(maxsize=256)
def _device(text: str, memory_gib: float | None) -> Device:
    return find_device(text, memory_gib)


def read_hardware(cells: Cells, stack: Stack) -> tuple[Device, dict[str, float | bool | str]]:
    """Device, links, precision and kernels of a job.

    Raises: Refused for an unknown device, and for a precision it does not have.
    """
    name = cells.text("gpu_type")
    if name is None:
        raise Refused("gpu_type is empty; name the GPU in the table, or give --device")
    label = cells.size("gpu_mem_gib") or None
    try:
        device = _device(name, label)
    except UnknownNameError as error:
        raise Refused(f"gpu_type: {error}") from None
    memory = device.memory_gib
    if label is not None and abs(label / device.memory_label_gb - 1) > LABEL_TOLERANCE:
        memory = label * (1 - KEPT_SHARE)
    per_node = cells.size("gpus_per_node", device.devices_per_node)
    fast = cells.size("nvlink_domain_gpus", max(device.fast_domain, 1))
    link = cells.size("intra_node_gbytes_per_s_unidir", device.link_gb_per_second)
    devices = cells.size("num_gpus")
    crosses = devices > max(per_node, fast)
    network = device.network_gb_per_second * BITS
    card = cells.size("nic_gbit_per_s_per_gpu", network, noted=crosses)
    precision = _precision(cells, device)
    if not cells.flag("packed"):
        cells.guess("packed", "samples assumed as long as seq_len; with shorter ones a step takes less")
    if precision == "fp8" and cells.text("fp8_recipe") is None:
        cells.assume("fp8_recipe", stack.time.fp8_recipe)
    return device, {
        "device_memory_bytes": memory * GIB,
        "num_devices": devices,
        "devices_per_node": per_node,
        "fast_domain": fast,
        "fast_bytes_per_second": link * GB,
        "network_bytes_per_second": card / BITS * GB,
        "precision": precision,
        "low_precision_parts": _low_parts(cells),
        "parameter_bytes": float(cells.flag("fp8_param_gather") and precision in EIGHT_BITS),
        "attention_kernel": cells.word("attention_kernel", stack.attention_kernel(device.generation)),
        "overlap_grad": cells.flag("overlap_grad", stack.habits.overlaps_gradients),
        "overlap_param": cells.flag("overlap_param", stack.habits.overlaps_parameters),
        "gradient_bytes": GRADIENT_BYTES[cells.word("gradient_dtype")],
        **cells.fields(),
    }


def read_adapters(cells: Cells, *, has_experts: bool) -> Adapters:
    """What is trained of the model: adapters where the row names any, or says that its base is frozen."""
    base, rank = cells.word("quantised_base"), cells.size("lora_rank")
    if cells.word("peft") == "none" and base == AS_IT_IS and not rank:
        return EVERYTHING
    if not rank:
        cells.guess("lora_rank", f"{USUAL_RANK} assumed")
        rank = USUAL_RANK
    named = tuple(TARGET_WORDS.get(word, word) for word in cells.items("lora_targets"))
    known = [word for word in named if word in (*TARGETS, *GROUPS)]
    for word in sorted(set(named) - set(known)):
        cells.guess("lora_targets", f"'{word}' is unknown and was ignored")
    if not known:
        cells.guess("lora_targets", f"{','.join(USUAL_TARGETS)} assumed")
        known = list(USUAL_TARGETS)
    targets = parse_targets(known)
    if has_experts and set(targets) & set(NETWORK_TARGETS):
        cells.guess("lora_targets", "adapters of routed experts cannot be priced and are left out")
    return adapters(int(rank), targets, base)


def _low_parts(cells: Cells) -> str:
    named = cells.items("low_precision_parts")
    for word in sorted(set(named) - set(LOW_PARTS)):
        cells.guess("low_precision_parts", f"'{word}' is unknown and was ignored")
    return ";".join(part for part in LOW_PARTS if part in named)


def _precision(cells: Cells, device: Device) -> str:
    usual = "bf16" if "bf16" in device.peak_tflops else "fp16"
    named = cells.word("precision_class", usual)
    precision = "fp32" if named == "tf32" else named
    if precision in device.peak_tflops:
        return precision
    for near in NEAREST.get(precision, ()):
        if near in device.peak_tflops:
            cells.guess("precision_class", f"{near} assumed for {named}, which {device.title} does not have")
            return near
    known = ", ".join(sorted(device.peak_tflops))
    raise Refused(f"precision_class is {named}, which {device.title} does not have; it has {known}")

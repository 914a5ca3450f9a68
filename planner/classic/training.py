"""A row of a table of trainings of any network, read: device, software, batch, links, and what is assumed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from planner.classic.identify import Row, Sizes, cell, identify, number
from planner.published.cells import Refused
from profiles.errors import UnknownNameError
from profiles.inputs import limits
from profiles.machines.devices import Device, find_device

# The columns of a configuration, all that a prediction may read.
CONFIGURATION = (
    "row_id", "task", "model", "hf_model_type", "model_config", "hf_auto_class", "detector", "backbone", "neck",
    "image_size", "seq_len", "decoder_seq_len", "channels_last", "precision_class", "compiled", "xla", "data_loader",
    "recompute_class", "attention_kernel", "gpu_type", "gpu_mem_gib", "num_gpus", "gpus_per_node", "interconnect",
    "micro_batch_size", "accumulation", "global_batch_size", "optimizer", "stack", "engine",
)  # fmt: skip
# What no published training tells of: where a row has it, it is said that it has no price.
UNPRICED = ("compiled", "xla", "recompute_class")
PRECISIONS = ("fp32", "tf32", "fp16", "bf16")
HALF = ("fp16", "bf16")
LANGUAGE = (
    "seq_len: pretraining removes padding, about half of sequences of 512 (MLPerf's Wikipedia set: 255 are words)"
)
FILLED = 0.5
NODE_GPUS, MOST_GIB = 8.0, 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """One row's training; `units` is what products run on: plain, tf32 or half. `filled` of a sequence are words.

    Where it `sums_last`, gradients are exchanged once backward is over; `optimizer_code` is the optimizer as coded.
    """

    row_id: str
    network: str
    sizes: Sizes
    memory_sizes: Sizes
    precision: str
    units: str
    device: Device
    micro_batch: float
    accumulation: float
    num_gpus: float
    gpus_per_node: float
    interconnect: str
    optimizer: str
    stack: str
    channels_last: bool
    input_reader: str
    gradient_bytes: float
    filled: float
    exchanges: bool
    sums_last: bool
    optimizer_code: str
    assumptions: tuple[str, ...]

    @property
    def list_precision(self) -> str:
        """Under which precision its operators are listed."""
        return "amp" if self.precision in HALF else "fp32"


def is_training(row: Mapping[str, str | None]) -> bool:
    """Whether a row is of this kind: it names a task, and no layers of a language model."""
    return bool(cell(row, "task")) and not cell(row, "num_layers")


def read_training(row: Row) -> Training:
    """A row as a training.

    Raises: Refused with the reason.
    """
    told = [
        f"{name}: {cell(row, name)} is not priced" for name in UNPRICED if cell(row, name) not in ("", "no", "none")
    ]
    network, sizes = identify(row)
    memory_sizes = identify(row, for_memory=True)[1]
    device = _device(row)
    precision = cell(row, "precision_class") or "fp32"
    if not cell(row, "precision_class"):
        told.append("precision_class: fp32 assumed")
    if precision not in PRECISIONS:
        raise Refused(f"precision_class is '{precision}'; known are {', '.join(PRECISIONS)}")
    units = "tf32" if "tf32" in device.peak_tflops else "plain"
    units = units if precision in ("fp32", "tf32") else "half"
    gpus = number(row, "num_gpus", limits.DEVICES)
    if gpus is None:
        gpus = 1.0
        told.append("num_gpus: 1 assumed")
    accumulation = number(row, "accumulation", limits.SAMPLES) or 1.0
    batch = number(row, "micro_batch_size", limits.SAMPLES)
    if batch is None:
        whole_batch = number(row, "global_batch_size", limits.SAMPLES)
        if whole_batch is None:
            raise Refused("neither micro_batch_size nor global_batch_size is given")
        batch = whole_batch / gpus / accumulation
        told.append("micro_batch_size: the global batch over GPUs and accumulation")
    stack = cell(row, "stack") or "torch"
    reference = cell(row, "engine") == "deeplearning_examples"
    return Training(
        row_id=cell(row, "row_id"), network=network, sizes=sizes, memory_sizes=memory_sizes, precision=precision,
        units=units, device=device, micro_batch=batch, accumulation=accumulation, num_gpus=gpus,
        gpus_per_node=number(row, "gpus_per_node", limits.DEVICES) or NODE_GPUS, interconnect=cell(row, "interconnect"),
        optimizer=cell(row, "optimizer"), stack=stack, channels_last=_is_channels_last(row, stack, reference, told),
        input_reader=cell(row, "data_loader"),
        # Under apex, as those scripts of 2019 to 2021 use it, gradients are summed in 16 bits.
        gradient_bytes=2.0 if units == "half" and stack == "torch" and reference else 4.0,
        filled=_filled(network, sizes, told) if stack == "torch" and reference else 1.0,
        exchanges=_exchanges(network),
        # As their scripts of BERT do after accumulation; assumed of fine-tuning as well.
        sums_last=_is_bert(network) and stack == "torch" and reference,
        optimizer_code=_optimizer_code(row, network, stack, units) if reference else cell(row, "optimizer"),
        assumptions=tuple(told),
    )  # fmt: skip


def _device(row: Row) -> Device:
    name = cell(row, "gpu_type")
    if not name:
        raise Refused("gpu_type is empty")
    try:
        return find_device(name, number(row, "gpu_mem_gib", MOST_GIB))
    except UnknownNameError as reason:
        raise Refused(str(reason)) from None


def _is_channels_last(row: Row, stack: str, reference: bool, told: list[str]) -> bool:
    """As the row says; where it does not, NVIDIA's scripts of convolutional networks are, read from data."""
    stated = cell(row, "channels_last")
    if stated:
        return stated == "yes"
    if stack.startswith("tf"):
        return True
    usual = reference and cell(row, "data_loader") in ("", "real")
    usual = usual and (cell(row, "task") == "image_classification" or cell(row, "detector") == "ssd300")
    if usual:
        told.append("channels_last: yes assumed, as DeepLearningExamples' convolutional networks are")
    return usual


def _filled(network: str, sizes: Sizes, told: list[str]) -> float:
    """The share of positions that hold words."""
    if "PreTraining" not in network or sizes[:1] != (512,):
        return 1.0
    told.append(LANGUAGE)
    return FILLED


def _exchanges(network: str) -> bool:
    """Whether gradients are summed: the scripts that run the whole softmax start independent processes."""
    return ",whole" not in network


def _is_bert(network: str) -> bool:
    return network.startswith("hf:") and '"type": "bert"' in network


def _optimizer_code(row: Row, network: str, stack: str, units: str) -> str:
    """Which code of an optimizer NVIDIA's scripts run."""
    name = cell(row, "optimizer")
    if stack == "torch" and name == "lamb" and network.startswith("transformer-xl"):
        return "lamb in script"
    if stack == "torch" and name == "adam" and _is_bert(network) and units != "half":
        return "adam by tensor"
    return name

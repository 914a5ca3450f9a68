"""What a step of each training is made of: seconds by kind of kernel, launches, exchange; in columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import pairwise

import numpy as np

from planner.classic.components import KINDS, components_of
from planner.classic.lists import operator_list
from planner.classic.training import Training
from planner.cost.links import ONE_PROCESSOR
from profiles.laws.collectives import Fabric, collective_seconds
from profiles.laws.kernels import Array
from profiles.laws.operator_constants import OperatorConstants, load_operator_constants
from profiles.units import GB

# Bytes that an optimizer passes over per parameter, kernels per parameter tensor, and calls per tensor that wait for
# the device: unfused SGD reads and writes parameter, gradient and momentum in three steps; Adam and LAMB of NVIDIA's
# apex are fused. Their scripts of Transformer-XL have LAMB of TorchScript, an operation at a time, and those that
# fine-tune BERT in fp32 an Adam in Python that clips every tensor by itself, whose norm the host reads (counted by
# hand, as remembered, from NVIDIA/DeepLearningExamples).
OPTIMIZERS = {
    "sgd": (44.0, 5.0, 0.0), "adam": (36.0, 3.0, 0.0), "adamw": (40.0, 4.0, 0.0), "lamb": (64.0, 4.0, 0.0),
    "lamb in script": (116.0, 28.0, 0.0), "adam by tensor": (144.0, 22.0, 1.0),
}  # fmt: skip
USUAL_OPTIMIZER = (40.0, 4.0, 0.0)
# Of an exchange, the last bucket, which no backward is left to hide (assumed).
LAST_BUCKET = 0.08
# Calls of the host that wait for the device, for each image and each step (as of so many images more): proposals are
# sorted, thinned out and matched image by image, while heads and losses take the batch at once (assumed; what a call
# takes is learned).
WAITING_CALLS, WAITING_IMAGES = {"rcnn": 180.0, "retina": 45.0}, 6.0
# Parameters that every rank holds of a recommender whose tables are split over the ranks: of its two perceptrons.
SPLIT_PARAMETERS = {"dlrm": 2.4e6}
# Share of PCIe's rate that rings reach with direct access, and without it, through the host's memory; GB/s of a bridge
# of NVLink between two cards (assumed).
DIRECT, THROUGH_HOST, BRIDGE_GB_PER_SECOND = 0.8, 0.5, 50.0
TABLE_ELEMENT_BYTES = 4.0
# Classes of words of WikiText-103 in the adaptive softmax.
CUTOFFS, VOCABULARY = (19997, 39997, 199997), 267735
PATHS = ("nvlink", "pcie", "network")


@dataclass(frozen=True, slots=True)
class Words:
    """A word of each training: its place among the names that occur."""

    names: tuple[str, ...]
    places: np.ndarray

    @classmethod
    def of(cls, words: Sequence[str]) -> Words:
        """The words of trainings, in order."""
        names, places = np.unique(np.array(words, dtype=str), return_inverse=True)
        return cls(tuple(map(str, names)), places)

    def __getitem__(self, where: np.ndarray) -> Words:
        """The words of some trainings."""
        return Words(self.names, self.places[where])

    def equal(self, word: str) -> np.ndarray:
        """Which trainings have a word."""
        return np.asarray(np.array([name == word for name in self.names], dtype=bool)[self.places])


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """Columns of trainings. `kinds` has a column per kind of kernel; words name what was learned of each."""

    kinds: Array
    launches: Array
    waiting_calls: Array
    optimizer_seconds: Array
    optimizer_launches: Array
    optimizer_waits: Array
    exchange_seconds: Array
    last_bucket: Array
    accumulation: Array
    units: Words
    generation: Words
    stack: Words
    path: Words
    planes: np.ndarray
    dilated: np.ndarray

    def __len__(self) -> int:
        """How many trainings."""
        return len(self.launches)

    def at(self, where: np.ndarray) -> Features:
        """Some of the trainings."""
        return Features(**{field.name: getattr(self, field.name)[where] for field in fields(Features)})


def features_of(trainings: Sequence[Training], constants: OperatorConstants | None = None) -> Features:
    """The features of trainings.

    Raises: InputError where a network cannot be listed.
    """
    known = constants or load_operator_constants()
    cache: dict[tuple[object, ...], tuple[Array, float]] = {}
    kinds, launches = [], []
    for one in trainings:
        key = (one.network, one.sizes, one.precision, one.device.name, one.micro_batch)
        if key not in cache:
            listed = operator_list(one.network, one.sizes, one.list_precision)
            made = components_of(listed, one.micro_batch, one.device, one.precision, known)
            cache[key] = (np.array([made.seconds[kind] for kind in KINDS]), made.launches)
        kinds.append(cache[key][0] * one.filled)
        launches.append(cache[key][1])
    steps = [_optimizer(one) for one in trainings]
    return Features(
        kinds=np.array(kinds).reshape(len(trainings), len(KINDS)),
        launches=np.array(launches),
        waiting_calls=np.array([_waiting(one) for one in trainings]),
        optimizer_seconds=np.array([seconds for seconds, _, _ in steps]),
        optimizer_launches=np.array([count for _, count, _ in steps]),
        optimizer_waits=np.array([count for _, _, count in steps]),
        exchange_seconds=np.array([exchange_seconds(one) for one in trainings]),
        last_bucket=np.array([last_bucket(one) for one in trainings]),
        accumulation=np.array([one.accumulation for one in trainings]),
        units=Words.of([one.units for one in trainings]),
        generation=Words.of([generation_of(one) for one in trainings]),
        stack=Words.of([one.stack for one in trainings]),
        path=Words.of([path_of(one) for one in trainings]),
        planes=np.array([not one.channels_last for one in trainings], dtype=bool),
        dilated=np.array([one.network.startswith("waveglow") or ",dc5," in one.network for one in trainings]),
    )


def generation_of(training: Training) -> str:
    """The generation of a device as runs tell them apart: of Ampere, cards with graphics memory are another chip."""
    device = training.device
    is_card = device.generation == "ampere" and device.memory_gb_per_second < 1000
    return "ampere-graphics" if is_card else device.generation


def path_of(training: Training) -> str:
    """What gradients are exchanged over."""
    if training.num_gpus > training.gpus_per_node:
        return "network"
    is_linked = training.device.link_gb_per_second > 0 and "pcie" not in training.interconnect
    if training.interconnect == "nvlink_bridge":
        is_linked = training.num_gpus <= 2
    return "nvlink" if is_linked else "pcie"


def _family(training: Training) -> str:
    return training.network.partition(":")[0]


def _waiting(training: Training) -> float:
    return WAITING_CALLS.get(_family(training), 0.0) * (training.micro_batch + WAITING_IMAGES)


def _parameters(training: Training) -> tuple[float, float]:
    listed = operator_list(training.network, training.sizes, training.list_precision)
    held = SPLIT_PARAMETERS.get(_family(training), float(listed.num_parameters))
    return held, float(listed.num_parameter_tensors)


def _optimizer(training: Training) -> tuple[float, float, float]:
    """Seconds of memory, launches, and calls that wait."""
    held, tensors = _parameters(training)
    moved, launches, waits = OPTIMIZERS.get(training.optimizer_code, USUAL_OPTIMIZER)
    return held * moved / (training.device.memory_gb_per_second * GB), tensors * launches, tensors * waits


def last_bucket(training: Training) -> float:
    """The share of gradients that is summed after backward: all, or what its last kernel makes, a table's."""
    if training.sums_last:
        return 1.0
    held, _ = _parameters(training)
    return min(max(LAST_BUCKET, _table_parameters(training) / held), 1.0)


def _table_parameters(training: Training) -> float:
    """Parameters of the tables that a network looks its words up in first, whose gradients backward makes last."""
    family, _, text = training.network.partition(":")
    if family == "transformer-xl":
        hidden, shrink = (int(text.split(",")[place]) for place in (1, 4))
        sizes = zip(pairwise((0, *CUTOFFS, VOCABULARY)), range(len(CUTOFFS) + 1), strict=True)
        return float(sum((end - start) * hidden / shrink**power for (start, end), power in sizes))
    listed = operator_list(training.network, training.sizes, training.list_precision)
    tables = [one for one in listed.operators if one.name == "embedding_dense_backward"]
    return sum(one.count * one.written_bytes[0] for one in tables) / TABLE_ELEMENT_BYTES


def exchange_seconds(training: Training) -> float:
    """Seconds of summing gradients over all GPUs, by the law of links."""
    if training.num_gpus <= 1 or not training.exchanges:
        return 0.0
    device, inside = training.device, min(training.num_gpus, training.gpus_per_node)
    rate, below = device.link_gb_per_second, np.inf
    if path_of(training) == "pcie" or rate == 0:
        is_linked = device.peer_gb_per_second >= DIRECT * device.host_gb_per_second or device.link_gb_per_second > 0
        is_direct = device.reads_peers or is_linked
        rate = device.host_gb_per_second * (DIRECT if is_direct else THROUGH_HOST)
        below = inside / 2 if inside > ONE_PROCESSOR and is_direct else np.inf
    if training.interconnect == "nvlink_bridge" and training.num_gpus <= 2:
        rate = BRIDGE_GB_PER_SECOND
    fabric = Fabric(
        fast_bytes_per_second=np.array([rate * GB]),
        p2p_bytes_per_second=np.array([rate * GB]),
        network_bytes_per_second=np.array([device.network_gb_per_second * GB]),
        in_switch=np.array([False]),
        root_ranks=np.array([below]),
    )
    num_bytes = _parameters(training)[0] * training.gradient_bytes
    return float(np.ravel(collective_seconds("all_reduce", num_bytes, training.num_gpus, inside, fabric))[0])

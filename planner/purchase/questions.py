"""A purchase as questions for `ask`: each count of devices in each place, the same model and batch for all."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from planner.plans import DEFAULT_SAMPLES_PER_DEVICE
from planner.purchase.terms import Terms
from planner.request import Request
from profiles.errors import InputError
from profiles.inputs import limits
from profiles.machines.clusters import Cluster, MixedCluster, find_cluster
from profiles.machines.devices import find_device


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A kind of devices: a shipped device, a cluster, or with neither the measured machine."""

    device: str | None = None
    cluster: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Purchase:
    """What is compared: `request` for each count of devices in each place, which stand in its own place.

    `tokens`, or `samples` whatever their size, are the budget; where neither is given, an amount to compare by.
    """

    request: Request
    num_devices: tuple[int, ...]
    places: tuple[Place, ...]
    terms: Terms
    tokens: float | None = None
    samples: float | None = None


def places_of(device: str | None, cluster: str | None) -> tuple[Place, ...]:
    """The places that options name, each once: devices and clusters side by side, unless there is one of each.

    Raises: UnknownNameError; InputError for a cluster of two kinds of devices.
    """
    return places_among(_names("--device", device), _names("--cluster", cluster))


def places_among(devices: Sequence[str], clusters: Sequence[str]) -> tuple[Place, ...]:
    """Devices and clusters side by side, each once; one of each is one place, none is the measured machine.

    Raises: UnknownNameError; InputError for a cluster of two kinds of devices.
    """
    devices = list(dict.fromkeys(find_device(name).name for name in devices))
    clusters = list(dict.fromkeys(clusters))
    for name in clusters:
        if isinstance(find_cluster(name), MixedCluster):
            raise InputError(f"--cluster {name} has two kinds of devices: plan for it by itself")
    if len(devices) <= 1 and len(clusters) <= 1:
        return (Place(device=next(iter(devices), None), cluster=next(iter(clusters), None)),)
    return (*(Place(device=name) for name in devices), *(Place(cluster=name) for name in clusters))


def is_several(device: str | None, cluster: str | None) -> bool:
    """Whether options name several places; pools, such as dgx-h100:32,dgx-a100:32, are one."""
    return "," in (device or "") or ("," in (cluster or "") and ":" not in (cluster or ""))


def _names(option: str, text: str | None) -> list[str]:
    names = [] if text is None else [name.strip() for name in text.split(",")]
    if not all(names) and len(names) > 1:
        raise InputError(f"{option} {text}: give names with commas between, such as h100-sxm,b200-sxm")
    if len(names) > limits.COMPARED:
        raise InputError(f"{option}: {len(names)} names are given, at most {limits.COMPARED} can be")
    return names


def questions_of(purchase: Purchase) -> tuple[list[Request], list[str]]:
    """One request for each place and count, places first, and what was assumed of all.

    Raises: InputError where there are too many, a price is of nothing that is compared, or batches would differ.
    """
    counts, places = purchase.num_devices, purchase.places
    if len(counts) * len(places) > limits.COMPARED:
        asked = f"{len(counts)} counts in {len(places)} places are {len(counts) * len(places)} questions"
        raise InputError(f"--gpus, --device: {asked}, at most {limits.COMPARED} can be compared")
    check_prices(purchase.terms, places)
    batches, notes = batches_of(purchase.request, counts)
    # Read once, for all.
    is_shipped = purchase.request.machine is None and any(place.device or place.cluster for place in places)
    sizes = purchase.request.sizes() if is_shipped else None
    same = replace(purchase.request, global_batches=batches, model=sizes or purchase.request.model)
    return [
        replace(same, num_devices=count, device=place.device, cluster=place.cluster)
        for place, count in itertools.product(places, counts)
    ], notes


def batches_of(request: Request, counts: Sequence[int]) -> tuple[tuple[int, ...], list[str]]:
    """The global batches of all counts, as asked for, and what is said of them.

    Where none is given there are eight samples for each of the most devices, and as many more as all counts divide.
    Raises: InputError where several counts would each choose among several.
    """
    if len(request.global_batches) > 1 and len(counts) > 1:
        raise InputError("--global-batch: counts of --gpus are compared at one batch: give one")
    if request.global_batches:
        return request.global_batches, []
    least = DEFAULT_SAMPLES_PER_DEVICE * max(counts)
    shared = math.lcm(*counts)
    batch = least if shared > 2 * least else -(-least // shared) * shared
    limits.check("--global-batch", batch, 1, limits.SAMPLES)
    if len(counts) == 1:
        return (batch,), [f"global batch assumed: {batch} samples"]
    return (batch,), [f"global batch assumed: {batch} samples for every count, the default for {max(counts)} devices"]


def check_prices(terms: Terms, places: Sequence[Place]) -> None:
    """Check that every price by name is of a device or a cluster that is asked about.

    Raises: InputError.
    """
    if places == (Place(),):
        # The measured machine's devices are not known before it is read.
        return
    known = set[str]()
    for place in places:
        cluster = find_cluster(place.cluster) if place.cluster else None
        known |= {place.cluster or "", find_device(place.device).name if place.device else ""}
        known |= {cluster.device if isinstance(cluster, Cluster) else ""}
    for option, prices in (("--price", terms.prices), ("--spot-price", terms.spot_prices)):
        for name in prices.by_name if prices else ():
            if name not in known:
                raise InputError(f"{option} {name}: it is not among the devices asked about: leave it out, or add it")

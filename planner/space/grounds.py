"""What a prediction rests on, number by number: measured here, scaled from that, published, or assumed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from planner.cost.error_bands import FEATURES, unseen
from planner.cost.ingredients import ingredients_of
from planner.prediction import Prediction
from planner.published.learn import predict
from planner.space.evidence import MEASURED, SCALED, bases
from planner.space.explore import Place, Space
from planner.space.question import Setting
from planner.space.to_plans import jobs_at
from profiles.laws.collectives import infiniband_seconds
from profiles.machines.devices import Device
from profiles.units import GB, GIB, format_percent, format_seconds, three_digits

HERE, FROM_HERE, PUBLISHED, ASSUMED, UNKNOWN = (
    "measured here", "scaled from measurements", "published", "assumed", "unknown",
)  # fmt: skip
ORIGINS: Final = {MEASURED: HERE, SCALED: FROM_HERE}
LEARNED_FROM: Final = "learned from published runs (factors.toml of the catalogue)"
FACTOR_TITLES: Final = {
    "matmul": "matrix products in training, against alone",
    "attention": "attention in training, against alone",
    "tensor_comm": "tensor-parallel messages in training, against alone",
    "data_comm": "exchange of gradients and weights in training, against alone",
    "expert_comm": "expert-parallel messages in training, against alone",
    "context_comm": "context-parallel messages in training, against alone",
    "pipeline_comm": "pipeline messages in training, against alone",
}
USED_WHERE: Final = {"tensor_comm", "data_comm", "expert_comm", "context_comm", "pipeline_comm"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """One number or fact that a prediction rests on: what it is, its value, its origin, and whence it is."""

    what: str
    value: str
    origin: str
    source: str


def grounds(space: Space, place: Place, prediction: Prediction, cluster: str = "") -> tuple[Ground, ...]:
    """What the prediction of the plan at `place` rests on; `cluster` is the one whose nodes and network it is for."""
    at = space.at
    if at.measured is not None:
        return (*_of_machine(space, place, prediction), *_headroom(at))
    return (*_of_sheet(at, cluster), *_headroom(at), *_of_runs(space, place, prediction))


def _headroom(at: Setting) -> Iterator[Ground]:
    """What of a device's memory plans may not take."""
    if at.headroom_fraction:
        left = f"{format_percent(at.headroom_fraction)}: plans have {three_digits(at.memory_bytes / GIB)} GiB"
        yield Ground(what="memory left free at least", value=left, origin=ASSUMED, source="as asked: --headroom")


def _of_machine(space: Space, place: Place, prediction: Prediction) -> Iterator[Ground]:
    """Shares of the step by what they rest on, and what else is known of the machine."""
    at, measured = space.at, space.at.measured
    assert measured is not None
    machine, jobs = measured.machine, jobs_at(space, [place])
    seconds = predict_seconds(space, place)
    found = bases(measured, jobs, seconds, 0)
    total = sum(one.seconds for one in found)
    shares: dict[tuple[str, str], float] = {}
    for one in found:
        key = one.name.removesuffix(f" from {one.rests_on}"), one.rests_on
        shares[key] = shares.get(key, 0.0) + one.seconds / total
    for (name, rests_on), share in shares.items():
        what = "messages over groups of ranks" if name == "groups" else f"seconds of {name}"
        yield Ground(
            what=what,
            value=f"{format_percent(share)} of the step",
            origin=ORIGINS.get(rests_on, PUBLISHED),
            source=rests_on if rests_on != MEASURED else f"profile of {machine.name}",
        )
    peak = f"{three_digits(at.device.peak_tflops[at.precision])} TFLOP/s {at.precision}"
    yield Ground(what="peak that MFU refers to", value=peak, origin=HERE, source=machine.peak_source)
    memory = f"{three_digits(at.whole_memory_bytes / GIB)} GiB"
    yield Ground(what="memory of a rank", value=memory, origin=HERE, source=f"profile of {machine.name}")
    if at.corrections:
        taught = f"{at.corrections.num_plans} plans"
        yield Ground(what="corrections of parts", value=taught, origin=HERE, source="earlier runs on this machine")


def predict_seconds(space: Space, place: Place) -> dict[str, np.ndarray]:
    """Seconds by part of the plan at `place`, as the laws for jobs have them. Shapes: (1,)."""
    return predict(ingredients_of(jobs_at(space, [place])), space.learned)


def _of_sheet(at: Setting, cluster: str) -> Iterator[Ground]:
    """The numbers of a data sheet that every prediction uses."""
    device = at.device
    yield _from(device, "peaks", f"peak of matrix products in {at.precision}",
                f"{three_digits(device.peak_tflops[at.precision])} TFLOP/s")  # fmt: skip
    reached = device.achievable_tflops.get(at.precision)
    if reached:
        yield _from(device, "achievable", "highest measured rate of a product", f"{three_digits(reached)} TFLOP/s")
    yield _from(device, "memory", "memory that a process may use", f"{three_digits(at.whole_memory_bytes / GIB)} GiB")
    yield _from(device, "memory", "memory bandwidth", f"{three_digits(device.memory_gb_per_second)} GB/s")
    if at.fast_domain > 1:
        fast = f"{three_digits(at.fast_bytes_per_second / GB)} GB/s per direction, {at.fast_domain} devices"
        yield _from(device, "link", "links inside a fast domain", fast)
    if at.num_devices > at.fast_domain:
        network = f"{three_digits(at.network_bytes_per_second / GB)} GB/s per device"
        if cluster:
            source = f"cluster {cluster} of the catalogue, or the file of that name"
            yield Ground(what="network between fast domains", value=network, origin=PUBLISHED, source=source)
        else:
            yield _from(device, "network", "network between fast domains", network)
        usual = at.network_latency_seconds == infiniband_seconds()
        source = "of InfiniBand, learned from published messages" if usual else "the cluster's"
        latency = format_seconds(at.network_latency_seconds)
        yield Ground(what="latency of a hop over the network", value=latency, origin=PUBLISHED, source=source)


def _from(device: Device, key: str, what: str, value: str) -> Ground:
    source = device.sources.get(key, "")
    if not source:
        return Ground(what=what, value=value, origin=UNKNOWN, source="the catalogue names no source")
    origin = ASSUMED if source.startswith("assumed") else PUBLISHED
    return Ground(what=what, value=value, origin=origin, source=source.removeprefix("assumed: "))


def _of_runs(space: Space, place: Place, prediction: Prediction) -> Iterator[Ground]:
    """What published runs taught, as far as the plan uses it, and what none of them had."""
    for name, title in FACTOR_TITLES.items():
        if name not in USED_WHERE or prediction.seconds.get(name, 0.0) > 0:
            factor = getattr(space.learned.factors, name)
            yield Ground(what=title, value=f"x {factor:.2f}", origin=PUBLISHED, source=LEARNED_FROM)
    attention = space.at.attention_kernel
    if attention:
        source = "as asked, or the software's usual one"
        yield Ground(what="attention kernel", value=attention, origin=ASSUMED, source=source)
    for name, flags in unseen(jobs_at(space, [place]), space.learned).items():
        if flags[0]:
            yield Ground(
                what=FEATURES[name],
                value="in no published run",
                origin=UNKNOWN,
                source="the band is wider because of it",
            )

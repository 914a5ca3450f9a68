"""Measures a machine: starts the ranks, lets all of them measure the same at once, and assembles a MachineProfile.

What is measured, in order: overheads of the software, collectives, overlap, kernels per precision, the optimizer and
the codecs, and the models' own layers. Effort says how much of each; tests ask for little.
"""

from __future__ import annotations

import itertools
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Literal

import torch

from profiles.artifacts import STRICT, dump, parse, validate
from profiles.errors import EnvironmentFailure, InputError, UnknownNameError
from profiles.laws.curves import best_product_rate, copy_rate
from profiles.machines.counters import Watch
from profiles.machines.fingerprint import current_fingerprint
from profiles.machines.load import load_of_job
from profiles.machines.profile import Fingerprint, KernelCurve, LayerTiming, LinkCurve, MachineProfile
from profiles.measure.convolutions import CONVOLUTIONS, RECURRENT, Convolution, Recurrent, measure_convolutions
from profiles.measure.gradient_exchange import NUM_LINEARS, WIDTH, measure_exchange
from profiles.measure.host_overheads import Overheads, measure_overheads
from profiles.measure.int8_linears import LINEARS, measure_linears
from profiles.measure.links import MESSAGE_BYTES, OVERLAP_BYTES, measure_links
from profiles.measure.matrix_kernels import Grid, measure_attention, measure_matmuls
from profiles.measure.memory_kernels import SIZES, measure_memory_operators
from profiles.measure.models import measure_models
from profiles.measure.optimizer_and_codecs import GRADIENT_ELEMENTS, PARAMETER_COUNTS, measure_codecs, measure_optimizer
from profiles.measure.timing import Bench, Peers, device_timer
from profiles.models.profile import PRECISIONS, USUAL_PRECISIONS, ModelProfile, Precision
from profiles.ranks.environment import check_room, in_job, ranks_per_host
from profiles.ranks.launcher import launch
from profiles.ranks.rank import join_group, own_cores, report
from profiles.units import format_percent
from profiles.workloads.precision import BESIDE_PRODUCTS, unavailable

# What a rank on a CPU touches before anything is timed, or a fraction of its memory: the first touch takes the system
# longer than most kernels and messages take, and what was touched the allocator keeps, as it does in training.
TOUCHED_BYTES, TOUCHED_FRACTION = 2**29, 1 / 8

OnProgress = Callable[[float, str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How much is measured: shapes, sizes in bytes or elements, repeats, and the seconds that layers may take."""

    __pydantic_config__ = STRICT

    grid: Grid = field(default_factory=Grid)
    convolutions: tuple[tuple[Convolution, ...], tuple[Recurrent, ...]] = (CONVOLUTIONS, RECURRENT)
    memory_elements: tuple[int, ...] = SIZES
    parameter_counts: tuple[int, ...] = PARAMETER_COUNTS
    gradient_elements: tuple[int, ...] = GRADIENT_ELEMENTS
    exchange: tuple[int, int] = (WIDTH, NUM_LINEARS)
    linears: tuple[tuple[int, int, int], ...] = LINEARS
    message_bytes: tuple[int, ...] = MESSAGE_BYTES
    overlap_bytes: int = OVERLAP_BYTES
    touched_bytes: int = TOUCHED_BYTES
    repeats: int = 5
    # Collectives of small messages wait for threads to wake, which takes 0.1 or 4 ms: samples of many calls tell.
    link_repeats: int = 7
    link_sample_seconds: float = 8e-3
    layer_seconds: float = 45.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What every rank is told."""

    __pydantic_config__ = STRICT

    num_ranks: int
    device_kind: Literal["cpu", "cuda"]
    sequence_length: int
    micro_batch_sizes: tuple[int, ...]
    tensor_degrees: tuple[int, ...]
    precisions: tuple[Precision, ...]
    fingerprint: Fingerprint
    effort: Effort
    trusted: tuple[str, ...] = ()


def measure_machine(
    num_ranks: int,
    device_kind: str,
    sequence_length: int = 128,
    micro_batch_sizes: Sequence[int] = (1, 2, 4, 8),
    tensor_degrees: Sequence[int] = (1,),
    precisions: Sequence[str] = USUAL_PRECISIONS,
    on_progress: OnProgress | None = None,
    *,
    models: Sequence[ModelProfile] = (),
    effort: Effort | None = None,
    with_oversubscription: bool = False,
    trusted: Sequence[str] = (),
) -> MachineProfile | None:
    """Measure this machine with `num_ranks` ranks busy at once.

    The shapes and layers of `models` are measured at every micro-batch size and tensor degree; modules of users that
    build them are imported where they are `trusted`. `with_oversubscription` starts twice as many ranks as cores
    afterwards. None is what the other ranks of a job get that torchrun or Slurm started: rank 0 has the profile.
    Raises: UnknownNameError for a precision; InputError for a degree or a model that cannot be; EnvironmentFailure
    where this machine has no such precision or ranks cannot start.
    """
    if not precisions:
        raise InputError("precision list is empty: give at least one")
    for precision in precisions:
        if precision not in PRECISIONS:
            raise UnknownNameError("precision", precision, PRECISIONS)
        reason = unavailable(precision, device_kind)
        if reason:
            raise EnvironmentFailure(reason)
    check_room(num_ranks, device_kind)
    settings = {
        "num_ranks": num_ranks,
        "device_kind": device_kind,
        "sequence_length": sequence_length,
        "micro_batch_sizes": sorted(set(micro_batch_sizes)),
        "tensor_degrees": sorted(set(tensor_degrees)),
        "precisions": list(precisions),
        "fingerprint": asdict(current_fingerprint(device_kind)),
        "effort": asdict(effort or Effort()),
        "trusted": list(trusted),
    }
    payload = {"settings": settings, "models": [json.loads(dump("model-profile", model)) for model in models]}
    return _launch(payload, on_progress or (lambda fraction, text: None), with_oversubscription)


def _launch(payload: dict[str, Any], said: OnProgress, with_oversubscription: bool) -> MachineProfile | None:
    settings = payload["settings"]
    num_ranks, device_kind = settings["num_ranks"], settings["device_kind"]
    share = 0.9 if with_oversubscription else 1.0
    data = launch(
        "profiles.measure.machine:measure_rank",
        payload,
        num_ranks,
        device_kind,
        on_report=lambda news: said(share * news.fraction, news.text),
    )
    if data is None:
        return None
    profile = parse(data, "machine-profile", MachineProfile, "the measurement")
    if with_oversubscription and device_kind == "cpu" and not in_job():
        said(share, "twice as many ranks as cores")
        ranks = 2 * settings["fingerprint"]["num_cores"]
        factor = launch("profiles.measure.host_overheads:oversubscription_rank", None, ranks, device_kind)
        profile = replace(profile, oversubscription_factor=float(factor))
    said(1.0, "done")
    return profile


def measure_rank(payload: dict[str, Any]) -> dict[str, Any]:
    """Measure as one rank of the job; the machine profile as JSON-able fields, the same on every rank."""
    settings = validate(payload["settings"], Settings, "the settings")
    models = [parse(model, "model-profile", ModelProfile, "the model profile") for model in payload["models"]]
    with join_group(settings.device_kind) as place:
        torch.manual_seed(place.rank)
        with Watch(own_cores()) as watch:
            profile = _measure(settings, models, Peers(device=place.device))
        profile = replace(profile, load=load_of_job(watch))
    fields: dict[str, Any] = json.loads(dump("machine-profile", profile))
    return fields


def _measure(settings: Settings, models: Sequence[ModelProfile], peers: Peers) -> MachineProfile:
    effort = settings.effort
    bench = Bench(
        timer=device_timer(peers.device),
        peers=peers,
        repeats=effort.repeats,
        has_own_core=ranks_per_host(settings.num_ranks) <= settings.fingerprint.num_cores,
    )
    memory_bytes = _memory_bytes(settings, peers)
    report(0.0, "memory")
    _touch(min(effort.touched_bytes, TOUCHED_FRACTION * memory_bytes), peers)
    report(0.0, "collectives")
    links_bench = replace(bench, repeats=effort.link_repeats, sample_seconds=effort.link_sample_seconds)
    links = measure_links(links_bench, effort.message_bytes, lambda done: report(0.15 * done, "collectives"))
    report(0.15, "host overheads")
    overheads = measure_overheads(bench, links_bench, links, effort.overlap_bytes)
    kernels = [*_kernels(bench, settings, models), measure_optimizer(bench, effort.parameter_counts)]
    kernels += [*measure_codecs(bench, effort.gradient_elements), *measure_linears(bench, effort.linears)]
    exchanges = measure_exchange(bench, links, *effort.exchange)
    report(0.6, "layers of the models")
    timings, left_out = measure_models(
        bench,
        models,
        _sizes(settings),
        settings.precisions,
        memory_bytes,
        effort.layer_seconds,
        lambda done: report(0.6 + 0.4 * done, "layers"),
        settings.trusted,
    )
    profile = _assemble(settings, memory_bytes, overheads, links, kernels, timings, left_out)
    return replace(profile, exchange_timings=tuple(exchanges))


def _touch(num_bytes: float, peers: Peers) -> None:
    if peers.device.type == "cpu":
        torch.ones(int(num_bytes), dtype=torch.uint8)


def _kernels(bench: Bench, settings: Settings, models: Sequence[ModelProfile]) -> list[KernelCurve]:
    grid, sizes, elements = settings.effort.grid, _sizes(settings), settings.effort.memory_elements
    beside = dict.fromkeys(BESIDE_PRODUCTS.get(precision, precision) for precision in settings.precisions)
    # Training in bf16 keeps norms, losses and parameters in fp32.
    parts: list[tuple[str, str]] = [("matrix products", precision) for precision in settings.precisions]
    parts += [("attention", precision) for precision in beside]
    parts += [("memory-bound operators", precision) for precision in dict.fromkeys((*beside, "fp32"))]
    kernels: list[KernelCurve] = []
    families = [model for model in models if not model.workload.task]  # samples of others have sizes of their own
    for position, (words, precision) in enumerate(parts):
        report(0.25 + 0.3 * position / len(parts), f"{words} in {precision}")
        if words == "matrix products":
            kernels += measure_matmuls(bench, precision, grid, families, sizes)
            kernels += measure_convolutions(bench, precision, *settings.effort.convolutions)
        elif words == "attention":
            kernels += measure_attention(bench, precision, grid, families, sizes)
        else:
            kernels += measure_memory_operators(bench, precision, models, elements)
    report(0.55, "optimizer and codecs")
    return kernels


def _sizes(settings: Settings) -> tuple[tuple[int, int, int], ...]:
    batches, degrees = settings.micro_batch_sizes, settings.tensor_degrees
    return tuple((b, settings.sequence_length, t) for b, t in itertools.product(batches, degrees))


def _memory_bytes(settings: Settings, peers: Peers) -> float:
    """Bytes that one rank may use: the whole memory of a GPU, an equal share of a host's."""
    if peers.device.type == "cuda":
        return float(torch.cuda.get_device_properties(peers.device).total_memory)
    return settings.fingerprint.memory_bytes / ranks_per_host(settings.num_ranks)


def _assemble(
    settings: Settings,
    memory_bytes: float,
    overheads: Overheads,
    links: list[LinkCurve],
    kernels: list[KernelCurve],
    timings: list[LayerTiming],
    left_out: int,
) -> MachineProfile:
    fingerprint, num_ranks = settings.fingerprint, settings.num_ranks
    sources = {
        "all": "measured with every rank busy; medians of the slowest rank",
        "spread": f"half the kernels' samples spread by less than {_median_spread(kernels)}, "
        f"the collectives' by {_median_spread(links)}",
    }
    if left_out:
        sources["layer_timings"] = f"{left_out} settings were left out for memory or time; their kernels are summed"
    return MachineProfile(
        name=fingerprint.device,
        origin="measured",
        device_kind=settings.device_kind,
        device_name=fingerprint.device,
        num_devices=num_ranks,
        devices_per_node=ranks_per_host(settings.num_ranks),
        memory_bytes=memory_bytes,
        peak_flops_per_second={precision: best_product_rate(kernels, precision) for precision in settings.precisions},
        peak_source="best matmul measured",
        memory_bytes_per_second=copy_rate(kernels),
        launch_seconds=overheads.launch_seconds,
        parallel_linear_seconds=overheads.parallel_linear_seconds,
        parallel_message_seconds_per_byte=overheads.parallel_message_seconds_per_byte,
        pipeline_action_seconds=overheads.pipeline_action_seconds,
        operator_seconds=overheads.operator_seconds,
        optimizer_tensor_seconds=overheads.optimizer_tensor_seconds,
        oversubscription_factor=0.0,
        kernels=tuple(kernels),
        links=tuple(links),
        overlap=overheads.overlap,
        layer_timings=tuple(timings),
        fingerprint=fingerprint,
        sources=sources,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _median_spread(curves: Sequence[KernelCurve] | Sequence[LinkCurve]) -> str:
    spreads = [sample.spread_fraction for curve in curves for sample in curve.samples]
    return format_percent(statistics.median(spreads)) if spreads else "nothing"

"""A machine profile made of the published laws: what `profile machine` would find if they were right.

The laws are asked for what it times, at the sizes that it times: collectives over neighbouring ranks, products,
attention, copies, the optimizer, gradients averaged beside a backward pass, and whole layers. Kernels are those of our
own software, as slow as runs taught of its kind; what a step in the midst of training does to them shows in the layers
alone. Its records of the host are such that a layer takes as many microseconds of it as the law says.
"""

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from planner.cost.axes.data import StageParameters, exchange
from planner.cost.factors import Learned, load_learned
from planner.cost.hardware import silicon_at
from planner.cost.layers import exposed
from planner.cost.links import SheetLinks, fabric_of
from planner.cost.sheet_kernels import BACKWARD_HOST, SheetKernels
from planner.cost.software_time import rules_of
from planner.space.question import CODEC_PASSES, Setting, jobs_of
from profiles.codecs.codec import KNOWN, codec
from profiles.laws.attention import attention_seconds
from profiles.laws.curves import fit_kernel, fit_link
from profiles.laws.kernels import Silicon, matmul_seconds
from profiles.machines.profile import (
    COLLECTIVES,
    ExchangeTiming,
    KernelCurve,
    LayerTiming,
    LinkCurve,
    MachineProfile,
    Overlap,
    Sample,
)
from profiles.models.operators import PHASES, evaluate
from profiles.models.profile import ModelProfile
from profiles.units import GIB

PRECISION = "bf16"
MESSAGE_BYTES = tuple(4096 * 4**step for step in range(8))
MICRO_BATCHES, DEGREES = (1, 2, 4, 8), (1, 2, 4, 8)
PARAMETER_COUNTS = (2**14, 2**18, 2**21, 2**24)
GRADIENT_BYTES = tuple(4.0 * count for count in (2**18, 2**20, 2**22, 3 * 2**21))
ELEMENTS = (2**12, 2**15, 2**18, 2**20, 2**21, 2**22, 2**23)
TOKENS = (64, 512, 2048, 8192)
FEATURES = ((256, 256), (1024, 256), (256, 1024), (1024, 1024), (4096, 1024), (1024, 4096), (4096, 4096))
ATTENTION = (
    (1, 8, 128, 128, 64), (8, 8, 128, 128, 64), (1, 8, 512, 512, 64), (4, 12, 512, 512, 64), (1, 8, 512, 512, 128),
    (1, 16, 1024, 1024, 64), (1, 2, 2048, 2048, 64),
)  # fmt: skip
# The law names layouts by which operand of a product is turned, measurements as BLAS does.
LAW_LAYOUTS = {"nt": "TN", "nn": "NN", "tn": "NT"}
# What the law has element-wise kernels of a layer take however little they move, over how many a traced one has.
KERNEL_SECONDS = 150e-6 / (49 + 67)


def twin(at: Setting, model: ModelProfile, num_ranks: int) -> MachineProfile:
    """What `profile machine` would have found on `num_ranks` devices of a setting, if the laws were right."""
    device, learned = at.device, load_learned()
    factors = learned.factors
    one = jobs_of(at, tensor=np.ones(1))
    rules = rules_of(one, learned)
    rate = device.memory_gb_per_second * 1e9 * factors.traffic_fraction / float(rules.element_passes[0])
    block_layer = next(layer for layer in model.layers[PRECISION] if layer.name not in ("embedding", "head"))
    launch = float(rules.host_layer_us[0]) * 1e-6 * factors.host * (1 + BACKWARD_HOST) / len(block_layer.operators)
    optimizer = device.memory_gb_per_second * 1e9 * factors.optimizer_fraction / float(rules.optimizer_bytes[0])
    return MachineProfile(
        name="twin",
        origin="measured",
        device_kind="cuda",
        device_name="NVIDIA H100 80GB HBM3",
        num_devices=num_ranks,
        devices_per_node=device.devices_per_node,
        memory_bytes=device.memory_gib * GIB,
        peak_flops_per_second={PRECISION: device.achievable_tflops[PRECISION] * 1e12},
        peak_source="the law",
        memory_bytes_per_second=rate,
        launch_seconds=launch,
        parallel_linear_seconds=0.0,
        pipeline_action_seconds=float(rules.pipeline_action_us[0]) * 1e-6,
        oversubscription_factor=0.0,
        kernels=(
            *_products(at, model),
            *_attention(at, model),
            *(_line("memory", precision, [4.0 * count for count in ELEMENTS], KERNEL_SECONDS, rate)
              for precision in (PRECISION, "fp32")),
            _line("optimizer", "fp32", PARAMETER_COUNTS, 0.0, optimizer),
            *_codecs(rate),
        ),
        links=tuple(_links(at, num_ranks)),
        overlap=Overlap(
            compute_slowdown_fraction=factors.compute_slowdown, communication_slowdown_fraction=factors.comm_slowdown
        ),
        layer_timings=tuple(_layers(at, model, learned)),
        exchange_timings=tuple(_exchanges(at, num_ranks, learned)),
    )  # fmt: skip


def _line(kind: str, precision: str, dims: Sequence[float], latency: float, rate: float) -> KernelCurve:
    return fit_kernel(kind, "", precision, [_sample((float(dim),), latency + dim / rate) for dim in dims])


def _codecs(rate: float) -> list[KernelCurve]:
    """Encoding, and decoding a message, as so many passes over the gradients."""
    passes = {name: float(CODEC_PASSES) for name in KNOWN if codec(name).lossy}
    passes |= {f"{name} decode": codec(name).decode_passes for name in KNOWN if codec(name).gathered}
    return [
        replace(_line("codec", "fp32", GRADIENT_BYTES, 0.0, rate / count), name=name) for name, count in passes.items()
    ]


def _sample(dims: tuple[float, ...], seconds: float) -> Sample:
    return Sample(dims=dims, seconds=float(seconds), spread_fraction=0.0)


def _silicon(at: Setting) -> Silicon:
    return silicon_at(at.device, PRECISION)


def _slowdown(at: Setting) -> float:
    """By how much the software's own kernels are slower than the law's."""
    return float(rules_of(jobs_of(at, tensor=np.ones(1)), load_learned()).product_slowdown[0])


def _own_shapes(at: Setting, model: ModelProfile, kind: str, layout: str) -> set[tuple[float, ...]]:
    sizes = itertools.product(MICRO_BATCHES, (at.sequence_length,), DEGREES)
    return {
        tuple(float(evaluate(dim, *size)) for dim in op.dims)
        for size in sizes
        for layer in model.layers[PRECISION]
        for op in layer.operators
        if (op.kind, op.layout, op.dtype) == (kind, layout, PRECISION)
    }


def _products(at: Setting, model: ModelProfile) -> list[KernelCurve]:
    silicon, slow, curves = _silicon(at), _slowdown(at), []
    for layout, name in LAW_LAYOUTS.items():
        shapes = _own_shapes(at, model, "matmul", layout)
        for tokens, (outputs, inputs) in itertools.product(TOKENS, FEATURES):
            of_layout = {"nt": (tokens, outputs, inputs), "nn": (tokens, inputs, outputs)}
            shapes.add((1.0, *map(float, of_layout.get(layout, (outputs, inputs, tokens)))))
        ordered = sorted(shapes)
        _, m, n, k = np.array(ordered).T
        taken = matmul_seconds(m, n, k, name, silicon) * slow  # type: ignore[arg-type]
        samples = [_sample(dims, seconds) for dims, seconds in zip(ordered, taken, strict=True)]
        curves.append(fit_kernel("matmul", layout, PRECISION, samples))
    return curves


def _attention(at: Setting, model: ModelProfile) -> list[KernelCurve]:
    silicon, slow, curves = _silicon(at), _slowdown(at), []
    ordered = sorted(_own_shapes(at, model, "attention", "causal") | {tuple(map(float, dims)) for dims in ATTENTION})
    batch, heads, queries, keys, size = np.array(ordered).T
    for phase in PHASES:
        taken = attention_seconds(phase, at.attention_kernel, batch, heads, queries, keys, size, size, silicon) * slow
        samples = [_sample(dims, seconds) for dims, seconds in zip(ordered, taken, strict=True)]
        curves.append(fit_kernel(f"attention_{phase}", "", PRECISION, samples))
    return curves


def _links(at: Setting, num_ranks: int) -> list[LinkCurve]:
    law = SheetLinks(fabric=fabric_of(jobs_of(at, tensor=np.ones(1))))
    curves = []
    for size in (size for size in range(2, num_ranks + 1) if num_ranks % size == 0):
        inside = np.array([float(min(size, at.devices_per_node))])
        for collective in COLLECTIVES:
            # Messages go between the halves of a group.
            pair = np.array([1.0 if size > at.devices_per_node else 2.0])
            ranks = (np.array([2.0]), pair) if collective == "send_receive" else (np.array([float(size)]), inside)
            samples = [
                _sample((float(amount),), law.seconds(collective, np.array([float(amount)]), *ranks)[0])
                for amount in MESSAGE_BYTES
            ]
            span = "network" if size > at.devices_per_node else "node"
            curves.append(fit_link(collective, size, span, samples))
    return curves


def _layers(at: Setting, model: ModelProfile, learned: Learned) -> list[LayerTiming]:
    sizes = list(itertools.product(MICRO_BATCHES, DEGREES))
    jobs = jobs_of(
        at,
        micro_batch=np.array([float(batch) for batch, _ in sizes]),
        tensor=np.array([float(degree) for _, degree in sizes]),
        vocabulary_split=np.ones(len(sizes)),
    )
    kernels, rules, factors = SheetKernels(jobs=jobs), rules_of(jobs, learned), learned.factors
    timings = []
    for layer in model.layers[PRECISION]:
        if layer.name in ("embedding", "head"):
            both = kernels.end(rules, factors, layer.name)
            loads = kernels.work.embedding if layer.name == "embedding" else kernels.work.head
            ahead = kernels._seconds(rules, factors, loads["forward"])
            back = both - ahead
        else:
            ahead, back = (kernels.layer(rules, factors, phase, "dense").compute for phase in PHASES)
        timings += [
            LayerTiming(
                workload=model.workload.digest,
                layer=layer.name,
                precision=PRECISION,
                micro_batch_size=batch,
                sequence_length=at.sequence_length,
                tensor_parallel=degree,
                forward_seconds=float(ahead[row]),
                backward_seconds=float(back[row]),
                spread_fraction=0.0,
            )
            for row, (batch, degree) in enumerate(sizes)
        ]
    return timings


def _exchanges(at: Setting, num_ranks: int, learned: Learned) -> list[ExchangeTiming]:
    """Eight linears under DDP, and with owners that send what they updated."""
    width, count, tokens = 1024, 8, 4096
    silicon, factors = _silicon(at), learned.factors
    back = matmul_seconds(tokens, width, width, "NN", silicon) + matmul_seconds(width, width, tokens, "NT", silicon)
    stages = np.array([0.0, 1.0])
    jobs = jobs_of(at, data=np.full(2, float(num_ranks)), zero_stage=stages)
    held = StageParameters(common=np.full(2, float(count * width * width)), expert=np.zeros(2))
    found = exchange(jobs, rules_of(jobs, learned), SheetLinks(fabric=fabric_of(jobs)), held)
    backward = float(count * back[0])
    early, tail = ((found.gradients - found.tail) * factors.data_comm, found.tail * factors.data_comm)
    hidden = exposed(early, backward * (1 - found.tail / found.gradients), factors)
    added = hidden + tail + found.parameters * factors.data_comm
    return [
        ExchangeTiming(
            codec="none", zero_stage=int(stage), group_size=num_ranks, num_parameters=float(count * width * width),
            matrix_sides=float(count * 2 * width), backward_seconds=backward, added_seconds=float(seconds),
            spread_fraction=0.0,
        )
        for stage, seconds in zip(stages, added, strict=True)
    ]  # fmt: skip

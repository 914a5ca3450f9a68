"""Measuring with two real ranks and little of everything, and the pieces that need no ranks."""

import json
import math
import os
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from profiles.artifacts import dump, parse
from profiles.codecs.codec import KNOWN
from profiles.errors import InputError
from profiles.laws.curves import fit_kernel
from profiles.machines.profile import COLLECTIVES, MachineProfile, Sample
from profiles.measure.convolutions import Convolution, Recurrent
from profiles.measure.layers import Case, measure_layers
from profiles.measure.links import group_sizes
from profiles.measure.machine import Effort, measure_machine
from profiles.measure.matrix_kernels import Grid, model_shapes, within_seconds
from profiles.measure.memory_kernels import OPERATORS, in_turns, moved_bytes, wanted_names
from profiles.measure.operands import Operands
from profiles.measure.operators_in_training import measure_operator_seconds
from profiles.measure.timing import Bench, HostTimer, Peers, Reading
from profiles.models.profile import WorkloadSpec
from profiles.tracing.operator_recorder import Recorder
from profiles.tracing.task_trace import trace_task
from profiles.tracing.trace import trace
from profiles.workloads.loading import load_workload
from profiles.workloads.task_loading import load_task
from tests.matrix.architectures import ARCHITECTURES

WIDTH, TOKENS = 32, 16
SPEC = WorkloadSpec(
    kind="transformers",
    name="tiny",
    config={
        "model_type": "gpt2",
        "n_embd": WIDTH,
        "n_head": 4,
        "n_layer": 3,
        "vocab_size": 64,
        "n_positions": TOKENS,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "tie_word_embeddings": False,
    },
)
LITTLE = Effort(
    touched_bytes=2**20,
    grid=Grid(tokens=(16, 64), features=((32, 32), (64, 32)), attention=((1, 2, 16, 16, 8),), model_seconds=1.0),
    convolutions=(
        (Convolution(count=1, inputs=4, outputs=4, side=8, window=3),),
        (Recurrent(count=1, steps=4, width=8),),
    ),
    memory_elements=(2**10, 2**12, 2**14),
    parameter_counts=(2**8, 2**10),
    gradient_elements=(2**11, 2**13),
    linears=((8, 32, 32), (8, 32, 64)),
    exchange=(32, 2),
    message_bytes=tuple(64 * 4**step for step in range(8)),
    overlap_bytes=2**16,
    repeats=2,
    link_repeats=2,
    link_sample_seconds=1e-3,
    layer_seconds=5.0,
)


@pytest.fixture(scope="module")
def tiny():
    return trace(load_workload(SPEC), ("fp32", "bf16", "fp8"))


@pytest.fixture(scope="module")
def task():
    model = next(model for model in ARCHITECTURES if model.name == "bart")
    return trace_task(model.spec, load_task(model.spec, size=model.size), ("fp32",))


@pytest.fixture
def bench():
    return Bench(timer=HostTimer(), peers=Peers(device=torch.device("cpu")), repeats=2, patience_seconds=0.0)


@pytest.mark.gloo
@pytest.mark.usefixtures("warm_ranks")
def test_two_ranks_measure_everything_and_the_file_reads_back(tiny, task):
    heard = []
    machine = measure_machine(
        num_ranks=2,
        device_kind="cpu",
        sequence_length=TOKENS,
        micro_batch_sizes=(1, 2),
        tensor_degrees=(1, 2),
        precisions=("fp32", "bf16", "fp8"),
        on_progress=lambda fraction, text: heard.append(fraction),
        models=[tiny, task],
        effort=LITTLE,
    )
    assert parse(json.loads(dump("machine-profile", machine)), "machine-profile", MachineProfile, "here") == machine
    assert heard == sorted(heard)
    assert heard[-1] == 1.0
    _check_links(machine)
    _check_kernels(machine)
    of_task = [timing for timing in machine.layer_timings if timing.workload == task.workload.digest]
    names = {layer.name for layer in task.layers["fp32"]}
    assert {(t.layer, t.precision, t.micro_batch_size) for t in of_task} == {
        (n, "fp32", b) for n in names for b in (1, 2)
    }
    assert all(t.sequence_length == task.usual_size and t.forward_seconds > 0 for t in of_task)
    machine = replace(machine, layer_timings=tuple(t for t in machine.layer_timings if t not in of_task))
    timed = {(t.layer, t.precision, t.micro_batch_size, t.tensor_parallel) for t in machine.layer_timings}
    names, precisions = ("embedding", "block", "head"), ("fp32", "bf16")
    split = {(n, p, b, t) for n in names for p in precisions for b in (1, 2) for t in (1, 2)}
    assert timed == split | {(n, "fp8", b, 1) for n in names for b in (1, 2)}
    assert all(t.workload == SPEC.digest and t.sequence_length == TOKENS for t in machine.layer_timings)
    assert all(t.forward_seconds > 0 and t.backward_seconds > 0 for t in machine.layer_timings)
    exchanged = {(t.codec, t.zero_stage) for t in machine.exchange_timings}
    assert exchanged == {*((name, 0) for name in KNOWN), ("none", 1), ("none", 2), ("none", 3)}
    assert all(t.backward_seconds > 0 for t in machine.exchange_timings)
    small = [t for t in machine.exchange_timings if t.num_tensors]
    assert {t.zero_stage for t in small} == {0, 2, 3}
    assert {t.num_parameters for t in machine.exchange_timings if t not in small} == {2 * 32**2}
    assert all((t.num_tensors, t.num_units, t.num_parameters) == (96, 8, 48 * (64**2 + 64)) for t in small)
    assert machine.load is not None
    assert (machine.load.num_ranks, machine.load.num_cores) == (2, len(os.sched_getaffinity(0)))
    assert machine.load.seconds > 1
    assert machine.load.other_cores is not None
    assert machine.fingerprint is not None
    assert machine.memory_bytes == machine.fingerprint.memory_bytes / 2
    assert 0 < machine.launch_seconds < 1e-2
    assert 0 < machine.operator_seconds < 1e-3
    assert 0 <= machine.optimizer_tensor_seconds < 1e-3
    assert min(machine.parallel_linear_seconds, machine.pipeline_action_seconds) >= 0
    assert 0 <= machine.parallel_message_seconds_per_byte < 1e-7  # slower than 10 MB/s would be a mistake
    assert (machine.num_devices, machine.devices_per_node, machine.oversubscription_factor) == (2, 2, 0.0)


def _check_links(machine):
    assert {(link.collective, link.group_size) for link in machine.links} == {(name, 2) for name in COLLECTIVES}
    for link in machine.links:
        assert [sample.dims[0] for sample in link.samples] == [64.0 * 4**step for step in range(8)]
        assert link.span == "node"
        numbers = [link.bytes_per_second, *(sample.seconds for sample in link.samples)]
        assert all(math.isfinite(number) and number > 0 for number in numbers)


def _check_kernels(machine):
    present = {(curve.kind, curve.name, curve.precision) for curve in machine.kernels}
    for precision in ("fp32", "bf16"):
        assert {("matmul", layout, precision) for layout in ("nt", "nn", "tn", "")} <= present
        assert ("matmul", "conv", precision) in present
        assert {("attention_forward", "", precision), ("attention_backward", "", precision)} <= present
        assert {("memory", "", precision), ("memory", "tanh", precision)} <= present
        assert machine.peak_flops_per_second[precision] > 0
    # Beside products in fp8 there is attention in bf16.
    assert {("matmul", layout, "fp8") for layout in ("nt", "")} <= present
    assert not {name for kind, name, precision in present if precision == "fp8" and kind not in ("matmul", "linear")}
    assert ("optimizer", "", "fp32") in present
    assert {("codec", name, "fp32") for name in ("bf16", "powersgd-1", "powersgd-4")} <= present
    # The model's own projection (tokens x 3 widths x width) is among the samples, at both micro-batches and degrees.
    nt = next(
        curve for curve in machine.kernels if (curve.kind, curve.name, curve.precision) == ("matmul", "nt", "fp32")
    )
    shapes = {sample.dims for sample in nt.samples}
    for tokens in (TOKENS, 2 * TOKENS):
        assert {(1.0, tokens, 3 * WIDTH, WIDTH), (1.0, tokens, 3 * WIDTH // 2, WIDTH)} <= shapes


def test_an_unknown_precision_is_refused_before_any_rank_starts():
    with pytest.raises(InputError, match="int3"):
        measure_machine(2, "cpu", precisions=("int3",))


def test_every_memory_operator_runs_as_the_one_kernel_it_is_named_for():
    for name, make in OPERATORS.items():
        recorder = Recorder(nn.Identity())
        with torch.no_grad():
            action = make(Operands(2**11, torch.float32, torch.device("cpu")))
            with recorder.watch():
                action()
        assert [op.name for op in recorder.recording.operators] == [name or "clone"]
        assert recorder.recording.operators[0].dtype == "fp32"


def test_an_operator_is_timed_on_other_operands_in_each_call(monkeypatch):
    called: list[int] = []

    def make(operands: Operands) -> Callable[[], None]:
        number = len(made)
        made.append(operands)
        return lambda: called.append(number)

    for elements, count in ((2**12, 16), (2**20, 8), (2**24, 1)):
        made: list[Operands] = []
        called.clear()
        action = in_turns(make, elements, "fp32", torch.device("cpu"))
        for _ in range(2 * count):
            action()
        assert called == [*range(count)] * 2


def test_all_kernels_of_the_blocks_are_taken_from_what_training_adds():
    """By a clock for which a step takes 1000 s, and a kernel by itself 1 s."""

    class Clock:
        def read(self, action: Callable[[], object], calls: int = 1) -> Reading:
            with Calls() as seen:
                action()
            if seen.kernels == 1:
                return Reading(seconds=1.0)
            numbers.append(seen.kernels)
            return Reading(seconds=1000.0)

    numbers: list[int] = []
    bench = Bench(timer=Clock(), peers=Peers(device=torch.device("cpu")), repeats=1, has_own_core=True)
    added = measure_operator_seconds(bench)
    (kernels,) = set(numbers)
    assert added == pytest.approx((1000.0 - kernels) / kernels)


class Calls(TorchDispatchMode):
    """Counts calls that are no views and compute something."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        self.kernels += not (func.is_view or name in ("_unsafe_view", "empty_like", "detach"))
        return func(*args, **(kwargs or {}))


def test_bytes_of_an_addition_are_two_reads_and_a_write():
    action = OPERATORS["add"](Operands(4096, torch.bfloat16, torch.device("cpu")))
    assert moved_bytes(action, "add") == 3 * 2 * 4096


def test_only_the_operators_that_a_model_has_are_measured(tiny):
    names = wanted_names([tiny], "fp32")
    assert {"", "tanh", "native_layer_norm", "_log_softmax", "embedding"} <= set(names)
    assert "silu" not in names
    assert set(wanted_names([], "fp32")) == set(OPERATORS)


def test_shapes_of_a_model_are_its_linears(tiny):
    forward = model_shapes([tiny], "matmul", "nt", "fp32", ((2, TOKENS, 1),))
    tokens = 2.0 * TOKENS
    linears = {(3 * WIDTH, WIDTH), (WIDTH, WIDTH), (4 * WIDTH, WIDTH), (WIDTH, 4 * WIDTH), (64, WIDTH)}
    assert forward == {(1.0, tokens, float(outputs), float(inputs)) for outputs, inputs in linears}
    assert model_shapes([tiny], "attention", "causal", "fp32", ((1, TOKENS, 2),)) == {(1.0, 2.0, TOKENS, TOKENS, 8.0)}


def test_shapes_are_chosen_until_the_time_is_spent():
    points = [Sample(dims=(1.0, s, s, s), seconds=2 * s**3 / 1e9, spread_fraction=0.0) for s in (100.0, 200.0)]
    curve = fit_kernel("matmul", "nt", "fp32", points)
    shapes = [(1.0, 200.0, 200.0, 200.0), (1.0, 100.0, 100.0, 100.0)]
    # 16 ms and 2 ms a call, with 3 repeats and 2 warm-up calls each: 80 and 10 ms.
    assert within_seconds(curve, shapes, 0.1, 3) == shapes
    assert within_seconds(curve, shapes, 0.08, 3) == shapes[:1]
    assert within_seconds(curve, shapes, 0.02, 3) == shapes[1:]
    assert within_seconds(curve, [], 1.0, 3) == []


def test_group_sizes_are_all_to_four_ranks_and_divisors_beyond():
    assert [group_sizes(n) for n in (1, 2, 3, 4, 8, 12)] == [(), (2,), (2, 3), (2, 3, 4), (2, 4, 8), (2, 3, 4, 6, 12)]


def test_layers_that_do_not_fit_or_split_are_left_out(tiny, bench):
    def cases(degree):
        return [Case(precision="fp32", micro_batch_size=1, sequence_length=TOKENS, tensor_parallel=degree)]

    assert measure_layers(bench, [tiny], cases(1), memory_bytes=1e3, seconds=1.0) == ([], 1)
    assert measure_layers(bench, [tiny], cases(3), memory_bytes=1e9, seconds=1.0) == ([], 0)
    timings, left_out = measure_layers(bench, [tiny], cases(1), memory_bytes=1e9, seconds=1.0)
    assert ([timing.layer for timing in timings], left_out) == (["embedding", "block", "head"], 0)

"""Segments of a task's module, timed within the whole: by a clock that moves only where a module says so."""

import sys

import pytest
import torch
from torch import nn

from planner.cost.measured.operators import Sizes
from planner.cost.measured.timed_layers import timed_over_summed
from profiles.command import main
from profiles.machines.profile import LayerTiming
from profiles.measure.convolutions import Convolution, Recurrent, _convolution, _recurrent
from profiles.measure.task_layers import Pass, SegmentClock
from profiles.measure.timing import Bench, HostTimer, Peers
from profiles.tracing.operator_recorder import Recorder
from profiles.workloads.repeated_blocks import repeated_blocks
from profiles.workloads.task import user_task


class Clock:
    """A clock that is told how late it is."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class _Takes(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, clock, forward, backward):
        ctx.clock, ctx.backward_seconds = clock, backward
        clock.now += forward
        return x * 1.0

    @staticmethod
    def backward(ctx, gradient):
        ctx.clock.now += ctx.backward_seconds
        return gradient, None, None, None


class Works(nn.Module):
    """A linear that takes so many seconds forward and backward."""

    def __init__(self, clock, forward, backward):
        super().__init__()
        self.linear, self.times = nn.Linear(4, 4), (clock, forward, backward)

    def forward(self, x, beside=None):
        x = x if beside is None else x + beside
        return _Takes.apply(self.linear(x), *self.times)


class Block(Works):
    """One of several."""


class Module(nn.Module):
    """Blocks between two other parts; with `skips`, each of the later half reads what the first half left."""

    def __init__(self, clock, times, skips=False):
        super().__init__()
        first, *middle, last = times
        self.first, self.last = Works(clock, *first), Works(clock, *last)
        self.blocks = nn.ModuleList(Block(clock, *own) for own in middle)
        self.skips = skips

    def forward(self, x):
        x, left = self.first(x), []
        half = len(self.blocks) // 2
        for index, block in enumerate(self.blocks):
            x = block(x, left.pop() if self.skips and index >= half else None)
            if self.skips and index < half:
                left.append(x)
        return self.last(x).sum()


TIMES = [(1.0, 2.0), (3.0, 5.0), (7.0, 11.0), (13.0, 17.0), (19.0, 23.0), (29.0, 31.0)]


@pytest.mark.parametrize("skips", [False, True])
def test_every_segment_has_the_seconds_that_its_own_part_took(skips):
    clock = Clock()
    module = Module(clock, TIMES, skips)
    task = user_task(module, lambda step, samples: [{"x": torch.ones(4)} for _ in range(samples)])
    blocks = tuple(repeated_blocks(module).values())
    own = SegmentClock(blocks=blocks, clock=clock)
    step = Pass(task=task, module=module, batch={"x": torch.ones(2, 4)}, precision="fp32", clock=own)
    for _ in range(2):
        step()
        assert own.seconds == {
            "forward": [forward for forward, _ in TIMES],
            "backward": [backward for _, backward in TIMES],
        }
    # Gradients of both passes are there, as those of micro-batches are.
    assert torch.equal(module.first.linear.bias.grad, 2 * _gradient(Module(clock, TIMES, skips), module))


def _gradient(fresh, like):
    fresh.load_state_dict(like.state_dict())
    fresh(x=torch.ones(2, 4)).backward()
    return fresh.first.linear.bias.grad


def test_what_no_gradient_passes_through_leaves_the_sum_as_it_was():
    clock = Clock()
    module = Module(clock, TIMES)
    module.first.requires_grad_(False)
    module.blocks[0].requires_grad_(False)
    task = user_task(module, lambda step, samples: [])
    own = SegmentClock(blocks=tuple(module.blocks), clock=clock)
    Pass(task=task, module=module, batch={"x": torch.ones(2, 4)}, precision="fp32", clock=own)()
    assert own.seconds["backward"] == [0.0, 0.0, *(backward for _, backward in TIMES[2:])]


def _timing(batch, seconds, size=8):
    return LayerTiming(
        workload="w", layer="l", precision="fp32", micro_batch_size=batch, sequence_length=size, tensor_parallel=1,
        forward_seconds=seconds, backward_seconds=2 * seconds, spread_fraction=0.0,
    )  # fmt: skip


def _sizes(*batches, size=8.0):
    one = torch.ones(len(batches), dtype=torch.float64).numpy()
    return Sizes(batch=one * batches, sequence=one * size, tensor=one, context=one, spread=one)


def test_a_task_s_layer_takes_what_was_timed_and_between_two_micro_batches_what_lies_between():
    timings = [_timing(8, 16.0), _timing(2, 2.0), _timing(4, 100.0, size=64)]

    def at(*batches, is_task=True, size=8.0):
        sizes = _sizes(*batches, size=size)
        ratio = timed_over_summed(timings, "forward", lambda own: own.batch, sizes, is_task)
        return list(ratio * sizes.batch)

    # Kernels sum up to a second a sample: 2 samples take as long as that, 8 twice as long, and 4 something between.
    assert at(1, 2, 8, 32) == pytest.approx([1.0, 2.0, 16.0, 64.0])
    assert at(4) == pytest.approx([4 * 2**0.5])
    assert at(4, size=64.0) == pytest.approx([100.0])
    assert at(4, 8, is_task=False) == pytest.approx([8.0, 16.0])
    assert list(timed_over_summed([], "forward", lambda own: own.batch, _sizes(3), True)) == [1.0]


@pytest.mark.parametrize(
    "made",
    [
        Convolution(count=2, inputs=4, outputs=8, side=9, window=3, step=2),
        Convolution(count=1, inputs=8, outputs=8, side=8, window=7, groups=8),
        Convolution(count=2, inputs=3, outputs=8, side=8, window=4, step=4),
        Recurrent(count=2, steps=5, width=6),
    ],
)
@pytest.mark.parametrize("products", [1, 2])
def test_convolutions_are_timed_by_the_dims_that_tracing_gives_them(made, products):
    bench = Bench(timer=HostTimer(), peers=Peers(device=torch.device("cpu")))
    if isinstance(made, Convolution):
        action = _convolution(bench, "fp32", made, products)
    else:
        action = _recurrent(bench, made, products)
    recorder = Recorder(nn.Identity())
    recorder.phase = "forward" if products == 1 else "backward"
    with recorder.watch():
        action()
    kernels = [op for op in recorder.recording.operators if op.kind == "matmul"]
    assert [tuple(map(float, op.dims)) for op in kernels] == [made.dims(products)]


def test_a_task_of_no_model_is_refused(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("TRAINWRIGHT_HOME", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["profile", "machine", "--task", "translation"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "--task has no effect without --model" in capsys.readouterr().err

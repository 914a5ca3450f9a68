"""Runs of fake tensors whose kernels are noted by their looks: as by torch's own rules, and as of real tensors."""

from dataclasses import replace

import pytest
import torch

from profiles.models.splitting import Splitting
from profiles.tracing import task_trace
from profiles.tracing.fake_results import KnownResults
from profiles.tracing.task_runs import ALL, ENDS, FIRST, _built, _fake, _real
from profiles.workloads.fake_tensors import FakeTensor, FakeTensorMode
from profiles.workloads.task_loading import load_task
from tests.marks import slow
from tests.matrix.architectures import ARCHITECTURES

KERNELS = torch.ops.aten


def subject_of(make, name, left=FIRST):
    own = next(own for own in ARCHITECTURES if own.name == name)
    return _built(make, own.spec, load_task(own.spec), left)


def keys(run):
    return [(own.key, dict(own.peaks), own.saved) for own in run.segments]


@pytest.mark.parametrize("name", ["t5", "efficientnet", "mixtral"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_is_the_same_as_by_torchs_own_rules(name, precision, monkeypatch):
    noted = subject_of(_fake, name)
    size = noted.task.size
    noted.run(precision, 2, size)
    # Of another batch, so that results are made from what was noted before.
    again = noted.run(precision, 3, size)
    monkeypatch.setattr(KnownResults, "call", lambda self, func, args, kwargs: func(*args, **kwargs))
    assert keys(subject_of(_fake, name).run(precision, 3, size)) == keys(again)


def test_a_model_that_reads_positions_as_numbers_runs_without_values_as_it_does_with_them():
    def told(make):
        own = subject_of(make, "qwen2_vl", ALL)
        segments = own.run("fp32", 2, own.task.size).segments
        # Fake tensors alone are made of real ones.
        kernels = [[op for op in one.operators if op.name != "lift_fresh"] for one in segments]
        return [
            (
                one.name,
                one.shapes,
                one.saved_bytes,
                [(op.signature, op.dims, op.read_bytes, op.written_bytes) for op in own],
            )
            for one, own in zip(segments, kernels, strict=True)
        ]

    assert told(_fake) == told(_real)


def test_a_loss_over_lengths_runs_without_values_as_it_does_with_them():
    def told(make):
        own = subject_of(make, "wav2vec2", ALL)
        segments = own.run("fp32", 2, own.task.size).segments
        # Which samples are masked is drawn anew each time.
        products = [[(op.signature, op.dims) for op in one.operators if op.flops] for one in segments]
        return [(one.name, one.shapes, one.saved_bytes, own) for one, own in zip(segments, products, strict=True)]

    assert told(_fake) == told(_real)


@pytest.mark.parametrize(
    ("call", "shares"),
    [
        (lambda x: KERNELS.select.int(x, 0, 1), True),
        (lambda x: KERNELS.slice.Tensor(x, 1, 1, 3), True),
        (lambda x: KERNELS._unsafe_view.default(x, [4, 3]), True),
        (lambda x: KERNELS.add_.Tensor(x, x), True),
        (lambda x: KERNELS.t_.default(KERNELS.clone.default(x)), False),
        (lambda x: KERNELS.mul.Tensor(x, 2), False),
        (lambda x: KERNELS.cat.default([x, x], 1), False),
        (lambda x: KERNELS.topk.default(x, 2), False),
    ],
)
def test_what_is_made_again_looks_the_same_and_lies_where_it_should(call, shares):
    fake = FakeTensorMode()
    results = KnownResults(fake)

    class Through(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            return results.call(func, args, kwargs or {})

    def looks(made):
        made = made if isinstance(made, tuple | list) else (made,)
        assert all(type(one) is FakeTensor for one in made)
        return [(one.shape, one.stride(), one.storage_offset(), one.dtype, one.device) for one in made]

    with fake:
        given = torch.empty(3, 4)[:, :]
        wanted = looks(call(given.clone()))
        for _ in range(3):
            own = given.clone()
            with Through():
                made = call(own)
            assert looks(made) == wanted
            first = made[0] if isinstance(made, tuple | list) else made
            assert (first.untyped_storage()._cdata == own.untyped_storage()._cdata) == shares


def test_whole_numbers_and_others_are_told_apart():
    fake = FakeTensorMode()
    results = KnownResults(fake)
    with fake:
        whole = torch.empty(2, dtype=torch.int64)
        types = [results.call(KERNELS.mul.Tensor, (whole, by), {}).dtype for by in (1, 1.0, 1, 1.0)]
    assert types == [torch.int64, torch.float32] * 2


# Not of all models: of linears with biases in 16 bits a whole trace ends with the copies of all blocks' biases.
@pytest.mark.parametrize("name", [slow("t5"), slow("convnext")])
def test_with_blocks_out_between_the_first_and_the_last_a_profile_is_that_of_the_whole(name, monkeypatch):
    own = next(own for own in ARCHITECTURES if own.name == name)
    deeper = {
        "t5": {"num_layers": 6, "num_decoder_layers": 7},
        "convnext": {"depths": [2, 2, 8, 2]},
    }[name]
    spec = replace(own.spec, config=own.config | deeper)
    monkeypatch.setattr(task_trace, "split_layers", lambda subject, chosen, kinds, layers: (layers, Splitting()))
    task, used = load_task(spec), []
    run = task_trace._traced

    def traced(subject, precisions):
        used.append((subject.left, len(subject.blocks)))
        return run(subject, precisions)

    monkeypatch.setattr(task_trace, "_traced", traced)
    found = task_trace.trace_task(spec, task, device_kind="cuda")
    monkeypatch.setattr(task_trace, "subjects", lambda *_: [lambda: _built(_fake, spec, task, ALL)])
    assert found == task_trace.trace_task(spec, task, device_kind="cuda")
    assert [left for left, _ in used] == [FIRST, ENDS, ALL]
    assert used[1][1] < used[2][1]

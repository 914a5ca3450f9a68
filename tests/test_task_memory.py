"""Peak memory of tasks under data parallelism and ZeRO 3: as two real ranks hold it, and block by block by hand."""

import json

import pytest
import torch
from torch import nn

from profiles.artifacts import dump
from profiles.models.operators import evaluate
from profiles.models.profile import WorkloadSpec
from profiles.ranks.launcher import launch
from profiles.tracing.task_trace import trace_task
from profiles.workloads.task import user_task
from profiles.workloads.task_loading import load_task
from tests.machine_builders import machine
from tests.matrix.architectures import ARCHITECTURES
from tests.numbers_tasks.predict import predicted

BATCH = 8
MICRO = BATCH // 2


def _model(name):
    own = next(model for model in ARCHITECTURES if model.name == name)
    return trace_task(own.spec, load_task(own.spec, size=own.size), ("fp32",))


def _by_hand(model):
    """ZeRO 3 on two ranks: the fullest moment of a backward pass, block after block from the last."""
    at = (MICRO, model.usual_size, 1)
    layers = list(model.each_layer("fp32"))
    sizes = [4 * float(evaluate(layer.num_parameters, *at)) for layer in layers]
    saved = [float(evaluate(layer.saved_bytes, *at)) for layer in layers]
    peaks = [
        max(float(evaluate(layer.forward_peak_bytes, *at)), float(evaluate(layer.backward_peak_bytes, *at)))
        for layer in layers
    ]
    # What no block has is one unit, whole until the end.
    outside, last = sizes[0] + sizes[-1], len(layers) - 1
    moments = [sum(saved) + peaks[last] - saved[last] + outside + sizes[last - 1]]
    for place in range(1, last):
        # The block's weights, those of the one before it, fetched ahead, and its gradients.
        held = sum(saved[: place + 1]) + peaks[place] - saved[place]
        moments.append(held + outside + 3 * sizes[place])
    # Half of the weights, of two moments.
    return max(moments) + 1.5 * sum(sizes)


def test_under_zero_3_units_are_whole_one_by_one():
    model = _model("gpt2")
    file = predicted(machine(), model, BATCH)
    assert [candidate.plan.zero_stage for candidate in file.candidates] == [0, 3]
    assert file.candidates[1].prediction.peak_bytes == pytest.approx(_by_hand(model), rel=1e-6)


class _HalfFrozen(nn.Module):
    """Blocks of which the first is not trained, as the backbone of a detector is."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(64, 64), nn.ReLU()) for _ in range(3))
        self.head = nn.Linear(64, 1)
        self.blocks[0].requires_grad_(False)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x).square().mean()


def test_what_is_not_trained_has_neither_gradients_nor_moments():
    task = user_task(_HalfFrozen, lambda step, samples: [{"x": torch.ones(64)} for _ in range(samples)])
    spec = WorkloadSpec(kind="module", name="half", factory="tests.test_task_memory:_HalfFrozen")
    model = trace_task(spec, task, ("fp32",))
    block = 64 * 64 + 64
    frozen = [float(evaluate(layer.num_frozen_parameters, 1, 1, 1)) for layer in model.each_layer("fp32")]
    assert frozen == [0, block, 0, 0, 0]
    plain, sharded = (one.prediction.bytes_per_rank for one in predicted(machine(), model, BATCH).candidates)
    whole, trained = 3 * block + 65, 2 * block + 65
    assert (plain["parameters"], plain["gradients"], plain["optimizer"]) == (4 * whole, 4 * trained, 8 * trained)
    assert (sharded["parameters"], sharded["optimizer"]) == (2 * whole, 4 * trained)


@pytest.mark.slow
@pytest.mark.gloo
def test_two_ranks_hold_what_is_predicted():
    files = [predicted(machine(), _model(name), BATCH) for name in ("gpt2", "bart", "opt")]
    plain = [json.loads(dump("plan", file)) for file in files]
    for own in plain:
        del own["artifact"], own["schema"]
    payload = {"files": plain, "turns": 0, "steps": 0, "trusted": []}
    found = launch("tests.numbers_tasks.ranks:run", payload, 2, "cpu")
    expected = [candidate.prediction.peak_bytes for file in files for candidate in file.candidates]
    assert [max(own["peak_bytes"]) for own in found] == pytest.approx(expected, rel=0.02)

"""Peak memory of tasks under data parallelism and ZeRO 3: as two real ranks hold it, and block by block by hand."""

import json

import pytest

from profiles.artifacts import dump
from profiles.models.operators import evaluate
from profiles.ranks.launcher import launch
from profiles.tracing.task_trace import trace_task
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

"""Peak memory of tasks under data parallelism and ZeRO 3: as two real ranks hold it, and block by block by hand."""

import functools
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


# Layers whose weights are most of what there is, as those of large models are.
WIDE = {
    "gpt2": {
        "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_embd": 256, "n_layer": 6, "n_head": 4,
        "vocab_size": 512, "n_positions": 64,
    },
    "llama": {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 256, "intermediate_size": 512,
        "num_hidden_layers": 6, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 512,
    },
    "olmoe": {
        "architectures": ["OlmoeForCausalLM"], "model_type": "olmoe", "hidden_size": 128, "intermediate_size": 128,
        "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 512,
        "num_experts": 8, "num_experts_per_tok": 2,
    },
}  # fmt: skip


@functools.cache
def _wide(name):
    spec = WorkloadSpec(kind="transformers", name=name, config=WIDE[name])
    return trace_task(spec, load_task(spec, size=32), ("bf16",))


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_parts_in_16_bits_are_the_peak_that_the_search_has(stage):
    file = predicted(machine(), _wide("llama"), 2, "bf16", (stage,))
    own = file.candidates[0].prediction
    # Copies of weights that count twice would be taken off as slack.
    assert sum(own.bytes_per_rank.values()) == pytest.approx(own.peak_bytes, rel=1e-6)
    assert own.bytes_per_rank["slack"] == pytest.approx(0, abs=1)


@pytest.mark.slow
@pytest.mark.gloo
@pytest.mark.usefixtures("warm_ranks")
def test_two_ranks_hold_what_is_predicted_in_16_bits():
    _hold_what_is_predicted([predicted(machine(), _wide(name), 2, "bf16", (0, 1, 2, 3)) for name in WIDE], 0.04)


@pytest.mark.slow
@pytest.mark.gloo
@pytest.mark.usefixtures("warm_ranks")
def test_two_ranks_hold_what_is_predicted():
    _hold_what_is_predicted([predicted(machine(), _model(name), BATCH) for name in ("gpt2", "bart", "opt")], 0.02)


def _hold_what_is_predicted(files, tolerance):
    plain = [json.loads(dump("plan", file)) for file in files]
    for own in plain:
        del own["artifact"], own["schema"]
    payload = {"files": plain, "turns": 0, "steps": 0, "trusted": []}
    found = launch("tests.numbers_tasks.ranks:run", payload, 2, "cpu")
    expected = [candidate.prediction.peak_bytes for file in files for candidate in file.candidates]
    assert [max(own["peak_bytes"]) for own in found] == pytest.approx(expected, rel=tolerance)

"""What a kernel costs is counted as torch's counter has it, or as arithmetic does where that is wrong."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from profiles.tracing.operator_recorder import Recorder


def flops(module: nn.Module, *inputs: torch.Tensor) -> tuple[int, int]:
    """What is recorded, forward and backward."""
    recorder = Recorder(module)
    with recorder.watch():
        output = module(*inputs)
        output = output[0] if isinstance(output, tuple) else output
        recorder.phase = "backward"
        output.sum().backward()
    found = dict.fromkeys(("forward", "backward"), 0)
    for op in recorder.recording.operators:
        found[op.phase] += op.flops
    return found["forward"], found["backward"]


@pytest.mark.parametrize(
    "module",
    [
        nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 3, stride=2), nn.Conv2d(3, 8, 3, padding="valid"),
        nn.Conv2d(3, 8, 4, padding="same", dilation=2), nn.ConvTranspose2d(3, 8, 2, 2),
        nn.ConvTranspose2d(3, 8, 4, 2, 1), nn.ConvTranspose2d(3, 8, 3, 2, output_padding=1),
    ],
    ids=str,
)  # fmt: skip
def test_convolutions_have_the_flops_that_torch_counts(module):
    image = torch.rand(2, 3, 12, 10, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        output = module(image)
        forward = counter.get_total_flops()
        output.sum().backward()
    assert flops(module, image) == (forward, counter.get_total_flops() - forward)


@pytest.mark.parametrize("module", [nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.ConvTranspose2d(8, 8, 2, 2, groups=8)])
def test_depthwise_convolutions_have_twice_the_flops_backward(module):
    # torch's counter has those of the weight's gradient once for each group.
    forward, backward = flops(module, torch.rand(2, 8, 12, 12, requires_grad=True))
    assert forward == 2 * 2 * 144 * module.weight.numel()
    assert backward == 2 * forward


def test_a_recurrent_layer_has_the_products_of_all_of_its_steps():
    forward, backward = flops(nn.LSTM(8, 16, num_layers=2), torch.rand(5, 3, 8, requires_grad=True))
    assert forward == 2 * 15 * (4 * 16) * ((8 + 16) + (16 + 16))
    assert backward == 2 * forward


class Keyword(nn.Module):
    def __init__(self, form):
        super().__init__()
        self.linear, self.form = nn.Linear(4, 4), form

    def forward(self, value):
        value = self.linear(input=value)
        return {"tuple": (value, [value]), "list": (value, {"more": value})}[self.form]


@pytest.mark.parametrize("form", ["tuple", "list"])
def test_modules_may_take_words_and_give_what_they_like(form):
    assert flops(Keyword(form), torch.rand(2, 4, requires_grad=True)) == (64, 128)

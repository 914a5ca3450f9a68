"""Whole modules of any kind are traced as torch counts them: FLOPs equal, saved bytes within one in a hundred."""

import pytest

from tests.matrix.architectures import ARCHITECTURES
from tests.matrix.ways import against_torch, traced

# One of each kind: encoder and decoder, spans, convolutions, depthwise ones, two towers, and one that has to be run.
SAMPLE = ("t5", "bert_qa", "resnet", "convnext", "clip", "detr")


def _marked(name):
    return pytest.param(name, marks=() if name in SAMPLE else pytest.mark.slow)


@pytest.mark.parametrize("name", [_marked(model.name) for model in ARCHITECTURES])
def test_flops_and_saved_bytes_are_those_of_a_real_step(name):
    (model,) = (model for model in ARCHITECTURES if model.name == name)
    flops, saved = against_torch(*traced(model.spec, model.size))
    assert flops == pytest.approx(1, abs=1e-6)
    assert saved == pytest.approx(1, abs=0.01)

"""Laws of convolutions, recurrent layers and passes: more work is never faster, nothing exceeds the peak."""

import numpy as np
import pytest

from planner.cost.hardware import silicon_at
from profiles.laws.convolutions import PASSES, convolution_seconds, shape_of
from profiles.laws.operator_constants import load_operator_constants
from profiles.laws.passes import pass_seconds, repeats
from profiles.laws.recurrent import recurrent_seconds
from profiles.machines.devices import load_device

CONSTANTS = load_operator_constants()
# A layer of ResNet-50 at batch 64: 3 x 3, 128 channels, 28 x 28.
LAYER = (64.0, 128.0, 128.0, 1.0, 784.0, 784.0, 9.0, 1.0, 1.0)
DEVICES = ("v100-sxm-32gb", "a100-sxm-40gb", "rtx-2080-ti", "b200-sxm")


def seconds(which, dims, device="a100-sxm-40gb", precision="fp16", on_matrix_units=True):
    card = load_device(device)
    constants = CONSTANTS.of(card.generation, on_matrix_units).convolutions
    return float(
        convolution_seconds(which, shape_of([dims]), silicon_at(card, precision), constants, on_matrix_units)[0]
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("which", PASSES)
def test_more_work_is_never_faster(which, device):
    for places in ((0,), (1,), (2,), (4, 5)):
        sizes = [
            tuple(size * (factor if i in places else 1) for i, size in enumerate(LAYER)) for factor in (1, 2, 4, 8)
        ]
        found = [seconds(which, dims, device) for dims in sizes]
        assert found == sorted(found), places


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("which", PASSES)
def test_matrix_units_never_exceed_their_peak(which, device):
    dims = (512.0, *LAYER[1:])
    flops = float(shape_of([dims]).flops[0])
    assert flops / seconds(which, dims, device) < load_device(device).peak_tflops["fp16"] * 1e12


def test_winograd_saves_multiplications_on_plain_units_alone():
    strided = (*LAYER[:5], LAYER[4], *LAYER[6:7], 4.0, 1.0)
    plain = [seconds("forward", dims, "v100-sxm-32gb", "fp32", False) for dims in (LAYER, strided)]
    matrix = [seconds("forward", dims, "v100-sxm-32gb", "fp16", True) for dims in (LAYER, strided)]
    assert plain[0] < 0.7 * plain[1]
    assert matrix[0] == pytest.approx(matrix[1])


def test_a_depthwise_convolution_is_bound_by_memory():
    dims = (64.0, 512.0, 512.0, 512.0, 784.0, 784.0, 9.0, 1.0, 1.0)
    shape = shape_of([dims])
    moved = 2 * sum(float(one[0]) for one in shape.elements())
    found = seconds("forward", dims)
    assert found == pytest.approx(moved / (1555e9 * CONSTANTS.matrix_convolutions.depthwise_fraction), rel=0.2)


@pytest.mark.parametrize("which", PASSES)
def test_recurrent_layers_pay_for_every_step(which):
    silicon = silicon_at(load_device("v100-sxm-32gb"), "fp16")
    found = recurrent_seconds(which, 32, np.array([10, 20, 40]), 512, 512, 4, silicon, CONSTANTS.matrix_recurrent)
    assert (np.diff(found) > 0).all()


def test_norms_pass_more_often_than_their_operands():
    more = repeats(["add", "native_batch_norm", "native_batch_norm_backward"], CONSTANTS.passes)
    assert more[0] == 1.0 < more[1] < more[2]
    found = pass_seconds(1e9, 2e12, CONSTANTS.passes, more)
    assert 0.5e-3 < found[0] < found[1] < found[2]


@pytest.mark.parametrize("which", PASSES)
def test_narrow_groups_are_bound_by_memory_not_by_empty_tiles(which):
    """ResNeXt's 32 groups of 4 channels: half of the plain rate and 0.4 of the bandwidth, where tiles take 0.2 ms."""
    grouped = (*LAYER[:3], 32.0, *LAYER[4:])
    moving = 2 * 2 * 64 * 128 * 784 / 1555e9 / 0.4
    busy = 2 * 64 * 784 * 128 * 4 * 9 / (19.5e12 / 2)
    assert max(moving, busy) < seconds(which, grouped) < moving + busy + 1e-5
    wide = (*LAYER[:1], 4096.0, 4096.0, 2.0, *LAYER[4:])
    assert seconds(which, wide) < 2 * 64 * 784 * 4096 * 2048 * 9 / (19.5e12 / 2)

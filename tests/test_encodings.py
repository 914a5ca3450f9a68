"""Codecs' messages: what decoding gives back is off by no more than the format says, for any gradients."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from profiles.codecs.codec import BLOCK, KNOWN, codec
from profiles.codecs.wire_format import FP8_MAX, INT8_MAX, add_decoded, encode, message_bytes
from profiles.errors import UnknownNameError

VALUES = st.floats(-1e4, 1e4, width=32).filter(lambda value: value == 0 or abs(value) > 1e-20)
GRADIENTS = arrays(np.float32, st.integers(1, 1100), elements=VALUES)


def decoded(name: str, gradients: torch.Tensor) -> torch.Tensor:
    message = encode(codec(name), gradients)
    assert message.dtype == torch.uint8
    assert message.numel() == message_bytes(codec(name), gradients.numel())
    total = torch.zeros_like(gradients)
    add_decoded(codec(name), message, total)
    return total


def largest_of_block(gradients: torch.Tensor) -> torch.Tensor:
    return torch.cat([block.abs().amax().expand(block.numel()) for block in gradients.split(BLOCK)])


@given(GRADIENTS)
def test_int8_is_off_by_half_a_step(values: np.ndarray) -> None:
    gradients = torch.from_numpy(values)
    error = (decoded("int8", gradients) - gradients).abs()
    assert bool((error <= largest_of_block(gradients) / INT8_MAX * 0.5 * (1 + 1e-5)).all())


@given(GRADIENTS)
def test_fp8_keeps_four_significant_bits(values: np.ndarray) -> None:
    gradients = torch.from_numpy(values)
    step = largest_of_block(gradients) / FP8_MAX
    bound = torch.maximum(gradients.abs() * 2**-4, step * 2**-10) * (1 + 1e-5)
    assert bool(((decoded("fp8", gradients) - gradients).abs() <= bound).all())


@given(GRADIENTS, st.sampled_from(["topk-1", "topk-5", "topk-30"]))
def test_topk_sends_the_largest_exactly(values: np.ndarray, name: str) -> None:
    gradients, kept = torch.from_numpy(values), codec(name).num_kept(values.size)
    found = decoded(name, gradients)
    sent = found != 0
    assert int(sent.sum()) <= kept
    assert torch.equal(found[sent], gradients[sent])
    # No message of as many entries leaves out less.
    rest = float(((gradients - found).double() ** 2).sum())
    best = float((gradients.double().abs().sort(descending=True).values[kept:] ** 2).sum())
    assert rest == pytest.approx(best, rel=1e-9)
    assert rest <= (1 - kept / values.size) * float((gradients.double() ** 2).sum()) * (1 + 1e-9)


@given(GRADIENTS, st.sampled_from(["int8", "fp8", "topk-5"]))
def test_what_is_left_out_and_what_is_sent_are_the_whole(values: np.ndarray, name: str) -> None:
    gradients = torch.from_numpy(values)
    rest, message = gradients.clone(), encode(codec(name), gradients)
    add_decoded(codec(name), message, rest, factor=-1.0)
    add_decoded(codec(name), message, rest)
    assert torch.allclose(rest, gradients, rtol=1e-5, atol=1e-6 * float(gradients.abs().max()))


@pytest.mark.parametrize("name", KNOWN)
def test_wire_bytes_are_those_of_the_messages(name: str) -> None:
    used, count = codec(name), 10**6
    if used.gathered:
        assert message_bytes(used, count) == pytest.approx(float(np.asarray(used.wire_bytes(count, 0, 0))), rel=1e-4)
    assert used.collective == ("all_gather" if used.gathered else "all_reduce")
    assert used.lossy == (name != "none")


@pytest.mark.parametrize("name", ["topk-0", "topk-101", "topk-", "topk-x", "powersgd-0", "int9"])
def test_unknown_codecs_are_refused(name: str) -> None:
    with pytest.raises(UnknownNameError, match="unknown codec"):
        codec(name)

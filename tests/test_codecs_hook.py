"""Communication hooks against the exact mean of the ranks' gradients, and what a codec holds in memory."""

import pytest

from profiles.ranks.launcher import launch


@pytest.mark.gloo
@pytest.mark.usefixtures("warm_ranks")
def test_averages_equal_the_mean() -> None:
    names = ["none", "bf16", "fp16", "int8", "fp8", "topk-100", "topk-10", "powersgd-1"]
    errors = launch("tests.parity_entries:average_with_hooks", names, 2, "cpu")
    assert max(errors["none"]) < 1e-6
    # bf16 keeps 8 significant bits: half a unit in the last place of each term, and of their sum.
    assert max(errors["bf16"]) < 3 * 2**-9
    assert max(errors["bf16"]) > 1e-6
    assert 1e-6 < max(errors["fp16"]) < 3 * 2**-12
    # Half a step of a block's largest gradient, and of what was left out before, on each of the ranks; the vector is in
    # one block with much larger gradients.
    assert 1e-6 < errors["int8"][0] < 2 / 254 * 1.5
    assert 1e-6 < errors["fp8"][0] < 2 / 16 * 1.5
    # All entries sent is nothing lost; a tenth of them is most of it.
    assert max(errors["topk-100"]) < 1e-6
    assert max(errors["topk-10"]) > 0.3
    # Both ranks' matrices are multiples of one rank-1 matrix; vectors are sent as they are.
    assert max(errors["powersgd-1"]) < 1e-4


@pytest.mark.gloo
@pytest.mark.usefixtures("warm_ranks")
def test_live_bytes() -> None:
    # Built: parameters and DDP's buckets. Held: also two moments, and what codecs keep.
    copies_held = {"none": 4, "int8": 5}
    results = launch("tests.parity_entries:count_bytes", list(copies_held), 2, "cpu")
    for counted, copies in zip(results, copies_held.values(), strict=True):
        parameter_bytes = 4 * counted["parameters"]
        assert counted["built"] == pytest.approx(2 * parameter_bytes, rel=0.01)
        assert counted["held"] == pytest.approx(copies * parameter_bytes, rel=0.04)
        assert counted["peak"] > counted["held"]

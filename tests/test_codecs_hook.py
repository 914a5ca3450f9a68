"""Communication hooks against the exact mean of the ranks' gradients, and what a codec holds in memory."""

import pytest

from profiles.launcher import launch


@pytest.mark.gloo
def test_averages_equal_the_mean() -> None:
    errors = launch("tests.parity_entries:average_with_hooks", ["none", "bf16", "powersgd-1"], 2, "cpu")
    assert max(errors["none"]) < 1e-6
    # bf16 keeps 8 significant bits: half a unit in the last place of each term, and of their sum.
    assert max(errors["bf16"]) < 3 * 2**-9
    assert max(errors["bf16"]) > 1e-6
    # Both ranks' matrices are multiples of one rank-1 matrix; vectors are sent as they are.
    assert max(errors["powersgd-1"]) < 1e-4


@pytest.mark.gloo
def test_live_bytes() -> None:
    # Built: parameters and DDP's buckets. Held: also two moments, and error feedback with factors for PowerSGD.
    copies_held = {"none": 4, "powersgd-1": 5}
    results = launch("tests.parity_entries:count_bytes", list(copies_held), 2, "cpu")
    for counted, copies in zip(results, copies_held.values(), strict=True):
        parameter_bytes = 4 * counted["parameters"]
        assert counted["built"] == pytest.approx(2 * parameter_bytes, rel=0.01)
        assert counted["held"] == pytest.approx(copies * parameter_bytes, rel=0.04)
        assert counted["peak"] > counted["held"]

"""What replicas send each other besides gradients: ZeRO 1's updated weights, and the statistics of norms."""

import pytest

from profiles.ranks.launcher import launch


@pytest.mark.gloo
@pytest.mark.usefixtures("warm_ranks")
def test_a_rank_sends_its_weights_in_one_message() -> None:
    assert launch("tests.parity_entries:step_in_shares", 5, 2, "cpu") == {"sent": 2, "off": 0.0}


@pytest.mark.gloo
@pytest.mark.usefixtures("warm_ranks")
def test_statistics_of_any_type_are_those_of_the_first() -> None:
    found = launch("tests.parity_entries:share_buffers", None, 2, "cpu")
    assert found["last"] == found["first"]
    assert found["first"] != found["before"]
    assert found["sent"] == 1

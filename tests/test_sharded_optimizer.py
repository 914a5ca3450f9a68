"""ZeRO 1's optimizer: the weights of plain AdamW, in as few messages as there are ranks."""

import pytest

from profiles.ranks.launcher import launch


@pytest.mark.gloo
@pytest.mark.usefixtures("warm_ranks")
def test_a_rank_sends_its_weights_in_one_message() -> None:
    assert launch("tests.parity_entries:step_in_shares", 5, 2, "cpu") == {"sent": 2, "off": 0.0}

"""How the table of accuracy orders layouts, on made-up seconds."""

import numpy as np
import pytest

from tests.accuracy_rows import order, regret


def test_an_order_shares_ranks_among_what_is_predicted_alike():
    measured = np.array([1.0, 2.0, 3.0])
    assert order(measured * 7, measured) == pytest.approx(1)
    assert order(-measured, measured) == pytest.approx(-1)
    tied = [order(np.array(each), measured) for each in ([1.0, 1.0, 2.0], [1.0, 2.0, 2.0])]
    assert tied == pytest.approx([0.866, 0.866], abs=1e-3)
    # Where the two that are alike stand does not depend on which comes first in the table.
    assert order(np.array([2.0, 1.0, 1.0]), measured[[2, 0, 1]]) == pytest.approx(tied[0])


def test_who_tells_no_layouts_apart_has_no_order():
    assert order(np.ones(4), np.arange(4.0)) == 0
    assert regret(np.array([2.0, 1.0]), np.array([1.0, 1.0])) == 1

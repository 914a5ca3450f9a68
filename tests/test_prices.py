"""Prices are those recorded: a change that moves one says so by recording the file anew."""

import pytest

from tests.prices import QUESTIONS, differences, of_question, of_runs, recorded


@pytest.mark.parametrize("number", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in range(1, len(QUESTIONS)))])
def test_plans_drawn_from_the_space_cost_what_they_did(number):
    assert list(differences(of_question(number)))[:10] == []


def test_published_runs_are_predicted_as_they_were():
    assert list(differences(of_runs()))[:10] == []


def test_a_changed_price_is_noticed():
    def changed():
        for row in of_runs():
            yield row | {"step_seconds": row["step_seconds"] * (1 + 2e-9)}

    assert len(list(differences(changed()))) == sum(question == "run" for question, _ in recorded()) > 1000

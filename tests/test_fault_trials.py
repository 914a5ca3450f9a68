"""Some of `python -m tests.fault_trials`: trainings in which something goes wrong, and how they end."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import fault_trial_kinds as kinds
from tests.fault_trial_forked import ALL_KINDS
from tests.fault_trial_kinds import LeftOut, Outcome, Setting

SHORT = (kinds.full_disk,)
LONG = [kind for _, kind in ALL_KINDS.values() if kind not in SHORT]


def check(trial: Callable[[Setting], Outcome], place: Path) -> None:
    try:
        outcome = trial(Setting(place, random.Random(1)))
    except LeftOut as reason:
        pytest.skip(str(reason))
    assert outcome.is_right, outcome


@pytest.mark.gloo
@pytest.mark.usefixtures("warm_ranks")
@pytest.mark.parametrize("trial", SHORT)
def test_a_run_ends_with_the_same_losses_or_a_true_sentence(
    trial: Callable[[Setting], Outcome], tmp_path: Path
) -> None:
    check(trial, tmp_path)


@pytest.mark.gloo
@pytest.mark.usefixtures("warm_ranks")
@pytest.mark.slow
@pytest.mark.parametrize("trial", LONG)
def test_so_does_one_of_every_other_kind(trial: Callable[[Setting], Outcome], tmp_path: Path) -> None:
    check(trial, tmp_path)


def test_what_ends_neither_way_is_no_success() -> None:
    assert Outcome(survived=True, identical=True).is_right
    assert Outcome(said=True, sentence="it is so").is_right
    assert Outcome(survived=True, identical=None).is_right
    assert not Outcome(survived=False, identical=None).is_right
    assert not Outcome(survived=True, identical=False, said=True).is_right
    assert not Outcome(sentence="it is not so").is_right
    assert not Outcome(survived=True, identical=True, sentence="it is not so", wrong="not true").is_right


def test_there_are_more_than_sixty() -> None:
    assert sum(count for count, _ in ALL_KINDS.values()) >= 60

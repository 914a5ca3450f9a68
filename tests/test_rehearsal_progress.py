"""How far a rehearsal is: by FLOPs, against what is worked out by hand, and told while it runs."""

from __future__ import annotations

import multiprocessing
import threading
from collections import Counter
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest

from executor.rehearse import all_ranks, progress
from executor.rehearse.progress import Watch, silent
from planner.plans import Plan
from profiles.errors import PlanError
from tests.plan_builders import LLAMA


def ledger(**flops: float) -> Any:
    return SimpleNamespace(flops=Counter(flops), num_operators=1234)


def test_the_share_is_of_the_flops_of_all_steps() -> None:
    counted = ledger()
    watch = Watch(counted, 2, 200.0, silent)
    assert (watch.told().fraction, watch.told().words) == (0.0, "building the model, 1,234 operators")
    found = []
    for _ in range(2):
        watch.begin_step()
        counted.flops.clear()
        for _ in range(3):
            counted.flops.update(matmul=40.0, attention=40.0)
            found.append(watch.told().fraction)
        # What is empty between two steps takes nothing back.
        counted.flops.clear()
        assert watch.told().fraction == found[-1]
    # Of 200: 80, 160 and, beyond what was expected, 240.
    assert found == pytest.approx([0.2, 0.4, 0.5, 0.7, 0.9, 1.0])
    assert watch.told().words == "step 2 of 2, 1,234 operators"


def test_without_expected_flops_steps_alone_are_counted() -> None:
    watch = Watch(ledger(matmul=1e9), 2, 0.0, silent)
    watch.begin_step()
    assert watch.told().fraction == 0.0
    watch.begin_step()
    assert watch.told().fraction == 0.5


def test_it_is_told_until_the_block_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "TELL_SECONDS", 0.001)
    heard = threading.Event()
    before = threading.active_count()
    with Watch(ledger(), 2, 1.0, lambda fraction, words: heard.set()).telling():
        assert heard.wait(10)
    assert threading.active_count() == before


class Sealed(Exception):
    """An error that no other process can be given."""

    def __reduce__(self) -> NoReturn:
        raise TypeError("it cannot be pickled")


def test_an_error_that_cannot_be_handed_over_is_told_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> NoReturn:
        raise Sealed("the shapes differ")

    monkeypatch.setattr(all_ranks, "_rehearse_one", fails)
    monkeypatch.setattr(all_ranks, "die_with_parent", lambda: None)
    receiver, sender = multiprocessing.Pipe(duplex=False)
    all_ranks._answer(sender, (), (Plan(data_parallel=2), LLAMA, 32, 1), 0.0)
    told = receiver.recv()
    assert isinstance(told, PlanError)
    assert str(told) == f"{Plan(data_parallel=2).id} cannot run on rank 1: the shapes differ"

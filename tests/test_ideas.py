"""The table of plans shows different ideas: variants of a better plan are counted beside it, and kept in the file."""

import io
import itertools
import re
from dataclasses import replace

import pytest
from rich.console import Console

from planner.ask import Request, ask
from planner.plans import Plan
from planner.schedules.registry import SCHEDULES
from planner.space.beside import Questions
from planner.space.ideas import num_differing
from planner.terminal.show import show
from profiles.library import load_sizes

TOP = 6
WORD = re.compile(r"([a-z]+)(?:-?(.*))")


@pytest.fixture(scope="module")
def file():
    request = Request(
        model=load_sizes("llama-3.1-8b"), num_devices=16, device="h100-sxm", global_batches=(64,), top=TOP
    )
    return ask(request, Questions())


def shown(file):
    return [candidate for candidate in file.candidates if not candidate.folded_into]


def words_of(plan):
    """The words of a plan's name that are no consequence of others, by what they begin with."""
    words = {"schedule" if word in SCHEDULES else WORD.fullmatch(word)[1]: word for word in plan.id.split()}
    samples = int(words.pop("mb")[2:].split("x")[0])
    for follows in ("dp", "sp", "vocab", "of"):
        words.pop(follows, None)
    return words | {"tokens": samples / int(words.get("cp", "cp1")[2:])}


def test_no_two_lines_differ_in_one_choice_alone(file):
    lines = [words_of(c.plan) for c in shown(file) if "[" not in c.verdict]
    for one, other in itertools.combinations(lines, 2):
        keys = one.keys() | other.keys()
        # What a pipeline has beside its degree counts between pipelines, and virtual stages between equal schedules.
        keys -= {"schedule", "v"} if not {"pp"} <= one.keys() & other.keys() else set()
        keys -= {"v"} if one.get("schedule") != other.get("schedule") else set()
        assert sum(one.get(key, "") != other.get(key, "") for key in keys) > 1, (one, other)


def test_what_is_folded_adds_up(file):
    assert any(candidate.num_folded for candidate in file.candidates)
    by_rank = {candidate.rank: candidate for candidate in file.candidates}
    assert list(by_rank) == list(range(1, len(file.candidates) + 1))
    for candidate in file.candidates:
        like = [other for other in file.candidates if other.folded_into == candidate.rank]
        assert candidate.num_folded == len(like)
        behind = [other.prediction.step_seconds / candidate.prediction.step_seconds - 1 for other in like]
        assert candidate.folded_within_fraction == max(behind, default=0.0)
        assert min(behind, default=0.0) >= 0
        for other in like:
            assert num_differing(candidate.plan, other.plan) <= 1
            assert other.num_folded == 0
    assert sum(candidate.num_folded for candidate in file.candidates) + len(shown(file)) == len(file.candidates)


def test_as_many_lines_are_shown_as_asked_for_and_usual_plans_beside_them(file):
    lines = shown(file)
    assert sum("[" not in c.verdict for c in lines) <= TOP <= len(lines)
    text = io.StringIO()
    show(file, Console(file=text, width=400), None)
    table = [line for line in text.getvalue().splitlines() if re.match(r" *\d+  \S", line)]
    assert [int(line.split()[0]) for line in table] == [candidate.rank for candidate in lines]
    for line, candidate in zip(table, lines, strict=True):
        assert (f"{candidate.num_folded} like it within" in line) == (candidate.num_folded > 0)
        assert candidate.plan.id in line


PLAIN = Plan(data_parallel=8, micro_batch_size=2, num_microbatches=8, zero_stage=3)
PIPED = Plan(
    data_parallel=2, tensor_parallel=2, pipeline_parallel=2, stage_bounds=(0, 5), schedule="1f1b", num_microbatches=8
)


@pytest.mark.parametrize(
    ("plan", "changes", "expected"),
    [
        (PLAIN, {}, 0),
        (PLAIN, {"micro_batch_size": 4, "num_microbatches": 4}, 1),
        (PLAIN, {"zero_stage": 2}, 1),
        (PLAIN, {"shard_degree": 4}, 1),
        # As many tokens on a rank as before.
        (PLAIN, {"data_parallel": 4, "context_parallel": 2, "micro_batch_size": 4}, 1),
        (PLAIN, {"data_parallel": 4, "context_parallel": 2, "num_microbatches": 16}, 2),
        (PLAIN, {"data_parallel": 4, "tensor_parallel": 2, "sequence_parallel": True, "num_microbatches": 16}, 1),
        (PLAIN, {"recompute": "full", "recompute_layers": (3,)}, 1),
        (replace(PLAIN, recompute="full"), {"recompute_layers": (3,)}, 0),
        (PLAIN, {"recompute": "full", "zero_stage": 1}, 2),
        (PIPED, {"schedule": "gpipe"}, 1),
        (PIPED, {"schedule": "interleaved-1f1b", "virtual_stages": 2, "stage_bounds": (0, 2, 5, 7)}, 1),
        (PIPED, {"sequence_parallel": True}, 1),
        (PIPED, {"data_parallel": 4, "pipeline_parallel": 1, "schedule": "none", "stage_bounds": (0,)}, 1),
    ],
)
def test_choices_count_and_their_consequences_do_not(plan, changes, expected):
    other = replace(plan, **changes)
    assert num_differing(plan, other) == num_differing(other, plan) == expected

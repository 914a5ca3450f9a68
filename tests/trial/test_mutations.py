"""Valid files changed at random: whatever stands in them, a command refuses them in a sentence or takes them."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trial.case import BAD_INPUT, GOOD, NO_PLAN, Case, Content
from tests.trial.configs import PLAN
from tests.trial.material import CONFIGS, data_of, own, raw, written
from tests.trial.own_files import READERS
from tests.trial.runner import check

CODES = (GOOD, BAD_INPUT, NO_PLAN)
# Numbers that break what is computed with them, more often than those that hypothesis finds by itself.
NUMBERS = st.sampled_from(
    [0, -1, 1, 3, 1.5, -0.0, 1e-320, 1e308, 10**30, 2**63, raw("1e999"), raw("NaN"), raw("-Infinity")]
)
# Lists and objects are new at every draw: one that is shared could be put inside itself.
VALUES = st.one_of(
    NUMBERS, st.integers(), st.floats(), st.none(), st.booleans(), st.text(max_size=20), st.builds(list),
    st.builds(dict), st.lists(st.integers(), max_size=3),
    st.dictionaries(st.text(max_size=5), st.integers(), max_size=2),
)  # fmt: skip


def leaves(data: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of everything in parsed JSON."""
    inside = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [at, *(path for key, value in inside for path in leaves(value, (*at, key)))]


def mutated(draw: st.DrawFn, data: Any) -> str:
    """The text of a deep copy of `data` in which one to three things were replaced, removed, added or cut off."""
    copy = json.loads(json.dumps(data))
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(leaves(copy)))
        place, last = copy, None
        for key in path:
            outer, place, last = place, place[key], key
        how = draw(st.sampled_from(["replace", "remove", "add"]))
        if not path or (how == "add" and not isinstance(place, dict | list)):
            continue
        if how == "replace":
            outer[last] = draw(VALUES)
        elif how == "remove":
            del outer[last]
        elif isinstance(place, dict):
            place[draw(st.text(max_size=8))] = draw(VALUES)
        else:
            place.append(draw(VALUES))
    text = written(copy)
    return text[: draw(st.integers(0, len(text)))] if draw(st.integers(0, 9)) == 0 else text


@st.composite
def configurations(draw: st.DrawFn) -> str:
    """A config.json of any family, damaged."""
    return mutated(draw, CONFIGS[draw(st.sampled_from(sorted(CONFIGS)))])


@st.composite
def files_of(draw: st.DrawFn, kind: str) -> str:
    """A file of ours, damaged."""
    return mutated(draw, data_of(kind))


def try_out(command: Any, arguments: Any, files: dict[str, Content]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        check(
            Case(name="at random", command=command, arguments=arguments, files=files, code=CODES, seconds=20),
            Path(folder),
        )


@settings(max_examples=60)
@given(text=configurations())
def test_a_damaged_configuration_is_refused_or_taken(text: str) -> None:
    try_out("plan", ("--model", "config.json", *PLAN), {"config.json": text})


@pytest.mark.parametrize("kind", ["machine", "model", "plan", "run"])
def test_a_damaged_file_is_refused_or_taken(kind: str) -> None:
    command, arguments = READERS[kind]

    @settings(max_examples=30)
    @given(text=files_of(kind))
    def try_one(text: str) -> None:
        try_out(command, arguments, {f"{kind}.json": text, "good/machine.json": own("machine")})

    try_one()

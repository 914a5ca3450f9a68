"""What holds of every outcome, whatever the input: one sentence, the right code, nothing half said or left behind."""

from __future__ import annotations

import json
import re
from collections.abc import Set
from typing import NoReturn

from tests.trial.case import GOOD, NO_PLAN, TOLERANCE, Case, Outcome

LONGEST_SENTENCE, LONGEST_WITH_LISTS = 300, 1500
LISTS = re.compile(r"known|it has|such as|counts|Possible options|nearest", re.IGNORECASE)
SENTENCE = re.compile(r"^error: (?P<sentence>.*)", re.IGNORECASE | re.MULTILINE | re.DOTALL)
TRACEBACK = re.compile(r"Traceback|^\s+File \"", re.MULTILINE)
PYTHON = re.compile(r"\b[A-Z][A-Za-z]*(Error|Exception|Warning|Interrupt)\b|\[Errno|<class '|object has no attribute")
# What a trace took is kept for the next command, whatever comes of this one.
KEPT = re.compile(r"home/traces/\w+\.json")
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def complaints(case: Case, outcome: Outcome, before: Set[str], after: Set[str]) -> list[str]:
    """Everything that is wrong with an outcome; empty where it is as it must be."""
    wrong = []
    if outcome.escaped:
        wrong.append(f"an exception reached the top: {outcome.escaped}")
    elif outcome.code not in case.codes:
        how = "the work began, " if outcome.started else ""
        wrong.append(f"{how}exit code {outcome.code} in place of {' or '.join(map(str, case.codes))}")
    if case.stderr == "kept":
        wrong += _of_texts(case, outcome)
    if outcome.code not in (GOOD, TOLERANCE) and "--json" in case.arguments and outcome.out:
        wrong.append("there is text on standard output beside a failure")
    if outcome.code == GOOD and case.stdout == "kept" and not outcome.started:
        wrong += _of_json(case, outcome)
    wrong += _of_files(case, outcome, before, after)
    return wrong


def _of_texts(case: Case, outcome: Outcome) -> list[str]:
    wrong = []
    said = outcome.out + outcome.err
    if TRACEBACK.search(outcome.err):
        wrong.append("a traceback was printed")
    elif not case.quotes_exceptions and (found := PYTHON.search(outcome.err)):
        wrong.append(f"{found[0]} is a word of Python, not of its user")
    if CONTROL.search(said):
        wrong.append("control characters reach the terminal")
    count = len(re.findall(r"^error: ", outcome.err, re.IGNORECASE | re.MULTILINE))
    if outcome.code == GOOD:
        if count:
            wrong.append("there is an error, but exit code 0")
    elif not outcome.escaped:
        if count != 1:
            wrong.append(f"{count} sentences begin with 'error: '")
        wrong += _of_sentence(outcome)
    where = said if outcome.code == GOOD else outcome.err
    if not outcome.started and not re.search(case.words, " ".join(where.split()), re.IGNORECASE):
        wrong.append(f"'{case.words}' is not said")
    return wrong


def _of_sentence(outcome: Outcome) -> list[str]:
    found = SENTENCE.search(outcome.err)
    if found is None:
        return []
    sentence = found["sentence"].strip()
    longest = LONGEST_WITH_LISTS if LISTS.search(sentence) or outcome.code == NO_PLAN else LONGEST_SENTENCE
    wrong = [f"the sentence has {len(sentence)} characters"] if len(sentence) > longest else []
    return [*wrong, "the sentence has several lines"] if "\n" in sentence else wrong


def _of_json(case: Case, outcome: Outcome) -> list[str]:
    if "--json" not in case.arguments:
        return []

    def refuse(word: str) -> NoReturn:
        raise ValueError(f"{word} is no JSON")

    try:
        json.loads(outcome.out, parse_constant=refuse)
    except ValueError as error:
        return [f"standard output is not one JSON text: {error}"]
    return []


def _of_files(case: Case, outcome: Outcome, before: Set[str], after: Set[str]) -> list[str]:
    wrong = [f"{name} is gone" for name in sorted(before - after)]
    new = sorted(after - before)
    if outcome.code != GOOD:
        allowed = case.leaves
        return wrong + [f"{name} is left behind" for name in new if name not in allowed and not KEPT.fullmatch(name)]
    return wrong + [f"{name} is left behind" for name in new if name.rpartition("/")[2].startswith(".")]

"""Files of our own, damaged: machine, model, plan, run, rehearsal and compression."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

from tests.trial.case import ACCEPTED_OR_REFUSED, BAD_INPUT, GOOD, Case, Content
from tests.trial.material import TOO_LARGE, folder, own, own_without, raw, spoilt, symlink_loop

DEEP = 100_000
# How each kind is read: the command, its arguments, and the name of the file that is damaged.
READERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "machine": (
        "plan", ("--model", "llama-26m", "--gpus", "2", "--global-batch", "2", "--machine", "machine.json", "--json"),
    ),
    "model": (
        "plan",
        ("--model", "model.json", "--gpus", "2", "--global-batch", "2", "--machine", "good/machine.json", "--json"),
    ),
    "plan": ("execute", ("plan.json", "--json")),
    "run": ("compare", ("run.json", "--json")),
    "rehearsal": ("compare", ("rehearsal.json", "--json")),
    "compression": ("compare", ("compression.json", "--json")),
}  # fmt: skip
# A text, a whole number and a fraction of every kind, deep within it where there is depth.
FIELDS = {
    "machine": ("name", "links.0.group_size", "links.0.bytes_per_second"),
    "model": ("name", "hidden_size", "layers.fp32.0.num_parameters"),
    "plan": ("model_name", "candidates.0.plan.micro_batch_size", "candidates.0.prediction.step_seconds"),
    "run": ("model_name", "runs.0.plan.micro_batch_size", "runs.0.prediction.step_seconds"),
    "rehearsal": ("model_name", "plans.0.plan.data_parallel", "plans.0.ranks.0.rehearsed.peak_bytes"),
    "compression": ("model_name", "results.0.num_parameters", "results.0.latency_seconds"),
}


def of_kind(kind: str, what: str, content: Content, code: Any = BAD_INPUT, words: str | None = None) -> Case:
    """A case that reads one file of a kind."""
    command, arguments = READERS[kind]
    extra: dict[str, Content] = {"good/machine.json": own("machine")} if kind == "model" else {}
    said = re.escape(f"{kind}.json") if words is None else words
    return Case(
        name=f"{kind}: {what}",
        command=command,  # type: ignore[arg-type]
        arguments=arguments,
        files={f"{kind}.json": content, **extra},
        code=code,
        words=said if code == BAD_INPUT else "",
    )


TEXTS: dict[str, Callable[[str], str | bytes]] = {
    "empty": lambda text: "",
    "blank": lambda text: " \n\n",
    "cut off": lambda text: text[: len(text) // 2],
    "no JSON": lambda text: "hello",
    "YAML": lambda text: "artifact: plan\nschema: 1\n",
    "a list": lambda text: f"[{text}]",
    "a text": lambda text: '"plan"',
    "a number": lambda text: "7",
    "null": lambda text: "null",
    "an empty object": lambda text: "{}",
    "two documents": lambda text: text + text,
    "garbage behind": lambda text: text + "}",
    "comments": lambda text: "// mine\n" + text,
    "single quotes": lambda text: text.replace('"', "'"),
    "zero bytes": lambda text: b"\0" * 100,
    "binary": lambda text: bytes(range(256)),
    "in UTF-16": lambda text: text.encode("utf-16"),
    "no UTF-8 in a name": lambda text: text.encode().replace(b'"llama-26m"', b'"\xff\xfe"').replace(b'"round"',
        b'"\xff"')
    .replace(b'"tiny-llama"', b'"\xff"').replace(b'"gpt-25m"', b'"\xff"'),
    "lists 100,000 deep": lambda text: "[" * DEEP + "]" * DEEP,
    "objects 100,000 deep": lambda text: '{"a":' * DEEP + "1" + "}" * DEEP,
    "deep inside": lambda text: text.rstrip()[:-1] + ', "extra": ' + "[" * DEEP + "]" * DEEP + "}",
}  # fmt: skip
HEADS: dict[str, dict[str, Any]] = {
    "another artifact": {"artifact": "nonsense"},
    "artifact null": {"artifact": None},
    "artifact a list": {"artifact": ["plan"]},
    "schema of tomorrow": {"schema": 99},
    "schema a text": {"schema": "1"},
    "schema null": {"schema": None},
}
# What is wrong for a whole number and for a fraction alike.
NUMBERS: dict[str, Any] = {
    "a text": "4", "null": None, "true": True, "a list": [4], "an object": {}, "NaN": math.nan, "Infinity": math.inf,
    "-Infinity": -math.inf, "1e999": raw(TOO_LARGE), "5,000 digits": raw("1" * 5000), "negative": -4,
}  # fmt: skip


def _generic(kind: str) -> Iterator[Case]:
    yield of_kind(kind, "a folder", folder)
    yield of_kind(kind, "a link to itself", symlink_loop)
    command, arguments = READERS[kind]
    extra: dict[str, Content] = {"good/machine.json": own("machine")} if kind == "model" else {}
    yield Case(name=f"{kind}: missing", command=command, arguments=arguments, files=extra, words=f"{kind}.json")  # type: ignore[arg-type]
    for what, change in TEXTS.items():
        yield of_kind(kind, what, spoilt(kind, change))
    for what, head in HEADS.items():
        ((name, value),) = head.items()
        # A model file that is none of ours is taken for a configuration.
        yield of_kind(kind, what, own(kind, name, value))
    yield of_kind(kind, "no artifact", own_without(kind, "artifact"))
    yield of_kind(kind, "no schema", own_without(kind, "schema"))
    yield of_kind(kind, "an unknown key", own(kind, "colour", "red"), words="colour")
    word, whole, fraction = FIELDS[kind]
    for what, value in (("7", 7), ("null", None), ("a list", ["a"])):
        yield of_kind(kind, f"{word} is {what}", own(kind, word, value), words=word)
    for path in (whole, fraction):
        last = path.rpartition(".")[2]
        yield of_kind(kind, f"no {last}", own_without(kind, path), _if_optional(path), words=last)
        for what, value in NUMBERS.items():
            # A number of so many digits is refused before it is known of which field it is.
            words = f"digits|{last}" if what == "5,000 digits" else last
            yield of_kind(kind, f"{last} is {what}", own(kind, path, value), words=words)
    yield of_kind(kind, f"{whole} is 1.5", own(kind, whole, 1.5), words=whole.rpartition(".")[2])
    yield from _accepted(kind, word)


def _if_optional(path: str) -> Any:
    """Degrees and sizes of a plan may be left out, where they are 1."""
    return ACCEPTED_OR_REFUSED if ".plan." in path else BAD_INPUT


def _accepted(kind: str, name: str) -> Iterator[Case]:
    """Odd, but right, or at least told."""
    odd = {
        "beyond ASCII": "模型 é ü", "a quote": "it's \"quoted\"", "markup": "[bold red]x[/bold red]",
        "HTML": "<script>x</script>",
        "a path": "../../../etc/passwd", "100,000 characters": "x" * 100_000, "half a character": raw('"\\ud800"'),
        "an escape sequence": "\x1b[31mred\x1b]0;title\x07\x9b5m", "line breaks": "one\ntwo\r\nerror: three",
        "a zero": "a\0b",
        "right to left": "\u202etxt.exe", "empty": "",
    }  # fmt: skip
    for what, value in odd.items():
        yield of_kind(kind, f"{name} is {what}", own(kind, name, value), ACCEPTED_OR_REFUSED)
    yield of_kind(kind, "a byte order mark", spoilt(kind, lambda text: "\ufeff" + text), ACCEPTED_OR_REFUSED)
    yield of_kind(kind, "Windows line ends", spoilt(kind, lambda text: text.replace("\n", "\r\n")), GOOD)
    yield of_kind(kind, "duplicate keys", spoilt(kind, _twice), ACCEPTED_OR_REFUSED)
    yield of_kind(kind, "as it should be", own(kind), GOOD)


def _twice(text: str) -> str:
    first = json.loads(text)["artifact"]
    return text.replace("{", f'{{"artifact": "nonsense", "artifact": {json.dumps(first)}, ', 1)


CASES = tuple(case for kind in READERS for case in _generic(kind))

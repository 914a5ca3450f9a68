"""Modules of the user's own that fail in every way, and files that name one."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.trial.case import ACCEPTED_OR_REFUSED, BAD_INPUT, ENVIRONMENT, GOOD, INTERRUPTED, Case, Content, Outcome
from tests.trial.material import changed, own, spoilt

# A module that works, as lines in which a case changes one.
GOOD_MODEL = """
import torch
from torch import nn

class Model(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Embedding(256, 32), nn.Linear(32, 32), nn.Linear(32, 256))
        self.vocab_size = 256
{attributes}

{methods}

def f():
    return Model()
"""
SCREAM = "\\x1b[31m" + "very long " * 10_000
RAISED = {
    "Exception('no')": "no", "KeyError('colour')": "colour", "AssertionError()": "",
    "ValueError('one\\ntwo\\nthree')": "one",
    "RuntimeError('no GPU')": "no GPU", "TypeError('x')": "x", "NotImplementedError": "", "OSError(2, 'gone')": "gone",
    "StopIteration": "",
    "ZeroDivisionError": "", "ImportError('lib')": "lib", "UnicodeDecodeError('utf-8', b'x', 0, 1, 'bad')": "bad",
    "GeneratorExit": "",
    "BaseException('base')": "base", "Warning('careful')": "careful", "Unspeakable()": "",
    f"ValueError('{SCREAM}')": "very long",
    "ExceptionGroup('two', [ValueError('a'), KeyError('b')])": "two", "SystemExit(0)": "exit|end",
    "SystemExit('bye')": "bye", "SystemExit(3)": "exit|end",
}  # fmt: skip
UNSPEAKABLE = "class Unspeakable(Exception):\n    def __str__(self):\n        raise ValueError('mute')\n"
# What a module is on disk that cannot be imported.
IMPORTS: dict[str, tuple[str, str]] = {
    "SyntaxError": ("def f(:\n", "mine"),
    "IndentationError": ("def f():\nreturn 1\n", "mine"),
    "an error at import": ("1 / 0\n", "division|mine"),
    "a missing library": ("import no_such_library_anywhere\n", "no_such_library_anywhere"),
    "sys.exit at import": ("import sys\nsys.exit(0)\n", "exit|end"),
    "sys.exit with words at import": ("import sys\nsys.exit('bye')\n", "bye"),
    "zero bytes": ("def f():\0\n", "mine"),
    "nothing": ("", "f"),
    "Latin-1": ("# \u00e9\ndef f():\n    return 'x'\n", "mine|str"),
    "deep nesting": ("x = " + "(" * 5000 + ")" * 5000 + "\n", "mine"),
    "itself": ("import mine\nfrom mine import f\n", "mine"),
    "a lambda that is no factory": ("f = 7\n", "mine|callable"),
    "a generator": ("def f():\n    yield 1\n", "nn.Module"),
    "a coroutine": ("async def f():\n    return 1\n", "nn.Module|coroutine"),
    "a factory that wants something": ("def f(size):\n    return size\n", "size|argument"),
    "recursion without end": ("def f():\n    return f()\n", "recursion|mine"),
}
RETURNS = {
    "None": "nn.Module", "7": "nn.Module", "'model'": "nn.Module", "nn.Linear": "nn.Module",
    "[nn.Linear(2, 2)]": "nn.Module",
    "nn.Sequential()": "mine", "nn.ModuleList([nn.Linear(2, 2)])": "mine|vocab_size",
    "nn.Linear(2, 2)": "vocab_size|Embedding|mine",
    "nn.Sequential(nn.Linear(2, 2))": "vocab_size|Embedding",
    "nn.Sequential(nn.Embedding(0, 4))": "mine|vocab_size|Embedding",
    "lambda: Model()": "nn.Module", "torch.zeros(2)": "nn.Module", "(Model(), Model())": "nn.Module",
}  # fmt: skip
ATTRIBUTES: tuple[tuple[str, str, str], ...] = (
    ("vocab_size", "'many'", "vocab_size"), ("vocab_size", "-1", "vocab_size"),
    ("vocab_size", "float('nan')", "vocab_size"),
    ("vocab_size", "[256]", "vocab_size"), ("vocab_size", "10**30", "vocab_size"), ("vocab_size", "1.5", "vocab_size"),
    ("loss", "7", "loss"), ("loss", "'cross entropy'", "loss"), ("loss", "None", "loss"),
    ("loss", "lambda output: output.sum()", "loss"), ("loss", "lambda output, targets: output", "loss"),
    ("loss", "lambda output, targets: None", "loss"), ("loss", "lambda output, targets: 1.5", "loss"),
    ("loss", "lambda output, targets: 1 / 0", "loss|division"),
    ("tensor_parallel_styles", "7", "tensor_parallel_styles"), ("tensor_parallel_styles", "'colwise'",
        "tensor_parallel_styles"),
    ("tensor_parallel_styles", "{0: 7}", "tensor_parallel_styles"), ("tensor_parallel_styles", "{1: {'': 'diagonal'}}",
        "tensor_parallel_styles|diagonal"),
    ("tensor_parallel_styles", "{99: {'x': 'colwise'}}", "tensor_parallel_styles|99"),
    ("tensor_parallel_styles", "{1: {'nope': 'colwise'}}", "tensor_parallel_styles|nope"),
    ("tensor_parallel_styles", "{'a': {}}", "tensor_parallel_styles"), ("tensor_parallel_styles", "None",
        "tensor_parallel_styles"),
    ("num_heads", "'eight'", "num_heads"), ("num_heads", "0", "num_heads"), ("num_heads", "-8", "num_heads"),
    ("num_heads", "1.5", "num_heads"),
    ("num_kv_heads", "'x'", "num_kv_heads"), ("num_kv_heads", "-1", "num_kv_heads"),
    ("hidden_size", "'x'", "hidden_size"), ("hidden_size", "-1", "hidden_size"),
    ("ffn_size", "'x'", "ffn_size"), ("ffn_size", "-1", "ffn_size"), ("max_sequence_length", "'x'",
        "max_sequence_length"),
    ("max_sequence_length", "-1", "max_sequence_length"), ("max_sequence_length", "float('inf')",
        "max_sequence_length"),
    ("example_input", "7", "example_input"), ("example_input", "lambda batch: batch", "example_input"),
    ("example_input", "lambda batch, sequence: None", "example_input"),
    ("example_input", "lambda batch, sequence: 1 / 0", "example_input|division"),
    ("example_input", "lambda batch, sequence: [1, 2]", "example_input"),
    ("example_input", "lambda batch, sequence: torch.zeros(3)", "example_input|mine"),
)  # fmt: skip
FORWARDS = {
    "raises": ("raise KeyError('colour')", "colour"), "gives None": ("return None", "mine|Layer"),
    "gives a tuple": ("return x, x", "mine|Layer|tuple"),
    "gives a text": ("return 'x'", "mine|Layer"), "exits": ("raise SystemExit(0)", "exit|end"),
    "of wrong shapes": ("return torch.zeros(3) @ torch.zeros(4)", "mine|Layer|shape|size"),
    "looks at values": ("return x if x.float().sum() > 0 else None", "mine|Layer"),
}  # fmt: skip
LAYER = """
class Layer(nn.Linear):
    def forward(self, x):
        {line}

def f():
    return nn.Sequential(nn.Embedding(256, 32), Layer(32, 32), nn.Linear(32, 256))
"""
NAMES = {
    ":f": "module:factory", "mine:": "mine", "..:f": "module:factory|mine|..", "mine:g": "g", "mine:f:g": "mine",
    "nope:f": "nope", "mine.sub:f": "mine",
    "mine:f()": "mine", "mine.py:f": "mine", "mine f:f": "mine", "/mine:f": "mine", "::": "module:factory",
    "mine:__doc__": "mine", "mine:1": "mine", ".mine:f": "mine|relative",
    "mine;os:f": "mine", "mine:f.g": "mine", "mine:\x1b[31m": "mine", "\u00e9:f": "module|\u00e9",
        "x" * 10_000 + ":f": "x", "mine:" + "x" * 10_000: "mine",
}  # fmt: skip


def _trace(
    name: str, text: str | None, words: str, code: Any = BAD_INPUT, factory: str = "mine:f", **fields: Any
) -> Case:
    files: dict[str, Content] = {} if text is None else {"mine.py": text}
    return Case(
        name=f"factory: {name}", command="profile", arguments=("model", factory, "--json"),
        files=files, code=code, words=words,
        quotes_exceptions=True, **fields,
    )  # fmt: skip


def _model(attributes: str = "", methods: str = "") -> str:
    return GOOD_MODEL.format(attributes=attributes, methods=methods)


def _failing() -> Iterator[Case]:
    for raised, words in RAISED.items():
        text = f"{UNSPEAKABLE}\ndef f():\n    raise {raised}\n"
        yield _trace(f"raises {raised[:30]}", text, words)
    yield _trace("raises KeyboardInterrupt", "def f():\n    raise KeyboardInterrupt\n", "", (BAD_INPUT, INTERRUPTED))
    yield _trace("raises MemoryError", "def f():\n    raise MemoryError\n", "memory", (BAD_INPUT, ENVIRONMENT))
    for what, (text, words) in IMPORTS.items():
        yield _trace(f"whose module has {what}", text, words)
    for returned, words in RETURNS.items():
        yield _trace(f"gives {returned}", _model() + f"\ndef f():\n    return {returned}\n", words)
    for name, value, words in ATTRIBUTES:
        yield _trace(f"{name}={value}", _model(attributes=f"        self.{name} = {value}"), words)
    for what, (line, words) in FORWARDS.items():
        yield _trace(f"whose layer {what}", _model() + LAYER.format(line=line), words)
    for factory, words in NAMES.items():
        yield _trace(f"called {factory[:20]!r}", _model(), words, factory=factory)
    yield _trace("of a folder that is not there", None, "mine")
    for what, text in (
        ("os._exit in it", "import os\ndef f():\n    os._exit(0)\n"),
        ("os._exit at import", "import os\nos._exit(0)\n"),
    ):
        yield _trace(what, text, "mine", alone=True, beyond_us="nothing can be said by a process that is gone")


def _right() -> Iterator[Case]:
    yield _trace("as it should be", _model(), "", GOOD)
    for what, text in (
        ("prints when it is imported", "print('hello')\n" + _model()),
        ("prints", _model() + "\ndef f():\n    print('hello')\n    return Model()\n"),
        ("prints in forward", _model() + LAYER.format(line="print('hello'); return super().forward(x)")),
        ("writes to sys.stdout", "import sys\nsys.stdout.write('hello\\n')\n" + _model()),
        ("logs", "import logging\nlogging.getLogger('mine').info('hello')\n" + _model()),
    ):
        yield _trace(f"that {what}", text, "", GOOD)
    text = "import os\nos.write(1, b'hello\\n')\n" + _model()
    yield _trace("that writes to the descriptor", text, "", GOOD, alone=True, slow=True)
    text = "import sys\nsys.__stdout__.write('hello\\n')\n" + _model()
    yield _trace("that writes to Python's own stream", text, "", GOOD, alone=True, slow=True)


def _planned() -> Iterator[Case]:
    machine: dict[str, Content] = {"machine.json": own("machine")}
    sizes = ("--gpus", "2", "--global-batch", "2", "--json")
    for where, arguments, files in (
        ("a machine", ("--machine", "machine.json"), machine),
        ("a device", ("--device", "h100-sxm"), {}),
    ):
        for what, text, words in (
            ("raises", "def f():\n    raise KeyError('colour')\n", "colour"),
            ("exits", "import sys\nsys.exit(0)\n", "exit|end"),
            ("is misspelt", "def f(:\n", "mine"),
        ):
            yield Case(
                name=f"factory: planned for {where}, {what}", command="plan", words=words,
                arguments=("--model", "mine:f", *arguments, *sizes), files={"mine.py": text, **files},
                quotes_exceptions=True,
            )  # fmt: skip


# A module that leaves a trace when it is imported.
TELLTALE = "open('imported', 'w').close()\n" + _model()


def _named(text: str) -> str:
    return json.dumps(
        changed(json.loads(text), "workload", {"kind": "module", "name": "f", "config": {}, "factory": "mine:f"})
    )


def _not_imported(folder: Path, outcome: Outcome) -> None:
    assert not (folder / "imported").exists()


def _files() -> Iterator[Case]:
    files: dict[str, Content] = {"mine.py": TELLTALE, "plan.json": spoilt("plan", _named)}
    for arguments in ((), ("--rehearse",), ("--compress",), ("--oversubscribe",)):
        yield Case(
            name=f"plan file with a module, {' '.join(arguments) or 'executed'}", command="execute",
            words="--trust-module|compressed",
            arguments=("plan.json", *arguments, "--json"), files=files, after=_not_imported,
        )  # fmt: skip
    for kind in ("torchrun", "slurm", "kubeflow"):
        yield Case(
            name=f"plan file with a module, --emit {kind}", command="execute", words="", code=ACCEPTED_OR_REFUSED,
            arguments=("plan.json", "--emit", kind), files=files, after=_not_imported,
        )  # fmt: skip
    for factory in (
        "os:abort",
        "os:_exit",
        "mine:f:g",
        "",
        ":f",
        "..:f",
        "mine;x:f",
        "\x1b[31m:f",
        "x" * 10_000 + ":f",
        "this:f",
    ):
        yield Case(
            name=f"plan file with the module {factory[:12]!r}", command="execute", words="factory|trust-module|module",
            arguments=("plan.json", "--json"),
            files={"plan.json": own("plan", "workload", {"kind": "module", "name": "f", "config": {},
                "factory": factory})},
            # Were it called, this process would end.
            alone=factory.startswith("os:"),
        )  # fmt: skip
    trusting = ("plan.json", "--trust-module", "mine", "--json")
    yield Case(
        name="plan file with a module that is trusted", command="execute", arguments=trusting, files=files, code=GOOD
    )
    yield Case(
        name="plan file with a module, another trusted", command="execute", arguments=("plan.json", "--trust-module",
            "other", "--json"),
        files=files, words="--trust-module", after=_not_imported,
    )  # fmt: skip
    failing = {**files, "mine.py": "def f():\n    raise KeyError('colour')\n"}
    yield Case(
        name="plan file with a module that is trusted and fails",
        command="execute",
        arguments=trusting,
        files=failing,
        words="colour",
        quotes_exceptions=True,
    )
    for kind in ("run", "rehearsal", "compression"):
        yield Case(
            name=f"{kind} file with a module", command="compare", arguments=(f"{kind}.json", "--json"),
            code=GOOD, after=_not_imported,
            files={"mine.py": TELLTALE, f"{kind}.json": spoilt(kind, _named)},
        )  # fmt: skip
    model: dict[str, Content] = {
        "mine.py": TELLTALE,
        "model.json": spoilt("model", _named),
        "machine.json": own("machine"),
    }
    sizes: Sequence[str] = (
        "--model",
        "model.json",
        "--gpus",
        "2",
        "--global-batch",
        "2",
        "--sequence-length",
        "64",
        "--machine",
        "machine.json",
        "--json",
    )
    yield Case(
        name="model file with a module", command="plan", arguments=sizes, files=model, code=GOOD, after=_not_imported
    )
    yield Case(
        name="model file with a module, in another precision", command="plan", arguments=(*sizes, "--precision",
            "fp8"), files=model,
        words="--trust-module", after=_not_imported,
    )  # fmt: skip


CASES = (*_failing(), *_right(), *_planned(), *_files())

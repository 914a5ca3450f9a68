"""Places that cannot be written, streams that take nothing, and what must be left as it was."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tests.trial.case import BAD_INPUT, ENVIRONMENT, GOOD, Case, Content, Outcome
from tests.trial.material import device, fifo, folder, own, row, symlink_loop, table

BASE = ("--model", "llama-26m", "--gpus", "1", "--global-batch", "1", "--sequence-length", "64", "--device", "h100-sxm")
RUN: dict[str, Content] = {"run.json": own("run")}
PLAN: dict[str, Content] = {"plan.json": own("plan")}
# Who writes: the command, its arguments before the place, the files it reads, and how the place ends.
WRITERS: dict[str, tuple[str, Sequence[str], dict[str, Content], str]] = {
    "plan -o": ("plan", (*BASE, "-o"), {}, "out.json"),
    "plan --all CSV": ("plan", (*BASE, "--all"), {}, "out.csv"),
    "plan --all Parquet": ("plan", (*BASE, "--all"), {}, "out.parquet"),
    "plan --trace": ("plan", (*BASE, "--trace"), {}, "out.json"),
    "profile model -o": ("profile", ("model", "gpt2-small", "-o"), {}, "out.json"),
    "compare -o": ("compare", ("run.json", "-o"), RUN, "out.html"),
    "compare of a table -o": ("compare", ("runs.csv", "-o"), {"runs.csv": table(row())}, "out.html"),
    "compare of a rehearsal -o": ("compare", ("r.json", "-o"), {"r.json": own("rehearsal")}, "out.html"),
    "compare of a compression -o": ("compare", ("c.json", "-o"), {"c.json": own("compression")}, "out.html"),
    "execute --emit -o": ("execute", ("plan.json", "--emit", "torchrun", "-o"), PLAN, "out.sh"),
}  # fmt: skip
# Those that work for long: the place must be tried before.
TRIED: dict[str, tuple[str, Sequence[str], dict[str, Content], str]] = {
    "execute -o": ("execute", ("plan.json", "-o"), PLAN, "out.json"),
    "execute --rehearse -o": ("execute", ("plan.json", "--rehearse", "-o"), PLAN, "out.json"),
    "execute --runs": ("execute", ("plan.json", "--runs"), PLAN, "runs"),
    "execute --checkpoint": ("execute", ("plan.json", "--checkpoint"), PLAN, "checkpoints"),
    "execute --trace": ("execute", ("plan.json", "--trace"), PLAN, "traces"),
    "profile machine -o": ("profile", ("machine", "-o"), {}, "out.json"),
}  # fmt: skip
FOLDERS = ("execute --runs", "execute --checkpoint", "execute --trace")


def _writes(
    who: str, what: str, place: str, files: dict[str, Content], code: Any, words: str = "write", **fields: Any
) -> Case:
    command, arguments, own_files, _ = (WRITERS | TRIED)[who]
    # Tracing a model takes a second of its own.
    return Case(
        name=f"output: {who} {what}", command=command, arguments=(*arguments, place),
        files=own_files | files,  # type: ignore[arg-type]
        code=code, words=words, **fields,
    )  # fmt: skip


def _keeps(name: str, content: str) -> Any:
    def check(place: Path, outcome: Outcome) -> None:
        assert (place / name).read_text(encoding="utf-8") == content, f"{name} is not as it was"

    return check


def _is_still(name: str, kind: Any) -> Any:
    def check(place: Path, outcome: Outcome) -> None:
        assert kind(os.lstat(place / name).st_mode), f"{name} was replaced"

    return check


def _permissions(name: str) -> Any:
    def check(place: Path, outcome: Outcome) -> None:
        umask = os.umask(0)
        os.umask(umask)
        mode = stat.S_IMODE((place / name).stat().st_mode)
        assert mode == 0o666 & ~umask, f"{name} has the permissions {mode:o}"

    return check


def _is_read_through(name: str) -> Any:
    def check(place: Path, outcome: Outcome) -> None:
        assert (place / name).stat().st_size > 10, f"{name} was not written"

    return check


def _places() -> Iterator[Case]:
    for who, (_, _, _, name) in (WRITERS | TRIED).items():
        suffix = Path(name).suffix
        yield _writes(who, "below a file", f"file/{name}", {"file": "x"}, ENVIRONMENT)
        yield _writes(who, "where nothing can be made", f"/proc/none/{name}", {}, ENVIRONMENT)
        yield _writes(who, "under a name that is too long", f"{'x' * 300}{suffix}", {}, (BAD_INPUT, ENVIRONMENT), "")
        yield _writes(
            who, "under a name of 100,000 characters", f"{'x' * 100_000}{suffix}", {}, (BAD_INPUT, ENVIRONMENT), ""
        )
        yield _writes(
            who, "below a link to itself", f"loop/{name}", {"loop": symlink_loop}, (BAD_INPUT, ENVIRONMENT), ""
        )
        if who in FOLDERS:
            yield _writes(who, "that is a file", "file", {"file": "x"}, (BAD_INPUT, ENVIRONMENT), "file")
            continue
        yield _writes(who, "that is a folder", name, {name: folder}, (BAD_INPUT, ENVIRONMENT), "folder|directory|write")
        yield _writes(who, "that is nothing", "", {}, (BAD_INPUT, ENVIRONMENT), "")


def _written() -> Iterator[Case]:
    for who, (command, _, _, name) in WRITERS.items():
        if name.endswith(".parquet") and find_spec("pyarrow") is None:
            yield _writes(who, "without pyarrow", name, {}, ENVIRONMENT, "pyarrow")
            continue
        if who != "plan --all Parquet":
            # A file that may have ten bytes is a disk that is full.
            yield _writes(who, "on a full disk", name, {}, ENVIRONMENT, largest_file=10)
        else:
            yield _writes(who, "on a full disk", name, {}, ENVIRONMENT, largest_file=1000)
        slow = {"slow": True} if who in ("compare of a table -o", "profile model -o") else {}
        yield _writes(
            who,
            "on a full disk, over a file",
            name,
            {name: "old"},
            ENVIRONMENT,
            largest_file=10,
            after=_keeps(name, "old"),
            **slow,
        )
        yield _writes(who, "over a file", name, {name: "old"}, GOOD, "", after=_permissions(name), **slow)
        yield _writes(
            who, "in a new folder", f"new/folder/{name}", {}, GOOD, "", after=_permissions(f"new/folder/{name}"), **slow
        )
        yield _writes(
            who,
            "over a link",
            name,
            {name: _link("target"), "target": "old"},
            GOOD,
            "",
            after=_is_read_through(name),
            **slow,
        )
        if os.geteuid() == 0:
            yield _writes(
                who,
                "on a device that takes all",
                name,
                {name: device(3)},
                GOOD,
                "",
                after=_is_still(name, stat.S_ISCHR),
                **slow,
            )
            yield _writes(
                who,
                "on a device that is full",
                name,
                {name: device(7)},
                ENVIRONMENT,
                after=_is_still(name, stat.S_ISCHR),
                **slow,
            )
        if command == "plan":
            yield _writes(who, "into a pipe", name, {name: fifo}, GOOD, "", after=_is_still(name, stat.S_ISFIFO))


def _link(target: str) -> Any:
    return lambda path: path.symlink_to(target)


def _streams() -> Iterator[Case]:
    commands: dict[str, tuple[str, Sequence[str], dict[str, Content]]] = {
        "plan": ("plan", BASE, {}),
        "plan --json": ("plan", (*BASE, "--json"), {}),
        "compare": ("compare", ("run.json",), RUN),
        "compare --json": ("compare", ("run.json", "--json"), RUN),
        "compare of a table --json": ("compare", ("runs.csv", "--json"), {"runs.csv": table(row())}),
        "execute --emit": ("execute", ("plan.json", "--emit", "torchrun"), PLAN),
        "profile model --json": ("profile", ("model", "gpt2-small", "--json"), {}),
    }
    for who, (command, arguments, files) in commands.items():
        for kind, code, words in (
            ("full", ENVIRONMENT, "output|write|space"), ("closed", (GOOD, ENVIRONMENT), ""),
            ("gone", (GOOD, ENVIRONMENT), ""),
            ("ascii", GOOD, ""),
        ):  # fmt: skip
            yield Case(
                name=f"stream: {who} to a standard output that is {kind}", command=command, arguments=arguments,
                files=files,  # type: ignore[arg-type]
                stdout=kind, code=code, words=words,  # type: ignore[arg-type]
            )  # fmt: skip
    for kind in ("full", "closed", "gone", "ascii"):
        yield Case(
            name=f"stream: a sentence to a standard error that is {kind}", command="plan", arguments=("--model",
                "nonsens\u00e9", *BASE[2:]),
            stderr=kind, code=BAD_INPUT, alone=kind != "ascii",  # type: ignore[arg-type]
        )  # fmt: skip
    for kind, code in (("full", ENVIRONMENT), ("closed", (GOOD, ENVIRONMENT)), ("gone", (GOOD, ENVIRONMENT))):
        for who in ("plan", "plan --json"):
            command, arguments, files = commands[who]
            yield Case(
                name=f"stream: a process of {who}, standard output {kind}", command=command, arguments=arguments,
                alone=True,  # type: ignore[arg-type]
                stdout=kind, code=code, slow=who == "plan",  # type: ignore[arg-type]
            )  # fmt: skip


CASES = (*_places(), *_written(), *_streams())

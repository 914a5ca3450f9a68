"""Every option of `execute` and `profile` with values that it cannot have, and options that do not go together."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.trial.case import ACCEPTED_OR_REFUSED, BAD_INPUT, ENVIRONMENT, GOOD, Case, Content
from tests.trial.material import VIT_CONFIG, changed, device, folder, own, spoilt

HUGE, LONG = "9" * 23, "1" * 5000
NO_COUNT = ("", "x", "1.5", "-1", "nan", "inf", "0x10", HUGE, LONG, "\u00b2")
COUNTS = {
    "--steps": ("0",), "--warmup": (), "--top": ("0",), "--seed": (), "--gpus-per-node": ("0",),
    "--checkpoint-every": ("0",), "--max-restarts": (), "--rank": (), "--timeout": ("0", "-inf", "1e999", "1e308"),
}  # fmt: skip
# What an option needs beside it to mean something.
BESIDE = {
    "--gpus-per-node": ("--emit", "torchrun"), "--checkpoint-every": ("--checkpoint", "c"),
    "--max-restarts": ("--checkpoint", "c"), "--rank": ("--rehearse",),
}  # fmt: skip
# Options that would be ignored, by the word that the sentence has.
IGNORED: tuple[tuple[Sequence[str], str], ...] = (
    (("--export", "x"), "--compress"),
    (("--compiled",), "--compress"),
    (("--more-steps", "3"), "--compress"),
    (("--rank", "0"), "--rehearse"),
    (("--all-stages",), "--rehearse"),
    (("--gpus-per-node", "2"), "--emit"),
    (("--image", "mine"), "--emit|kubeflow"),
    (("--checkpoint-every", "5"), "--checkpoint"),
    (("--resume",), "--checkpoint"),
    (("--max-restarts", "1"), "--checkpoint"),
    (("--rehearse", "--rank", "0", "--all-stages"), "--all-stages"),
    (("--rehearse", "--steps", "5"), "--steps|--rehearse"),
    (("--rehearse", "--data", "text.txt"), "--data|--rehearse"),
    (("--rehearse", "--checkpoint", "c"), "--checkpoint|--rehearse"),
    (("--rehearse", "--resume"), "--resume|--rehearse"),
    (("--rehearse", "--runs", "runs"), "--runs|--rehearse"),
    (("--rehearse", "--trace", "t"), "--trace|--rehearse"),
    (("--rehearse", "--with-baseline"), "--with-baseline|--rehearse"),
    (("--rehearse", "--compress"), "--compress|--rehearse"),
    (("--rehearse", "--emit", "torchrun"), "--rehearse|--emit"),
    (("--emit", "torchrun", "--compress"), "--compress|--emit"),
    (("--emit", "torchrun", "--rank", "0"), "--rank|--rehearse"),
    (("--emit", "torchrun", "--image", "mine"), "--image|kubeflow"),
    (("--emit", "slurm", "--max-restarts", "1"), "--max-restarts"),
    (("--emit", "nonsense"), "nonsense"),
    (("--emit", ""), "job file|--emit"),
    (("--compress",), "--compress|compressed"),
    (("--compress", "--runs", "runs"), "--runs|compress"),
    (("--compress", "--checkpoint", "c"), "--checkpoint|compress"),
    (("--compress", "--resume"), "--resume|compress|--checkpoint"),
    (("--compress", "--top", "2"), "--top|compress"),
    (("--compress", "--trace", "t"), "--trace|compress"),
    (("--check", "--steps", "5"), "--steps|--check"),
    (("--check", "--rehearse"), "--check|--rehearse"),
    (("--check", "-o", "run.json"), "--output|--check"),
    (("--colour",), "colour"),
    (("extra",), "extra"),
    (("--steps",), "--steps"),
    (("--rehearse", "--rank", "99"), "--rank"),
    (("--rehearse", "--rank", HUGE), "--rank"),
)
# A checkpoint's folder of somebody else.
CHECKPOINTS: dict[str, tuple[dict[str, Content], str]] = {
    "without progress": ({"c/step-00000005/x": "x"}, "step-00000005"),
    "with a broken progress": ({"c/step-00000005/progress.json": "{"}, "step-00000005"),
    "with a progress of nothing": ({"c/step-00000005/progress.json": "{}"}, "step-00000005"),
    "with a list as progress": ({"c/step-00000005/progress.json": "[]"}, "step-00000005"),
    "with deep progress": ({"c/step-00000005/progress.json": "[" * 100_000}, "step-00000005"),
    "with binary progress": ({"c/step-00000005/progress.json": bytes(range(256))}, "step-00000005"),
    "of another model": ({"c/step-00000005/index.json": '{"tensors": {}}',
        "c/step-00000005/progress.json": json.dumps(
        {"step": 5, "model": "x", "seed": 0, "global_batch_size": 8})}, "model"),
    "of a step that is a text": ({"c/step-00000005/progress.json": json.dumps(
        {"step": "5", "model": "x", "seed": 0, "global_batch_size": 8})}, "step"),
    "of a negative step": ({"c/step-00000005/progress.json": json.dumps(
        {"step": -5, "model": "x", "seed": 0, "global_batch_size": 8})}, "step|model"),
    "that is a file": ({"c": "x"}, "c"),
}  # fmt: skip


def _execute(name: str, arguments: Sequence[str], code: Any = BAD_INPUT, words: str = "", **fields: Any) -> Case:
    files = {"plan.json": own("plan")} | fields.pop("files", {})
    return Case(
        name=f"execute {name}",
        command="execute",
        arguments=("plan.json", *arguments),
        code=code,
        words=words,
        files=files,
        **fields,
    )


def _shown(arguments: Sequence[str]) -> str:
    return " ".join(f"{word[:12]}..." if len(word) > 40 else word or "''" for word in arguments)


def _counts() -> Iterator[Case]:
    for option, more in COUNTS.items():
        beside = BESIDE.get(option, ())
        for value in (*NO_COUNT, *more):
            if option == "--timeout" and value == "1.5":
                continue
            is_all = option in ("--top", "--gpus-per-node") and value == HUGE
            code = ACCEPTED_OR_REFUSED if is_all else BAD_INPUT
            output = () if "--emit" in beside else ("--json",)
            yield _execute(_shown((option, value)), (*beside, option, value, *output), code, "" if is_all else option)


def _together() -> Iterator[Case]:
    for arguments, words in IGNORED:
        yield _execute(
            _shown(arguments),
            (*arguments, "--json") if "--emit" not in arguments else arguments,
            words=words,
            files={"text.txt": "x" * 1000},
        )
    yield _execute("--emit --json", ("--emit", "torchrun", "--json"), words="--json|--emit")
    for kind in ("torchrun", "slurm", "kubeflow"):
        image = ("--image", "ours:1") if kind == "kubeflow" else ()
        yield _execute(f"--emit {kind} as it should be", ("--emit", kind, *image), GOOD, "plan.json")
    yield _execute("as it should be", ("--json",), GOOD)
    yield _execute("--rehearse as it should be", ("--rehearse", "--json"), GOOD)
    for what, (files, words) in CHECKPOINTS.items():
        yield _execute(
            f"--checkpoint {what}",
            ("--checkpoint", "c", "--resume", "--json"),
            (BAD_INPUT, ENVIRONMENT),
            words,
            files=files,
        )
    yield _execute(
        "--checkpoint of another run",
        ("--checkpoint", "c", "--json"),
        words="--resume",
        files={"c/step-00000005/progress.json": "{}"},
    )
    wide = spoilt("plan", _of_many)
    yield _execute("more ranks than cores", ("--json",), ENVIRONMENT, "--oversubscribe", files={"plan.json": wide})


def _of_many(text: str) -> str:
    data = changed(json.loads(text), "candidates.0.plan.data_parallel", 4096)
    return json.dumps(data | {"num_devices": 4096, "global_batch_size": 4096 * 4})


def _of_images(text: str) -> str:
    return json.dumps(changed(json.loads(text) | {"sequence_length": 17}, "workload.config", VIT_CONFIG))


def _npz(**arrays: Any) -> Any:
    def write(path: Path) -> None:
        import numpy as np

        buffer = io.BytesIO()
        np.savez(buffer, **{name: np.array(value) for name, value in arrays.items()})
        path.write_bytes(buffer.getvalue())

    return write


def _images(*shape: int, value: float = 0.5) -> Any:
    import numpy as np

    return np.full(shape, value)


def _data() -> Iterator[Case]:
    for what, content, words in (
        ("missing", None, "data"), ("empty", "", "0 bytes|data"), ("short", "short", "5 bytes|data"),
        ("a folder", folder, "data"),
        ("nothing but a device", device(3), "data"),
    ):  # fmt: skip
        files = {} if content is None else {"data": content}
        yield _execute(f"--data {what}", ("--data", "data", "--json"), words=words, files=files)
    yield _execute("--data below a file", ("--data", "text/data", "--json"), words="data", files={"text": "x"})
    yield _execute("--data ''", ("--data", "", "--json"), words="data")
    yield _execute("--data binary", ("--data", "data", "--json"), GOOD, files={"data": bytes(range(256)) * 10})
    yield _execute("--data of 100,000 characters", ("--data", "x" * 100_000, "--json"), words="data")
    good = {"images": _images(4, 8, 8), "labels": [0, 1, 2, 3]}
    for what, content, words in (
        ("a text", "hello", "data.npz"), ("empty", b"", "data.npz"), ("cut off", b"PK\x03\x04", "data.npz"),
        ("a folder", folder, "data.npz"),
        ("without labels", _npz(images=good["images"]), "labels"),
        ("without images", _npz(labels=good["labels"]), "images"),
        ("of other sizes", _npz(images=_images(4, 9, 9), labels=[0, 1, 2, 3]), "images|data.npz"),
        ("of no images", _npz(images=_images(0, 8, 8), labels=[]), "images|data.npz|labels"),
        ("of one dimension", _npz(images=_images(8), labels=[0]), "images|data.npz"),
        ("of fewer labels", _npz(images=good["images"], labels=[0, 1]), "labels"),
        ("of labels too large", _npz(images=good["images"], labels=[0, 1, 2, 10]), "labels"),
        ("of negative labels", _npz(images=good["images"], labels=[0, 1, 2, -1]), "labels"),
        ("of fractional labels", _npz(images=good["images"], labels=[0.5, 1, 2, 3]), "labels"),
        ("of words as labels", _npz(images=good["images"], labels=["a", "b", "c", "d"]), "labels|data.npz"),
        ("of NaN", _npz(images=_images(4, 8, 8, value=float("nan")), labels=[0, 1, 2, 3]), "images|data.npz|number"),
        ("of objects", _npz(images=[{}], labels=[{}]), "data.npz"),
    ):  # fmt: skip
        yield _execute(
            f"--data images {what}", ("--data", "data.npz", "--json"), words=words,
            files={"plan.json": spoilt("plan", _of_images), "data.npz": content},
        )  # fmt: skip


def _plans() -> Iterator[Case]:
    for what, arguments, files, words in (
        ("nothing", (), {}, "plan|Missing"),
        ("a name of 100,000 characters", ("x" * 100_000,), {}, "x"),
        ("an escape sequence", ("\x1b[31m.json",), {}, "json"),
        ("a line break", ("a\nerror: b.json",), {}, "json"),
        ("/dev/null", ("/dev/null",), {}, "null"),
        ("a folder", (".",), {}, "folder|directory"),
        ("two plans", ("a.json", "b.json"), {"a.json": own("plan"), "b.json": own("plan")}, "b.json"),
        ("a run", ("run.json",), {"run.json": own("run")}, "run"),
        ("a machine", ("machine.json",), {"machine.json": own("machine")}, "machine"),
    ):
        yield Case(
            name=f"execute of {what}", command="execute", arguments=(*arguments, "--json"), files=files, words=words
        )


PROFILE: tuple[tuple[Sequence[str], str], ...] = (
    (("nonsense",), "nonsense"), (("model",), "MODEL|model"), (("model", "a.json", "b.json"), "b.json"),
    *((("model", "llama-26m", "--sequence-length", value), "--sequence-length") for value in (*NO_COUNT, "0")),
    (("model", ""), "model"), (("model", "llama-26"), "did you mean 'llama-26m'|llama-26m"), (("model", "x" * 100_000),
        "model|x"), (("model", "\x1b[31m"), "model|module"),
    (("model", "gpt3-175"), "gpt3-175b"), (("model", "--colour", "llama-26m"), "colour"),
    *((("machine", "--gpus", value), "--gpus") for value in (*NO_COUNT, "0", "1000000000")),
    *((("machine", "--sequence-length", value), "--sequence-length") for value in (*NO_COUNT, "0")),
    *((("machine", "--micro-batches", value), "--micro-batches") for value in ("", ",", "x", "0", "-1", "1,", "1,,2",
        "1.5", "nan", HUGE, LONG, "\u00b2", "1;2", "1-4")),
    *((("machine", "--precision", value), "precision") for value in ("", ",", "fp4", "fp32,", "fp32,,bf16",
        "x" * 10_000, "\x1b[31m")),
    *((("machine", "--model", value), "model|x") for value in ("", "llama-26", "x" * 100_000, "no.json")),
    (("machine", "extra"), "extra"), (("machine", "--colour"), "colour"), (("machine", "--gpus"), "--gpus"),
)  # fmt: skip


def _profile() -> Iterator[Case]:
    for arguments, words in PROFILE:
        yield Case(
            name=f"profile {_shown(arguments)}", command="profile", arguments=(*arguments, "--json"), words=words,
            seconds=20,
        )  # fmt: skip
    yield Case(name="profile machine as it should be", command="profile", arguments=("machine", "--json"), code=GOOD)
    yield Case(
        name="profile machine with tf32 on a CPU", command="profile", arguments=("machine", "--precision", "tf32",
            "--json"),
        code=(GOOD, BAD_INPUT, ENVIRONMENT), words="tf32",
    )  # fmt: skip


CASES = (*_counts(), *_together(), *_data(), *_plans(), *_profile())

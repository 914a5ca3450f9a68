"""Every option of `plan` with values that it cannot have, and options that do not go together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from tests.trial.case import ACCEPTED_OR_REFUSED, BAD_INPUT, GOOD, NO_PLAN, Case, Content
from tests.trial.material import folder, own

BASE = ("--model", "llama-26m", "--gpus", "1", "--global-batch", "1", "--sequence-length", "64")
SHIPPED = (*BASE, "--device", "h100-sxm", "--json")
MEASURED = (*BASE, "--machine", "machine.json", "--json")
HUGE, LONG = "9" * 23, "1" * 5000
NO_COUNT = (
    "",
    " ",
    "x",
    "1.5",
    "0",
    "-1",
    "nan",
    "inf",
    "1e3",
    "0x10",
    "1,2",
    "--top",
    HUGE,
    LONG,
    "\u00b2",
    "1000000000000000",
)
NO_AMOUNT = ("", "x", "-1", "nan", "inf", "-inf", "1e999", "1,5", "$2", LONG, "1e308")
# (option, values that are refused, word of the sentence where it is not the option)
TEXTS: tuple[tuple[str, Sequence[str], str], ...] = (
    ("--global-batch", (
        "", " ", "x", "0", "-8", "1.5", "nan", "inf", "8,", ",8", "8,,16", "16-8", "8-", "-", "0-8", "8-0", "8;16",
        "8 16",
        f"1-{HUGE}", HUGE, LONG, "\u00b2", "1-2-3", "8,16-32", "8,0",
    ), ""),
    ("--tokens", ("", " ", "many", "0", "-1T", "nan", "inf", "1X", "1e12", f"{HUGE}T", f"{LONG}T", "1 T T", "T", "0B",
        "\u00b2T"), ""),
    ("--why-not", (
        "tp=0", "tp=-1", "tp=x", "tp", "nope=1", "tp=1.5", "tp=nan", f"tp={HUGE}", f"tp={LONG}", "tp=\u00b2", "tp=",
        "=8", ",", "tp=8,",
        "tp=8;pp=4", "tp=1,tp=2", "dp=0", "pp=0", "cp=0", "ep=0", "zero=9", "zero=-1", "tp==8", "tp=8,pp=0", "shard=0",
        "sp=7", "TP =",
    ), ""),
    ("--precision", ("", ",", "fp4", "bf16,", "bf16,fp4", "BF 16", "bf16;fp8", "x" * 10_000, "\x1b[31m"), "precision"),
    ("--codecs", (
        "", ",", "zip", "bf16,", "topk-0", "topk--1", "topk-101", "topk-nan", "topk-inf", "topk-", "powersgd-0",
        "powersgd-x", "powersgd--1",
        "powersgd-\u00b2", f"powersgd-{HUGE}", "bf16;int8", "x" * 10_000, "powersgd-1.5", "none,zip",
    ), "codec"),
    ("--stack", ("", "nonsense", "megatron", "../fsdp", "x" * 10_000, "\x1b[31m"), "stack"),
    ("--device", ("", "h1oo", "nonsense", "../h100-sxm", "x" * 10_000, "H1OO SXM", "\x1b[31m"), "device|--device"),
    ("--compress", (
        "", ",", "nonsense", "prune-ffn-0", "prune-ffn-100", "prune-ffn-x", "prune-x-50",
        "distil-layers-50-hidden-hidden", "sparse-3:4",
        "auto,nope", "prune-ffn-\u00b2", "prune-ffn--5", "sparse-", "int4-weights", "distil-50", f"prune-ffn-{HUGE}",
        "prune-ffn-1.5", "x" * 10_000,
        "none-hidden", "distil-hidden",
    ), "compress"),
)  # fmt: skip
TARGETS = (
    "size=x",
    "size=-1",
    "size=nan",
    "size=inf",
    "size=0",
    "size=1.5",
    "nope=1",
    "size",
    "size=",
    "=1",
    ",",
    "",
    "size=0.5;latency=1",
)
MODELS = {
    "nothing": ("", "model"), "an unknown name": ("llama-3.1-8", "did you mean 'llama-3.1-8b'"),
    "a missing file": ("no/model.json", "no such file|model.json"),
    "a colon": (":", "module:factory|model"), "a name of 100,000 characters": ("x" * 100_000, "model"),
    "an escape sequence": ("\x1b[31m", "model"),
    "a line break": ("a\nerror: b", "model|module"), "a path": ("../../etc/passwd", "model"),
    "/dev/null": ("/dev/null", "model|null"), "a Hub id": ("meta-llama/Llama-3.1-8B", "model"),
    "a space": (" ", "model"), "another case": ("LLAMA-26M", "llama-26m"), "a table": ("runs.csv", "runs.csv|model"),
    "a plan": ("plan.json", "plan"),
    "the folder itself": (".", "config.json"), "a file of text": ("text.txt", "text.txt"),
}  # fmt: skip
# Of a purchase: values that are refused, beside several counts.
PURCHASES: tuple[tuple[str, Sequence[str]], ...] = (
    ("--gpus", ("1,2,x", "1,,2", "1-", "-2", "2-1", "1;2", f"1,{HUGE}", LONG, "1-2-4", "0,1", "1.5,2", "1-\u00b2")),
    ("--price", ("h1oo=2", "h100-sxm=", "=2", "h100-sxm=x", "h100-sxm=1,h100=2", "1,2", "h100-sxm=nan", "t4=1", "2:1",
        f"h100-sxm={HUGE}", "x" * 10_000, "\x1b[31m=1")),
    ("--spot-price", ("h1oo=2", "h100-sxm=-1", "t4=1", "")),
    ("--device", ("h100-sxm,", ",", "h100-sxm,h1oo", ",h100-sxm", "h100-sxm;t4", "x," * 100)),
    ("--cluster", ("dgx-h100,", "dgx-h100,nonsense", "dgx-h100,dgx-a100:4", "dgx-h100:1,dgx-a100:1,")),
    ("--by", ("", "soon", "2020-01-01", "01.03.2027", "2027-02-30", "9999-12-31", LONG)),
    ("--samples", ("", "x", "0", "-1", "nan", "1e6", f"{HUGE}T")),
    ("--headroom", ("", "5", "0.05", "-1%", "100%", "nan%", "x%", "%", f"{HUGE}%")),
)  # fmt: skip
QUESTIONS = (
    ("--why-not", "tp=1"), ("--sensitivity",), ("--tokens", "1T"), ("--all", "all.csv"), ("--simulate",),
    ("--trace", "t.json"),
    ("--price", "2", "--tokens", "1T"), ("--mtbf", "9", "--tokens", "1T"),
    ("--checkpoint-seconds", "9", "--tokens", "1T"),
    ("--global-batch", "1,2"),
)  # fmt: skip
# Options of which one says the contrary of the other, or that nothing would come of.
CONFLICTS: tuple[tuple[Sequence[str], str], ...] = (
    (("--price", "2"), "--price|--tokens"),
    (("--mtbf", "1000"), "--mtbf|--tokens"),
    (("--checkpoint-seconds", "10"), "--checkpoint-seconds|--tokens"),
    (("--target", "size=0.5"), "--target"),
    (("--machine", "machine.json"), "--machine"),
    (("--cluster", "dgx-a100"), "--cluster|--device"),
    (("--cluster", "dgx-h100:1,dgx-a100:1"), "--device|--gpus"),
    (("--cluster", "nonsense"), "cluster"),
    (("--cluster", ""), "cluster"),
    (("--cluster", "x" * 10_000), "cluster"),
    (("--all", "all.csv", "--precision", "bf16,fp8"), "--all"),
    (("--all", "all.csv", "--codecs", "none,bf16"), "--all"),
    (("--all", "all.csv", "--global-batch", "1,2"), "--all"),
    (("--all", "all.txt"), "--all|all.txt"),
    (("--all", "all"), "--all|all"),
    (("--all", ".csv"), "--all|.csv"),
    (("--colour",), "colour"),
    (("extra",), "extra"),
    (("--gpus",), "--gpus"),
    (("--model",), "--model"),
    (("-o",), "-o|--output"),
    (("--simulate=7",), "simulate"),
    (("--json=yes",), "json"),
    (("--sequence-length", "100000000"), "--sequence-length"),
)


def _plan(name: str, arguments: Sequence[str], code: Any = BAD_INPUT, words: str = "", **fields: Any) -> Case:
    fields.setdefault("seconds", 20)
    return Case(name=f"plan {name}", command="plan", arguments=arguments, code=code, words=words, **fields)


def _shown(value: str) -> str:
    return f"{value[:12]!r}..." if len(value) > 40 else repr(value)


def _numbers() -> Iterator[Case]:
    machine: dict[str, Content] = {"machine.json": own("machine")}
    for base, where, files in ((SHIPPED, "", {}), (MEASURED, "measured, ", machine)):
        for option in ("--gpus", "--sequence-length", "--top"):
            for value in NO_COUNT:
                is_large = option == "--top" and value in (HUGE, "1000000000000000")
                # Counts are compared.
                is_list = option == "--gpus" and value == "1,2"
                code = ACCEPTED_OR_REFUSED if is_large or value == "1e3" else GOOD if is_list else BAD_INPUT
                yield _plan(
                    f"{where}{option} {_shown(value)}",
                    (*base, option, value),
                    code,
                    "" if is_large or is_list else option,
                    files=files,
                )
        yield _plan(
            f"{where}--gpus 1000000000", (*base, "--gpus", "1000000000"), words="--gpus", files=files, seconds=10
        )
    for option in ("--price", "--mtbf", "--checkpoint-seconds", "--days", "--pue", "--host-watts", "--kwh-price",
                   "--grid-grams", "--keep-checkpoints", "--spot-hours"):  # fmt: skip
        may_be_none = option in ("--price", "--host-watts", "--kwh-price", "--grid-grams")
        needed = ("--spot-price", "1") if option == "--spot-hours" else ()
        for value in (*NO_AMOUNT, *(() if may_be_none else ("0",))):
            yield _plan(f"{option} {_shown(value)}", (*SHIPPED, "--tokens", "1T", *needed, option, value), words=option)
    yield _plan("--price 0", (*SHIPPED, "--tokens", "1T", "--price", "0"), ACCEPTED_OR_REFUSED)
    for option, value in (("--price", "2.5"), ("--mtbf", "50700"), ("--checkpoint-seconds", "30")):
        yield _plan(f"{option} {value} as it should be", (*SHIPPED, "--tokens", "1T", option, value), GOOD)


def _texts() -> Iterator[Case]:
    for option, values, words in TEXTS:
        for value in values:
            is_known = (option, value) in (("--compress", ","), ("--why-not", ""), ("--codecs", "none,"))
            code = ACCEPTED_OR_REFUSED if is_known else BAD_INPUT
            base = MEASURED if option == "--compress" else SHIPPED
            files: dict[str, Content] = {"machine.json": own("machine")} if option == "--compress" else {}
            yield _plan(
                f"{option} {_shown(value)}",
                (*base, option, value),
                code,
                "" if is_known else words or option,
                files=files,
            )
    for value in TARGETS:
        yield _plan(
            f"--target {_shown(value)}", (*MEASURED, "--compress", "none", "--target", value), words="--target",
            files={"machine.json": own("machine")},
        )  # fmt: skip
    for what, (value, words) in MODELS.items():
        files = {"runs.csv": "a,b\n", "plan.json": own("plan"), "text.txt": "hello"}
        yield _plan(f"--model {what}", (*SHIPPED, "--model", value), words=words, files=files)
    for option, value in (("--gpus", ()), ("--model", ())):
        left = [word for index, word in enumerate(SHIPPED) if option not in SHIPPED[max(0, index - 1) : index + 1]]
        yield _plan(f"without {option}", (*left, *value), words=option)
    yield _plan("without anything", (), (GOOD, BAD_INPUT), "--model|Usage")


def _purchases() -> Iterator[Case]:
    for option, values in PURCHASES:
        for value in values:
            together = {"--by": ("--tokens", "1T"), "--cluster": ()}.get(option, ())
            base = [word for word in SHIPPED if option != "--cluster" or word not in ("--device", "h100-sxm")]
            yield _plan(
                f"of a purchase, {option} {_shown(value)}",
                (*base, "--gpus", "1,2", *together, option, value),
                words=option.strip("-") if option in ("--device", "--cluster") else f"{option}|device",
            )
    for options, words in (
        (("--why-not", "tp=1"), "--why-not"),
        (("--sensitivity",), "--sensitivity"),
        (("--compress", "none"), "--compress"),
        (("--global-batch", "1,2"), "--global-batch"),
        (("--days", "9"), "--days|--tokens"),
        (("--samples", "1M", "--tokens", "1T"), "--tokens"),
        (("--epochs", "2"), "--epochs"),
        (("--tokens", "1T", "--days", "9", "--by", "2999-01-01"), "--by"),
        (("--rank", "9", "-o", "plan.json"), "--rank"),
        (("--rank", "1"), "--rank"),
    ):
        yield _plan(f"of a purchase, {' '.join(options)}", (*SHIPPED, "--gpus", "1,2", *options), words=words)
    yield _plan(
        "of a purchase that fits nowhere",
        (*SHIPPED, "--gpus", "1,2", "--model", "llama-3.1-70b"),
        NO_PLAN,
        "no row of 2",
    )
    damaged = {"file.json": '{"artifact": "purchase", "schema": 1, "rows": 3}'}
    yield _plan("a purchase that is none", ("--from", "file.json"), words="file.json", files=damaged)


def _together() -> Iterator[Case]:
    for arguments, words in CONFLICTS:
        shown = " ".join(arguments)[:60]
        yield _plan(
            f"beside a device, {shown}", (*SHIPPED, *arguments), words=words, files={"machine.json": own("machine")}
        )
    for arguments in QUESTIONS:
        yield _plan(
            f"on a measured machine, {' '.join(arguments)}",
            (*MEASURED, *arguments),
            GOOD,
            files={"machine.json": own("machine")},
        )
    yield _plan(
        "on a measured machine, other software", (*MEASURED, "--stack", "fsdp"), words="--stack",
        files={"machine.json": own("machine")},
    )  # fmt: skip
    for what, files, words in (
        ("missing", {}, "machine.json"),
        ("a folder", {"machine.json": folder}, "machine.json"),
        ("a plan", {"machine.json": own("plan")}, "machine"),
    ):
        yield _plan(f"--machine {what}", MEASURED, words=words, files=files)
    yield _plan("without a machine", (*BASE, "--json"), words="profile machine")
    yield _plan(
        "a machine of the wrong precision",
        (*MEASURED, "--precision", "fp8"),
        words="precision|fp8",
        files={"machine.json": own("machine")},
    )
    pools = (*BASE, "--gpus", "2", "--cluster", "dgx-h100:1,dgx-a100:1", "--json")
    for arguments in (("--why-not", "tp=1"), ("--sensitivity",), ("--tokens", "1T"), ("--all", "a.csv"),
        ("--trace", "t.json"), ("--device", "h100-sxm"),
                      ("--precision", "bf16,fp16"), ("--global-batch", "2,4")):  # fmt: skip
        yield _plan(f"across two kinds, {' '.join(arguments)}", (*pools, *arguments), words=arguments[0])
    whole = ("--model", "gpt3-175b", "--compress", "auto")
    yield _plan("too large to compress", (*SHIPPED, *whole), (NO_PLAN, BAD_INPUT), "gpt3-175b|fit|compress")
    yield _plan(
        "more than fits", ("--model", "llama-3.1-70b", "--gpus", "1", "--device", "l4", "--json"), NO_PLAN, "fit"
    )
    yield _plan(
        "a batch that no layout divides",
        ("--model", "gpt2-small", "--gpus", "7", "--global-batch", "8", "--device", "l4", "--json"),
        NO_PLAN,
        "divisible",
    )


CASES = (*_numbers(), *_texts(), *_purchases(), *_together())

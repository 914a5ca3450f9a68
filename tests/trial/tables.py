"""Tables of others' runs: the file, its header, and cells of every column that no run can have."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.trial.case import ACCEPTED_OR_REFUSED, BAD_INPUT, GOOD, TOLERANCE, Case, Content
from tests.trial.material import ROW, device, folder, own, row, symlink_loop, table

READ = ("runs.csv", "--json")
NO_NUMBERS = ("0", "-1", "x", "1.5", "inf", "1e308", "1e999", "1" * 400, "0x10", "\u00b2", "1;2")
SIZES = (
    "num_layers", "hidden_size", "num_heads", "num_kv_heads", "vocab_size", "seq_len", "num_gpus", "tp", "pp", "dp",
    "cp",
    "micro_batch_size", "global_batch_size", "gpus_per_node",
)  # fmt: skip
# What else a cell of a column cannot be.
WORDS: tuple[tuple[str, str], ...] = (
    ("gpu_type", "H10"), ("gpu_type", ""), ("gpu_type", "x" * 10_000), ("gpu_mem_gib", "-80"), ("gpu_mem_gib", "x"),
    ("arch", "bert"), ("mlp_type", "relu"), ("tied_embeddings", "maybe"), ("attention", "full"), ("stack", "nonsense"),
    ("schedule", "nonsense"), ("recompute_class", "some"), ("precision_class", "fp4"), ("precision_class", "fp8x"),
    ("zero_stage", "7"), ("zero_stage", "-1"), ("dp_shard", "3"), ("dp_shard", "-2"), ("vp", "-1"), ("ep", "3"),
    ("num_experts", "-8"), ("num_experts", "1e308"), ("head_dim", "-1"), ("ffn_size", "-1"), ("ffn_size", "1e300"),
    ("nic_gbit_per_s_per_gpu", "-1"), ("nic_gbit_per_s_per_gpu", "0"), ("intra_node_gbytes_per_s_unidir", "-1"),
    ("nvlink_domain_gpus", "-1"), ("num_microbatches", "0"), ("compiled", "maybe"), ("overlap_grad", "7"),
    ("optimizer_offload", "x"), ("attention_kernel", "magic"), ("num_kv_heads", "3"),
    ("num_kv_heads", "64"), ("tp", "3"), ("pp", "64"), ("num_gpus", "7"), ("global_batch_size", "33"),
    ("sliding_window_alternating", "-5"), ("cp", "-2"),
)  # fmt: skip
# What was measured is compared where it is a number, else left out.
MEASURED = (
    # These are read where tensor, pipeline parallelism and latent attention are.
    ("sequence_parallel", "2"), ("first_stage_fewer_layers", "99"), ("mla_kv_lora", "-1"),
    ("step_time_s", "0"), ("step_time_s", "-1"), ("step_time_s", "x"), ("step_time_s", "inf"), ("step_time_s", "1e308"),
    ("step_time_s", "5e-324"), ("peak_mem_gib", "-1"), ("peak_mem_gib", "0"), ("peak_mem_gib", "1e308"),
    ("peak_mem_kind", "guessed"),
    ("quality", "Z"), ("oom", "perhaps"), ("family", "\x1b[31m"), ("row_id", "\x1b]0;x\x07"),
    ("row_id", "=cmd|' /C calc'!A0"),
    ("row_id", "<script>alert(1)</script>"), ("row_id", "x" * 100_000), ("family", "é" * 1000),
)  # fmt: skip
FILES: dict[str, tuple[Content, Any, str]] = {
    "empty": ("", BAD_INPUT, "empty"),
    "blank": ("\n\n \n", BAD_INPUT, "runs.csv"),
    "a header alone": (table(), BAD_INPUT, "runs.csv"),
    "a header without a run": (",".join(ROW) + "\n", BAD_INPUT, "no run"),
    "no header": ("1,2,3\n4,5,6\n", BAD_INPUT, "header"),
    "a text": ("hello", BAD_INPUT, "header"),
    "JSON": ('{"artifact": "run"}', BAD_INPUT, "header"),
    "binary": (bytes(range(256)), BAD_INPUT, "runs.csv"),
    "zero bytes": (table(row()).replace("4096", "40\x0096"), BAD_INPUT, "zero bytes"),
    "Latin-1": (table(row(row_id="\xe9")).encode("latin-1"), BAD_INPUT, "UTF-8"),
    "in UTF-16": (table(row()).encode("utf-16"), BAD_INPUT, "runs.csv"),
    "a folder": (folder, BAD_INPUT, "runs.csv"),
    "a link to itself": (symlink_loop, BAD_INPUT, "runs.csv"),
    "a column twice": (table(row()).replace("row_id", "num_layers", 1), BAD_INPUT, "num_layers twice"),
    "a cell of 200,000 characters": (table(row(row_id="x" * 200_000)), BAD_INPUT, "runs.csv"),
    "a quote that never ends": (table(row()) + '"' + table(row()) * 5000, ACCEPTED_OR_REFUSED, ""),
    "one column": ("num_layers\n32\n", ACCEPTED_OR_REFUSED, "hidden_size|num_layers"),
    "a byte order mark": ("\ufeff" + table(row()), GOOD, ""),
    "Windows line ends": (table(row()).replace("\n", "\r\n"), GOOD, ""),
    "old line ends": (table(row()).replace("\n", "\r"), ACCEPTED_OR_REFUSED, ""),
    "semicolons": (table(row()).replace(",", ";"), GOOD, ""),
    "tabs": (table(row()).replace(",", "\t"), GOOD, ""),
    "a longer row": (table(row()).rstrip() + ",1,2,3\n", ACCEPTED_OR_REFUSED, "cells"),
    "a shorter row": (",".join(ROW) + "\none,1.5,20,32\n", ACCEPTED_OR_REFUSED, "hidden_size"),
    "10,000 columns": (table(row(**{f"c{i}": "1" for i in range(10_000)})), GOOD, ""),
    "1,000 empty rows": (table(row()) + ",,,\n" * 1000, GOOD, ""),
    "as it should be": (table(row()), GOOD, ""),
}  # fmt: skip


def _of(name: str, content: Content, code: Any, words: str, *more: str, **files: Content) -> Case:
    return Case(
        name=f"table: {name}", command="compare", arguments=(*READ, *more), files={"runs.csv": content, **files},
        code=code, words=words, seconds=20,
    )  # fmt: skip


def _cells() -> Iterator[Case]:
    # One that is right beside it: a row that is refused is told, the others count.
    for column in SIZES:
        for value in NO_NUMBERS:
            if (column, value) in (("seq_len", "1.5"),):
                continue
            shown = "400 digits" if len(value) > 100 else value
            content = table(row(), row(row_id="two", **{column: value}))
            yield _of(f"{column}={shown}", content, GOOD, column)
    for column, value in WORDS:
        yield _of(
            f"{column}={value[:12] or 'nothing'}", table(row(), row(row_id="two", **{column: value})), GOOD, column
        )
    for cells, words in (
        ({"num_experts": "8", "moe_topk": "-1"}, "moe_topk"), ({"num_experts": "8", "moe_topk": "9"}, "moe_topk"),
        ({"num_experts": "8", "ep": "3"}, "ep"), ({"attention": "mla", "mla_kv_lora": "-1"}, "mla_kv_lora"),
        ({"arch": "moe"}, "num_experts"), ({"pp": "2", "vp": "99"}, "vp"), ({"pp": "2", "schedule": "nonsense"},
            "schedule"),
        ({"tp": "2", "sequence_parallel": "maybe"}, "sequence_parallel"),
    ):  # fmt: skip
        shown = ", ".join(f"{name}={value}" for name, value in cells.items())
        yield _of(shown, table(row(), row(row_id="two", **cells)), GOOD, words)
    for column, value in MEASURED:
        yield _of(f"{column}={value[:12]!r}", table(row(), row(row_id="two") | {column: value}), GOOD, "")


def _options() -> Iterator[Case]:
    good = table(row())
    for value in ("-1", "nan", "inf", "x", "", "1e999"):
        yield _of(f"--tolerance {value}", good, BAD_INPUT, "tolerance", "--tolerance", value)
    yield _of("--tolerance 0", good, TOLERANCE, "median error", "--tolerance", "0")
    yield _of(
        "--tolerance of rows that are not measured",
        table(row(step_time_s="")),
        BAD_INPUT,
        "tolerance",
        "--tolerance",
        "1",
    )
    for value in ("h1oo", "", "x" * 100_000, "../h100-sxm", "\x1b[31m"):
        yield _of(f"--device {value[:8]!r}", good, BAD_INPUT, "device", "--device", value)
    for value in ("dgx", "", "x" * 100_000, "../dgx-h100", "\x1b[31m", "dgx-h100:1,dgx-a100:1"):
        yield _of(f"--cluster {value[:8]!r}", good, BAD_INPUT, "cluster|dgx", "--cluster", value)
    yield _of(
        "--machine", good, BAD_INPUT, "--machine", "--machine", "machine.json", **{"machine.json": own("machine")}
    )
    yield _of("given twice", good, BAD_INPUT, "twice", "runs.csv")
    yield _of("given twice by another name", good, BAD_INPUT, "twice", "./runs.csv")
    yield _of("beside a run", good, BAD_INPUT, "one call", "run.json", **{"run.json": own("run")})
    yield _of("-o over itself", good, BAD_INPUT, "overwrite", "-o", "runs.csv")
    yield _of("--colour", good, BAD_INPUT, "colour", "--colour")
    for name, path, files in (
        ("missing", "runs.csv", {}), ("in a folder that is a file", "x/runs.csv", {"x": "x"}),
        ("of 100,000 characters", "x" * 100_000 + ".csv", {}),
        ("with an escape sequence", "\x1b[31m.csv", {}), ("with a line break", "a\nb.csv", {}),
    ):  # fmt: skip
        yield Case(
            name=f"table: {name}", command="compare", arguments=(path, "--json"), files=files, words="csv|too long"
        )
    yield Case(
        name="table: /dev/null",
        command="compare",
        arguments=("n.csv", "--json"),
        files={"n.csv": device(3)},
        words="n.csv",
    )


def _runs() -> Iterator[Case]:
    for name, arguments, files, words in (
        ("nothing", (), {}, "run"),
        ("--device", ("run.json", "--device", "h100-sxm"), {"run.json": own("run")}, "--device"),
        ("--cluster", ("run.json", "--cluster", "dgx-h100"), {"run.json": own("run")}, "--cluster"),
        ("twice", ("run.json", "run.json"), {"run.json": own("run")}, "twice"),
        ("a folder without runs", ("runs",), {"runs": folder}, "no runs"),
        ("a rehearsal beside a run", ("run.json", "r.json"), {"run.json": own("run"), "r.json": own("rehearsal")},
            "one call"),
        ("a compression beside a run", ("run.json", "c.json"), {"run.json": own("run"), "c.json": own("compression")},
            "one call"),
        ("--tolerance of a rehearsal", ("r.json", "--tolerance", "1"), {"r.json": own("rehearsal")}, "--tolerance"),
        ("--machine of a compression", ("c.json", "--machine", "m.json"), {"c.json": own("compression"),
            "m.json": own("machine")}, "--machine"),
        ("--machine that is none", ("run.json", "--machine", "run.json"), {"run.json": own("run")}, "machine"),
        ("--machine missing", ("run.json", "--machine", "m.json"), {"run.json": own("run")}, "m.json"),
        ("-o over its input", ("run.json", "-o", "run.json"), {"run.json": own("run")}, "overwrite"),
        ("a plan", ("plan.json",), {"plan.json": own("plan")}, "plan"),
        ("--tolerance -1", ("run.json", "--tolerance", "-1"), {"run.json": own("run")}, "tolerance"),
        ("--tolerance nan", ("run.json", "--tolerance", "nan"), {"run.json": own("run")}, "tolerance"),
        ("a folder with a broken run", ("runs",), {"runs/a.run.json": "x"}, "a.run.json"),
    ):  # fmt: skip
        yield Case(
            name=f"compare: {name}", command="compare", arguments=(*arguments, "--json"), files=files, words=words
        )
    yield Case(
        name="compare: outside the tolerance", command="compare", arguments=("run.json", "--tolerance", "0.001",
            "--json"),
        files={"run.json": own("run")}, code=TOLERANCE, words="median error",
    )  # fmt: skip


CASES = (
    *(_of(name, content, code, words) for name, (content, code, words) in FILES.items()),
    *_cells(),
    *_options(),
    *_runs(),
)

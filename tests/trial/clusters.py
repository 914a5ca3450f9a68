"""Clusters and pools: files of somebody else in TOML, and names on the command line."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from tests.trial.case import ACCEPTED_OR_REFUSED, GOOD, Case, Content
from tests.trial.material import CLUSTER, POOLS, changed, folder, raw, row, symlink_loop, table, toml, without

ONE = ("--model", "llama-26m", "--gpus", "1", "--global-batch", "1", "--cluster", "ours.toml", "--json")
TWO = ("--model", "llama-26m", "--gpus", "2", "--global-batch", "2", "--cluster", "ours.toml", "--json")
NO_NUMBER: dict[str, Any] = {
    "0": 0, "negative": -1, "a text": "8", "a list": [8], "a table": raw("{ a = 1 }"),
    "NaN": math.nan, "Infinity": math.inf,
    "-Infinity": -math.inf, "a date": raw("2026-01-01"), "1e308": 1e308, "1e999": raw("1e999"),
    "10^30": raw("1" + "0" * 30),
}  # fmt: skip
WHOLE = ("devices_per_node", "fast_domain", "nics_per_node")
FRACTIONS = ("network_gb_per_second", "network_latency_us")
# Ten to the thirtieth has no place in TOML's 64 bits: said of the file or of the field.
FILES: dict[str, Content] = {
    "empty": "", "no TOML": "hello", "JSON": '{"name": "ours"}', "binary": bytes(range(256)),
    "Latin-1": b'name = "\xe9"',
    "in UTF-16": toml(CLUSTER).encode("utf-16"), "zero bytes": b"\0" * 64, "a folder": folder,
    "a link to itself": symlink_loop,
    "duplicate keys": toml(CLUSTER) + 'name = "twice"\n', "100,000 deep": "x = " + "[" * 100_000 + "]" * 100_000,
    "tables 10,000 deep": "[" + "a." * 10_000 + "a]\n", "cut off": toml(CLUSTER)[:40], "HTML": "<html></html>",
}  # fmt: skip
POOL_WORDS = {
    "no devices": "dgx-h100:0,dgx-a100:1", "a word of devices": "dgx-h100:x,dgx-a100:1",
    "fewer than none": "dgx-h100:-1,dgx-a100:2",
    "no name": ":1,dgx-a100:1", "one pool": "dgx-h100:2", "a comma behind": "dgx-h100:1,dgx-a100:1,",
    "two commas": "dgx-h100:1,,dgx-a100:1",
    "an unknown name": "dgx-h10:1,dgx-a100:1", "10^23 devices": "dgx-h100:99999999999999999999999,dgx-a100:1",
    "half a device": "dgx-h100:1.5,dgx-a100:1",
    "a superscript": "dgx-h100:\u00b2,dgx-a100:1", "only a colon": ":", "spaces": " : , : ",
    "a name twice over": "dgx-h100:1:1,dgx-a100:1",
    "5,000 digits": f"dgx-h100:{'1' * 5000},dgx-a100:1",
}  # fmt: skip


def _plans(name: str, content: Content | None, code: Any, words: str, arguments: tuple[str, ...] = ONE) -> Case:
    files = {} if content is None else {"ours.toml": content}
    return Case(
        name=f"cluster: {name}", command="plan", arguments=arguments, files=files, code=code, words=words, seconds=20
    )


def _fields() -> Iterator[Case]:
    for name in (*WHOLE, *FRACTIONS):
        for what, value in NO_NUMBER.items():
            is_odd = (name == "network_latency_us" and what in ("0", "8")) or (name == "nics_per_node" and what == "0")
            words = "" if is_odd else f"{name}|ours.toml" if what == "10^30" else name
            yield _plans(f"{name}={what}", toml({**CLUSTER, name: value}), ACCEPTED_OR_REFUSED if is_odd else 2, words)
    for name in WHOLE:
        yield _plans(f"{name}=1.5", toml({**CLUSTER, name: 1.5}), 2, name)
        yield _plans(f"{name}=true", toml({**CLUSTER, name: True}), 2, name)
    for name in CLUSTER:
        yield _plans(f"no {name}", toml(without(CLUSTER, name)), 2, name)
    for name, value in (
        ("name", 7), ("title", ["x"]), ("rail_optimised", 1), ("rail_optimised", "yes"), ("device", 7), ("device", ""),
        ("device", "h1oo"), ("device", "x" * 100_000), ("colour", "red"), ("sources", "x"), ("sources", 7),
    ):  # fmt: skip
        shown = str(value)[:20]
        # An unknown device is told by its kind, not by the field.
        words = "unknown device|device" if name == "device" else name
        yield _plans(f"{name}={shown}", toml({**CLUSTER, name: value}), 2, words)
    for name, value in (
        ("name", "\u001b[31mred"),
        ("title", "one\nerror: two"),
        ("title", "x" * 10_000),
        ("name", "é"),
    ):
        yield _plans(f"odd {name}={value[:8]!r}", toml({**CLUSTER, name: value}), ACCEPTED_OR_REFUSED, "")
    yield _plans("fast domain of 3 of 8", toml({**CLUSTER, "fast_domain": 3}), ACCEPTED_OR_REFUSED, "")
    yield _plans("as it should be", toml(CLUSTER), GOOD, "our machines")


def _files() -> Iterator[Case]:
    for name, content in FILES.items():
        words = "name" if name == "empty" else "ours.toml"
        yield _plans(f"file {name}", content, 2, words)
        yield Case(
            name=f"cluster of a table: file {name}", command="compare", words=words,
            arguments=("runs.csv", "--cluster", "ours.toml", "--json"),
            files={"ours.toml": content, "runs.csv": table(row())},
        )  # fmt: skip
    yield _plans("missing", None, 2, "ours.toml")
    for name, value in (
        ("network_gb_per_second", -1.0),
        ("network_gb_per_second", 0.0),
        ("devices_per_node", 0),
        ("device", "h1oo"),
    ):
        yield Case(
            name=f"cluster of a table: {name}={value}", command="compare", words=f"{name}|ours.toml|unknown device",
            arguments=("runs.csv", "--cluster", "ours.toml", "--json"),
            files={"ours.toml": toml({**CLUSTER, name: value}), "runs.csv": table(row())},
        )  # fmt: skip
    yield Case(
        name="cluster of a table: pools", command="compare", words="pools|ours.toml",
        arguments=("runs.csv", "--cluster", "ours.toml", "--json"),
        files={"ours.toml": toml(POOLS), "runs.csv": table(row())},
    )  # fmt: skip


def _pools() -> Iterator[Case]:
    for what, value in (*NO_NUMBER.items(), ("1.5", 1.5), ("true", True)):
        words = "num_devices|--gpus|ours.toml" if what == "10^30" else "num_devices|devices"
        yield _plans(f"pool num_devices={what}", toml(changed(POOLS, "pools.0.num_devices", value)), 2, words, TWO)
    for what, value in NO_NUMBER.items():
        shown = toml({"network_gb_per_second": value, **POOLS})
        yield _plans(f"pools network={what}", shown, 2, "network_gb_per_second|ours.toml", TWO)
    for what, data, words in (
        ("none", {**POOLS, "pools": []}, "pools|two"),
        ("a text", {**POOLS, "pools": "x"}, "pools"),
        ("a number", {**POOLS, "pools": 7}, "pools"),
        ("only one", {**POOLS, "pools": POOLS["pools"][:1]}, "two"),
        ("of nothing known", changed(POOLS, "pools.0.of", "dgx-h10"), "dgx-h100"),
        ("of a number", changed(POOLS, "pools.0.of", 7), "of"),
        ("of nothing", changed(POOLS, "pools.0.of", ""), "cluster or device|unknown"),
        ("with another key", changed(POOLS, "pools.0.colour", "red"), "colour"),
        ("without devices", without(POOLS, "pools.0.num_devices"), "num_devices"),
        ("without of", without(POOLS, "pools.0.of"), "of"),
        ("not as many as --gpus", changed(POOLS, "pools.0.num_devices", 5), "--gpus"),
        ("beside a cluster's fields", {**CLUSTER, **POOLS}, "ours.toml"),
    ):
        yield _plans(f"pools {what}", toml(data), 2, words, TWO)
    for what, text in POOL_WORDS.items():
        yield Case(
            name=f"pools by name: {what}", command="plan", arguments=(*TWO[:-2], text, "--json"),
            words="cluster|pool|unknown",
            seconds=20,
        )  # fmt: skip


CASES = (*_fields(), *_files(), *_pools())

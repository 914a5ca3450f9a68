"""`compare RUNS.csv` from the outside: the table read, errors added up, terminal, JSON and page; predictor faked."""

from __future__ import annotations

import csv
import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest

from planner.published.columns import CONFIGURATION
from planner.published.predict import Forecast, forecast
from profiles.machines.clusters import FOLDER as CLUSTERS
from profiles.units import GIB
from reports.published import rows as published
from reports.published.rows import counter_of
from reports.published.summary import weighted_quantile
from tests.test_reports_command import compare
from tests.test_reports_html import Page

LEAST = {
    "num_layers": "32", "hidden_size": "4096", "gpu_type": "H100-SXM5-80GB", "num_gpus": "16", "micro_batch_size": "2",
}  # fmt: skip
# (family, predicted seconds, measured seconds): the fake predicts what seq_len says, in milliseconds.
STEPS = [
    ("one", 1100, "1.0"), ("one", 900, "1.0"), ("one", 2600, "2.0"), ("one", 1020, "1.0"), ("one", 700, "1.0"),
    ("two", 1500, "1.0"), ("two", 3000, "3.1"), ("three", 800, "1.0"),
]  # fmt: skip
PERFECT = [("one", 1000, "1.0")]
ROW_KEYS = {
    "row_id", "predicted_step_seconds", "low_seconds", "high_seconds", "predicted_allocated_bytes",
    "predicted_reserved_bytes", "low_bytes", "high_bytes", "assumptions", "refused",
}  # fmt: skip
EVIL = "</script><img src=https://example.com/x onerror=alert(1)>"


def fake(rows: Sequence[dict[str, str]]) -> list[Forecast]:
    """Refuses rows without layers; predicts `seq_len` milliseconds and `hidden_size` MiB."""
    made = []
    for number, row in enumerate(rows):
        assert set(row) <= set(CONFIGURATION)
        if row.get("num_layers") in ("", "x", None):
            text = f"num_layers is '{row.get('num_layers')}', not a number"
            made.append(Forecast(row_id=str(number), refused=text))
            continue
        seconds, peak = float(row["seq_len"]) / 1000, float(row["hidden_size"]) * 2**20
        assumptions = ("dp: 16 computed (num_gpus / (tp x pp x cp))", "tp: 1 assumed", f"stack: {EVIL} assumed")
        made.append(
            Forecast(
                row_id=str(number),
                assumptions=assumptions,
                step_seconds=seconds,
                low_seconds=seconds * 0.8,
                high_seconds=seconds * 1.25,
                allocated_bytes=peak,
                reserved_bytes=peak * 1.1,
                device_bytes=peak * 1.2,
                low_bytes=peak * 0.9,
                high_bytes=peak * 1.3,
                fits=peak < 80 * GIB,
                seconds={"compute": seconds * 0.7, "stragglers": seconds * 0.2, "new_part": seconds * 0.1},
                bytes={"parameters": peak},
            )
        )
    return made


@pytest.fixture(autouse=True)
def faked(monkeypatch):
    monkeypatch.setattr(published, "forecast", fake)


def table(path: Path, rows: Sequence[dict[str, str]]) -> Path:
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names, restval="")
        writer.writeheader()
        writer.writerows(rows)
    return path


def rows_of(steps: Sequence[tuple[str, int, str]]) -> list[dict[str, str]]:
    return [
        LEAST | {"row_id": f"r{index}", "family": family, "seq_len": str(predicted), "step_time_s": measured}
        for index, (family, predicted, measured) in enumerate(steps)
    ]


@pytest.fixture
def runs_csv(tmp_path: Path) -> Path:
    return table(tmp_path / "runs.csv", rows_of(STEPS))


def outcome(monkeypatch, capsys, *arguments: object) -> dict:
    assert compare(monkeypatch, *arguments, "--json") == 0
    return json.loads(capsys.readouterr().out, parse_constant=lambda word: pytest.fail(f"{word} in the JSON"))


def test_summary_is_what_adding_up_by_hand_gives(runs_csv, monkeypatch, capsys):
    summary = outcome(monkeypatch, capsys, runs_csv)["summary"]
    errors = [(family, predicted / 1000 / float(measured) - 1) for family, predicted, measured in STEPS]
    weights = [1 / 3 / sum(other == family for other, _ in errors) for family, _ in errors]
    bias = math.exp(sum(w * math.log1p(error) for w, (_, error) in zip(weights, errors, strict=True))) - 1
    inside = sum(w for w, (_, error) in zip(weights, errors, strict=True) if 0.8 <= 1 / (1 + error) <= 1.25)
    assert summary["bias_fraction"] == pytest.approx(bias)
    assert summary["inside_band_fraction"] == pytest.approx(inside)
    assert summary["num_compared"] == summary["num_rows"] == summary["num_predicted"] == 8
    ordered = sorted((abs(error), w) for w, (_, error) in zip(weights, errors, strict=True))
    for share, name in ((0.5, "median_error_fraction"), (0.9, "p90_error_fraction")):
        assert summary[name] == pytest.approx(by_hand(ordered, share))
    one = next(family for family in summary["families"] if family["family"] == "one")
    assert one["num_rows"] == 5
    assert one["median_error_fraction"] == pytest.approx(0.1)


def by_hand(ordered: list[tuple[float, float]], share: float) -> float:
    """Quantile between the middles of the weights, by walking along them."""
    before, middles = 0.0, []
    for value, weight in ordered:
        middles.append((before + weight / 2, value))
        before += weight
    if share <= middles[0][0]:
        return middles[0][1]
    for (low, value), (high, following) in itertools.pairwise(middles):
        if low <= share <= high:
            return value + (following - value) * (share - low) / (high - low)
    return middles[-1][1]


def test_quantiles_of_equal_weights_are_plain_ones():
    assert weighted_quantile([3.0, 1.0, 2.0], [1, 1, 1], 0.5) == 2.0
    assert weighted_quantile([4.0, 1.0, 2.0, 3.0], [1, 1, 1, 1], 0.5) == 2.5
    assert weighted_quantile([7.0], [1], 0.9) == 7.0


def test_every_family_weighs_the_same(tmp_path, monkeypatch, capsys):
    many = rows_of([("many", 1000, "1.0")] * 50 + [("few", 2000, "1.0")])
    summary = outcome(monkeypatch, capsys, table(tmp_path / "t.csv", many))["summary"]
    assert summary["inside_band_fraction"] == pytest.approx(0.5)
    assert summary["bias_fraction"] == pytest.approx(math.sqrt(2) - 1)


def test_json_has_a_row_per_line_and_null_for_what_is_unknown(tmp_path, monkeypatch, capsys):
    rows = [
        LEAST | {"seq_len": "1000", "step_time_s": "nan", "peak_mem_gib": "n/a"},
        LEAST | {"seq_len": "1000", "num_layers": "x", "step_time_s": "1"},
    ]
    result = outcome(monkeypatch, capsys, table(tmp_path / "t.csv", rows))
    assert set(result) == {"rows", "summary"}
    first, second = result["rows"]
    assert set(first) >= ROW_KEYS
    assert first["row_id"] == "row 1"
    assert first["predicted_step_seconds"] == 1.0
    assert first["measured_step_seconds"] is first["error_fraction"] is first["refused"] is None
    assert sum(first["seconds"].values()) == pytest.approx(1.0)
    assert "num_layers" in second["refused"]
    assert second["predicted_step_seconds"] is second["low_bytes"] is second["error_fraction"] is None
    summary = result["summary"]
    assert (summary["num_rows"], summary["num_predicted"], summary["num_refused"], summary["num_compared"]) == (
        2, 1, 1, 0,
    )  # fmt: skip
    assert summary["median_error_fraction"] is None


def test_infinite_predictions_are_none(tmp_path, monkeypatch, capsys):
    broken = Forecast(row_id="", step_seconds=math.nan, low_seconds=math.inf, allocated_bytes=math.nan)
    monkeypatch.setattr(published, "forecast", lambda rows: [broken for _ in rows])
    path = table(tmp_path / "t.csv", rows_of(PERFECT))
    result = outcome(monkeypatch, capsys, path)
    assert result["rows"][0]["predicted_step_seconds"] is None
    assert result["summary"]["num_predicted"] == 0
    assert compare(monkeypatch, path, "-o", tmp_path / "r.html") == 0
    assert "without a prediction" in capsys.readouterr().out


def test_people_read_standard_error_where_json_has_standard_output(runs_csv, tmp_path, monkeypatch, capsys):
    assert compare(monkeypatch, runs_csv, "--json", "-o", tmp_path / "r.html") == 0
    captured = capsys.readouterr()
    json.loads(captured.out)
    assert "median" in captured.err
    assert "report:" in captured.err


def test_predictions_depend_on_configuration_columns_alone(runs_csv, tmp_path, monkeypatch, capsys):
    rows = rows_of(STEPS)
    other = table(
        tmp_path / "other.csv",
        [row | {"step_time_s": str(9 - index), "peak_mem_gib": "3", "family": "x"} for index, row in enumerate(rows)],
    )
    keys = ("row_id", "predicted_step_seconds", "predicted_allocated_bytes", "assumptions", "refused")
    one, two = (outcome(monkeypatch, capsys, path)["rows"] for path in (runs_csv, other))
    assert [[row[key] for key in keys] for row in one] == [[row[key] for key in keys] for row in two]


def test_unfit_measurements_are_predicted_but_not_judged(tmp_path, monkeypatch, capsys):
    rows = rows_of([("one", 1000, "1.0"), ("one", 1000, "9.0"), ("one", 1000, "0"), ("one", 1000, "-1")])
    rows[1] |= {"quality": "C"}
    result = outcome(monkeypatch, capsys, table(tmp_path / "t.csv", rows))
    assert result["summary"]["num_compared"] == 1
    assert result["summary"]["num_unfit"] == 1
    assert result["summary"]["median_error_fraction"] == 0
    assert [row["is_judged"] for row in result["rows"]] == [True, False, False, False]


def test_memory_is_compared_by_its_own_counter(tmp_path, monkeypatch, capsys):
    kinds = ["torch max_allocated; reserved 9 GiB", "reserved", "nvidia-smi", ""]
    rows = [
        row | {"peak_mem_gib": "4", "peak_mem_kind": kind}
        for row, kind in zip(rows_of(PERFECT * 4), kinds, strict=True)
    ]
    result = outcome(monkeypatch, capsys, table(tmp_path / "t.csv", rows))
    assert [row["memory_error_fraction"] for row in result["rows"]] == pytest.approx([0.0, 0.1, 0.2, 0.1])
    assert result["summary"]["median_memory_error_fraction"] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("text", "counter"),
    [
        ("torch max_allocated, max over ranks; reserved 70.88 GiB; per-rank first/last 66.55/62.97 GiB", "allocated"),
        ("GB as printed by torchtitan (reserved or active, GiB)", "reserved"),
        ("max_memory_reserved, allocated 60 GiB", "reserved"),
        ("reserved 70.88 GiB, torch max_allocated", "allocated"),
        ("nvidia-smi used", "device"),
        ("peak", "reserved"),
    ],
)
def test_counters(text, counter):
    assert counter_of(text) == counter


def test_out_of_memory_rows_are_counted(tmp_path, monkeypatch, capsys):
    rows = rows_of(PERFECT * 3)
    rows[0] |= {"oom": "yes", "hidden_size": "99999", "step_time_s": ""}
    rows[1] |= {"oom": "yes", "step_time_s": ""}
    summary = outcome(monkeypatch, capsys, table(tmp_path / "t.csv", rows))["summary"]
    assert (summary["num_out_of_memory"], summary["num_out_of_memory_predicted"]) == (2, 1)
    assert summary["num_false_alarms"] == 0


def test_terminal_fits_80_columns_and_says_it_all(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    rows = rows_of(STEPS)
    rows[0] |= {"family": "a family of a name that is far too long for a table", "row_id": "[red]" + "x" * 90}
    rows += [LEAST | {"num_layers": value, "seq_len": "1"} for value in ("x", "", "x")]
    assert compare(monkeypatch, table(tmp_path / "t.csv", rows)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 80 for line in lines)
    text = "\n".join(lines)
    for words in ("Farthest off", "Refused: 3 of 11", "3 rows num_layers is", "8 rows tp", "[red]xxx"):
        assert words in text
    assert "dp" not in text


def test_the_page_loads_nothing_and_shows_every_row(runs_csv, tmp_path, monkeypatch):
    rows = rows_of(STEPS)
    rows[0] |= {"family": EVIL, "row_id": EVIL, "peak_mem_gib": "4"}
    rows.append(LEAST | {"row_id": "bad one", "num_layers": "x", "seq_len": "1"})
    output = tmp_path / "r.html"
    assert compare(monkeypatch, table(tmp_path / "evil.csv", rows), "-o", output) == 0
    text = output.read_text()
    assert text.startswith("<!doctype html>")
    page = Page(text)
    loading = ("src", "href", "srcset", "data", "action", "poster")
    assert [value for _, name, value in page.attributes if name in loading] == ["data:,"]
    assert not [value for tag, name, value in page.attributes if tag == "img" or name == "onerror"]
    assert "url(" not in page.styles
    policy = next(value for tag, name, value in page.attributes if tag == "meta" and value.startswith("default-src"))
    assert policy.startswith("default-src 'none'")
    shown = " ".join(page.text)
    for row in rows:
        assert row["row_id"] in shown
    assert "not a number" in shown
    assert "new_part" in shown
    plots = [value for tag, name, value in page.attributes if tag == "div" and name == "id"]
    assert plots == ["times", "errors", "parts", "memory"]
    for plot in plots:
        assert json.loads(page.scripts[f"{plot}-figure"])["data"]


def test_the_page_of_many_rows_stays_light(tmp_path, monkeypatch):
    output = tmp_path / "r.html"
    path = table(tmp_path / "many.csv", rows_of([("one", 1000, "1.0")] * 2000))
    assert compare(monkeypatch, path, "-o", output) == 0
    page = Page(output.read_text())
    assert sum(len(text) for name, text in page.scripts.items() if name != "plotly") < 1_000_000
    assert sum(tag == "th" and value == "row" for tag, _, value in page.attributes) < 400
    assert "1700 more are only in the" in " ".join(page.text)


def test_the_page_of_a_table_without_measurements(tmp_path, monkeypatch):
    output = tmp_path / "r.html"
    rows = [LEAST | {"seq_len": "1000"}, LEAST | {"num_layers": "x"}]
    assert compare(monkeypatch, table(tmp_path / "t.csv", rows), "-o", output) == 0
    page = Page(output.read_text())
    assert [value for tag, name, value in page.attributes if tag == "div" and name == "id"] == ["parts"]
    assert compare(monkeypatch, table(tmp_path / "t.csv", rows[1:]), "-o", output) == 0


def test_refused_rows_are_no_failure_but_tolerance_is_held(runs_csv, tmp_path, monkeypatch, capsys):
    bad = table(tmp_path / "bad.csv", [LEAST | {"num_layers": "x"}])
    assert compare(monkeypatch, bad) == 0
    assert compare(monkeypatch, bad, "--tolerance", "0.5") == 2
    assert "cannot be checked" in " ".join(capsys.readouterr().err.split())
    assert compare(monkeypatch, runs_csv, "--tolerance", "0.5") == 0
    assert compare(monkeypatch, runs_csv, "--tolerance", "0.01") == 4
    assert "median error" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"\n \n", "is empty"),
        (b"num_layers,hidden_size\n", "no run"),
        (b"num_layers,hidden_size\n,\n", "no run"),
        (b"1,2\n3,4\n", "no header"),
        (b'{"artifact": "run"}\n', "no header"),
        (b"num_layers,num_layers\n1,2\n", "twice"),
        (b"num_layers,notes\n1,\xff\xfe\n", "not UTF-8"),
        (b"num_layers\n1\0\n", "zero bytes"),
        (b'num_layers\n"' + b"x" * 200_000 + b'"\n', "not a table"),
    ],
)
def test_what_is_no_table_is_one_sentence(content, words, tmp_path, monkeypatch, capsys):
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    assert compare(monkeypatch, path, "--json") == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    error = " ".join(captured.err.split())
    assert words in error
    assert "t.csv" in error
    assert "Traceback" not in error


def test_missing_folders_mixtures_and_options_of_the_other_kind(runs_csv, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "folder.csv"
    folder.mkdir()
    for arguments in (
        [tmp_path / "none.csv"], [folder], [runs_csv, tmp_path / "run.json"], [runs_csv, runs_csv],
        [runs_csv, "-o", runs_csv], [runs_csv, "-o", tmp_path], [runs_csv, "--machine", tmp_path / "m.json"],
        [tmp_path / "run.json", "--device", "h100-sxm"], [runs_csv, "--device", "h1000"],
        [runs_csv, "--cluster", "nowhere"], [runs_csv, "--cluster", tmp_path / "none.toml"],
    ):  # fmt: skip
        assert compare(monkeypatch, *arguments) == 2, arguments
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert "Traceback" not in error


def test_other_marks_between_cells_and_a_byte_order_mark(tmp_path, monkeypatch, capsys):
    path = tmp_path / "t.CSV"
    names, cells = zip(*(LEAST | {"seq_len": "1000", "step_time_s": "1"}).items(), strict=True)
    path.write_bytes(f"{';'.join(names)}\r\n{';'.join(cells)}\r\n".upper().encode("utf-8-sig"))
    assert outcome(monkeypatch, capsys, path)["summary"]["num_compared"] == 1


def test_a_row_with_too_many_cells_is_refused(tmp_path, monkeypatch, capsys):
    path = tmp_path / "t.csv"
    names, cells = zip(*(LEAST | {"seq_len": "1000", "notes": "a"}).items(), strict=True)
    path.write_text(f"{','.join(names)}\n{','.join(cells)},b\n{','.join(cells)}\n")
    rows = outcome(monkeypatch, capsys, path)["rows"]
    assert "8 cells" in rows[0]["refused"]
    assert rows[1]["refused"] is None


@pytest.mark.parametrize("column", ["step_time_s", "peak_mem_gib"])
@pytest.mark.parametrize("cell", ["abc", "-3", "0", "inf", "1e308", "1e-308", "=1+1", "1,5"])
def test_a_measurement_that_cannot_be_refuses_its_row(column, cell, tmp_path, monkeypatch, capsys):
    rows = [LEAST | {"seq_len": "1000", "step_time_s": "1", "peak_mem_gib": "4"} for _ in range(2)]
    rows[0][column] = cell
    first, second = outcome(monkeypatch, capsys, table(tmp_path / "t.csv", rows))["rows"]
    assert first["refused"].startswith(f"{column} is '{cell}', not a number from")
    assert second["refused"] is None


def test_a_device_and_a_cluster_of_another_one_contradict_each_other(runs_csv, monkeypatch, capsys):
    assert compare(monkeypatch, runs_csv, "--cluster", "dgx-h100", "--device", "a100-sxm-80gb") == 2
    assert "has h100-sxm, not a100-sxm-80gb" in " ".join(capsys.readouterr().err.split())
    assert compare(monkeypatch, runs_csv, "--cluster", "dgx-h100", "--device", "H100 SXM") == 0


def test_a_first_line_without_end_is_no_table(tmp_path, monkeypatch, capsys):
    path = tmp_path / "t.csv"
    path.write_text("num_layers," + "x" * 200_000 + "\n1,2\n")
    assert compare(monkeypatch, path) == 2
    assert "is not a table" in " ".join(capsys.readouterr().err.split())


def test_device_and_cluster_fill_empty_columns_only(tmp_path, monkeypatch, capsys):
    seen: list[dict[str, str]] = []
    monkeypatch.setattr(published, "forecast", lambda rows: seen.extend(rows) or fake(rows))
    rows = rows_of(PERFECT * 2)
    rows[1] |= {"gpu_type": "", "gpus_per_node": "4"}
    path = table(tmp_path / "t.csv", rows)
    outcome(monkeypatch, capsys, path, "--device", "A100-SXM4-40GB")
    assert [row["gpu_type"] for row in seen] == ["H100-SXM5-80GB", "a100-sxm-40gb"]
    own = tmp_path / "own.toml"
    own.write_text((CLUSTERS / "aws-p4d.toml").read_text().replace("6.25", "12.5"))
    for cluster, card in (("aws-p4d", "50"), (own, "100")):
        seen.clear()
        outcome(monkeypatch, capsys, path, "--cluster", cluster)
        assert [row["gpus_per_node"] for row in seen] == ["8", "4"]
        assert [row["nic_gbit_per_s_per_gpu"] for row in seen] == [card, card]
        assert seen[1]["gpu_type"] == "a100-sxm-40gb"


def test_the_real_predictor_answers(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(published, "forecast", forecast)
    rows = [LEAST | {"step_time_s": "3", "peak_mem_gib": "40"}, LEAST | {"gpu_type": "H1000"}, {"num_layers": "2"}]
    result = outcome(monkeypatch, capsys, table(tmp_path / "t.csv", rows), "-o", tmp_path / "r.html")
    first = result["rows"][0]
    assert first["low_seconds"] < first["predicted_step_seconds"] < first["high_seconds"]
    assert sum(first["seconds"].values()) == pytest.approx(first["predicted_step_seconds"])
    assert sum(first["bytes"].values()) == pytest.approx(first["predicted_allocated_bytes"])
    assert "num_kv_heads: 32 assumed" in first["assumptions"]
    assert [bool(row["refused"]) for row in result["rows"]] == [False, True, True]
    assert (tmp_path / "r.html").stat().st_size > 1_000_000


def test_several_tables_are_families(runs_csv, tmp_path, monkeypatch, capsys):
    rows = [{name: cell for name, cell in row.items() if name != "family"} for row in rows_of(STEPS)]
    plain = table(tmp_path / "plain.csv", rows)
    families = outcome(monkeypatch, capsys, plain)["summary"]["families"]
    assert [family["family"] for family in families] == ["all"]
    families = outcome(monkeypatch, capsys, plain, runs_csv)["summary"]["families"]
    assert [family["family"] for family in families] == ["plain", "one", "two", "three"]

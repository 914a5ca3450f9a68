"""`compare` from the outside: files, exit codes, standard output."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from profiles import artifacts
from reports.command import main
from tests.report_builders import beside, demo_run_file, run_file, simple_run

ROW_KEYS = {
    "rank", "plan_id", "plan", "predicted_seconds", "measured_seconds", "spread_fraction", "error_fraction", "parts",
    "predicted_peak_bytes", "measured_peak_bytes", "memory_error_fraction", "loss_check", "is_judged", "is_baseline",
}  # fmt: skip


@pytest.fixture
def run_json(tmp_path: Path) -> Path:
    path = tmp_path / "run.json"
    artifacts.write(path, "run", demo_run_file())
    return path


def compare(monkeypatch, *arguments: object) -> int:
    """Run the command; the exit code."""
    monkeypatch.setattr(sys, "argv", ["compare", *map(str, arguments)])
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_writes_the_page_and_prints_the_table(run_json, tmp_path, monkeypatch, capsys):
    output = tmp_path / "report.html"
    assert compare(monkeypatch, run_json, "-o", output) == 0
    assert output.read_text().startswith("<!doctype html>")
    assert "predicted" in capsys.readouterr().out


def test_table_fits_80_columns(run_json, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    compare(monkeypatch, run_json, "-o", tmp_path / "report.html")
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 80 for line in lines if not line.startswith("report:"))
    header = next(line for line in lines if "predicted" in line and "losses" in line)
    assert all(name in header for name in ("plan", "measured", "spread", "error"))


def test_json_alone_stands_on_standard_output(run_json, tmp_path, monkeypatch, capsys):
    assert compare(monkeypatch, run_json, "-o", tmp_path / "report.html", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert set(result) == {"rows", "summary", "calibration"}
    assert len(result["rows"]) == 7
    assert set(result["rows"][0]) >= ROW_KEYS
    assert result["summary"]["num_runs"] == 7
    assert result["summary"]["cases"][0]["verdict"][0]["text"]
    assert {part["part"] for part in result["calibration"]["machines"][0]["parts"]} == {"compute", "codec", "optimizer"}


def test_tolerance_decides_the_exit_code_after_the_report_is_written(run_json, tmp_path, monkeypatch, capsys):
    output = tmp_path / "report.html"
    assert compare(monkeypatch, run_json, "-o", output, "--tolerance", "0.001") == 4
    assert output.exists()
    error = capsys.readouterr().err
    assert "median error" in error
    assert "Traceback" not in error
    assert compare(monkeypatch, run_json, "-o", output, "--tolerance", "0.5") == 0


def test_failed_losses_break_any_tolerance(tmp_path, monkeypatch):
    run = simple_run(1.0, [1.0])
    check = replace(run.measurement.loss_check, status="failed")
    run = replace(run, measurement=replace(run.measurement, loss_check=check))
    path = tmp_path / "run.json"
    artifacts.write(path, "run", run_file([run]))
    assert compare(monkeypatch, path, "-o", tmp_path / "r.html") == 0
    assert compare(monkeypatch, path, "-o", tmp_path / "r.html", "--tolerance", "0.5") == 4


def test_tolerance_cannot_be_checked_on_oversubscribed_runs(tmp_path, monkeypatch, capsys):
    path = tmp_path / "run.json"
    artifacts.write(path, "run", run_file([simple_run(1.0, [1.0])], oversubscribed=True))
    assert compare(monkeypatch, path, "-o", tmp_path / "r.html", "--tolerance", "0.5") == 2
    assert "cannot be checked" in " ".join(capsys.readouterr().err.split())


def test_tolerance_is_held_against_quiet_runs_only(tmp_path, monkeypatch, capsys):
    path, good, bad = tmp_path / "run.json", simple_run(1.0, [1.0], rank=1), simple_run(1.0, [9.0], rank=2)
    artifacts.write(path, "run", run_file([beside(good, 0.6), beside(bad, 0.6)]))
    assert compare(monkeypatch, path, "--tolerance", "0.5") == 2
    said = capsys.readouterr()
    assert "cannot be checked: every run had more ranks than cores or a busy machine" in " ".join(said.err.split())
    assert "(-88.9 %)" in said.out
    assert "Not judged: a busy machine" in said.out
    artifacts.write(path, "run", run_file([beside(good, 0.05), beside(bad, 0.6)]))
    assert compare(monkeypatch, path, "--tolerance", "0.5") == 0
    assert "1 of 2 plans ran on a busy machine" in capsys.readouterr().out
    artifacts.write(path, "run", run_file([beside(good, 0.6), beside(bad, 0.05)]))
    assert compare(monkeypatch, path, "--tolerance", "0.5") == 4


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"a": 1}', '{"artifact": "plan", "schema": 1}', '{"artifact": "run", "schema": 1, "x": 1}']
)
def test_foreign_files_are_one_clear_sentence(text, tmp_path, monkeypatch, capsys):
    path = tmp_path / "run.json"
    path.write_text(text)
    assert compare(monkeypatch, path, "-o", tmp_path / "r.html") == 2
    error = capsys.readouterr().err
    assert "run.json" in error.replace("\n", "")
    assert "Traceback" not in error
    assert not (tmp_path / "r.html").exists()


def test_missing_twice_and_overwriting(run_json, tmp_path, monkeypatch):
    before = run_json.read_bytes()
    assert compare(monkeypatch, tmp_path / "none.json", "-o", tmp_path / "r.html") == 2
    assert compare(monkeypatch, run_json, run_json, "-o", tmp_path / "r.html") == 2
    assert compare(monkeypatch, run_json, "-o", run_json) == 2
    assert compare(monkeypatch, run_json, "-o", tmp_path) == 2
    assert run_json.read_bytes() == before

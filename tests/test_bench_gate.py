"""The gate of `make bench`, on made-up numbers."""

import json

import pytest

from tests.bench_gate import compared, judge, record, workload_seconds

RECORDED = {"search": 10.0, "MiB": 200.0, "trace": 5.0}
GATED = ("search", "MiB")


@pytest.fixture
def path(tmp_path):
    record(RECORDED, "a machine", tmp_path / "bench.json")
    return tmp_path / "bench.json"


@pytest.mark.parametrize(
    ("changed", "code"),
    [({}, 0), ({"search": 11.4}, 0), ({"search": 11.6}, 1), ({"MiB": 232.0}, 1), ({"MiB": 20.0}, 0), ({"trace": 9}, 0)],
)
def test_only_gated_numbers_that_are_too_much_worse_shut_the_gate(path, changed, code, capsys):
    assert judge(RECORDED | changed, GATED, is_part=False, path=path) == code
    said = capsys.readouterr().out
    assert ("more than 15% worse" in said) == bool(code)
    for name, value in changed.items():
        (line,) = [line for line in said.splitlines() if line.startswith(name)]
        assert f"{value / RECORDED[name] - 1:+.1%}" in line


def test_what_is_missing_is_said(path, capsys):
    now = {"search": 10.0, "trace": 5.0, "new": 1.0}
    assert judge(now, GATED, is_part=False, path=path) == 0
    said = capsys.readouterr().out
    assert "MiB: not measured" in said
    assert "new: not recorded" in said
    assert judge({"search": 10.0}, GATED, is_part=True, path=path) == 0
    assert "not measured" not in capsys.readouterr().out
    assert judge(now, GATED, is_part=False, path=path.parent / "none.json") == 0
    assert "search: not recorded" in capsys.readouterr().out


def test_the_record_says_where_it_was_taken(path):
    assert json.loads(path.read_text()) == {"machine": "a machine", "numbers": RECORDED}
    assert [line.name for line in compared({"b": 1.0}, {"a": 1.0, "b": 1.0}, ())] == ["b", "a"]


def test_the_workload_takes_some_milliseconds():
    assert 1e-4 < workload_seconds() < 1.0

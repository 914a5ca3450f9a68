"""The table of `make numbers-tasks`, and that its models are thirty of all kinds."""

import csv
from dataclasses import replace

import pytest

from tests.numbers_tasks.models import MODELS
from tests.numbers_tasks.table import Row, summary, write

ROW = Row(
    model="one", kind="text", parameters=7, plan="dp2", batch=8, size=16, predicted_seconds=1.1, low_seconds=0.9,
    high_seconds=1.3, kernels_seconds=1.5, seconds=1.0, spread=0.02, predicted_bytes=95 * 2**20,
    peak_bytes=100 * 2**20, lost=0.01, parts={"compute": 1.1}, measured_parts={"compute": None}, device="a CPU",
    software="2.0", profiled="today",
)  # fmt: skip


def test_there_are_thirty_models_each_with_a_name_of_its_own():
    assert len({model.name for model in MODELS}) == len(MODELS) == 30
    assert {model.kind for model in MODELS} == {
        "text", "encoder-decoder", "vision", "detection", "segmentation", "several", "speech", "recurrent",
    }  # fmt: skip
    assert all(bool(model.config) != bool(model.factory) for model in MODELS)


def test_errors_are_of_what_was_predicted_over_what_was_measured():
    rows = [ROW, replace(ROW, seconds=2.2, peak_bytes=95 * 2**20), replace(ROW, seconds=1.0, kernels_seconds=0.2)]
    assert [row.time_error for row in rows] == pytest.approx([0.1, -0.5, 0.1])
    assert summary("dp2", rows) == (
        "dp2, 3 models: step time median 10.0%, p90 50.0%, worst 50.0%, 67% in the band; "
        "from kernels alone median 50.0%, p90 80.0%, worst 80.0%; peak memory median 5.0%, p90 5.0%, worst 5.0%"
    )


def test_the_table_reads_back_with_the_machine_that_it_is_of(tmp_path):
    write(tmp_path / "table.csv", [ROW])
    with (tmp_path / "table.csv").open() as file:
        (read,) = csv.DictReader(file)
    assert (read["model"], read["plan"], read["device"], read["software"], read["profiled"]) == (
        "one", "dp2", "a CPU", "2.0", "today",
    )  # fmt: skip
    assert (read["predicted_ms"], read["measured_ms"], read["time_error"]) == ("1100.0", "1000.0", "0.1000")
    assert (read["predicted_mib"], read["measured_mib"], read["memory_error"]) == ("95.00", "100.00", "-0.0500")

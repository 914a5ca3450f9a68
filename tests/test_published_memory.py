"""Peak memory of published runs: what their allocators and cards showed, and that what ran fits."""

import csv
from pathlib import Path

import numpy as np
import pytest

from planner.cost.memory.footprint import Footprint, footprint
from planner.published.reading import read_jobs
from profiles.machines.stacks import load_stack
from profiles.units import GIB

GOLDEN = Path(__file__).parent / "golden" / "published_memory.csv"
COUNTERS = {"peak_mem_gib": "allocated_bytes", "reserved_gib": "reserved_bytes", "device_gib": "device_bytes"}


@pytest.fixture(scope="module")
def published() -> tuple[list[dict[str, str]], Footprint]:
    with GOLDEN.open() as file:
        rows = list(csv.DictReader(file))
    reading = read_jobs(rows)
    assert not reading.refused
    assert len(rows) == 148
    return rows, footprint(reading.jobs)


def errors(published: tuple[list[dict[str, str]], Footprint], column: str, family: str) -> np.ndarray:
    """Relative errors, every distinct configuration once: the number of micro-batches does not change these runs."""
    rows, held = published
    found = {}
    for row, value in zip(rows, getattr(held, COUNTERS[column]), strict=True):
        if row["family"] == family and row[column]:
            names = ("model_name", "num_heads", "seq_len", "tp", "pp", "cp", "ep", "zero_stage", "micro_batch_size")
            key = tuple(row[name] for name in (*names, "num_gpus", "precision_class", "recompute_class", "fused_loss"))
            found[key] = value / GIB / float(row[column]) - 1
    return np.array(list(found.values()))


@pytest.mark.parametrize(
    ("family", "column", "count", "median", "worst"),
    [
        ("simumax_b200", "peak_mem_gib", 19, 0.001, 0.01),
        ("simumax_b200", "reserved_gib", 19, 0.018, 0.03),
        ("nanotron_bench", "peak_mem_gib", 12, 0.005, 0.025),
        ("nanotron_bench", "reserved_gib", 12, 0.015, 0.075),
        ("torchao", "reserved_gib", 2, 0.02, 0.03),
        ("torchao_f8nocompile", "reserved_gib", 9, 0.02, 0.03),
        ("bigscience", "device_gib", 32, 0.045, 0.35),
        ("fms_accel", "peak_mem_gib", 24, 0.01, 0.55),
        ("fms_accel", "device_gib", 24, 0.12, 0.55),
        ("ms_swift", "reserved_gib", 15, 0.06, 0.4),
        ("dgxc", "reserved_gib", 2, 0.04, 0.08),
    ],
)
def test_published_runs(published, family, column, count, median, worst):
    found = np.abs(errors(published, column, family))
    assert len(found) == count
    assert np.median(found) <= median
    assert found.max() <= worst


def test_first_and_last_stages_of_published_runs(published):
    rows, result = published
    for row, stages in zip(rows, result.stage_allocated_bytes, strict=True):
        if row["first_stage_gib"]:
            last = stages[int(row["pp"]) - 1]
            assert stages[0] / GIB == pytest.approx(float(row["first_stage_gib"]), rel=0.015)
            assert last / GIB == pytest.approx(float(row["last_stage_gib"]), rel=0.01)


def test_bands_hold_nine_in_ten_of_each_stacks_runs(published):
    rows, held = published
    inside: dict[str, list[bool]] = {}
    for index, row in enumerate(rows):
        for column, counter in COUNTERS.items():
            # One run of a model that its software did not shard.
            if row[column] and not (row["stack"] == "fsdp" and row["model_name"].startswith("PowerLM")):
                width, most = 1 + load_stack(row["stack"]).memory.band, getattr(held, counter)
                above = max(held.reserved_bytes[index], most[index]) / GIB * width
                low = held.allocated_bytes[index] / GIB / width
                inside.setdefault(row["stack"], []).append(low <= float(row[column]) <= above)
    for stack, each in inside.items():
        assert np.mean(each) >= 0.85, stack
    assert np.mean([one for each in inside.values() for one in each]) >= 0.9


def test_what_ran_fits_and_what_did_not_does_not(published):
    rows, result = published
    fits = result.device_bytes <= read_jobs(rows).jobs.device_memory_bytes
    failed = np.array([row["oom"] == "yes" for row in rows])
    assert failed.sum() >= 5
    assert fits[~failed].all()
    # One of 76 GiB by this count, of 79: what more it held is not known.
    assert fits[failed].sum() <= 1

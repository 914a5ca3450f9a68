"""Peak memory against published runs, and laws that any prediction of it must obey."""

import csv
import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.cost.job import Jobs
from planner.cost.memory.footprint import Footprint, footprint
from planner.cost.memory.peak import PARTS
from planner.published.reading import read_jobs
from profiles.machines.stacks import load_stack, stack_names
from profiles.units import GIB

GOLDEN = Path(__file__).parent / "golden" / "published_memory.csv"
DENSE = {
    "arch": "llama", "num_layers": "32", "hidden_size": "4096", "ffn_size": "14336", "num_heads": "32",
    "num_kv_heads": "8", "vocab_size": "32000", "seq_len": "4096", "gpu_type": "H100-SXM5-80GB", "num_gpus": "64",
    "zero_stage": "1", "global_batch_size": "1024", "micro_batch_size": "1", "stack": "megatron-core",
    "attention_kernel": "flash2", "sequence_parallel": "yes", "recompute_class": "none",
}  # fmt: skip
ROUTED = DENSE | {
    "arch": "moe", "num_experts": "64", "moe_topk": "4", "moe_ffn_size": "1024", "shared_expert_ffn_size": "2048",
    "num_dense_layers": "1", "dense_ffn_size": "14336", "ep": "4",
}  # fmt: skip
STACKS = sorted(stack_names())


def job(**changes: object) -> Jobs:
    base = ROUTED if changes.pop("routed", False) else DENSE
    reading = read_jobs([base | {name: str(value) for name, value in changes.items()}])
    assert not reading.refused, reading.refused
    return reading.jobs


def allocated(**changes: object) -> float:
    return float(footprint(job(**changes)).allocated_bytes[0])


def falls(values: list[float]) -> bool:
    return all(later <= earlier * (1 + 1e-9) for earlier, later in itertools.pairwise(values))


@pytest.fixture(scope="module")
def published() -> tuple[list[dict[str, str]], Footprint]:
    with GOLDEN.open() as file:
        rows = list(csv.DictReader(file))
    reading = read_jobs(rows)
    assert len(reading.jobs) == len(rows) == 58
    return rows, footprint(reading.jobs)


def errors(rows: list[dict[str, str]], predicted: np.ndarray, column: str, family: str) -> np.ndarray:
    """Relative errors, every distinct configuration once: the number of micro-batches does not change these runs."""
    found = {}
    for row, value in zip(rows, predicted, strict=True):
        if row["family"] == family and row[column]:
            key = (row["model_name"], *(row[name] for name in ("seq_len", "tp", "pp", "cp", "ep", "micro_batch_size")))
            found[key, row["num_gpus"], row["precision_class"]] = value / GIB / float(row[column]) - 1
    return np.array(list(found.values()))


@pytest.mark.parametrize(
    ("family", "column", "count", "median", "worst"),
    [
        ("simumax_b200", "peak_mem_gib", 19, 0.001, 0.01),
        ("simumax_b200", "reserved_gib", 19, 0.018, 0.03),
        ("nanotron_bench", "peak_mem_gib", 12, 0.005, 0.025),
        ("nanotron_bench", "reserved_gib", 12, 0.015, 0.075),
        ("torchao", "reserved_gib", 2, 0.02, 0.03),
    ],
)
def test_published_runs(published, family, column, count, median, worst):
    rows, result = published
    predicted = result.allocated_bytes if column == "peak_mem_gib" else result.reserved_bytes
    found = np.abs(errors(rows, predicted, column, family))
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


def test_published_runs_fit_their_devices(published):
    rows, result = published
    memory = read_jobs(rows).jobs.device_memory_bytes
    assert (result.device_bytes <= memory).all()


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("routed", [False, True])
def test_parts_sum_to_the_whole_and_counters_are_ordered(stack, routed):
    result = footprint(job(stack=stack, routed=routed, pp=4, tp=2))
    assert tuple(result.parts) == PARTS
    assert sum(part[0] for part in result.parts.values()) == pytest.approx(result.allocated_bytes[0])
    assert all(part[0] >= 0 for part in result.parts.values())
    assert result.allocated_bytes[0] <= result.reserved_bytes[0] < result.device_bytes[0]
    assert np.nanmax(result.stage_allocated_bytes[0]) == result.allocated_bytes[0]
    assert result.stage_allocated_bytes[0, int(result.stage[0])] == result.allocated_bytes[0]


@settings(max_examples=40)
@given(
    stack=st.sampled_from(STACKS),
    routed=st.booleans(),
    micro_batch=st.sampled_from([1, 2, 4]),
    recompute=st.sampled_from(["none", "selective", "full"]),
    pipeline=st.sampled_from([1, 2, 4]),
)
def test_splitting_saves_memory(stack, routed, micro_batch, recompute, pipeline):
    same = {"stack": stack, "routed": routed, "micro_batch_size": micro_batch, "recompute_class": recompute}
    plain, states, gradients, weights = (allocated(**same, pp=pipeline, zero_stage=stage) for stage in (0, 1, 2, 3))
    assert falls([plain, gradients, weights])
    assert falls([plain, states])
    # Stage 2 of this program is FSDP2, which gathers whole layers: in a short pipeline that can be more than it saves.
    assert stack == "trainwright" or gradients <= states
    assert falls([allocated(**same, pp=pipeline, tp=tensor) for tensor in (1, 2, 4, 8)])
    # Stages cut by parameters give the first one more than its share of layers, times as many micro-batches as stages.
    if not load_stack(stack).memory.cuts_by_parameters:
        assert falls([allocated(**same, pp=degree) for degree in (1, 2, 4, 8)])
    assert falls([allocated(**same, cp=degree, pp=pipeline) for degree in (1, 2, 4)])


@settings(max_examples=40)
@given(
    stack=st.sampled_from(STACKS),
    routed=st.booleans(),
    kernel=st.sampled_from(["unfused", "flash2"]),
    tensor=st.sampled_from([1, 4]),
    pipeline=st.sampled_from([1, 4]),
)
def test_more_work_takes_more_memory_and_recomputation_less(stack, routed, kernel, tensor, pipeline):
    same = {"stack": stack, "routed": routed, "attention_kernel": kernel, "tp": tensor, "pp": pipeline}
    assert falls([allocated(**same, micro_batch_size=size) for size in (8, 4, 2, 1)])
    assert falls([allocated(**same, seq_len=length) for length in (8192, 4096, 2048)])
    assert falls([allocated(**same, recompute_class=kind) for kind in ("none", "selective", "full")])
    assert allocated(**same, optimizer_offload="yes") <= allocated(**same)
    assert allocated(**same, activation_offload="yes") <= allocated(**same)


def test_micro_batches_in_flight_by_schedule():
    def held(schedule: str, count: int) -> float:
        return allocated(pp=4, schedule=schedule, global_batch_size=16 * count)

    assert held("gpipe", 4) < held("gpipe", 8) < held("gpipe", 16)
    assert held("1f1b", 2) < held("1f1b", 4)
    assert held("1f1b", 4) == held("1f1b", 8) == held("1f1b", 64)
    assert held("1f1b", 64) <= held("zb-2p", 64)
    assert allocated(pp=4, vp=4) > allocated(pp=4)


def test_interleaving_holds_the_published_number_of_micro_batches():
    plain, chunked = (footprint(job(pp=4, vp=chunks)).parts["activations"][0] for chunks in (1, 4))
    assert chunked / plain == pytest.approx((4 + 3 / 4) / 4, rel=0.05)


def test_shorter_first_stage_holds_less():
    even = footprint(job(pp=4)).stage_allocated_bytes[0]
    shorter = footprint(job(pp=4, first_stage_fewer_layers=4)).stage_allocated_bytes[0]
    assert shorter[0] < even[0]
    assert shorter[1] > even[1]


def test_columns_give_what_single_jobs_give():
    rows = [DENSE, ROUTED, DENSE | {"pp": "8", "stack": "nanotron"}, ROUTED | {"pp": "2", "tp": "4", "stack": "fsdp2"}]
    together = footprint(read_jobs(rows).jobs)
    for index, row in enumerate(rows):
        alone = footprint(read_jobs([row]).jobs)
        assert together.allocated_bytes[index] == pytest.approx(alone.allocated_bytes[0])
        assert together.moment[index] == alone.moment[0]


def test_no_jobs_have_no_memory():
    none = job().take(np.zeros(1, dtype=bool))
    assert len(footprint(none).allocated_bytes) == 0


def test_tied_vocabulary_stands_on_both_ends_of_a_pipeline():
    tied, untied = job(pp=2, stack="torch"), job(pp=2, stack="torch")
    tied = replace(tied, model=replace(tied.model, tied=np.array([True])))
    assert footprint(tied).stage_allocated_bytes == pytest.approx(footprint(untied).stage_allocated_bytes)


def test_every_number_of_a_stacks_memory_has_a_source():
    for name in STACKS:
        sources = load_stack(name).sources
        assert {"memory_states", "memory_logits", "memory_layers", "memory_slack", "memory_context"} <= set(sources)

"""Rows as jobs: empty columns filled and noted, bad rows refused, measured columns never read."""

from __future__ import annotations

import csv
import random
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.cost.job import Each, Jobs
from planner.published.columns import CONFIGURATION
from planner.published.reading import Reading, read_jobs
from profiles.models.transformer import Transformer
from profiles.units import GB, GIB

LEAST = {
    "num_layers": "32", "hidden_size": "4096", "gpu_type": "H100-SXM5-80GB", "num_gpus": "16", "micro_batch_size": "2",
}  # fmt: skip
GOLDEN = Path(__file__).parent / "golden" / "published_memory.csv"


def read(**changes: str) -> Reading:
    return read_jobs([LEAST | changes])


def job(**changes: str) -> Jobs:
    reading = read(**changes)
    assert not reading.refused, reading.refused
    return reading.jobs


def reason(**changes: str) -> str:
    reading = read(**changes)
    assert len(reading.jobs) == 0
    return reading.refused[0]


def notes(**changes: str) -> dict[str, str]:
    """What was filled, by column."""
    found = [text.split(": ", 1) for text in read(**changes).assumptions[0]]
    assert len({name for name, _ in found}) == len(found), "a column is noted twice"
    return dict(found)


def same(one: Jobs, other: Jobs) -> bool:
    pairs = [(one, other, field.name) for field in fields(Jobs) if field.name != "model"]
    pairs += [(one.model, other.model, field.name) for field in fields(Transformer)]
    return all(np.array_equal(*(_plain(getattr(of, name)) for of in (a, b))) for a, b, name in pairs)


def _plain(column: object) -> object:
    return column.words(lambda value: getattr(value, "name", str(value))) if isinstance(column, Each) else column


def test_a_row_of_five_columns_is_a_job_and_says_what_was_assumed():
    jobs, found = job(), notes()
    assert jobs.model.ffn_size[0] == 11008
    assert jobs.model.num_heads[0] == jobs.model.num_kv_heads[0] == 32
    assert jobs.data[0] == 16
    assert jobs.global_batch[0] == 32
    assert jobs.precision[0] == "bf16"
    assert found["ffn_size"] == "11008 assumed"
    assert found["dp"] == "16 computed (num_gpus / (tp x pp x cp))"
    assert found["global_batch_size"].startswith("32 computed")
    for name in ("arch", "vocab_size", "seq_len", "stack", "overlap_grad", "recompute_class", "optimizer_offload"):
        assert found[name].endswith("assumed"), name
    assert set(found) <= set(CONFIGURATION)
    assert not set(found) & set(LEAST)


@pytest.mark.parametrize(
    ("given", "column", "value"),
    [
        ({"mlp_type": "gelu"}, "arch", "gpt"),
        ({"mlp_type": "squared_relu"}, "arch", "nemotron4"),
        ({"arch": "mpt"}, "ffn_size", "16384"),
        ({"arch": "mpt"}, "vocab_size", "50368"),
        ({"num_heads": "32", "num_kv_heads": "8"}, "vocab_size", "128256"),
        ({"num_heads": "32", "attention": "gqa"}, "num_kv_heads", "8"),
        ({"num_heads": "32", "attention": "mqa"}, "num_kv_heads", "1"),
        ({"hidden_size": "1024"}, "num_heads", "16"),
        ({"mla_kv_lora": "512"}, "attention", "mla"),
        ({"dp_shard": "16"}, "stack", "fsdp"),
        ({"dp_shard": "16"}, "zero_stage", "3"),
        ({"dp_shard": "64"}, "dp_shard", "16"),
        ({"tp": "2"}, "stack", "megatron-core"),
        ({"cp": "2"}, "stack", "megatron-core"),
        ({"zero_stage": "1"}, "stack", "megatron-core"),
        ({"zero_stage": "2"}, "stack", "deepspeed"),
        ({}, "stack", "torch"),
        ({"tp": "2"}, "sequence_parallel", "yes"),
        ({"pp": "4", "vp": "2"}, "schedule", "interleaved-1f1b"),
        ({"gpu_type": "V100-SXM2-16GB"}, "precision_class", "fp16"),
        ({"gpu_type": "V100-SXM2-16GB"}, "attention_kernel", "unfused"),
        ({"stack": "megatron-lm"}, "overlap_grad", "no"),
        ({"gpu_type": "H100 PCIe"}, "nvlink_domain_gpus", "8"),
        ({"gpus_per_node": "4"}, "nvlink_domain_gpus", "4"),
        ({"gpu_type": "GB200"}, "nvlink_domain_gpus", "72"),
    ],
)
def test_what_empty_columns_become(given, column, value):
    assert notes(**given)[column].split()[0] == value


def test_spelling_does_not_matter():
    plain = job(arch="llama", tied_embeddings="yes", tp="2", recompute_class="none", seq_len="4096", cp="")
    odd = read_jobs(
        [
            {f" {name.upper()} ": f" {value} " for name, value in LEAST.items()}
            | {"Arch": "LLAMA", "TIED_embeddings": "True", "tp": "2.0", "recompute_class": "None", "seq_len": "4.096e3"}
            | {"cp": "n/a", "unheard_of": "x"}
        ]
    )
    assert not odd.refused
    assert same(odd.jobs, plain)


def test_a_schedule_has_its_own_number_of_stages():
    assert job(pp="4", schedule="zbv").chunks[0] == 2
    assert job(pp="4", schedule="zb-1p").chunks[0] == 1
    assert same(job(pp="4", vp="2", schedule="interleaved"), job(pp="4", vp="2", schedule="interleaved_1F1B"))


def test_hardware_is_what_the_row_says_first():
    jobs = job(gpu_mem_gib="40", intra_node_gbytes_per_s_unidir="250.5", nic_gbit_per_s_per_gpu="100")
    assert jobs.device_memory_bytes[0] == pytest.approx(40 * GIB, rel=0.02)
    assert jobs.fast_bytes_per_second[0] == 250.5 * GB
    assert jobs.network_bytes_per_second[0] == 12.5 * GB
    assert job(gpu_mem_gib="79.15").device_memory_bytes[0] == job().device_memory_bytes[0]
    without = job(nvlink_domain_gpus="1", gpus_per_node="8", intra_node_gbytes_per_s_unidir="25")
    assert without.fast_domain[0] == 8


def test_sizes_that_others_decide():
    assert job(num_gpus="", dp="4", tp="2").num_devices[0] == 8
    assert job(micro_batch_size="", global_batch_size="64", num_microbatches="2").micro_batch[0] == 2
    assert job(global_batch_size="128").num_microbatches[0] == 4
    assert job(micro_batch_size="2", num_microbatches="8").global_batch[0] == 256
    assert job(num_heads="32", num_kv_heads="2", tp="8").model.num_kv_heads[0] == 2
    assert job(seq_len="1048576", cp="16").sequence[0] == 2**20
    assert job(arch="gpt", seq_len="512").model.learned_positions[0] == 512
    assert job(dp_shard="-1").shard[0] == 16
    experts = job(num_experts="8", ffn_size="14336", dense_ffn_size="4096").model
    assert (experts.expert_ffn_size[0], experts.ffn_size[0]) == (14336, 4096)
    contradiction = notes(global_batch_size="128", num_microbatches="7")
    assert contradiction["num_microbatches"] == "4 computed from the batch sizes, where the row says 7"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"num_layers": ""}, ["num_layers", "empty"]),
        ({"hidden_size": "NaN"}, ["hidden_size", "empty"]),
        ({"hidden_size": "0"}, ["hidden_size", "0", "at least 1"]),
        ({"num_layers": "-4"}, ["num_layers", "-4"]),
        ({"num_layers": "many"}, ["num_layers", "many", "not a number"]),
        ({"num_layers": "3.5"}, ["num_layers", "3.5", "whole"]),
        ({"num_layers": "inf"}, ["num_layers"]),
        ({"num_layers": "1e9"}, ["num_layers", "largest"]),
        ({"head_dim": "1e9"}, ["head_dim", "largest"]),
        ({"num_experts": "8", "moe_ffn_size": "1e9"}, ["moe_ffn_size", "largest"]),
        ({"attention": "mla", "mla_kv_lora": "1e9"}, ["mla_kv_lora", "largest"]),
        ({"micro_batch_size": ""}, ["micro_batch_size", "global_batch_size"]),
        ({"num_gpus": ""}, ["num_gpus", "empty"]),
        ({"gpu_type": ""}, ["gpu_type", "--device"]),
        ({"gpu_type": "H1000"}, ["gpu_type", "H1000", "did you mean", "h100"]),
        ({"gpu_type": "qqq"}, ["gpu_type", "known are", "a100-sxm-80gb"]),
        ({"gpu_type": "V100-SXM2-16GB", "precision_class": "bf16"}, ["precision_class", "bf16", "fp16"]),
        ({"precision_class": "int3"}, ["precision_class", "int3", "bf16"]),
        ({"tp": "3"}, ["num_gpus (16)", "tp x pp x cp", "3 x 1 x 1"]),
        ({"tp": "2", "dp": "16"}, ["2 x 1 x 1 x 16", "num_gpus (16)"]),
        ({"num_heads": "30", "tp": "4"}, ["num_heads (30)", "tp (4)"]),
        ({"global_batch_size": "33"}, ["global_batch_size (33)", "micro-batches"]),
        ({"global_batch_size": "8"}, ["global_batch_size (8)"]),
        ({"pp": "16", "vp": "4"}, ["pp x vp", "16 x 4", "num_layers (32)"]),
        ({"num_experts": "64", "ep": "32"}, ["ep x etp", "16"]),
        ({"num_experts": "6", "ep": "4"}, ["num_experts (6)", "ep (4)"]),
        ({"num_experts": "12", "ep": "3"}, ["ep x etp", "divide"]),
        ({"arch": "moe"}, ["num_experts", "moe"]),
        ({"num_experts": "4", "moe_topk": "8"}, ["moe_topk", "8"]),
        ({"arch": "lama"}, ["arch", "lama", "did you mean 'llama'"]),
        ({"mlp_type": "relu7"}, ["mlp_type", "swiglu"]),
        ({"attention": "sparse"}, ["attention", "mla"]),
        ({"attention_kernel": "magic"}, ["attention_kernel", "flash2"]),
        ({"schedule": "dualpipe"}, ["schedule", "1f1b"]),
        ({"schedule": "zbv", "pp": "4", "vp": "3"}, ["vp", "3", "zbv has two stages per rank"]),
        ({"recompute_class": "some"}, ["recompute_class", "selective"]),
        ({"stack": "megatron"}, ["stack", "megatron", "fsdp"]),
        ({"compiled": "perhaps"}, ["compiled", "yes or no"]),
        ({"zero_stage": "4"}, ["zero_stage", "4"]),
        ({"dp_shard": "5"}, ["dp_shard", "5", "divide"]),
        ({"pp": "4", "last_stage_fewer_layers": "20"}, ["20", "layers"]),
        ({"seq_len": "1e9"}, ["seq_len"]),
    ],
)
def test_bad_rows_are_refused_with_column_value_and_what_is_allowed(given, words):
    text = reason(**given)
    for word in words:
        assert word in text, text
    assert "\n" not in text


def test_a_bad_row_stops_no_other():
    reading = read_jobs([LEAST, LEAST | {"num_layers": "x"}, {}, LEAST | {"row_id": "last", "num_layers": "8"}])
    assert reading.row_ids == ["row 1", "row 2", "row 3", "last"]
    assert reading.accepted.tolist() == [0, 3]
    assert reading.jobs.model.num_layers.tolist() == [32, 8]
    assert set(reading.refused) == {1, 2}
    assert len(reading.assumptions) == 4


def test_no_rows():
    reading = read_jobs([])
    assert len(reading.jobs) == 0
    assert reading.accepted.tolist() == []


@given(st.lists(st.dictionaries(st.sampled_from(CONFIGURATION), st.text(max_size=6), max_size=12), max_size=4))
@settings(max_examples=150)
def test_any_text_is_read_or_refused(rows):
    reading = read_jobs([LEAST | row for row in rows])
    assert len(reading.jobs) + len(reading.refused) == len(rows)


@given(st.data())
@settings(max_examples=150)
def test_any_numbers_are_read_or_refused(data):
    numbers = st.sampled_from(["0", "1", "2", "3", "8", "64", "-1", "1e3", "1e308", "0.5", "none", "nan", "yes"])
    row = data.draw(st.dictionaries(st.sampled_from(CONFIGURATION), numbers, max_size=15))
    reading = read_jobs([LEAST | row])
    if reading.refused:
        assert reading.refused[0]
    else:
        jobs = reading.jobs
        assert jobs.tensor[0] * jobs.pipeline[0] * jobs.context[0] * jobs.data[0] == jobs.num_devices[0]
        assert np.isfinite(jobs.global_batch[0])


def test_measured_and_provenance_columns_are_never_read():
    with GOLDEN.open() as file:
        rows = list(csv.DictReader(file))
    before = read_jobs(rows)
    assert len(before.jobs) == len(rows)
    others = [name for name in rows[0] if name not in (*CONFIGURATION, "row_id", None)]
    assert "peak_mem_gib" in others
    blank = read_jobs([row | dict.fromkeys(others, "") for row in rows])
    values = [[row[name] for name in others] for row in rows]
    random.Random(1).shuffle(values)
    permuted = read_jobs([row | dict(zip(others, own, strict=True)) for row, own in zip(rows, values, strict=True)])
    for other in (blank, permuted):
        assert same(other.jobs, before.jobs)
        assert other.assumptions == before.assumptions

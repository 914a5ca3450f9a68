"""Passes of element-wise operators: as timed kernels move, and as the software of a job fuses them."""

import csv

import numpy as np
import pytest

from planner.cost.element_passes import (
    EAGER_PACKED_GATED,
    EAGER_RMS_NORM,
    EAGER_ROTATION,
    GATED,
    HAND_NORM,
    LIBRARY_NORM,
    ROTATION,
    element_passes,
)
from planner.cost.kernel_work import work_of
from planner.published.reading import read_jobs
from profiles.laws.kernel_tables import MEASURED
from profiles.machines.devices import load_device
from tests.run_rows import SMALL_LLAMA

COUNTED = {
    ("norm", "eager rms"): EAGER_RMS_NORM, ("norm", "hand"): HAND_NORM, ("norm", "library"): LIBRARY_NORM,
    ("rotation", "eager"): EAGER_ROTATION, ("rotation", "fused"): ROTATION,
    ("activation", "eager packed gated"): EAGER_PACKED_GATED, ("activation", "gated"): GATED,
}  # fmt: skip


def table():
    with (MEASURED / "operators.csv").open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def jobs_of(**fields):
    return read_jobs([SMALL_LLAMA | {name: str(value) for name, value in fields.items()}]).jobs


def elements(**fields):
    """Bytes of element-wise operators and of routed copies, both directions."""
    loads = next(iter(work_of(jobs_of(**fields)).layers.values()))
    return [sum(float(getattr(load, name)[0]) for load in loads.values()) for name in ("element_bytes", "routed_bytes")]


def test_timed_operators_move_what_is_counted_of_them_at_a_share_of_the_memory_s_rate():
    shares = {}
    for row in table():
        passes = COUNTED[row["operator"], row["spelling"]][row["phase"] == "backward"]
        rate = passes * float(row["elements"]) * float(row["element_bytes"]) / float(row["milliseconds"]) / 1e6
        share = rate / load_device(row["gpu"]).memory_gb_per_second
        shares.setdefault((row["operator"], row["spelling"], row["phase"]), []).append(share)
    assert {name[:2] for name in shares} == set(COUNTED)
    for name, found in shares.items():
        assert 0.4 < np.median(found) < 0.95, (name, found)


def test_a_gated_activation_spelled_out_takes_as_much_longer_as_it_passes_more():
    for phase, place in (("forward", 0), ("backward", 1)):
        times = {}
        for row in table():
            if row["operator"] == "activation" and row["phase"] == phase:
                times.setdefault(row["elements"], {})[row["spelling"]] = float(row["milliseconds"])
        for found in times.values():
            measured = found["eager packed gated"] / found["gated"]
            assert measured == pytest.approx(EAGER_PACKED_GATED[place] / GATED[place], rel=0.1)


def test_what_a_job_says_of_its_norms_overrides_the_stack_and_a_compiler_fuses_all():
    eager, said, compiled = (element_passes(jobs_of(**x)) for x in ({}, {"fused_norms": "yes"}, {"compiled": "yes"}))
    for operator in ("norm", "rotation", "activation"):
        for phase in ("forward", "backward"):
            assert eager.of(operator, phase)[0] > compiled.of(operator, phase)[0] >= said.of(operator, phase)[0]
    assert compiled.of("residual", "backward")[0] < said.of("residual", "backward")[0]
    denied = element_passes(jobs_of(stack="megatron-core", fused_norms="no"))
    assert denied.of("norm", "forward")[0] == eager.of("norm", "forward")[0]


def test_layer_norms_have_one_kernel_everywhere():
    for stack in ("torch", "fsdp", "megatron-lm"):
        plain = element_passes(jobs_of(stack=stack, mlp_type="gelu", arch="gpt"))
        assert plain.of("norm", "forward")[0] == HAND_NORM[0]
        assert plain.of("activation", "forward")[0] == 2


def test_copies_of_routed_tokens_pass_alike_whatever_the_stack_fuses():
    experts = {"arch": "moe", "num_experts": 8, "moe_topk": 2, "moe_ffn_size": 1024, "ep": 8}
    plain, fused = (elements(stack=stack, **experts) for stack in ("fsdp2", "megatron-core"))
    assert plain[1] == fused[1] > 0
    assert plain[0] > 1.5 * fused[0]

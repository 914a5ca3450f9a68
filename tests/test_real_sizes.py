"""Published models are traced within seconds, with the parameters that their authors say, and planned for."""

import json
from dataclasses import replace

import pytest

from planner.request import Request
from profiles.tracing.module_copies import shorten, without_weights
from profiles.workloads.task_loading import load_task
from tests.matrix.real_configs import REAL
from tests.matrix.real_sizes import recorded, tried

# Seconds of a processor; three times as many as are asked for, for machines differ.
MOST_SECONDS = 50
PUBLISHED = 0.005
# Blocks that are left of these, of 24, 32, 48 and 61.
LEFT = {"whisper-large-v3": 4, "mistral-7b": 2, "llama-4-scout-text": 5, "deepseek-v3": 4}


def real_named(name):
    return next(real for real in REAL if real.name == name)


def test_all_that_is_recorded_has_the_parameters_that_were_published():
    assert len({real.name for real in REAL}) == len(REAL) == 48
    for name, row in recorded().items():
        assert float(row.parameters) == pytest.approx(real_named(name).published, rel=PUBLISHED), name
        assert float(row.profile_seconds) < MOST_SECONDS, name


@pytest.mark.parametrize("name", LEFT)
def test_few_blocks_are_left_of_a_deep_model(name):
    with without_weights():
        module = load_task(real_named(name).spec).build()
    before = sum(parameter.numel() for parameter in module.parameters())
    taken = shorten(module)
    assert before == pytest.approx(1e6 * real_named(name).published, rel=PUBLISHED)
    left = sum(len(module.get_submodule(path.rpartition(".")[0])) for path in taken)
    assert left == LEFT[name]


@pytest.mark.slow
@pytest.mark.parametrize("real", REAL, ids=lambda real: real.name)
def test_it_is_profiled_in_seconds_and_planned_for_or_refused_in_a_sentence(real, tmp_path):
    row = tried(real, tmp_path)
    assert "Traceback" not in row.refused
    assert float(row.profile_seconds) < MOST_SECONDS
    assert float(row.parameters) == pytest.approx(real.published, rel=PUBLISHED)
    assert row.flops_over_torch in ("", "1.000000")
    assert row.refused or 0 < float(row.mfu) < 0.8


def test_a_family_that_is_known_by_its_sizes_alone_is_planned_for_as_it_would_be_run(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(real_named("deepseek-v2-lite").config))
    asked = Request(model=str(path), num_devices=8, device="a100-sxm-80gb")
    assert asked.sizes() is None
    for other in (replace(asked, simulate=True), replace(asked, stack="megatron-core")):
        assert other.sizes().name == path.parent.name
    mixtral = tmp_path / "mixtral.json"
    mixtral.write_text(json.dumps(real_named("mixtral-8x7b").config))
    assert replace(asked, model=str(mixtral)).sizes() is not None

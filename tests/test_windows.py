"""Models that fill windows of an image up: what small images take does not tell what large ones do."""

from dataclasses import replace

import pytest

from profiles.tracing.task_trace import trace_task
from profiles.workloads.task_loading import load_task
from tests.matrix.architectures import ARCHITECTURES
from tests.matrix.by_torch import counted
from tests.matrix.ways import totals

SIDE, WINDOW, SAMPLES = 256, 12, 3


@pytest.mark.slow
def test_flops_of_large_images_are_torchs() -> None:
    (model,) = (each for each in ARCHITECTURES if each.name == "mask2former")
    backbone = {**model.spec.config["backbone_config"], "image_size": SIDE, "window_size": WINDOW}
    spec = replace(model.spec, config={**model.spec.config, "backbone_config": backbone})
    task = load_task(spec, size=SIDE)
    profile = trace_task(spec, task, ("fp32",))
    assert totals(profile, SAMPLES, SIDE)[0] == pytest.approx(counted(task, SAMPLES, SIDE))

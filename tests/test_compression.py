"""Compressed gradients on a real model and text: what each codec costs in quality, and what it is priced at."""

import pytest

from profiles.ranks.launcher import launch

STEPS = 80


@pytest.mark.gloo
@pytest.mark.usefixtures("warm_ranks")
@pytest.mark.slow
def test_codecs_train_a_real_model_as_well_as_they_say() -> None:
    names = ["none", "bf16 of shards", "int8", "powersgd-4", "topk-5", "topk-5 without feedback"]
    losses = launch("tests.compression_entries:train_with", {"codecs": names, "steps": STEPS}, 2, "cpu")
    last = {name: sum(values[-10:]) / 10 for name, values in losses.items()}
    # It learns: bytes at random would be log(256) = 5.5.
    assert last["none"] < 0.5 * losses["none"][0]
    # Rounded to eight significant bits on the way, by FSDP2: near, and not the same.
    assert last["bf16 of shards"] == pytest.approx(last["none"], rel=0.01)
    assert losses["bf16 of shards"] != losses["none"]
    assert last["int8"] == pytest.approx(last["none"], rel=0.02)
    assert last["none"] < last["powersgd-4"] < 1.05 * last["none"]
    # The twentieth part of the gradients is not enough, and less so where the rest is forgotten.
    assert last["powersgd-4"] < last["topk-5"] < last["topk-5 without feedback"]

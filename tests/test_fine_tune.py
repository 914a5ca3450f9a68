"""A checkpoint that is fine-tuned in a layout is what plain torch makes of it, read by transformers."""

from pathlib import Path

import pytest

from tests.fine_tune import fine_tune, holds


@pytest.mark.gloo
@pytest.mark.usefixtures("warm_ranks")
def test_a_checkpoint_is_fine_tuned_in_layouts_as_by_plain_torch(tmp_path: Path) -> None:
    found = fine_tune(["dp2 zero3 recompute", "tp2", "pp2"], 3, tmp_path)
    for name, own in found.items():
        assert holds(own), (name, own)

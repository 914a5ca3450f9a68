"""What we choose: which plans are legal, what each would take, which is best. Never imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from planner.notebook import Planned

__all__ = ["plan"]


def plan(
    model: str | Path,
    num_devices: int,
    *,
    device: str | None = None,
    cluster: str | None = None,
    global_batches: Sequence[int] = (),
    sequence_length: int | None = None,
    stack: str = "trainwright",
    precisions: Sequence[str] = (),
    codecs: Sequence[str] = ("none",),
    top: int = 10,
    simulate: bool = False,
    all_file: Path | None = None,
) -> Planned:
    """Plan from a notebook or a program, as the command `plan` does; a `device` or a `cluster` is needed.

    `model` is a shipped alias, or a config.json or its folder. Of several `global_batches`, `precisions` and gradient
    `codecs` the best is taken; without any, 8 samples per device, and bf16. `stack` is the software that will train.
    `top` layouts are kept; with `simulate` also what the executor cannot run. `all_file` gets every plan, as .csv or
    .parquet.
    Raises: InputError for what cannot be; NoFeasiblePlanError where nothing fits.
    """
    from planner.ask import Request
    from planner.notebook import planned, sizes_to_plan

    return planned(
        Request(
            model=sizes_to_plan(str(model)),
            num_devices=num_devices,
            device=device,
            cluster=cluster,
            global_batches=tuple(global_batches),
            sequence_length=sequence_length,
            stack=stack,
            precisions=tuple(precisions),
            codecs=tuple(codecs),
            top=top,
            simulate=simulate,
            all_file=all_file,
        )
    )

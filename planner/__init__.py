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
    machine: str | Path | None = None,
    learned: str | Path | None = None,
    device: str | None = None,
    cluster: str | None = None,
    global_batches: Sequence[int] = (),
    sequence_length: int | None = None,
    stack: str = "trainwright",
    attention_kernel: str | None = None,
    tensor_overlap: bool | None = None,
    precisions: Sequence[str] = (),
    codecs: Sequence[str] | None = ("none",),
    peft: str | None = None,
    quantised_base: str | None = None,
    task: str | None = None,
    weights: str | Path | None = None,
    top: int = 10,
    simulate: bool = False,
    all_file: str | Path | None = None,
    trusted: Sequence[str] = (),
) -> Planned:
    """Plan from a notebook or a program, as the command `plan` does.

    `model` is an alias, or a config.json or its folder, which `trusted` modules of the user's may build. The machine is
    the one measured here, unless a `machine` profile, a `device` or a `cluster` is named; a machine with a cluster has
    the nodes and network of that one, and `learned` is what `compare --learn` wrote of it. Of several
    `global_batches`, `precisions` and gradient `codecs` (None: the usual) the best is taken; without any, 8 samples
    per device, and bf16, or fp32 on CPUs. `stack` is the software that will train, with its own `attention_kernel` and
    `tensor_overlap` (messages beside compute) where these are None. `peft` trains adapters alone ("lora:16:q,v"), over
    a `quantised_base`. `task` is what a model of any family is trained for, `weights` a local folder it starts from.
    `top` layouts are kept; `simulate` adds what the executor cannot run; `all_file` gets every plan (.csv, .parquet).
    Raises: InputError for what cannot be; NoFeasiblePlanError where nothing fits.
    """
    from planner.notebook import planned
    from planner.request import Request
    from profiles.library import Asked
    from profiles.models.adapters import parse_adapters

    request = Request(
        model=str(model), num_devices=num_devices, machine=machine, learned=None if learned is None else Path(learned),
        device=device, cluster=cluster, global_batches=tuple(global_batches), sequence_length=sequence_length,
        stack=stack, attention_kernel=attention_kernel, tensor_overlap=tensor_overlap, precisions=tuple(precisions),
        codecs=None if codecs is None else tuple(codecs), top=top, simulate=simulate,
        all_file=None if all_file is None else Path(all_file), trusted=tuple(trusted),
        adapters=parse_adapters(peft, quantised_base), asked=Asked(task=task or "", weights=str(weights or "")),
    )  # fmt: skip
    return planned(request)

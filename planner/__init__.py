"""What we choose: which plans are legal, what each would take, which is best. Never imports torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from planner.notebook import Bought, Planned

__all__ = ["buy", "plan"]


def plan(
    model: str | Path,
    gpus: int,
    *,
    global_batch: int | str | Sequence[int] | None = None,
    sequence_length: int | None = None,
    machine: str | Path | None = None,
    learned: str | Path | None = None,
    device: str | None = None,
    cluster: str | None = None,
    stack: str = "trainwright",
    attention_kernel: str | None = None,
    tp_overlap: bool | None = None,
    precision: str | Sequence[str] | None = None,
    codecs: str | Sequence[str] = "none",
    peft: str | None = None,
    quantised_base: str | None = None,
    headroom: str | None = None,
    top: int = 10,
    simulate: bool = False,
    all_file: str | Path | None = None,
    task: str | None = None,
    weights: str | Path | None = None,
    trust_module: str | Sequence[str] | None = None,
) -> Planned:
    """Plan from a notebook or a program, as the command `plan` does: options have its names and defaults.

    The machine is the one measured here, unless a `machine`, a `device` or a `cluster` is named. Further
    answers of the command (`--why-not`, `--sensitivity`, `--tokens`) are methods, and so is writing the plan file.

    * `model`: a shipped alias such as "llama-3.1-8b", a config.json or its folder, or "package.module:factory".
    * `gpus`: the number of devices; CPU ranks where the machine has no GPU.
    * `global_batch`: samples per optimizer step, by default 8 per device; the best of (256, 512) or "256-512".
    * `sequence_length`: tokens per sample; by default the model's longest, at most 4096.
    * `machine`: the profile of a measured machine, as `profile machine -o` writes it.
    * `learned`: corrections for that machine, from `compare --learn`.
    * `device`: a shipped device to plan for, such as "h100-sxm".
    * `cluster`: a shipped cluster, such as "dgx-h100"; with `machine`, its nodes and network.
    * `stack`: the software that will train on a shipped device, such as "megatron-core".
    * `attention_kernel`: "unfused", "flash2", "flash3" or "cudnn"; by default the stack's.
    * `tp_overlap`: whether tensor-parallel messages overlap with compute; by default as the stack does.
    * `precision`: "bf16", or several of which the best is taken; by default bf16, or fp32 on CPUs.
    * `codecs`: gradient codecs to consider, such as "none,bf16"; "auto" for the usual ones.
    * `peft`: train adapters only: "lora:16", "lora:16:q,v" or "lora:8:all".
    * `quantised_base`: the format of frozen weights beside adapters: "nf4", "nf4-dq", "int4" or "int8".
    * `headroom`: the share of memory that plans must leave free, such as "5%".
    * `top`: how many different layouts are kept.
    * `simulate`: whether to include plans that the executor cannot run.
    * `all_file`: a file for every plan, .csv or .parquet.
    * `task`: the task to train the model for, such as "question-answering", if its configuration does not say.
    * `weights`: a local folder of safetensors that training starts from.
    * `trust_module`: modules of yours that a model's file may import.

    Raises: InputError for what cannot be; NoFeasiblePlanError where nothing fits.
    """
    from planner.notebook import planned, samples_of, words_of
    from planner.request import Request, codecs_asked, parse_headroom
    from profiles.library import Asked
    from profiles.models.adapters import parse_adapters

    request = Request(
        model=str(model), num_devices=gpus, machine=machine, learned=None if learned is None else Path(learned),
        device=device, cluster=cluster, global_batches=samples_of(global_batch), sequence_length=sequence_length,
        stack=stack, attention_kernel=attention_kernel, tensor_overlap=tp_overlap, precisions=words_of(precision),
        codecs=codecs_asked(",".join(words_of(codecs))), top=top, simulate=simulate,
        all_file=None if all_file is None else Path(all_file), trusted=words_of(trust_module),
        adapters=parse_adapters(peft, quantised_base), asked=Asked(task=task or "", weights=str(weights or "")),
        headroom_fraction=parse_headroom(headroom),
    )  # fmt: skip
    return planned(request)


def buy(
    model: str | Path,
    gpus: int | str | Sequence[int],
    *,
    device: str | Sequence[str] | None = None,
    cluster: str | Sequence[str] | None = None,
    machine: str | Path | None = None,
    global_batch: int | None = None,
    sequence_length: int | None = None,
    stack: str = "trainwright",
    precision: str | Sequence[str] | None = None,
    peft: str | None = None,
    quantised_base: str | None = None,
    headroom: str | None = None,
    simulate: bool = False,
    trust_module: str | Sequence[str] | None = None,
    tokens: float | str | None = None,
    samples: float | str | None = None,
    days: float | None = None,
    price: float | str | Mapping[str, float] | None = None,
    spot_price: float | str | Mapping[str, float] | None = None,
    spot_hours: float | None = None,
    mtbf: float | None = None,
    checkpoint_seconds: float | None = None,
    keep_checkpoints: int | None = None,
    pue: float | None = None,
    host_watts: float | None = None,
    kwh_price: float | None = None,
    grid_grams: float | None = None,
) -> Bought:
    """Compare counts and kinds of devices, as the command `plan` does where several are named.

    Each count is planned for on each device and cluster, with the same batch. `to_frame()` of the answer has a row for
    each, `plan_of(rank)` the plan file of a row, `page()` draws it, and `save(path)` writes it all. Options have the
    command's names.

    * `model`: a shipped alias such as "llama-3.1-8b", a config.json or its folder, or "package.module:factory".
    * `gpus`: counts of devices, such as (64, 256), or "64-1024", which doubles.
    * `device`: shipped devices, in a list or with commas between: "h100-sxm,b200-sxm".
    * `cluster`: shipped clusters, in the same way; with neither, the measured machine.
    * `machine`: the profile of a measured machine, as `profile machine -o` writes it.
    * `global_batch`: samples per optimizer step, the same for all; by default 8 per device of the largest count.
    * `sequence_length`: tokens per sample; by default the model's longest, at most 4096.
    * `stack`: the software that will train on shipped devices, such as "megatron-core".
    * `precision`: "bf16", or several of which the best is taken; by default bf16, or fp32 on CPUs.
    * `peft`: train adapters only: "lora:16", "lora:16:q,v" or "lora:8:all".
    * `quantised_base`: the format of frozen weights beside adapters: "nf4", "nf4-dq", "int4" or "int8".
    * `headroom`: the share of memory that plans must leave free, such as "5%".
    * `simulate`: whether to include plans that the executor cannot run.
    * `trust_module`: modules of yours that a model's file may import.
    * `tokens`: tokens to train on, such as "1T"; without it, money is for a billion tokens, for comparison.
    * `samples`: samples to train on, for models that do not count tokens.
    * `days`: the most days that training may take.
    * `price`: dollars per device and hour, for all or by name: {"h100-sxm": 2.5}; by default the catalogue's range.
    * `spot_price`: the same for spot devices, for which the catalogue has no prices.
    * `spot_hours`: hours until a spot node is reclaimed; by default 24.
    * `mtbf`: mean hours between failures of one device; by default 50,700.
    * `checkpoint_seconds`: seconds that a checkpoint interrupts training; by default 30.
    * `keep_checkpoints`: number of checkpoints kept in storage; by default 2.
    * `pue`: building power relative to its computers'; by default the catalogue's.
    * `host_watts`: watts per device for the rest of its node; by default the catalogue's share of the device's.
    * `kwh_price`: dollars per kWh, if you pay for energy.
    * `grid_grams`: grams of CO2 per kWh of the local grid.

    Raises: InputError for what cannot be; NoFeasiblePlanError where nothing fits anywhere.
    """
    from planner.notebook import bought, count_of, counts_of, samples_of, words_of
    from planner.purchase.compare import compare
    from planner.purchase.questions import Purchase, places_among
    from planner.purchase.terms import CHECKPOINTS_KEPT, Terms, prices_of, reliability_of, usual_energy
    from planner.request import Request, parse_headroom
    from profiles.models.adapters import parse_adapters

    request = Request(
        model=str(model), num_devices=1, machine=machine, sequence_length=sequence_length, stack=stack,
        global_batches=samples_of(global_batch), top=1, simulate=simulate, precisions=words_of(precision),
        adapters=parse_adapters(peft, quantised_base), trusted=words_of(trust_module),
        headroom_fraction=parse_headroom(headroom),
    )  # fmt: skip
    terms = Terms(
        energy=usual_energy(host_watts, pue, kwh_price, grid_grams), prices=prices_of("price", price),
        spot_prices=None if spot_price is None else prices_of("spot_price", spot_price), deadline_days=days,
        reliability=reliability_of(mtbf, checkpoint_seconds, spot_hours),
        checkpoints_kept=keep_checkpoints or CHECKPOINTS_KEPT,
    )  # fmt: skip
    purchase = Purchase(
        request=request, num_devices=counts_of(gpus), places=places_among(words_of(device), words_of(cluster)),
        terms=terms, tokens=count_of(tokens), samples=count_of(samples),
    )  # fmt: skip
    return bought(compare(purchase))

"""Options of `plan` that somebody gives who buys or rents: what is trained, by when, and on what terms. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from typing import TYPE_CHECKING, Annotated, Any

import typer

from profiles.errors import InputError
from profiles.inputs import bounds, limits

if TYPE_CHECKING:
    from planner.purchase.terms import Terms
    from planner.space.beside import Questions

BUDGET = "tokens", "samples"
# What says something about a training of so many tokens or samples alone.
OF_BUDGET = ("by", "days", "mtbf", "checkpoint_seconds", "keep_checkpoints", "spot_hours")
# What says something about a comparison of devices as well.
OF_BILL = ("price", "spot_price", "pue", "host_watts", "kwh_price", "grid_grams")
# What is not asked of several counts or kinds of devices at once.
OF_ONE_PLAN = ("why_not", "sensitivity", "trace", "all_file", "compress")

SamplesOption = Annotated[
    str | None,
    typer.Option(metavar="COUNT", help="Samples to train on, for days and cost: 1.28M; for text, use --tokens."),
]
EpochsOption = Annotated[
    int | None, typer.Option(callback=bounds.between(1, 1e6), help="Passes over the --samples [1].")
]
TokensOption = Annotated[str | None, typer.Option(help="Tokens to train on, for days and cost: 300B, 1T.")]
DaysOption = Annotated[
    float | None,
    typer.Option(
        callback=bounds.between(1e-3, limits.DEADLINE_DAYS), help="Say what is enough to finish within this many days."
    ),
]
ByOption = Annotated[
    str | None, typer.Option(metavar="DATE", help="Say what is enough to finish by this date: 2027-03-01.")
]
PriceOption = Annotated[
    str | None, typer.Option(metavar="DOLLARS", help="Price per device-hour: 2.5, or h100-sxm=2.5,b200-sxm=4.9.")
]
SpotPriceOption = Annotated[
    str | None, typer.Option(metavar="DOLLARS", help="Price of spot devices, which may be reclaimed: h100-sxm=1.4.")
]
SpotHoursOption = Annotated[
    float | None,
    typer.Option(callback=bounds.FAILURE_HOURS, help="Hours until a spot node is reclaimed [24]."),
]
MtbfOption = Annotated[
    float | None,
    typer.Option(callback=bounds.FAILURE_HOURS, help="Mean hours between failures of one device [50,700]."),
]
CheckpointSecondsOption = Annotated[
    float | None,
    typer.Option(callback=bounds.CHECKPOINT_SECONDS, help="Seconds that a checkpoint interrupts training [30]."),
]
KeepCheckpointsOption = Annotated[
    int | None, typer.Option(callback=bounds.between(1, 1e6), help="Number of checkpoints kept in storage [2].")
]
PueOption = Annotated[
    float | None, typer.Option(callback=bounds.between(1, 10), help="Building power relative to its computers' [1.15].")
]
HostWattsOption = Annotated[
    float | None,
    typer.Option(
        callback=bounds.between(0, 1e5), help="Watts per device for the rest of its node [half of the device's]."
    ),
]
KwhPriceOption = Annotated[
    float | None, typer.Option(callback=bounds.between(0, 1e3), help="Dollars per kWh, if you pay for energy.")
]
GridGramsOption = Annotated[
    float | None, typer.Option(callback=bounds.between(0, 1e5), help="Grams of CO2 per kWh of the local grid.")
]
HeadroomOption = Annotated[
    str | None, typer.Option(metavar="SHARE", help="Memory that plans must leave free: 5% [0%].")
]


def check_bill(given: Mapping[str, str], is_several: bool) -> None:
    """Check what may be asked together of a training's cost; `given` are options by parameter.

    Raises: InputError that names two options.
    """
    if "samples" in given and "tokens" in given:
        raise InputError("--tokens and --samples both say how much is trained on: give one of the two")
    if "by" in given and "days" in given:
        raise InputError("--by and --days both say how long it may take: give one of the two")
    for name, needed in (("epochs", "samples"), ("spot_hours", "spot_price")):
        if name in given and needed not in given:
            raise InputError(f"{given[name]} has no effect without --{needed.replace('_', '-')}: give both or neither")
    for name in (*OF_BUDGET, *(() if is_several else OF_BILL)):
        if name in given and not any(one in given for one in BUDGET):
            raise InputError(f"{given[name]} has no effect without --tokens: give both or neither")
    for name in OF_ONE_PLAN if is_several else ():
        if name in given:
            raise InputError(f"{given[name]} is not asked of several --gpus, --device or --cluster: ask about one")


def terms_of(params: Mapping[str, Any], today: date) -> Terms:
    """The terms that options give.

    Raises: InputError for a price or a date that is none.
    """
    from planner.purchase.terms import (
        CHECKPOINTS_KEPT,
        Prices,
        Terms,
        days_until,
        parse_prices,
        reliability_of,
        usual_energy,
    )

    spot = params["spot_price"]
    return Terms(
        energy=usual_energy(
            host_watts=params["host_watts"],
            pue=params["pue"],
            kwh_price=params["kwh_price"],
            grid_grams=params["grid_grams"],
        ),
        prices=Prices() if params["price"] is None else parse_prices("--price", params["price"]),
        spot_prices=None if spot is None else parse_prices("--spot-price", spot),
        reliability=reliability_of(params["mtbf"], params["checkpoint_seconds"], params["spot_hours"]),
        deadline_days=params["days"] if params["by"] is None else days_until(params["by"], today),
        deadline=(params["by"] or "").strip(),
        checkpoints_kept=params["keep_checkpoints"] or CHECKPOINTS_KEPT,
    )


def check_prices_of(questions: Questions, device: str | None, cluster: str | None) -> None:
    """Check that prices by name are of the device or the cluster that is planned for.

    Raises: InputError.
    """
    from planner.purchase.questions import check_prices, places_of

    terms = questions.terms
    if terms is not None and (terms.prices.by_name or terms.spot_prices is not None):
        check_prices(terms, places_of(device, cluster))


def budget_of(params: Mapping[str, Any]) -> dict[str, float | None]:
    """The tokens and the samples that options give, those of all epochs.

    Raises: InputError for what is no number.
    """
    from planner.ask import parse_count

    tokens, samples = params["tokens"], params["samples"]
    return {
        "tokens": None if tokens is None else parse_count(tokens),
        "samples": None if samples is None else parse_count(samples, "--samples") * (params["epochs"] or 1),
    }

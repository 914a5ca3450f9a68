"""On what terms devices are had: prices, how often they fail, what they draw, and until when a training must end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date

from profiles.errors import InputError, UnknownNameError
from profiles.inputs import limits
from profiles.inputs.foreign import shown
from profiles.machines.clusters import cluster_names
from profiles.machines.devices import catalogue_names, find_device
from profiles.machines.power import load_power

# 419 unexpected interruptions in 54 days on 16,384 GPUs. Source: Grattafiori et al., The Llama 3 Herd of Models, 2024
# (arXiv 2407.21783), section 3.3.4. How long a checkpoint and a restart hold a job up is assumed.
DEVICE_FAILURE_HOURS = 54 * 24 * 16384 / 419
CHECKPOINT_SECONDS, RESTART_SECONDS = 30.0, 600.0
# Until a spot node is reclaimed. Assumed: the longest that Google's preemptible machines last.
SPOT_NODE_HOURS = 24.0
# As the executor keeps them, unless it is told otherwise.
CHECKPOINTS_KEPT = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """Dollars per device and hour: by the name of a device or a cluster, and of `every` other one; None is unknown."""

    every: float | None = None
    by_name: Mapping[str, float] = field(default_factory=dict)

    def of(self, device: str, cluster: str = "") -> float | None:
        """The price of a device, in a cluster where that has one of its own."""
        return self.by_name.get(cluster, self.by_name.get(device, self.every))


@dataclass(frozen=True, slots=True, kw_only=True)
class Reliability:
    """How often one device fails, in hours of it, and how long a checkpoint and a restart hold the job up.

    `spot_node_hours` is until a spot node is reclaimed, which counts as a failure.
    """

    failure_hours: float = DEVICE_FAILURE_HOURS
    checkpoint_seconds: float = CHECKPOINT_SECONDS
    restart_seconds: float = RESTART_SECONDS
    spot_node_hours: float = SPOT_NODE_HOURS


@dataclass(frozen=True, slots=True, kw_only=True)
class Energy:
    """What is drawn beside the devices, and what a kWh costs in dollars and grams of CO2, None where nobody asks.

    `host_watts` of a node go with each of its devices; where they are None, `host_share` of a device's rated power.
    """

    host_share: float
    pue: float
    host_watts: float | None = None
    kwh_price: float | None = None
    grid_grams: float | None = None

    def host_watts_of(self, device_watts: float) -> float:
        """Watts of the rest of a node for each device of so many watts."""
        return self.host_share * device_watts if self.host_watts is None else self.host_watts


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """All of it; `spot_prices` is None where spot devices are not asked about, `deadline_days` where time is free.

    `deadline` is the date of it, where one was given.
    """

    energy: Energy
    prices: Prices = Prices()
    spot_prices: Prices | None = None
    reliability: Reliability = Reliability()
    deadline_days: float | None = None
    deadline: str = ""
    checkpoints_kept: int = CHECKPOINTS_KEPT


def usual_energy(
    host_watts: float | None = None,
    pue: float | None = None,
    kwh_price: float | None = None,
    grid_grams: float | None = None,
) -> Energy:
    """What is given, and the catalogue's for what is not."""
    power = load_power()
    return Energy(
        host_share=power.host_share,
        pue=power.pue if pue is None else pue,
        host_watts=host_watts,
        kwh_price=kwh_price,
        grid_grams=grid_grams,
    )


def usual_terms(price: float | None = None, reliability: Reliability | None = None) -> Terms:
    """The terms where nothing else is known; `price` is in dollars per device and hour."""
    return Terms(energy=usual_energy(), prices=Prices(every=price), reliability=reliability or Reliability())


def prices_of(option: str, price: float | str | Mapping[str, float] | None) -> Prices:
    """Prices of all devices alike, or by name, or as the command line says them.

    Raises: InputError for a price that is none; UnknownNameError.
    """
    if isinstance(price, str):
        return parse_prices(option, price)
    given = {"": price} if isinstance(price, float | int) else price or {}
    for value in given.values():
        limits.check(option, value, 0, limits.PRICE)
    return Prices(every=given.get(""), by_name={_known(name): value for name, value in given.items() if name})


def reliability_of(
    failure_hours: float | None, checkpoint_seconds: float | None, spot_node_hours: float | None
) -> Reliability:
    """What is given, and the usual for what is None."""
    times = {
        "failure_hours": failure_hours,
        "checkpoint_seconds": checkpoint_seconds,
        "spot_node_hours": spot_node_hours,
    }
    return Reliability(**{name: value for name, value in times.items() if value is not None})


def parse_prices(option: str, text: str) -> Prices:
    """Prices from 2.5, or by device or cluster from h100-sxm=2.5,b200-sxm=4.9.

    Raises: InputError where one is none; UnknownNameError for a name that is not in the catalogue.
    """
    every, by_name = None, {}
    for word in (word.strip() for word in text.split(",")):
        name, has_name, number = word.rpartition("=")
        value = _dollars(option, word, number)
        if not has_name and every is None:
            every = value
        elif has_name and (key := _known(name.strip())) not in by_name:
            by_name[key] = value
        else:
            raise InputError(f"{option} {shown(text)}: {word} is given twice: give each price once")
    return Prices(every=every, by_name=by_name)


def _dollars(option: str, word: str, number: str) -> float:
    try:
        value = float(number)
    except ValueError:
        example = "2.5, or by device h100-sxm=2.5,b200-sxm=4.9"
        raise InputError(f"{option} {shown(word)}: give dollars per device and hour: {example}") from None
    limits.check(option, value, 0, limits.PRICE)
    return value


def _known(name: str) -> str:
    """The name in the catalogue of a device or a cluster."""
    if name in cluster_names():
        return name
    try:
        return find_device(name).name
    except UnknownNameError:
        raise UnknownNameError("device or cluster", name, [*catalogue_names(), *cluster_names()]) from None


def days_until(text: str, today: date) -> float:
    """Days from `today` to the date that `--by` gives.

    Raises: InputError where it is none, or not in the future.
    """
    try:
        day = date.fromisoformat(text.strip())
    except ValueError:
        raise InputError(f"--by {shown(text)}: give a date such as {today.year + 1}-03-01") from None
    days = (day - today).days
    if days < 1:
        raise InputError(f"--by {day}: today is {today}: give a date that is still to come")
    limits.check("--by", days, 1, limits.DEADLINE_DAYS)
    return float(days)

"""What a training takes at a plan's predicted speed: days, money, energy, failures, and room for its checkpoints."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from planner.answers import Cost
from planner.cost.adapted import adapter_count
from planner.cost.software_memory import memory_rules
from planner.goodput import Goodput, goodput
from planner.purchase.terms import Reliability, Terms
from planner.space.question import jobs_of
from profiles.errors import InputError
from profiles.units import format_seconds

if TYPE_CHECKING:
    from planner.prediction import Prediction
    from planner.space.question import Setting

SECONDS_PER_DAY, SECONDS_PER_HOUR, JOULES_PER_KWH = 86400.0, 3600.0, 3.6e6
GRAMS_PER_KG = 1000.0
# What trains less than this share of its time comes to no end.
LEAST_GOODPUT = 1e-3


def cost_of(
    at: Setting, prediction: Prediction, tokens: float, terms: Terms, *, is_spot: bool = False, cluster: str = ""
) -> Cost:
    """What training on `tokens` takes on these terms; of spot devices where they are asked about.

    Model: devices draw their rated power, and their hosts with them, all the time that they are rented for.
    Raises: InputError where a time is not positive, or the job would hardly train at all.
    """
    expected = _expected(at, terms.reliability, is_spot=is_spot)
    trains = float(expected.goodput_fraction)
    seconds = tokens / prediction.tokens_per_second / trains
    hours = seconds / SECONDS_PER_HOUR * at.num_devices
    price, price_date = price_of(at, terms, is_spot=is_spot, cluster=cluster)
    energy, watts = terms.energy, at.device.power_watts
    drawn = (watts + energy.host_watts_of(watts)) * energy.pue
    facility = seconds * at.num_devices * drawn / JOULES_PER_KWH
    low, high = (end / prediction.step_seconds for end in (prediction.low_seconds, prediction.high_seconds))
    days, held = seconds / SECONDS_PER_DAY, checkpoint_bytes(at)
    return Cost(
        tokens=tokens,
        days=days,
        low_days=days * low,
        high_days=days * high,
        is_spot=is_spot,
        device_hours=hours,
        goodput_fraction=trains,
        num_failures=seconds / float(expected.job_failure_seconds),
        interval_seconds=float(expected.interval_seconds),
        kwh=seconds * at.num_devices * watts / JOULES_PER_KWH,
        facility_kwh=facility,
        host_watts=energy.host_watts_of(watts),
        pue=energy.pue,
        energy_dollars=None if energy.kwh_price is None else facility * energy.kwh_price,
        co2_kg=None if energy.grid_grams is None else facility * energy.grid_grams / GRAMS_PER_KG,
        price_per_hour=price,
        dollars=None if price is None else (hours * price[0], hours * price[1]),
        dollars_by_band=None if price is None else (hours * low * price[0], hours * high * price[1]),
        price_date=price_date,
        checkpoint_bytes=held,
        checkpoints_kept=terms.checkpoints_kept,
        stored_bytes=held * terms.checkpoints_kept,
        deadline_days=terms.deadline_days,
        deadline=terms.deadline,
    )


def price_of(
    at: Setting, terms: Terms, *, is_spot: bool = False, cluster: str = ""
) -> tuple[tuple[float, float] | None, str]:
    """Dollars per device and hour, lowest and highest; where they are the catalogue's, which has no spot, of when."""
    prices = terms.spot_prices if is_spot else terms.prices
    price = None if prices is None else prices.of(at.device.name, cluster)
    if price is not None:
        return (price, price), ""
    if is_spot or at.device.price_per_hour is None:
        return None, ""
    return at.device.price_per_hour, f"price of {at.device.price_date}" if at.device.price_date else ""


def checkpoint_bytes(at: Setting) -> float:
    """Bytes of one checkpoint: weights as the stack holds them, and the optimizer's, of each parameter once.

    Model: what is trained has weights, copies in 32 bits where there are any, and moments; what is frozen has weights.
    Ignores: buffers, counters, and weights that a task's own module freezes.
    """
    rules = memory_rules(jobs_of(at, tensor=np.ones(1)))
    weights = float(at.model.transformer.num_parameters[0])
    states = float(rules.master_bytes[0] + rules.moment_bytes[0])
    if not at.model.adapters.freezes:
        return weights * (float(rules.weight_bytes[0]) + states)
    adapters = adapter_count(at.model)
    return weights * float(rules.base_bytes[0]) + adapters * (float(rules.adapter_bytes[0]) + states)


def _expected(at: Setting, reliability: Reliability, *, is_spot: bool) -> Goodput:
    """The share of time that trains, at the best interval between checkpoints.

    Model: what is taken back and what fails stops the job alike; a node is taken back with all of its devices.
    Raises: InputError.
    """
    failure = reliability.failure_hours
    if is_spot:
        nodes = math.ceil(at.num_devices / at.devices_per_node)
        failure = 1 / (1 / failure + nodes / at.num_devices / reliability.spot_node_hours)
    expected = goodput(
        device_failure_seconds=failure * SECONDS_PER_HOUR,
        num_devices=at.num_devices,
        checkpoint_seconds=reliability.checkpoint_seconds,
        restart_seconds=reliability.restart_seconds,
    )
    if float(expected.goodput_fraction) < LEAST_GOODPUT:
        often, checkpoint = float(expected.job_failure_seconds), reliability.checkpoint_seconds
        options = "--spot-hours, --mtbf" if is_spot else "--mtbf"
        raise InputError(
            f"with a failure every {format_seconds(often)} and {format_seconds(checkpoint)} for a checkpoint the job "
            f"would train less than {LEAST_GOODPUT:.1%} of the time: see {options}, --checkpoint-seconds and --gpus"
        )
    return expected

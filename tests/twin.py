"""Prices of plans by the published laws, and by a machine that was measured as these say it is: they have to agree.

`python -m tests.twin` prints how far the two are apart, and by which parts the worst plans are.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from planner.parts import PART_NAMES
from planner.prediction import Prediction
from planner.space.block import block
from planner.space.block_memory import device_bytes
from planner.space.explore import Place
from planner.space.layouts import Layouts, Options, legal_layouts
from planner.space.measured_setting import measured_setting
from planner.space.one_plan import space_of
from planner.space.predictions import predictions
from planner.space.question import Setting, setting
from planner.space.to_plans import plan_of
from profiles.library import load_model
from profiles.machines.devices import load_device
from profiles.machines.profile import (
    MachineProfile,
)
from profiles.models.sizes import sizes_of
from tests.twin_machine import PRECISION, twin

DEVICE = "h100-sxm"


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A model on so many devices, of which `measured` were measured."""

    model: str
    num_devices: int
    global_batch: int
    sequence: int
    measured: int
    codec: str = "none"


QUESTIONS = (
    Question(model="llama-3.1-8b", num_devices=8, global_batch=64, sequence=4096, measured=8),
    Question(model="llama-3.1-8b", num_devices=16, global_batch=128, sequence=4096, measured=16),
    Question(model="llama-3.1-8b", num_devices=64, global_batch=256, sequence=8192, measured=16),
    Question(model="llama-3.1-8b", num_devices=64, global_batch=256, sequence=4096, measured=8),
    Question(model="llama-3.1-8b", num_devices=512, global_batch=1024, sequence=4096, measured=16),
    Question(model="llama-3.1-8b", num_devices=32, global_batch=128, sequence=4096, measured=16, codec="int8"),
    Question(model="llama-3.1-70b", num_devices=128, global_batch=512, sequence=4096, measured=16),
)


def published(at: Question) -> Setting:
    """The question to the laws."""
    profile = load_model(at.model)
    model = sizes_of(profile.name, profile.workload.config)
    return setting(
        model, load_device(DEVICE), at.num_devices, at.global_batch, at.sequence, precision=PRECISION, codec=at.codec
    )


def measured(at: Question, machine: MachineProfile) -> Setting:
    """The question to a machine that was measured."""
    model = load_model(at.model)
    return measured_setting(machine, model, at.num_devices, at.global_batch, at.sequence, PRECISION, codec=at.codec)


def slower(at: Setting, times: float) -> Setting:
    """The setting with links that carry so many times less."""
    return replace(
        at,
        network_bytes_per_second=at.network_bytes_per_second / times,
        fast_bytes_per_second=at.fast_bytes_per_second / times,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """A plan's price by the laws, and by the twin."""

    question: Question
    plan: str
    law: Prediction
    twin: Prediction

    @property
    def ratio(self) -> float:
        """The twin's step over the law's."""
        return self.twin.step_seconds / self.law.step_seconds


def drawn(at: Setting, count: int, seed: int = 0) -> tuple[Layouts, list[Place]]:
    """One plan each of `count` layouts that has room, drawn evenly."""
    layouts, _ = legal_layouts(at, Options())
    random = np.random.default_rng(seed)
    layouts = layouts.take(np.sort(random.permutation(len(layouts))[: 4 * count]))
    space, places = space_of(at, layouts), []
    for layout in range(len(layouts)):
        choices = space.choices(layout)
        held = device_bytes(block(space.tables, np.array([layout]), choices))[0]
        fits = np.argwhere((held <= at.memory_bytes) & choices.legal)
        if len(fits):
            places.append(Place(layout, *map(int, fits[random.integers(len(fits))])))
    return layouts, [places[row] for row in sorted(random.permutation(len(places))[:count])]


def compare(at: Question, count: int, links: float = 1.0) -> list[Compared]:
    """Plans of a question priced by both, where links carry so many times less."""
    sheet = slower(published(at), links)
    machine = twin(sheet, load_model(at.model), at.measured)
    layouts, places = drawn(sheet, count)
    found = measured(at, machine)
    if at.measured <= sheet.devices_per_node:
        # No network was measured: it is named.
        found = replace(found, network_bytes_per_second=sheet.network_bytes_per_second)
    law, own = (space_of(one, layouts) for one in (sheet, found))
    priced = [predictions(space, places) for space in (law, own)]
    return [
        Compared(question=at, plan=plan_of(law, place).id, law=one, twin=other)
        for place, one, other in zip(places, *priced, strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plans", type=int, default=72, help="of each question")
    parser.add_argument("--links", type=float, default=1.0, help="how many times less links carry")
    parser.add_argument("--worst", type=int, default=12)
    given = parser.parse_args()
    every = []
    for question in QUESTIONS:
        found = compare(question, given.plans, given.links)
        _report(f"{question.model} on {question.num_devices}", found)
        every += found
    _report("all", every)
    for one in sorted(every, key=lambda one: -abs(np.log(one.ratio)))[: given.worst]:
        print(f"{one.ratio - 1:+.3f} {one.question.num_devices} {one.plan} {one.law.step_seconds:.4g} s")
        parts = {name: (one.twin.seconds[name] - one.law.seconds[name]) / one.law.step_seconds for name in PART_NAMES}
        print("      " + " ".join(f"{name} {share:+.3f}" for name, share in parts.items() if abs(share) > 0.002))


def _report(title: str, found: Sequence[Compared]) -> None:
    off = np.array([abs(one.ratio - 1) for one in found])
    memory = max(abs(one.twin.peak_bytes / one.law.peak_bytes - 1) for one in found)
    print(
        f"{title}: {len(off)} plans, {np.mean(off <= 0.03):.1%} within 3 %, median {np.median(off):.2%}, "
        f"95th {np.quantile(off, 0.95):.2%}, worst {off.max():.2%}; memory {memory:.2%}"
    )


if __name__ == "__main__":
    main()

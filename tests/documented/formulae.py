"""The formulae of the page on the cost model, evaluated as they stand there, beside the code that they are of."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from planner.cost.factors import expected
from planner.cost.layers import exposed, host_excess
from planner.cost.step import LayerSeconds, Step, StepCosts, _bubble
from planner.schedules.registry import SCHEDULES
from profiles.laws.collectives import Fabric, collective_seconds, link_constants
from profiles.laws.kernels import TILES, Silicon, load_constants, matmul_seconds
from tests.documented.pages import Block, read

PAGE = "planner/cost/README.md"
MICROSECOND = 1e-6


def value(block: Block, name: str, **given: Any) -> float:
    """What a formula says of some values."""
    names: dict[str, Any] = {"ceil": math.ceil, "sqrt": math.sqrt, **given}
    exec(block.text, names)
    return float(names[name])


def step(block: Block) -> None:
    """The parts of a step."""
    parts = {"bubble": 0.3, "messages": 0.2, "exchange": 0.15, "once": 0.05}
    said = value(block, "step", m=8, T=0.5, stragglers=0.02, **parts)
    made = Step(
        slowest=np.array([0.5]), place=np.array([0]), passes=np.array([4.0]), straggling=np.array([0.02]),
        **{name: np.array([seconds]) for name, seconds in parts.items()},
    )  # fmt: skip
    assert said == _near(made.total)


def overlap(block: Block) -> None:
    """A message beside compute, each of them the longer one."""
    factors = replace(expected().factors, compute_slowdown=0.4, comm_slowdown=0.7)
    for message, compute in ((1.0, 5.0), (5.0, 1.0), (1.0, 1.0), (1.0, 1.3)):
        said = value(block, "added", M=message, C=compute, a=0.4, b=0.7)
        assert said == _near(exposed(np.array([message]), np.array([compute]), factors))


def host(block: Block) -> None:
    """A host that is faster than its device, as fast, and slower."""
    for launches in (0.2, 1.8, 4.0):
        said = value(block, "waits", device=2.0, launches=launches)
        assert said == _near(host_excess(np.array([2.0]), np.array([launches])))


def product(block: Block) -> None:
    """Products of more than a wave: the fastest of all tiles."""
    law = load_constants()["ampere"]
    silicon = Silicon(
        matmul_flops_per_second=np.array([3.12e14]), achievable_fraction=np.array([law.board_share]),
        memory_bytes_per_second=np.array([2e12]), num_multiprocessors=np.array([108.0]), element_bytes=np.array([2.0]),
        generation=np.array(["ampere"]), is_sustained=True,
    )  # fmt: skip
    given = {
        "multiprocessors": 108.0, "depth": law.depth, "wave_share": law.wave_share, "reuse": law.reuse,
        "traffic": law.traffic_fraction, "bandwidth": 2e12, "power": law.blend,
        "overhead": law.overhead_us * MICROSECOND,
    }  # fmt: skip
    sustained = matmul_seconds(2.0**16, 2.0**16, 2.0**16, "TN", silicon)
    # The rate is that of very large products, whose waves are full.
    rate = 2 * 2.0**48 * (1 + law.depth / 2**16) / (float(sustained[0]) - given["overhead"])
    for rows, columns, k in ((4096, 4096, 4096), (8192, 1024, 512), (3000, 5000, 1024)):
        sizes = {"rows": rows, "columns": columns, "k": k, "rate": rate}
        said = min(value(block, "seconds", tile_rows=m, tile_columns=n, **sizes, **given) for m, n in TILES)
        assert said == _near(matmul_seconds(rows, columns, k, "TN", silicon), 0.01)


def ring(block: Block) -> None:
    """Gathers within a domain."""
    law = link_constants()
    fabric = Fabric(
        fast_bytes_per_second=np.array([3e11]), p2p_bytes_per_second=np.array([3e11]),
        network_bytes_per_second=np.array([5e10]), in_switch=np.array([False]),
    )  # fmt: skip
    for n, num_bytes in itertools.product((4, 8), (1e5, 1e7, 1e9)):
        said = value(
            block, "seconds", n=n, turns=1, num_bytes=num_bytes, first=law.fast_us * MICROSECOND,
            rate=3e11 * (1 - law.pair_loss / (n - 1)) * law.ring_fraction, hop=law.hop_us * MICROSECOND,
            fill=law.fill_us * MICROSECOND, longest=law.ramp_us * MICROSECOND, call=law.call_us * MICROSECOND,
        )  # fmt: skip
        assert said == _near(collective_seconds("all_gather", num_bytes, n, n, fabric))


def bubble(block: Block) -> None:
    """Bubbles with and without several stages on a rank."""
    one = np.ones(1)
    for v, missing, left in ((1, 0, 1.0), (4, 2, 1.0), (2, 0, 1.0)):
        layers = {"block": LayerSeconds(total=one, forward=one / 3, weight=one / 3)}
        costs = object.__new__(StepCosts)
        for name, given in {
            "layers": layers, "model_counts": {"block": one * 12}, "schedule": np.array(["1f1b"]),
            "pipeline": one * 4, "filling": one / v, "rounds": one * (v - 1) / v * missing,
        }.items():  # fmt: skip
            object.__setattr__(costs, name, given)
        assert value(block, "bubble", R=12, T=3, v=v, left=left, missing=missing) == _near(_bubble(costs, one * 3))


HELD: dict[str, Callable[[Block], None]] = {
    one.__name__: one for one in (step, overlap, host, product, ring, bubble)
}  # fmt: skip


def schedules() -> dict[str, tuple[str, str]]:
    """What the table of schedules says of each: the bubble that is left, and what a stage holds."""
    rows = re.findall(r"^\| ([\w-]+)(?: \([\w-]+\))? \| `(.+?)` \| `(.+?)` \|", read(PAGE), flags=re.MULTILINE)
    return {name: (left, held) for name, left, held in rows if name in SCHEDULES}


def check_schedule(name: str, left: str, held: str) -> None:
    """Hold both formulae of a schedule against its laws, at several shapes."""
    rules = SCHEDULES[name]
    for p, s, m, v in itertools.product((2, 4, 8), (0, 1), (8, 32), (2, 4)):
        chunks = v if name.startswith("interleaved") else 1  # others have one, or two there and back
        for forward, weight in ((1 / 3, 1 / 3), (0.3, 0.25), (0.25, 0.4), (0.2, 0.2)):
            given = {"F": forward, "W": weight, "I": 1 - forward - weight, "p": p, "s": s, "m": m, "v": chunks}
            columns = [np.array([float(size)]) for size in (p, chunks, m, s)]
            assert _eval(left, given) == _near(rules.bubble_left(columns[0], np.array([forward]), np.array([weight])))
            assert _eval(held, given) == _near(rules.held(*columns))


def _eval(formula: str, given: dict[str, float]) -> float:
    return float(eval(formula, {"max": max, "min": min}, given))


def _near(found: Any, within: float = 1e-9) -> Any:
    import pytest

    return pytest.approx(float(np.asarray(found).reshape(-1)[0]), rel=within, abs=1e-15)

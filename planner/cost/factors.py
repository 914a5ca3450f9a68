"""The few physical factors that no microbenchmark tells, learned from published runs, the same for every job."""

from __future__ import annotations

from dataclasses import dataclass

from profiles.artifacts import STRICT, read_toml
from profiles.catalog import CATALOG

PATH = CATALOG / "factors.toml"


@dataclass(frozen=True, slots=True, kw_only=True)
class Factors:
    """How kernels and links fare in the midst of training, against alone.

    `matmul`, `attention`: seconds of a product in training over its seconds alone (power, clocks, caches).
    `traffic_fraction`: share of the data sheet's memory bandwidth that element-wise kernels reach.
    `optimizer_fraction`: the same for the optimizer. `tensor_comm`, `data_comm`, `expert_comm`, `pipeline_comm`,
    `context_comm`: seconds of communication in training over alone. `compute_slowdown`, `comm_slowdown`: how much
    longer each takes while both run. `straggling`: share of a step lost per doubling of the nodes. `host`: seconds of
    the host per layer over what the stack's entry says. `waiting_us`: microseconds that a tensor-parallel message waits
    for the latest host, per doubling of its ranks. `codec`: seconds of compressing gradients over alone; published runs
    do not tell.
    """

    __pydantic_config__ = STRICT

    matmul: float
    attention: float
    traffic_fraction: float
    optimizer_fraction: float
    tensor_comm: float
    data_comm: float
    expert_comm: float
    pipeline_comm: float
    context_comm: float
    compute_slowdown: float
    comm_slowdown: float
    straggling: float
    host: float
    waiting_us: float
    codec: float = 1.0


# Lowest, expected and highest value of each, and how far (as a standard deviation of the logarithm, or of the value
# itself for those that may be 0) a fit may take it before it has to pay.
BOUNDS: dict[str, tuple[float, float, float, float]] = {
    "matmul": (0.9, 1.02, 1.4, 0.05),
    "attention": (0.8, 1.1, 1.6, 0.05),
    "traffic_fraction": (0.5, 0.8, 0.95, 0.12),
    "optimizer_fraction": (0.4, 0.75, 0.95, 0.2),
    "tensor_comm": (0.7, 1.1, 2.0, 0.2),
    "data_comm": (0.7, 1.15, 2.5, 0.25),
    "expert_comm": (0.7, 1.2, 3.0, 0.3),
    "pipeline_comm": (0.2, 0.7, 4.0, 0.4),
    "context_comm": (0.5, 1.1, 3.0, 0.3),
    "compute_slowdown": (0.0, 0.12, 0.5, 0.1),
    "comm_slowdown": (0.0, 0.2, 1.0, 0.15),
    "straggling": (0.0, 0.004, 0.03, 0.004),
    "host": (0.5, 1.0, 2.0, 0.25),
    "waiting_us": (5.0, 40.0, 300.0, 0.5),
}


# What a fit may change of the entries of a group of stacks, and of one stack beside its group, as multiples: lowest,
# highest, and standard deviations of the logarithm for the group and for the stack.
STACK_BOUNDS: dict[str, tuple[float, float, float, float]] = {
    "product_slowdown": (0.85, 1.3, 0.05, 0.05),
    "attention_slowdown": (0.7, 1.8, 0.2, 0.1),
    "element_passes": (0.5, 2.5, 0.35, 0.2),
    "host_layer_us": (0.4, 2.5, 0.2, 0.3),
    "host_step_ms": (0.3, 3.0, 0.2, 0.3),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """What runs taught: the factors of all jobs, and by group and stack the multiples of numbers in their entries.

    `generations` of devices and the `reach` of sizes (lowest, highest) say what was learned from; `band_scale` widens
    the bands' spread to what left-out families showed.
    """

    __pydantic_config__ = STRICT

    factors: Factors
    groups: dict[str, dict[str, float]]
    stacks: dict[str, dict[str, float]]
    generations: tuple[str, ...]
    reach: dict[str, tuple[float, float]]
    band_scale: float
    sources: dict[str, str]


def expected() -> Learned:
    """What one would assume without any run."""
    return Learned(
        factors=Factors(**{name: bound[1] for name, bound in BOUNDS.items()}),
        groups={},
        stacks={},
        generations=(),
        reach={},
        band_scale=2.0,
        sources={"all": "assumed"},
    )


def load_learned() -> Learned:
    """What the shipped runs taught."""
    return read_toml(PATH, Learned)

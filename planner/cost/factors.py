"""The few physical factors that no microbenchmark tells, learned from published runs, the same for every job."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

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
# itself for those that may be 0) a fit may take it before it has to pay. Messages are priced by laws fitted to messages
# alone: what is far off is a mechanism, which no factor may stand in for. Beside an all-gather in a node of A100
# products take 1.80 to 1.84 times as long, and it takes 1.02 to 1.21 times (48 pairs of Dazz993/Mist, within 1 % of
# the law then); over slow networks 1.05 to 1.16 and 1.00 to 1.16.
BOUNDS: dict[str, tuple[float, float, float, float]] = {
    "matmul": (0.9, 1.02, 1.4, 0.1),
    "attention": (0.8, 1.1, 1.6, 0.08),
    "traffic_fraction": (0.5, 0.8, 0.95, 0.12),
    "optimizer_fraction": (0.4, 0.75, 0.95, 0.2),
    "tensor_comm": (0.7, 1.05, 1.5, 0.1),
    "data_comm": (0.7, 1.05, 1.5, 0.1),
    "expert_comm": (0.7, 1.05, 1.5, 0.1),
    "pipeline_comm": (0.5, 1.0, 2.0, 0.1),
    "context_comm": (0.7, 1.05, 1.5, 0.1),
    "compute_slowdown": (0.0, 0.8, 1.5, 0.2),
    "comm_slowdown": (0.0, 0.06, 0.5, 0.08),
    "straggling": (0.0, 0.004, 0.03, 0.004),
    "host": (0.5, 1.0, 2.0, 0.25),
    "waiting_us": (5.0, 40.0, 300.0, 0.5),
}
# Factors that may be 0 are fitted as they are, the others by their logarithm.
LINEAR = ("compute_slowdown", "comm_slowdown", "straggling")
COMMUNICATION = ("tensor_comm", "data_comm", "expert_comm", "pipeline_comm", "context_comm")


@dataclass(frozen=True, slots=True, kw_only=True)
class Population:
    """How far numbers of one kind may lie from the mean of their parent, as multiples.

    `low` and `high` bound each effect; `everyone`, `group` and `own` are standard deviations of the logarithm: of the
    mean of all, of a part of them, of one beside its part. 0 where another constant is that mean.
    """

    low: float
    high: float
    everyone: float
    group: float
    own: float


# What a fit may change of the entries of stacks.
STACK_NUMBERS: dict[str, Population] = {
    "product_slowdown": Population(low=0.85, high=1.3, everyone=0.0, group=0.06, own=0.06),
    "element_passes": Population(low=0.5, high=2.5, everyone=0.15, group=0.25, own=0.2),
    "host_layer_us": Population(low=0.4, high=2.5, everyone=0.0, group=0.2, own=0.3),
    "host_step_ms": Population(low=0.3, high=3.0, everyone=0.2, group=0.2, own=0.3),
}
# Seconds of products by generation of devices, and of one generation by precision; their mean is `matmul`.
PRODUCTS = Population(low=0.7, high=1.4, everyone=0.0, group=0.1, own=0.1)
PRODUCT_NUMBER = "product_slowdown"
ALL = "all"
# Whole steps of one site and version of its software, of which a new one has none. Of 0.02 to 0.15, those about 0.05
# predict families that were left out best: a site that may take more leaves the constants less to learn from.
SITE_SPREAD = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """What runs taught: the factors of all jobs, and multiples of numbers in the entries of stacks and of products.

    A stack's numbers are multiplied by those of `everyone`, of its group in `groups` and of its own in `stacks`; what
    has no runs keeps the mean of its parent. `products`: seconds of products by generation, "all" of them and by
    precision. `offsets`: logarithms of whole steps by family of runs, which no prediction uses.
    `spreads`: standard deviation of every constant before and after the runs. `unknown`: spread of step times for want
    of runs of a stack, a group, a generation, a precision on it. `seen`: the words of each feature that had runs, and
    `reach` the sizes (lowest, highest). `band_scales`: what a band is wider than the spread, by how many features of a
    job had no runs.
    """

    __pydantic_config__ = STRICT

    factors: Factors
    everyone: dict[str, float]
    groups: dict[str, dict[str, float]]
    stacks: dict[str, dict[str, float]]
    products: dict[str, dict[str, float]]
    offsets: dict[str, float]
    spreads: dict[str, tuple[float, float]]
    unknown: dict[str, float]
    seen: dict[str, tuple[str, ...]]
    reach: dict[str, tuple[float, float]]
    band_scales: tuple[float, ...]
    sources: dict[str, str]


def expected() -> Learned:
    """What one would assume without any run."""
    return Learned(
        factors=Factors(**{name: bound[1] for name, bound in BOUNDS.items()}),
        everyone={},
        groups={},
        stacks={},
        products={},
        offsets={},
        spreads={},
        unknown={},
        seen={},
        reach={},
        band_scales=(2.0,),
        sources={"all": "assumed"},
    )


@lru_cache(maxsize=1)
def load_learned() -> Learned:
    """What the shipped runs taught."""
    return read_toml(PATH, Learned)

"""What runs teach about the laws' seconds: every multiple a draw around 1, families weighing alike."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from planner.classic.features import PATHS, Features
from planner.classic.step import Learned, step_seconds
from profiles.laws.kernels import Array

UNITS = ("plain", "tf32", "half")
GENERATIONS = ("pascal", "volta", "turing", "ampere", "ampere-graphics", "ada", "hopper", "blackwell")
STACKS = ("torch", "tf1", "tf2", "mxnet", "caffe2")
# Expected values and spreads of their logarithm: kinds of kernels, generations, software, the host's launch (seconds of
# forward and backward in Python) and its waiting calls, layouts, links.
KIND_SPREAD, GENERATION_SPREAD, STACK_SPREAD = 0.15, 0.1, 0.15
LAUNCH_SECONDS, LAUNCH_SPREAD = 1e-5, 0.25
WAITING_SECONDS, WAITING_SPREAD = 7e-5, 0.4
PLANES, PLANES_SPREAD = 1.2, 0.2
EXCHANGE, OVERLAP, OVERLAP_SPREAD = 1.2, 0.6, 0.5
# Spread of a run that is predicted as well as can be, and runs beyond which more say nothing new: of a family where
# bands are drawn, of a network within it where something is learned.
RUN_SPREAD, FAMILY_RUNS, GROUP_RUNS, EVALUATIONS = 0.2, 20.0, 10.0, 25


def priors() -> dict[str, tuple[float, float]]:
    """Expected logarithm and its spread, by name of what is learned."""
    kinds = ("matmul", "convolution", "depthwise", "norm", "pass")
    result = {f"{kind} {units}": (0.0, KIND_SPREAD) for kind in kinds for units in UNITS}
    result |= {f"dilated {units}": (0.0, 2 * KIND_SPREAD) for units in UNITS}
    result |= {f"planes {units}": (np.log(PLANES), PLANES_SPREAD) for units in UNITS[1:]}
    result |= {
        f"{word} {name}": (0.0, GENERATION_SPREAD) for word in ("generation", "generation half") for name in GENERATIONS
    }
    result |= {f"stack {name}": (0.0, STACK_SPREAD) for name in STACKS}
    result |= {f"host {name}": (np.log(LAUNCH_SECONDS), LAUNCH_SPREAD) for name in STACKS}
    result |= {f"path {name}": (np.log(EXCHANGE), 2 * KIND_SPREAD) for name in PATHS}
    result["waiting call"] = (np.log(WAITING_SECONDS), WAITING_SPREAD)
    result["optimizer"] = (0.0, 2 * KIND_SPREAD)
    result["overlap"] = (np.log(OVERLAP / (1 - OVERLAP)), OVERLAP_SPREAD)
    return {name: (float(mean), spread) for name, (mean, spread) in result.items()}


def learned_of(x: Array, names: list[str], like: Learned) -> Learned:
    """What a vector of logarithms stands for."""
    values = dict(zip(names, np.exp(x).tolist(), strict=True))
    odds = values.pop("overlap")
    return replace(like, values=values, overlap=odds / (1 + odds))


def family_weights(families: np.ndarray, most: float = FAMILY_RUNS) -> Array:
    """Weights of runs under which no family, or group, counts for more than so many runs."""
    names, places, counts = np.unique(families, return_inverse=True, return_counts=True)
    del names
    return np.asarray(np.sqrt(np.minimum(1.0, most / counts[places])))


def learn(features: Features, seconds: Array, groups: np.ndarray, like: Learned) -> Learned:
    """The values of least robust error, held near what is expected where runs do not tell.

    `groups` are runs of one network of one family, each of the same weight.
    """
    from scipy.optimize import least_squares

    known = priors()
    names = list(known)
    mean, spread = (np.array([known[name][i] for name in names]) for i in range(2))
    target, weights = np.log(seconds), family_weights(groups, GROUP_RUNS)

    def residuals(x: Array) -> Array:
        found = np.log(step_seconds(features, learned_of(x, names, like))) - target
        return np.concatenate([weights * found / RUN_SPREAD, (x - mean) / spread])

    found = least_squares(residuals, mean, loss="soft_l1", max_nfev=EVALUATIONS)
    return learned_of(found.x, names, like)


def left_out_errors(
    features: Features, seconds: Array, families: np.ndarray, groups: np.ndarray, like: Learned
) -> Array:
    """Logarithm of predicted over measured, every family predicted by what the others taught."""
    result = np.zeros(len(seconds))
    for family in np.unique(families):
        inside = families == family
        learned = learn(features.at(~inside), seconds[~inside], groups[~inside], like)
        result[inside] = np.log(step_seconds(features.at(inside), learned) / seconds[inside])
    return result


def weighted_quantile(values: Array, families: np.ndarray, share: float) -> float:
    """The quantile of values of families that weigh alike, each up to so many runs."""
    weights = family_weights(families) ** 2
    order = np.argsort(values)
    reached = np.cumsum(weights[order]) / weights.sum()
    return float(values[order][np.searchsorted(reached, share)])

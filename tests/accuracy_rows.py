"""Errors of the shipped runs: predicted, by a rule of thumb, by groups that are alike, and of memory."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np

from planner.cost.factors import load_learned
from planner.cost.ingredients import ingredients_of
from planner.cost.layers import layer_pass
from planner.cost.memory.footprint import footprint
from planner.cost.software_time import rules_of
from planner.published.calibrate import RUNS, judged_rows
from planner.published.learn import family_weights, predict, total_seconds
from planner.published.reading import read_jobs

LAYER_TIMES = RUNS.parent / "layer_times.csv"
MEMORY = Path(__file__).parent / "golden" / "published_memory.csv"
# The rule: model FLOPs at this share of the dense 16-bit peak.
RULE = 0.42
# What each row of layer_times.csv changes of the published 22B job, in runs.csv's words.
VARIANTS = {
    "no recompute": {"recompute_class": "none", "sequence_parallel": "no"},
    "sequence parallel, no recompute": {"recompute_class": "none", "sequence_parallel": "yes"},
    "full recompute": {"recompute_class": "full", "sequence_parallel": "no"},
    "selective recompute": {"recompute_class": "selective", "sequence_parallel": "no"},
    "selective recompute + sequence parallel": {"recompute_class": "selective", "sequence_parallel": "yes"},
}


def weighted_quantile(values, weights, share):
    order = np.argsort(values)
    reached = np.cumsum(weights[order])
    return values[order][min(np.searchsorted(reached, share * reached[-1]), len(values) - 1)]


def shipped_rows(family=None):
    with RUNS.open(newline="") as stream:
        return [row for row in csv.DictReader(stream) if family in (None, row["family"])]


def fitted(runs, made):
    """Predicted over measured minus 1, with the shipped factors."""
    return total_seconds(predict(made, load_learned())) / runs.step_seconds - 1


def rule_errors(runs):
    """What the rule predicts over measured minus 1."""
    jobs = runs.jobs
    peak = jobs.device.read(lambda one: one.peak_tflops.get("bf16") or one.peak_tflops.get("fp16") or np.nan) * 1e12
    model = jobs.model
    attention = 2 * jobs.sequence * model.num_heads * (model.qk_head_dim + model.v_head_dim) * model.num_layers
    flops = 3 * (2 * model.active_matmul_parameters + attention) * jobs.sequence * jobs.global_batch
    return flops / (jobs.num_devices * peak * RULE) / runs.step_seconds - 1


def qualities(runs):
    """Quality of each run's published time, in the order of `runs`."""
    rows = judged_rows()
    reading = read_jobs(rows)
    assert len(reading.accepted) == len(runs.jobs)
    return np.array([rows[index]["quality"] for index in reading.accepted])


def layer_time_errors():
    """Predicted over measured minus 1 of forward and backward of the published 22B layer, by variant."""
    with LAYER_TIMES.open(newline="") as stream:
        measured = list(csv.DictReader(stream))
    base = next(row for row in shipped_rows("korthikanti") if row["num_layers"] == "48")
    jobs = read_jobs([base | VARIANTS[row["variant"]] for row in measured]).jobs
    learned = load_learned()
    made = ingredients_of(jobs)
    made = replace(made, rules=rules_of(jobs, learned))
    seconds = sum(layer_pass(made, learned.factors, phase, "dense").total for phase in ("forward", "backward"))
    return seconds / np.array([float(row["combined_ms"]) * 1e-3 for row in measured]) - 1


def groups_alike(runs, chosen):
    """Runs that are alike but for how they are laid out: places of each group's runs among all."""
    jobs, model = runs.jobs, runs.jobs.model
    sizes = [model.hidden_size, model.num_layers, model.ffn_size, model.num_experts, model.vocab_size]
    numbers = [*sizes, jobs.num_devices, jobs.global_batch, jobs.sequence]
    words = [runs.family, jobs.device.words(lambda one: one.name), jobs.precision]
    keys = list(zip(*(column.tolist() for column in [*words, *numbers]), strict=True))
    found = {}
    for place in np.flatnonzero(chosen):
        found.setdefault(keys[place], []).append(place)
    return [np.array(places) for places in found.values()]


def regret(measured, predicted):
    """By how much the run predicted fastest is slower than the fastest."""
    return measured[predicted.argmin()] / measured.min() - 1


def regrets(runs, errors):
    """The regret of every group of one-node runs that are alike but for layout."""
    seconds = (1 + errors) * runs.step_seconds
    groups = [group for group in groups_alike(runs, runs.family == "vtrain_single") if len(group) > 1]
    return np.array([regret(runs.step_seconds[group], seconds[group]) for group in groups])


def ranks(values):
    return np.argsort(np.argsort(values)).astype(float)


def ranking(runs, errors, fewest=3):
    """Mean regret and mean rank correlation over groups of at least `fewest` layouts, and their number."""
    seconds = (1 + errors) * runs.step_seconds
    groups = [group for group in groups_alike(runs, np.isfinite(seconds)) if len(group) >= fewest]
    lost = [regret(runs.step_seconds[group], seconds[group]) for group in groups]
    # A rule that tells no layouts apart has no order: it counts as none.
    alike = [np.ptp(seconds[group]) < 1e-9 * seconds[group].max() for group in groups]
    orders = [
        0.0 if same else np.corrcoef(ranks(seconds[group]), ranks(runs.step_seconds[group]))[0, 1]
        for group, same in zip(groups, alike, strict=True)
    ]
    return float(np.mean(lost)), float(np.mean(orders)), len(groups)


def memory_errors(family):
    """Median absolute errors of a family's peak memory, allocated and reserved."""
    with MEMORY.open(newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["family"] == family]
    jobs = read_jobs(rows).jobs
    held = footprint(jobs)
    allocated = held.allocated_bytes / 2**30 / np.array([float(row["peak_mem_gib"]) for row in rows]) - 1
    reserved = held.reserved_bytes / 2**30 / np.array([float(row["reserved_gib"]) for row in rows]) - 1
    return float(np.median(np.abs(allocated))), float(np.median(np.abs(reserved)))


def peaks():
    """Errors of peak memory, either way, with their families; whether each run fits, ran, and ran out of memory.

    No fit of this program is of memory, but its laws were set in view of these runs: nothing here is out of sample. A
    counter that is not known may be of what is allocated or of what is reserved: the nearer one counts.
    """
    rows = [row for row in shipped_rows() if row.get("peak_mem_kind") != "boundary"]
    reading = read_jobs(rows)
    kept = [rows[index] for index in reading.accepted]
    held = footprint(reading.jobs)
    kinds = {"allocated": [held.allocated_bytes], "reserved": [held.reserved_bytes], "device": [held.device_bytes]}
    is_out = np.array([row["oom"] == "yes" for row in kept])
    errors, families = [], []
    for place, row in enumerate(kept):
        if row["peak_mem_gib"] and not is_out[place] and row.get("quality_mem", "") in ("A", "B", ""):
            counters = kinds.get(row["peak_mem_kind"], [held.allocated_bytes, held.reserved_bytes])
            measured = float(row["peak_mem_gib"]) * 2**30
            errors.append(min(abs(counter[place] / measured - 1) for counter in counters))
            families.append(row["family"])
    fits = held.device_bytes <= reading.jobs.device_memory_bytes
    ran = ~is_out & np.array([bool(row["step_time_s"] or row["peak_mem_gib"]) for row in kept])
    return np.array(errors), family_weights(np.array(families)), fits, ran, is_out

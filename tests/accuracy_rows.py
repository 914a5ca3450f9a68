"""Errors of the shipped runs: predicted, by a rule of thumb, by groups that are alike, and of memory."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.stats import rankdata

from planner.cost.factors import load_learned
from planner.cost.ingredients import ingredients_of
from planner.cost.layers import layer_pass
from planner.cost.memory.footprint import footprint
from planner.cost.software_time import rules_of
from planner.published.calibrate import RUNS, judged_rows, timed_rows
from planner.published.learn import family_weights, predict, total_seconds
from planner.published.reading import read_jobs

LAYER_TIMES = RUNS.parent / "layer_times.csv"
MEMORY = Path(__file__).parent / "golden" / "published_memory.csv"
# The rule: model FLOPs at this share of the dense 16-bit peak.
RULE = 0.42
# What a row says that no prediction reads; rows that differ in nothing else are one layout, measured again.
TOLD_AFTERWARDS = {
    "row_id", "source", "step_time_s", "step_time_origin", "quality", "quality_mem", "peak_mem_gib", "peak_mem_kind",
    "peak_reserved_gib", "peak_device_gib", "oom", "calc_model_tflops_per_gpu",
}  # fmt: skip
# Of 90 configurations that were measured in several releases (dgxc), the median; BigScience's differ by 4 %.
REPEATS_DIFFER_BY = 0.02
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


def adapter_errors():
    """Predicted over measured minus 1 of runs that trained adapters alone, from which nothing is learned."""
    rows = [row for row in timed_rows() if row["peft"] not in ("", "none")]
    reading = read_jobs(rows)
    measured = np.array([float(rows[index]["step_time_s"]) for index in reading.accepted])
    return total_seconds(predict(ingredients_of(reading.jobs), load_learned())) / measured - 1


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


def layouts_of(runs):
    """A number per run, the same for runs that say the same of themselves: one configuration measured again."""
    rows = judged_rows()
    kept = [rows[index] for index in read_jobs(rows).accepted]
    assert len(kept) == len(runs.jobs)
    said = [tuple(row[name] for name in row if name not in TOLD_AFTERWARDS) for row in kept]
    numbers = {each: number for number, each in enumerate(dict.fromkeys(said))}
    return np.array([numbers[each] for each in said])


def order(predicted, measured):
    """Rank correlation; what is equal shares its ranks, and a rule that tells no layouts apart has no order."""
    if np.ptp(predicted) < 1e-9 * predicted.max() or np.ptp(measured) == 0:
        return 0.0
    return float(np.corrcoef(rankdata(predicted), rankdata(measured))[0, 1])


def ranked_groups(runs, errors, fewest=3):
    """Predicted and measured seconds of groups of at least `fewest` layouts, the mean of each one's repeats."""
    seconds, layout = (1 + errors) * runs.step_seconds, layouts_of(runs)
    for group in groups_alike(runs, np.isfinite(seconds)):
        _, each = np.unique(layout[group], return_inverse=True)
        count = np.bincount(each)
        if len(count) >= fewest:
            yield tuple(np.bincount(each, values[group]) / count for values in (seconds, runs.step_seconds))


def ranking(runs, errors):
    """Mean regret and mean rank correlation over groups of layouts, and the number of groups."""
    groups = list(ranked_groups(runs, errors))
    lost = [regret(measured, predicted) for predicted, measured in groups]
    return float(np.mean(lost)), float(np.mean([order(*group) for group in groups])), len(groups)


def best_ranking(runs, errors, repeats=64):
    """The rank correlation that two measurements of the same groups would have, as far apart as repeats are."""
    random = np.random.default_rng(0)
    found = []
    for _, measured in ranked_groups(runs, errors):
        again = measured * np.exp(random.normal(0, REPEATS_DIFFER_BY, (repeats, len(measured))))
        found.append(np.mean([order(each, measured) for each in again]))
    return float(np.mean(found))


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

"""A machine measured as the published laws say it is has their prices: one law, whoever knows the hardware."""

import numpy as np
import pytest

from planner.cost.axes.data import StageParameters, exchange, num_messages
from planner.cost.factors import load_learned
from planner.cost.ingredients import ingredients_of
from planner.cost.links import SheetLinks, fabric_of
from planner.cost.measured.machine import device_of
from planner.cost.software_time import rules_of
from planner.space.question import jobs_of, setting
from profiles.library import load_model, load_sizes
from profiles.machines.devices import load_device
from profiles.models.transformer import DENSE
from tests.marks import slow
from tests.twin import DEVICE, QUESTIONS, compare, published, slower
from tests.twin_machine import twin

# All questions together 250 plans; of each twice as slow links are tried on some.
PLANS, SLOW_PLANS = 36, 20
ALIKE, SHARE = 0.03, 0.95
MILLION = 1e6


@pytest.fixture(scope="module")
def compared():
    return [one for question in QUESTIONS for one in compare(question, PLANS)]


def test_nearly_all_plans_cost_the_same_by_both(compared):
    off = np.array([abs(one.ratio - 1) for one in compared])
    assert len(off) > 250
    assert np.mean(off <= ALIKE) >= SHARE
    assert off.max() < 2 * ALIKE


def test_plans_of_every_kind_are_among_them(compared):
    plans = " ".join(one.plan for one in compared)
    words = ("tp8", "cp4", "pp8", "zero1", "zero2", "zero3", "sp ", "recompute", "offload", "interleaved", "dualpipev")
    assert [word for word in words if word not in plans] == []


def test_memory_is_the_same_by_both(compared):
    assert max(abs(one.twin.peak_bytes / one.law.peak_bytes - 1) for one in compared) < 1e-9


@pytest.mark.parametrize("number", [slow(0), 2, slow(4)])
def test_slower_links_change_what_the_law_says(number):
    before, after = (compare(QUESTIONS[number], SLOW_PLANS, links=links) for links in (1.0, 2.0))
    known = {one.plan: one for one in before}
    changes = [
        (one.law.step_seconds / known[one.plan].law.step_seconds, one.ratio / known[one.plan].ratio)
        for one in after
        if one.plan in known
    ]
    assert max(law for law, _ in changes) > 1.05
    assert np.mean([abs(off - 1) <= ALIKE for _, off in changes]) >= SHARE


@pytest.mark.parametrize("times", [1.0, 2.0])
def test_rates_of_links_are_found_again(times):
    at = slower(published(QUESTIONS[1]), times)
    found, sheet = device_of(twin(at, load_model("llama-3.1-8b"), 16)), load_device(DEVICE)
    assert found.link_gb_per_second == pytest.approx(sheet.link_gb_per_second / times, rel=0.01)
    assert found.network_gb_per_second == pytest.approx(sheet.network_gb_per_second / times, rel=0.01)


@pytest.mark.parametrize("model", ["llama-3.1-8b", "llama-3.1-70b", "qwen3-8b", "mistral-7b", "gpt2-xl"])
def test_sums_of_tensor_parallel_ranks_are_those_traced(model):
    block = load_model(model).layers["bf16"][1]
    traced = sum(message.phase == "backward" for message in block.messages)
    assert load_sizes(model).transformer.column_linears(DENSE) == [traced]


def test_only_software_with_linears_apart_sums_for_each():
    """A gated layer has five linears that are split over their outputs; recomputing it sums the two forward again."""
    sums = {}
    for stack in ("trainwright", "megatron-core"):
        at = setting(load_sizes("llama-3.1-8b"), load_device(DEVICE), 8, 8, 4096, stack)
        jobs = jobs_of(at, tensor=np.full(2, 8.0), recompute=np.array(["none", "full"]))
        made = ingredients_of(jobs)
        sums[stack] = made.kernels.layer(made.rules, load_learned().factors, "backward", DENSE).num_sums.tolist()
    assert sums == {"trainwright": [5.0, 7.0], "megatron-core": [2.0, 4.0]}


def test_our_gradients_go_in_buckets_and_the_last_waits():
    at = published(QUESTIONS[0])
    jobs = jobs_of(at, data=np.full(3, 8.0), zero_stage=np.array([0.0, 1.0, 2.0]))
    links = SheetLinks(fabric=fabric_of(jobs))
    held = StageParameters(common=np.full(3, 100 * MILLION), expert=np.zeros(3))
    found = exchange(jobs, rules_of(jobs, load_learned()), links, held)
    # 400 MB of gradients are 16 buckets of 25 MiB; ZeRO 1 reduces them whole, and owners send as many bytes.
    assert found.tail[:2] == pytest.approx(found.gradients[:2] / 16)
    assert found.gradients[0] == found.gradients[1]
    assert found.parameters[0] == 0
    assert found.tail[2] == 0
    sent = num_messages(jobs, rules_of(jobs, load_learned()), held.common, jobs.zero_stage < 2)
    assert sent.tolist() == [16.0, 16.0, 33.0]

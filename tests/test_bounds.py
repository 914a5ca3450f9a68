"""Numbers on the command line: outside their range they are one sentence with option, value and range, at once."""

import os

import pytest

from planner.ask import Request, parse_batches, parse_count, settings_of
from planner.compression.recipes import recipe, recipes
from planner.space.explore import explore
from planner.space.layouts import Options, divisors, legal_layouts
from planner.space.question import setting
from planner.space.questions import parse_wanted
from profiles.errors import EnvironmentFailure, InputError, UnknownNameError
from profiles.inputs import limits
from profiles.library import load_sizes
from profiles.machines.devices import load_device
from profiles.ranks.environment import check_room
from tests.commands import outcome

H100 = ("--model", "llama-3.1-8b", "--device", "h100-sxm")
ON_8 = (*H100, "--gpus", 8)
NUMBERS = [
    *[("plan", (*ON_8, "--tokens", "1T", "--price", value)) for value in ("nan", "inf", "-1", "1e308")],
    *[("plan", (*ON_8, "--tokens", "1T", "--mtbf", value)) for value in ("nan", "inf", "0", "-1", "1e308")],
    *[("plan", (*ON_8, "--tokens", "1T", "--checkpoint-seconds", v)) for v in ("nan", "inf", "0", "-1", "1e308")],
    *[("plan", (*H100, "--gpus", value)) for value in ("99999999999999999999999", "1000000000", "0", "-8")],
    *[("plan", (*ON_8, "--sequence-length", value)) for value in ("0", "-1", "99999999999999999999")],
    *[("plan", (*ON_8, "--top", value)) for value in ("0", "1000000000")],
    *[("execute", ("plan.json", "--timeout", value)) for value in ("nan", "inf", "0", "-1", "1e308")],
    *[("execute", ("plan.json", "--steps", value)) for value in ("0", "-1", "1000000000000")],
    *[("execute", ("plan.json", "--seed", value)) for value in ("-1", "99999999999999999999")],
    *[("execute", ("plan.json", f"--{name}", "99999999999")) for name in ("warmup", "top", "rank", "max-restarts")],
    *[("execute", ("plan.json", f"--{name}", "-1")) for name in ("more-steps", "gpus-per-node", "checkpoint-every")],
    *[("compare", ("run.json", "--tolerance", value)) for value in ("nan", "inf", "-1")],
    *[("profile", ("machine", "--gpus", value)) for value in ("0", "-1", "100000", "99999999999999999999999")],
    *[("profile", ("machine", "--sequence-length", value)) for value in ("0", "99999999999")],
    *[("profile", ("machine", "--micro-batches", value)) for value in ("0", "1,0", "99999999999")],
    *[("profile", ("model", "llama-26m", "--sequence-length", value)) for value in ("0", "99999999999")],
]


@pytest.mark.parametrize(
    ("command", "arguments"),
    NUMBERS,
    ids=lambda words: words if isinstance(words, str) else " ".join(map(str, words[-2:])),
)
def test_a_number_out_of_its_range_is_one_sentence(command, arguments):
    code, sentence = outcome(command, *arguments)
    option, value = arguments[-2:]
    number = value.rpartition(",")[2]
    shown = f"{float(number):g}" if option in ("--price", "--mtbf", "--checkpoint-seconds", "--timeout") else number
    assert code == 2
    assert sentence.startswith((f"{option} {shown}: must be ", f"{option} {float(number):g}: must be "))
    assert "\n" not in sentence


def test_words_are_no_numbers():
    for text in ("x", "1.5", "9" * 5000):
        code, sentence = outcome("plan", *H100, "--gpus", text)
        assert code == 2
        assert "give devices such as 64" in sentence or "must be at most" in sentence
    code, output = outcome("plan", *H100, "--gpus", "8", "--tokens", "1B", "--price", "much")
    assert code == 2
    assert "much" in output


@pytest.mark.parametrize(
    ("option", "text", "words"),
    [
        ("--global-batch", "", "give samples such as 512"),
        ("--global-batch", "1" + "0" * 23, "must be at most 67,108,864"),
        ("--global-batch", "1-1" + "0" * 23, "must be at most 67,108,864"),
        ("--global-batch", "8,0", "0: must be at least 1"),
        ("--global-batch", ",".join(map(str, range(1, 100))), "99 numbers are given, at most 64 can be"),
        ("--global-batch", "²", "give samples such as 512"),
        ("--why-not", "", "give degrees such as tp=8,pp=4"),
        ("--why-not", "tp=0", "tp 0: must be at least 1"),
        ("--why-not", "tp=1" + "0" * 23, "must be at most 1,048,576"),
        ("--why-not", "tp=2,tp=4", "each once"),
        ("--why-not", "zero=4", "zero 4: must be at most 3"),
        ("--why-not", "tp=²", "give degrees"),
        ("--tokens", "0", "give a number such as 300B"),
        ("--tokens", "1e400", "give a number such as 300B"),
        ("--tokens", "9" * 400, "inf: must be at most 1e+18"),
        ("--tokens", "9" * 30 + "T", "must be at most 1e+18"),
        ("--precision", "", "unknown precision ''"),
        ("--cluster", "dgx-a100", "has a100-sxm-80gb, not h100-sxm: give one of the two"),
        ("--cluster", "dgx-h100:²,dgx-a100:8", "give pools as name:devices"),
    ],
    ids=lambda text: text[:30],
)
def test_texts_that_hold_numbers_are_held_to_the_same(option, text, words):
    code, sentence = outcome("plan", *ON_8, "--global-batch", 16, "--codecs", "none", option, text)
    assert code == 2
    assert words in sentence
    assert option in sentence or "precision" in sentence


def test_what_is_asked_for_in_good_order_is_given():
    assert parse_batches("512,256,512") == (256, 512)
    assert parse_batches("256-1024") == (256, 512, 1024)
    assert parse_count("1.5T") == parse_count("1.5e12") == parse_count("15E+11") == 1.5e12
    assert parse_wanted("tp=8, zero=0,sp=1") == {"tp": 8, "zero": 0, "sp": 1}


def test_programs_are_held_to_the_ranges_of_the_command_line():
    for changes in ({"num_devices": 10**23}, {"global_batches": (10**23,)}, {"sequence_length": 10**23}):
        asked = {"model": load_sizes("llama-3.1-8b"), "num_devices": 8, "device": "h100-sxm", **changes}
        with pytest.raises(InputError, match="must be at most"):
            settings_of(Request(**asked))


def test_a_job_that_would_hardly_train_has_no_days():
    code, sentence = outcome(
        "plan", *ON_8, "--codecs", "none", "--tokens", "1T", "--mtbf", "0.01", "--checkpoint-seconds", "1000000"
    )
    assert code == 2
    assert "less than 0.1% of the time: see --mtbf" in sentence


def test_too_many_layouts_or_plans_are_refused_before_they_fill_the_memory(monkeypatch):
    at = setting(load_sizes("llama-3.1-8b"), load_device("h100-sxm"), 64, 512, 4096)
    for where, most, words in (
        ("layouts.MOST_LAYOUTS", 100, "--gpus 64 has more than 100 layouts"),
        ("explore.MOST_PLANS", 1000, "--gpus 64 with --global-batch 512 and 32 layers has more than 1,000 plans"),
        ("explore.MOST_ENTRIES", 100, "--gpus 64 with --global-batch 512"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(f"planner.space.{where}", most)
            with pytest.raises(InputError, match=words):
                explore(at, Options())
    assert len(legal_layouts(at, Options())[0]) < 10_000


@pytest.mark.parametrize("number", [1, 2, 36, 97, 1024, 720720, limits.DEVICES])
def test_divisors_are_all_of_them(number):
    found = divisors(number)
    assert found == sorted(set(found))
    assert all(number % divisor == 0 for divisor in found)
    assert len(found) == sum(number % candidate == 0 for candidate in range(1, number + 1))


def test_no_more_ranks_are_started_than_there_is_room_for(monkeypatch):
    import psutil

    check_room(2, "cpu")
    with pytest.raises(EnvironmentFailure, match="1000 ranks are too many for this machine"):
        check_room(1000, "cpu")
    cores = len(os.sched_getaffinity(0))
    little = psutil.virtual_memory()._replace(total=2**30)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: little)
    with pytest.raises(EnvironmentFailure, match="and 1 GiB: ask for at most 4"):
        check_room(5 + 16 * cores, "cpu")
    code, sentence = outcome("profile", "machine", "--gpus", 1000)
    assert code == 5
    assert "1000 ranks are too many" in sentence


@pytest.mark.parametrize(
    "name",
    [
        "distil-layers-50-hidden-hidden", "distil-hidden", "distil-layers-0", "distil-layers-100",
        "prune-ffn-50-hidden", "prune-layers-٥٠", "sparse-050", "sparse-²", "prune-ffn--50", "",
    ],
)  # fmt: skip
def test_recipes_that_are_none(name):
    with pytest.raises(UnknownNameError, match=f"unknown compression '{name}'"):
        recipe(name)


def test_recipes_that_are():
    assert recipe("distil-layers-50-hidden").matches_hidden
    assert not recipe("distil-layers-50").matches_hidden
    assert [own.fraction for own in recipes("prune-ffn-25,sparse-7")] == [0.0, 0.25, 0.07]

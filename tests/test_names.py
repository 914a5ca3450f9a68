"""Names on command lines: the same ones in every command, listed, completed, and explained word by word."""

import json
import re
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

import executor.command
import planner
import planner.command
import profiles.command
import reports.command
from executor.emit import KINDS as JOB_KINDS
from planner.compression.recipes import KNOWN as RECIPES
from planner.plans import AXES, RECOMPUTE_WORDS, Offload, Plan, Recompute
from planner.schedules.registry import plan_names
from planner.terminal.legend import legend
from planner.terminal.listing import KINDS
from profiles.codecs.codec import KNOWN as CODECS
from profiles.errors import InputError, UnknownNameError
from profiles.library import config_names, model_names, trace_model
from profiles.machines.clusters import find_cluster, load_pools
from profiles.machines.devices import catalogue_names, find_device, load_device
from profiles.models.profile import PRECISIONS
from profiles.tracing import trace as tracing
from profiles.version import version
from tests.test_architecture import run_python

RUNNER = CliRunner()
APPS = {
    "profile": profiles.command.app, "plan": planner.command.app, "execute": executor.command.app,
    "compare": reports.command.app,
}  # fmt: skip
ROOT = Path(__file__).parent.parent


def invoke(command, *arguments, **environment):
    return RUNNER.invoke(APPS[command], arguments, prog_name=command, env=environment)


@pytest.mark.parametrize("command", APPS)
def test_every_command_says_its_version(command):
    done = invoke(command, "--version")
    assert done.exit_code == 0
    assert done.stdout == f"trainwright {version()}\n"


def test_sources_that_are_not_installed_have_their_own_version(monkeypatch):
    from importlib import metadata

    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    assert version() == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


@pytest.mark.parametrize("kind", KINDS)
def test_lists_name_everything_that_options_take(kind):
    data = json.loads(invoke("plan", "--list", kind, "--json").stdout)
    names = [entry["name"] for entry in data]
    assert all(entry["title"] for entry in data)
    known = {
        "devices": catalogue_names(), "models": [*model_names(), *config_names()], "codecs": CODECS,
        "schedules": set(plan_names()) - {"none"},
        "clusters": [path.stem for path in (ROOT / "profiles/catalog/clusters").glob("*.toml")],
        "stacks": [path.stem for path in (ROOT / "profiles/catalog/stacks").glob("*.toml")],
    }  # fmt: skip
    assert sorted(names) == sorted(known[kind])
    table = invoke("plan", "--list", kind, COLUMNS="80").stdout
    assert max(map(len, table.splitlines())) <= 80
    for name in names:
        assert re.search(rf"^{re.escape(name)} ", table, re.MULTILINE), name


def test_an_unknown_list_is_refused_with_the_nearest():
    with pytest.raises(UnknownNameError, match="did you mean 'devices'"):
        RUNNER.invoke(APPS["plan"], ["--list", "device"], catch_exceptions=False)


PEAKS = {precision for name in catalogue_names() for precision in load_device(name).peak_tflops}
DEGREES = st.integers(1, 64)
SOME_COUNTS = st.lists(st.integers(1, 300), min_size=1, max_size=9).map(tuple)
PLANS = st.builds(
    Plan,
    data_parallel=DEGREES, tensor_parallel=DEGREES, pipeline_parallel=DEGREES, context_parallel=DEGREES,
    expert_parallel=DEGREES, shard_degree=st.integers(0, 64), sequence_parallel=st.booleans(),
    vocab_parallel=st.booleans(), axis_order=st.permutations(AXES).map(tuple), micro_batch_size=DEGREES,
    num_microbatches=DEGREES, replica_microbatches=st.just(()) | SOME_COUNTS, virtual_stages=DEGREES,
    schedule=st.sampled_from(plan_names()), zero_stage=st.integers(0, 3),
    recompute=st.sampled_from(Recompute.__args__), recompute_layers=st.just(()) | SOME_COUNTS,
    offload=st.sampled_from(Offload.__args__), compiled=st.booleans(),
    codec=st.sampled_from((*CODECS, "topk-0.5", "powersgd-16")),
    precision=st.sampled_from(sorted({*PRECISIONS, *PEAKS})),
)  # fmt: skip


@given(PLANS)
def test_the_legend_explains_every_word_of_a_plan_once(plan):
    for word in plan.id.split():
        assert sum(bool(re.fullmatch(entry.pattern, word)) for entry in legend()) == 1, word


def test_the_legend_explains_nothing_that_no_plan_says():
    plans = [
        Plan(),
        Plan(data_parallel=2, tensor_parallel=2, pipeline_parallel=2, context_parallel=2, expert_parallel=2,
             sequence_parallel=True, vocab_parallel=True, virtual_stages=2, shard_degree=2, axis_order=AXES[::-1],
             recompute_layers=(1, 2), replica_microbatches=(1, 2), compiled=True),
        *(Plan(schedule=name) for name in plan_names()),
        *(Plan(zero_stage=stage) for stage in range(4)),
        *(Plan(recompute=name) for name in RECOMPUTE_WORDS),
        *(Plan(offload=name) for name in Offload.__args__),
        *(Plan(codec=name) for name in CODECS),
        *(Plan(precision=name) for name in {*PRECISIONS, *PEAKS}),
    ]  # fmt: skip
    words = {word for plan in plans for word in plan.id.split()}
    for entry in legend():
        assert any(re.fullmatch(entry.pattern, word) for word in words), entry.form
    text = invoke("plan", "--legend", COLUMNS="80").stdout
    assert all(entry.form in text for entry in legend())


def complete(command, *words):
    """What the shell offers for the last of the words."""
    variable = f"_{command.upper()}_COMPLETE"
    line = " ".join((command, *words))
    done = invoke(command, **{variable: "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words))})
    assert done.exit_code == 0, done.output
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("plan --device h100-p", ["h100-pcie"]),
        ("plan --cluster dgx-a", ["dgx-a100"]),
        ("plan --model llama-3.1-4", ["llama-3.1-405b"]),
        ("plan --stack megatron-c", ["megatron-core"]),
        ("plan --precision bf16,mx", ["bf16,mxfp8"]),
        ("plan --codecs none,powersgd-4,to", ["none,powersgd-4,topk-1"]),
        ("plan --compress prune-h", ["prune-heads-50"]),
        ("plan --list sch", ["schedules"]),
        ("profile model mixtral", ["mixtral-8x7b"]),
        ("profile machine --model gpt2-x", ["gpt2-xl"]),
        ("profile machine --precision fp32,b", ["fp32,bf16"]),
        ("execute --emit sk", ["skypilot"]),
        ("compare --device mi300", ["mi300x"]),
        ("compare --cluster gb", ["gb200-nvl72"]),
    ],
)
def test_the_shell_completes_names(line, expected):
    assert complete(*line.split()) == expected


def test_names_are_completed_and_explained_without_torch():
    code = """
import os, sys
from planner.command import app as plan
from executor.command import app as execute
from profiles.command import app as profile
def run(app, name, *words, **environment):
    os.environ.update(environment)
    sys.argv = [name, *words]
    try:
        app(prog_name=name)
    except SystemExit as stop:
        assert stop.code in (0, None), stop.code
    for variable in environment:
        del os.environ[variable]
run(plan, "plan", "--list", "models")
run(plan, "plan", "--legend")
run(execute, "execute", "--version")
run(plan, "plan", _PLAN_COMPLETE="complete_bash", COMP_WORDS="plan --model l", COMP_CWORD="2")
run(execute, "execute", _EXECUTE_COMPLETE="complete_bash", COMP_WORDS="execute --emit s", COMP_CWORD="2")
run(profile, "profile", _PROFILE_COMPLETE="complete_bash", COMP_WORDS="profile model g", COMP_CWORD="2")
print("torch" in sys.modules, "transformers" in sys.modules, "pandas" in sys.modules)
"""
    said = run_python(code).split()
    assert "slurm" in said
    assert said[-3:] == ["False"] * 3


def test_the_shell_offers_all_names():
    assert set(RECIPES) < set(complete("plan", "--compress", ""))
    assert set(JOB_KINDS) == set(complete("execute", "--emit", ""))


@pytest.mark.parametrize("name", [*model_names(), *config_names()])
def test_every_model_is_taken_by_every_command_or_refused_in_its_words(name, monkeypatch):
    """Traces of models this large take seconds and are tested elsewhere: here, how far names get."""
    monkeypatch.setattr(tracing, "trace", lambda workload, precisions: workload)
    monkeypatch.setattr("profiles.library.kept_trace", lambda *_: None)
    monkeypatch.setattr("profiles.library.keep_trace", lambda *_: None)
    done = invoke("plan", "--model", name, "--gpus", "1", "--device", "h100-sxm", "--global-batch", "0")
    assert "--global-batch 0" in str(done.exception)
    if name == "deepseek-v3":
        with pytest.raises(InputError, match="deepseek-v3: its configuration names no architectures: give --task"):
            trace_model(name)
    else:
        assert trace_model(name).spec.name == name


def test_an_unknown_model_is_no_module():
    with pytest.raises(UnknownNameError, match="did you mean 'gpt3-175b'"):
        trace_model("gpt3-175")


def test_devices_have_their_aliases_everywhere():
    assert [pool.device.name for pool in load_pools(find_cluster("H100 SXM5:8,NVIDIA A100 80GB:8"))] == [
        "h100-sxm", "a100-sxm-80gb",
    ]  # fmt: skip
    small = ("--model", "llama-3.2-1b", "--gpus", "2", "--global-batch", "2", "--top", "1")
    done = invoke("plan", *small, "--device", "NVIDIA H100", "--json")
    assert json.loads(done.stdout)["machine_name"] == "h100-sxm"
    for name in catalogue_names():
        assert find_device(name) == load_device(name)


def test_a_device_beside_its_own_cluster_may_be_called_by_an_alias():
    small = ("--model", "llama-3.2-1b", "--gpus", "8", "--global-batch", "8", "--codecs", "none", "--json")
    assert invoke("plan", *small, "--device", "H100", "--cluster", "dgx-h100").exit_code == 0
    assert "has h100-sxm, not a100" in str(
        invoke("plan", *small, "--device", "a100", "--cluster", "dgx-h100").exception
    )


SMALL = ("--model", "llama-3.2-1b", "--gpus", "2")
SHIPPED = (*SMALL, "--device", "h100-sxm")
POOLS = ("--model", "llama-3.2-1b", "--gpus", "16", "--cluster", "dgx-h100:8,dgx-a100:8")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((*SHIPPED, "--price", "2"), "--price has no effect without --tokens"),
        ((*SHIPPED, "--mtbf", "9"), "--mtbf has no effect without --tokens"),
        ((*SHIPPED, "--checkpoint-seconds", "9"), "--checkpoint-seconds has no effect without --tokens"),
        ((*SHIPPED, "--target", "size=0.5"), "--target has no effect without --compress"),
        ((*SMALL, "--stack", "megatron-core"), "--stack megatron-core: a measured machine was measured with"),
        ((*SHIPPED, "--learned", "x.json"), "--learned FILE belongs to a measured machine"),
        ((*SHIPPED, "--machine", "x.json"), "either --machine FILE or --device NAME"),
        ((*POOLS, "--codecs", "int8"), "--codecs needs a cluster of one kind"),
        ((*POOLS, "--machine", "x.json"), "--machine needs a cluster of one kind"),
        ((*POOLS, "--compress", "auto"), "--compress needs a cluster of one kind"),
        (("--list", "devices", "--top", "3"), "--top cannot be combined with --list"),
        (("--legend", "-o", "x.json"), "--output cannot be combined with --legend"),
        (("--legend", "--list", "devices"), "cannot be combined with"),
        (("--model", "llama-3.2-1b"), "give --model and --gpus"),
        (("--gpus", "2"), "give --model and --gpus"),
    ],
)  # fmt: skip
def test_options_that_would_be_ignored_are_refused(arguments, words):
    error = invoke("plan", *arguments).exception
    assert isinstance(error, InputError), error
    assert words in str(error)

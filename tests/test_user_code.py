"""Whatever a user's module does wrong, or transformers with an odd configuration, is one sentence."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from executor.command import app as execute_app
from profiles.command import app as profile_app
from profiles.errors import InputError, TrainwrightError
from profiles.library import load_model, trace_model
from profiles.models.profile import WorkloadSpec
from profiles.ranks.rank import describe
from profiles.terminal import console
from profiles.tracing.trace import trace
from profiles.workloads.foreign_code import foreign_code
from profiles.workloads.loading import load_workload
from tests.module_builders import HEAD, LAYERS, user_folder, write_module_plan
from tests.plan_builders import LLAMA

RUNNER = CliRunner()


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    with user_folder(tmp_path):
        yield tmp_path


def saying(line: str) -> str:
    """A module whose factory gives layers that say something of themselves."""
    return f"{HEAD}def f():\n    model = {LAYERS}\n    model.{line}\n    return model\n"


def giving(expression: str) -> str:
    """A module whose factory gives something else."""
    pair = "class Pair(nn.Module):\n    def forward(self, x):\n        return x, x\n"
    return f"{HEAD}{pair}def f():\n    return {expression}\n"


FAILING = {
    "raises": (f"{HEAD}def f():\n    raise Exception('odd\\nsecond line')\n", r"Exception: odd \(\S*mine.py, line 4\)"),
    "key": (f"{HEAD}def f():\n    return {{}}['x']\n", r"KeyError: 'x' \(\S*mine.py, line 4\)"),
    "assertion": (f"{HEAD}def f():\n    assert not 1\n", r"AssertionError \(\S*mine.py, line 4\)"),
    "base": (f"{HEAD}class E(BaseException): pass\ndef f():\n    raise E\n", r"E \(\S*mine.py, line 5\)"),
    "syntax": ("def f(:\n", r"cannot import mine:f: SyntaxError: invalid syntax \(\S*mine.py, line 1\)"),
    "at import": ("1 / 0\n", r"cannot import mine:f: ZeroDivisionError: division by zero \(\S*mine.py, line 1\)"),
    "exit at import": ("import sys\nsys.exit(0)\n", r"cannot import mine:f: it ends the program, sys.exit\(0\)"),
    "exit": (f"{HEAD}def f():\n    exit('bye')\n", r"it ends the program, sys.exit\('bye'\)"),
    "loss": (saying("loss = lambda *tensors: [][1]"), r"IndexError: .* \(\S*mine.py, line 5\)"),
    "loss of a wrong kind": (saying("loss = 7"), "its attribute loss is 7: give a function"),
    "vocabulary": (saying("vocab_size = 'many'"), "its attribute vocab_size is 'many'"),
    "heads": (saying("num_heads = -1"), "its attribute num_heads is -1"),
    "styles": (saying("tensor_parallel_styles = 7"), "its attribute tensor_parallel_styles is 7"),
    "style": (saying("tensor_parallel_styles = {1: {'': 'x'}}"), "its attribute tensor_parallel_styles is"),
    "style of no layer": (saying("tensor_parallel_styles = {9: {}}"), "layer index below 3"),
    "style of no linear": (
        saying("tensor_parallel_styles, model.num_heads, model.ffn_size = {1: {'nope': 'colwise'}}, 4, 8"),
        "its attribute tensor_parallel_styles is",
    ),
    "example": (saying("example_input = lambda *sizes: 7"), "its example_input gave a int"),
    "shape": (
        giving("nn.Sequential(nn.Embedding(9, 8), nn.Linear(7, 9))"),
        "layer Linear or its loss does not run: RuntimeError",
    ),
    "tuple": (giving("nn.Sequential(nn.Embedding(9, 8), Pair())"), "its layer Pair gave a tuple"),
    "nothing": (giving("nn.Sequential()"), "without layers"),
    "no module": (giving("3"), "the factory must return an nn.Module"),
    "no factory": (HEAD, "cannot import mine:f: AttributeError: module 'mine' has no attribute 'f'"),
}


@pytest.mark.parametrize("case", FAILING)
def test_a_failing_module_is_one_sentence(folder: Path, case: str, capfd: pytest.CaptureFixture[str]) -> None:
    source, words = FAILING[case]
    (folder / "mine.py").write_text(source)
    with pytest.raises(InputError, match=words) as caught:
        load_model("mine:f")
    assert "\n" not in str(caught.value)
    # The user's own lines alone.
    assert not [word for word in ("profiles/", "/torch/", "importlib") if word in caught.value.details]
    assert ("--traceback" in str(caught.value)) == bool(caught.value.details)
    out, err = capfd.readouterr()
    assert out == ""
    assert "Traceback" not in err


@pytest.mark.parametrize("name", [":f", "..:f", "a.b:", "mine:f:g", "mine: f"])
def test_what_cannot_be_a_factory(folder: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"give package\.module:factory"):
        load_model(name)


def test_what_a_module_prints_is_no_result(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (folder / "mine.py").write_text(
        f"print('imported')\n{HEAD}class L(nn.Linear):\n    def forward(self, x):\n        print('runs')\n"
        "        return super().forward(x)\n"
        f"def f():\n    print('built')\n    return {LAYERS.replace('nn.Linear', 'L')}\n"
    )
    with pytest.raises(SystemExit) as ended:
        run_profile("model", "mine:f", "--json")
    out, err = capfd.readouterr()
    assert ended.value.code == 0
    assert json.loads(out)["name"] == "f"
    assert {"imported", "built", "runs"} <= set(err.split())


def run_profile(*arguments: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["profile", *arguments])
        console.run(profile_app)


def test_the_users_own_traceback_on_request(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (folder / "mine.py").write_text(f"{HEAD}def g():\n    return {{}}['x']\ndef f():\n    return g()\n")
    told = []
    for asked in ((), ("--traceback",)):
        with pytest.raises(SystemExit) as ended:
            run_profile("model", "mine:f", *asked)
        assert ended.value.code == 2
        told.append(capfd.readouterr().err)
    assert told[0].count("\n") == 1
    assert told[1].startswith(told[0])
    assert [line.split(" in ")[1] for line in told[1].splitlines() if line.startswith("  File")] == ["f", "g"]


@pytest.mark.gloo
@pytest.mark.usefixtures("warm_ranks")
def test_a_module_that_fails_in_a_rank(folder: Path) -> None:
    (folder / "mine.py").write_text(
        f"{HEAD}class L(nn.Linear):\n    def forward(self, x):\n        print('noise')\n"
        "        if x.device.type == 'cpu' and type(x) is not nn.Parameter:\n            raise LookupError('late')\n"
        f"        return super().forward(x)\ndef f():\n    return {LAYERS.replace('nn.Linear', 'L')}\n"
    )
    done = RUNNER.invoke(
        execute_app,
        [str(write_module_plan(folder)), "--steps", "1", "--oversubscribe", "--trust-module", "mine", "--json"],
    )
    assert isinstance(done.exception, InputError), done.output
    assert str(done.exception).startswith("mine:f does not run: LookupError: late (")
    assert "mine.py, line 7)" in str(done.exception)
    assert done.exception.details.count("File") == 1
    assert done.stdout == ""


@pytest.mark.parametrize(
    "error",
    [KeyboardInterrupt(), InputError("ours")],
)
def test_what_is_no_failure_of_the_module_passes(error: BaseException) -> None:
    spec = WorkloadSpec(kind="module", name="own", factory="mine:f")
    with pytest.raises(type(error)) as caught, foreign_code(spec, "mine:f fails"):
        raise error
    assert caught.value is error


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("CPUAllocator: can't allocate memory")])
def test_memory_that_is_exhausted_is_no_failure_of_the_module(folder: Path, error: Exception) -> None:
    (folder / "mine.py").write_text(f"raise {error!r}\n")
    with pytest.raises(MemoryError):
        load_model("mine:f")


def test_an_error_of_ours_stays_one_where_a_library_wraps_it() -> None:
    try:
        try:
            raise InputError("the sentence") from KeyError("x")
        except InputError as error:
            raise RuntimeError("a stage failed") from error
    except RuntimeError as error:
        word = describe(0, error)
    assert (word.error, word.message, word.is_ours, word.is_lost_peer) == ("InputError", "the sentence", True, False)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"hidden_act": "nonsense"}, 'at hidden_act: "nonsense" is not known to transformers'),
        (
            {"rope_scaling": {"rope_type": "rubbish", "factor": 2.0}},
            'at rope_parameters: "rubbish" is not known to transformers',
        ),
        ({"rope_scaling": 5}, "at rope_parameters: 5 should be an object"),
        ({"attention_bias": "x"}, "transformers does not accept its configuration: .* expected bool, got str"),
    ],
)
def test_what_transformers_refuses_is_one_sentence(fields: dict[str, Any], words: str) -> None:
    spec = WorkloadSpec(kind="transformers", name="odd", config={**LLAMA.config, **fields})
    with pytest.raises(TrainwrightError, match=f"model odd: {words}") as caught:
        trace(load_workload(spec), ("fp32",))
    assert "\n" not in str(caught.value)


def test_models_that_ship_by_their_sizes_are_traced_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("profiles.tracing.trace.trace", lambda workload, precisions: workload.spec.name)
    monkeypatch.setattr("profiles.library.kept_trace", lambda *_: None)
    monkeypatch.setattr("profiles.library.keep_trace", lambda *_: None)
    assert trace_model("gpt3-175b") == "gpt3-175b"
    with pytest.raises(InputError, match="deepseek-v3: its configuration names no architectures: give --task"):
        trace_model("deepseek-v3")
    with pytest.raises(InputError, match="unknown model 'gpt3-174b': did you mean 'gpt3-175b'"):
        trace_model("gpt3-174b")

"""What is called from Python has named, typed and documented options: those of the command, with its defaults."""

import ast
import inspect
import re
from pathlib import Path

import pytest
import typer

import executor
import planner
from planner.command import app
from planner.notebook import Planned, samples_of, words_of
from profiles.errors import InputError

# Options of the command whose answer is a method of what `planner.plan` gives, and those that are about a terminal,
# about files that the method writes, or about jobs of other software.
METHODS = {
    "why_not": "why_not", "sensitivity": "sensitivity", "tokens": "cost", "price": "cost", "mtbf": "cost",
    "checkpoint_seconds": "cost", "output": "save", "page": "page",
}  # fmt: skip
OF_COMMAND_ALONE = {
    "list_kind", "legend", "json_output", "version", "install_completion", "show_completion", "source", "export",
    "rank", "trace", "compress", "target", "traceback", "epochs", "by",
}  # fmt: skip
COMMAND = {str(option.name): option for option in typer.main.get_command(app).params}
OPTIONS = inspect.signature(planner.plan).parameters
# What compares counts and kinds of devices, with the command's names too.
BUYING = inspect.signature(planner.buy).parameters


def test_every_option_of_the_command_is_one_of_python_or_said_not_to_be():
    known = {*OPTIONS, *METHODS, *OF_COMMAND_ALONE, *BUYING}
    assert set(COMMAND) - known == set()
    assert {*OPTIONS, *BUYING} <= set(COMMAND)
    for name in METHODS.values():
        assert callable(getattr(Planned, name))


@pytest.mark.parametrize(
    "name", [name for name, option in {**OPTIONS, **BUYING}.items() if option.default is not option.empty]
)
def test_defaults_are_those_of_the_command(name):
    for option in (of[name] for of in (OPTIONS, BUYING) if name in of):
        assert option.default == COMMAND[name].default
        assert option.kind is option.KEYWORD_ONLY


@pytest.mark.parametrize("function", [planner.plan, planner.buy, executor.apply, executor.Task])
def test_help_has_a_typed_option_and_a_line_of_each(function):
    parameters = inspect.signature(function).parameters
    described = re.findall(r"^\* `(\w+)`: \S.+$", inspect.getdoc(function) or "", flags=re.MULTILINE)
    assert described == list(parameters)
    assert all(one.annotation is not one.empty for one in parameters.values())
    assert not any(one.kind in (one.VAR_KEYWORD, one.VAR_POSITIONAL) for one in parameters.values())


def test_every_method_that_answers_has_typed_options_and_says_what_it_gives():
    for name, method in inspect.getmembers(Planned, inspect.isfunction):
        if not name.startswith("_"):
            assert inspect.getdoc(method), name
            options = list(inspect.signature(method).parameters.values())[1:]
            assert all(one.annotation is not one.empty for one in options), name


@pytest.mark.parametrize(
    ("asked", "found"), [(None, ()), (64, (64,)), ("64", (64,)), ("64-256", (64, 128, 256)), ((64, 96), (64, 96))]
)
def test_batches_may_be_one_several_or_as_the_command_says_them(asked, found):
    assert samples_of(asked) == found


def test_what_is_no_batch_or_no_codec_is_refused_in_a_sentence():
    with pytest.raises(InputError, match="--global-batch"):
        samples_of((0,))
    with pytest.raises(InputError, match="--global-batch 1-: give samples"):
        samples_of("1-")
    with pytest.raises(InputError, match="unknown codec"):
        planner.plan("gpt2-small", 2, device="h100-sxm", codecs="zip")


def test_names_may_be_a_text_or_several():
    assert words_of("bf16, fp8,bf16") == words_of(["bf16", "fp8"]) == ("bf16", "fp8")
    assert words_of(None) == ()


def test_editors_see_the_signature_without_running_anything():
    """What a static reader finds is what runs."""
    tree = ast.parse(Path(planner.__file__).read_text())
    functions = {node.name: node.args for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert set(functions) == set(planner.__all__) == {"plan", "buy"}
    for name, parameters in (("plan", OPTIONS), ("buy", BUYING)):
        assert [one.arg for one in (*functions[name].args, *functions[name].kwonlyargs)] == list(parameters)

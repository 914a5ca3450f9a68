"""What the pages say holds: their commands, their Python, their settings, their links, and that they can be read."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import inspect
import math
import re
import tomllib
import typing
from typing import Any

import pytest
import typer

import executor
import planner
from executor.applied import AppliedPlan
from executor.train.settings import read_settings
from planner.notebook import Planned
from planner.schedules.registry import SCHEDULES, torch_names
from profiles.machines.clusters import MixedCluster, find_cluster, load_pools
from profiles.workloads.task import Task as TaskOfFactory
from tests.commands import APPS
from tests.documented import words
from tests.documented.commands import (
    UMBRELLA,
    check_words,
    click_command,
    commands_of,
    find_lines,
    given_files,
    options_of,
    runs_here,
)  # fmt: skip
from tests.documented.formulae import HELD, check_schedule, schedules
from tests.documented.pages import LANGUAGES, PACKAGES, ROOT, Block, blocks, indented, pages, read
from tests.documented.python_blocks import GIVEN, run_block
from tests.reference import PUBLIC, load_lazy_names, resolve_inherited_fields

PAGES = pages()
BLOCKS = [block for page in PAGES for block in blocks(page)]
COMMANDS = [block for block in BLOCKS if block.language in ("console", "sh")]
RUN = [block for block in COMMANDS if block.language == "console" and "not run" not in block.marks]
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
EXTRAS = set(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"])
# Options of other programs, and of those of the tests, that pages speak of.
FOREIGN = {"--my-flag", "--exportTimes", "--record"}
MOST_LINES = 250


def of(language: str) -> list[Block]:
    return [block for block in BLOCKS if block.language == language]


def ids(block: Block) -> str:
    return block.name


def params(chosen: list[Block]) -> list[object]:
    slow = pytest.mark.slow
    return [pytest.param(block, id=block.name, marks=[slow] if "slow" in block.marks else []) for block in chosen]


def test_the_first_page_is_short():
    assert read("README.md").count("\n") <= MOST_LINES


@pytest.mark.parametrize("page", PAGES)
def test_code_stands_in_fences_that_say_what_it_is(page):
    assert indented(page) == []
    for block in blocks(page):
        assert block.language in LANGUAGES, block.name
        assert block.language != "text" or "$ " not in block.text, f"{block.name} shows a command: call it console"
        assert block.language != "console" or block.text.startswith("$ "), block.name


@pytest.mark.parametrize("block", COMMANDS, ids=ids)
def test_commands_take_what_pages_give_them(block, monkeypatch):
    found = commands_of(block)
    assert found, block.name
    for command in found:
        first, *rest = command.words
        if first in (UMBRELLA, *APPS):
            check_words(command.words)
        elif first == "make":
            assert set(rest) <= TARGETS, block.name
        elif "pip" in command.words:
            check_extras(" ".join(rest))


def check_extras(text: str) -> None:
    """Hold what pip is asked to install with this program against what it has."""
    for names in re.findall(r"(?:trainwright|\.)\[([\w,]+)\]", text):
        assert set(names.split(",")) <= EXTRAS, text


@pytest.mark.parametrize("block", params(RUN))
def test_commands_print_what_pages_show(block, tmp_path, monkeypatch):
    if "plan.json" in block.marks.get("given", "").split(", "):
        monkeypatch.chdir(tmp_path)
        GIVEN["plan.json"]()
    runs_here(block, tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("shown", "is_there"),
    [
        (["a", "b", "c"], True), (["..."], True), (["...", "c"], True), (["a", "...", "c"], True), (["a", "..."], True),
        (["a", "c"], False), (["b", "..."], False), (["...", "b", "a"], False), (["a"], False), (["...", "d"], False),
    ],
)  # fmt: skip
def test_output_that_differs_is_told(shown, is_there):
    if is_there:
        find_lines(BLOCKS[0], shown, "a\nb\nc\n")
    else:
        with pytest.raises(AssertionError):
            find_lines(BLOCKS[0], shown, "a\nb\nc\n")


# Other libraries may warn in them as they like.
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("block", params(of("python")))
def test_python_of_pages_runs(block, tmp_path, monkeypatch):
    compile(block.text, block.name, "exec")
    if "holds" in block.marks:
        HELD[block.marks["holds"]](block)
        return
    if "not run" in block.marks:
        return
    made = run_block(block, tmp_path, monkeypatch)
    if "factory" in made:
        assert isinstance(made["factory"](), TaskOfFactory)
    if "loader" in made:
        assert math.isfinite(float(made["loss"]))
        assert list((tmp_path / "weights").glob("*.safetensors"))
        assert made["job"].num_steps == len(made["loader"])


def test_every_formula_is_on_the_page():
    assert {block.marks["holds"] for block in of("python") if "holds" in block.marks} == set(HELD)
    assert set(schedules()) == set(SCHEDULES) & set(torch_names())


@pytest.mark.parametrize("name", schedules())
def test_laws_of_schedules_are_those_of_the_page(name):
    check_schedule(name, *schedules()[name])


@pytest.mark.parametrize("block", of("toml"), ids=ids)
def test_settings_of_pages_are_read(block, tmp_path):
    path = tmp_path / "page.toml"
    path.write_text(block.text, encoding="utf-8")
    kind = block.marks["read as"]
    if kind == "train":
        assert read_settings(path).max_steps > 0
    else:
        assert kind == "cluster"
        found = find_cluster(str(path))
        assert not isinstance(found, MixedCluster) or len(load_pools(found)) > 1


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for link in words.links(page):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = ((ROOT / page).parent / name).resolve() if name else ROOT / page
        assert target.exists(), f"{page} links to {link}"
        if anchor:
            assert anchor in words.anchors(str(target.relative_to(ROOT))), f"{page} links to {link}"


@pytest.mark.parametrize("page", PAGES)
def test_files_modules_and_targets_that_pages_name_exist(page):
    for code in words.code_words(page):
        first, *rest = code.split()
        if code.startswith("python -m "):
            assert rest[1:]
            assert importlib.util.find_spec(rest[1]) is not None, f"{page}: {code}"
        elif first == "make" and rest:
            assert rest[0] in TARGETS, f"{page}: {code}"
        elif code.split("/")[0] in (*PACKAGES.values(), "tests") and re.fullmatch(r"[\w.]+(/[\w.-]+)+/?", code):
            is_module = (ROOT / f"{code}.py").exists()
            assert (ROOT / code).exists() or is_module, f"{page}: {code}"
        check_extras(code)


@pytest.mark.parametrize("page", PAGES)
def test_options_that_pages_speak_of_exist(page):
    known = FOREIGN | {option for command in all_commands().values() for option in options_of(command)}
    for code in words.code_words(page):
        first = code.split()[0]
        if first in ("python", "pip", "make") or (first not in APPS and not first.startswith("--")):
            continue
        if first in APPS and first != "profile":
            known_here = set(options_of(click_command([first])[0])) | FOREIGN
        else:
            known_here = known
        for option in re.findall(r"(?<![\w-])--[a-z][\w-]*", code):
            assert option in known_here, f"{page}: {code}"


def all_commands() -> dict[str, Any]:
    """Every command by its name, those of `profile` apart."""
    found: dict[str, Any] = {}
    for name, app in APPS.items():
        command = typer.main.get_command(app)
        if hasattr(command, "commands"):
            found |= {f"{name} {own}": one for own, one in command.commands.items()}
        else:
            found[name] = command
    return found


@pytest.mark.parametrize("name", all_commands())
def test_every_option_is_explained(name):
    package = PACKAGES[name.split()[0]]
    text = "\n".join(read(page) for page in PAGES if page.startswith(f"{package}/"))
    missing = [one for one in options_of(all_commands()[name]) if not re.search(rf"{re.escape(one)}(?![\w-])", text)]
    assert missing == [], f"pages of {package}/ say nothing of {', '.join(missing)}"


@pytest.mark.parametrize("page", PAGES)
def test_sentences_are_short(page):
    long = [one for one in words.sentences(page) if words.num_words(one) > words.MOST_WORDS]
    assert long == [], f"{page}: over {words.MOST_WORDS} words"


def test_files_that_blocks_are_given_exist():
    for block in BLOCKS:
        for _, source in given_files(block):
            assert source.exists(), block.name


def test_every_argument_of_the_public_functions_is_explained():
    functions = [planner.plan, planner.buy, executor.apply, executor.Task]
    for kind in (AppliedPlan, Planned):
        functions += [own for name, own in vars(kind).items() if inspect.isfunction(own) and not name.startswith("_")]
    for function in functions:
        text = inspect.getdoc(function)
        assert text, function
        names = [name for name in inspect.signature(function).parameters if name not in ("self", "options")]
        missing = [name for name in names if f"`{name}" not in text]
        assert len(names) < 2 or not missing, f"{function.__qualname__} says nothing of {missing}"


@pytest.mark.parametrize("name", PUBLIC)
def test_what_the_reference_is_of_exists_and_says_what_it_is(name):
    module = importlib.import_module(name)
    assert module.__doc__
    for public in getattr(module, "__all__", ()):
        assert inspect.getdoc(getattr(module, public))


def test_the_tests_of_pages_see_them():
    assert {"README.md", "planner/README.md", "executor/README.md"} <= set(PAGES)
    assert len(RUN) > 5
    assert of("python")
    assert of("toml")


def test_the_reference_knows_the_types_of_all_constructors():
    """pdoc ends with a warning, here an error, where a class has fields of a base whose types it does not import."""
    load_lazy_names()
    resolve_inherited_fields()
    for name in PUBLIC:
        for own in vars(importlib.import_module(name)).values():
            if isinstance(own, type) and dataclasses.is_dataclass(own) and own.__module__ == name:
                assert typing.get_type_hints(own.__init__)["return"] is type(None), own

"""The house rules hold: import direction, where torch may be loaded, and the size of files and functions.

A rule is one test of all files, which are read once, and names every line that breaks it.
"""

import ast
import functools
import subprocess
import sys
from pathlib import Path

import networkx as nx
import pytest

ROOT = Path(__file__).parent.parent
ORDER = ("profiles", "planner", "executor", "reports")
FILES = sorted(path for package in ORDER for path in (ROOT / package).rglob("*.py"))
MAX_FILE_LINES, MAX_FUNCTION_LINES = 300, 50
# Folders that build, trace, measure or run modules; everything else loads torch inside functions, if at all.
TORCH_FOLDERS = tuple(f"profiles/{name}" for name in ("workloads", "networks", "tracing", "codecs", "ranks", "measure"))
# What a command of the executor, or a report of its files, reads before anything runs.
TORCH_FREE_IN_EXECUTOR = {
    "command.py", "emit.py", "legality.py", "options.py", "__init__.py", "__main__.py", "rehearse/result.py",
    "rehearse/show.py", "run/__init__.py", "run/check_command.py", "run/follow.py", "run/measurement.py",
    "run/run_folder.py", "run/show.py",
}  # fmt: skip


@functools.cache
def tree_of(path: Path) -> ast.Module:
    """What stands in a file."""
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(tree: ast.AST, *, top_level_only: bool) -> list[str]:
    """Names of imported modules; a TYPE_CHECKING block is no import."""
    names = []

    def visit(node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                names.extend(alias.name for alias in child.names)
            elif isinstance(child, ast.ImportFrom) and child.module:
                names.append(child.module)
            is_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
            type_checking = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
            if not type_checking and not (top_level_only and is_function):
                visit(child)

    visit(tree)
    return names


def test_a_package_imports_only_from_packages_to_its_left():
    wrong = []
    for path in FILES:
        own = ORDER.index(path.relative_to(ROOT).parts[0])
        for name in imports(tree_of(path), top_level_only=False):
            package = name.split(".")[0]
            if package == "tests" or (package in ORDER and ORDER.index(package) > own):
                wrong.append(f"{path} imports {name}")
    assert not wrong


def module_name(path: Path) -> str:
    """The dotted name of a file."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def test_no_file_imports_itself_through_others():
    names = {module_name(path) for path in FILES}
    graph = nx.DiGraph()
    for path in FILES:
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.ImportFrom) and node.module:
                whole = {f"{node.module}.{alias.name}" for alias in node.names} & names
                graph.add_edges_from((module_name(path), name) for name in whole or {node.module} & names)
    assert [circle for circle in nx.strongly_connected_components(graph) if len(circle) > 1] == []


def test_torch_is_loaded_only_where_modules_run():
    wrong = []
    for path in FILES:
        package, within = path.relative_to(ROOT).parts[0], path.relative_to(ROOT / path.relative_to(ROOT).parts[0])
        everywhere = package in ("planner", "reports")
        runs = package == "executor" and within.as_posix() not in TORCH_FREE_IN_EXECUTOR
        if runs or f"{package}/{within.parent.as_posix()}" in TORCH_FOLDERS:
            continue
        found = imports(tree_of(path), top_level_only=not everywhere)
        wrong += [f"{path} imports {n}" for n in found if n.split(".")[0] in ("torch", "transformers")]
    assert not wrong


def test_files_and_functions_fit_in_the_head():
    wrong = []
    for path in FILES:
        count = path.read_text(encoding="utf-8").count("\n")
        if count > MAX_FILE_LINES:
            wrong.append(f"{path} has {count} lines")
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.FunctionDef):
                # Options, as a signature and as a docstring that says a line of each, are a list, not logic.
                has_list = "\n* `" in (ast.get_docstring(node) or "")
                is_list = has_list or path.name == "command.py"
                start = node.body[1 if has_list else 0].lineno if is_list else node.lineno
                length = (node.end_lineno or 0) - start + 1
                if length > MAX_FUNCTION_LINES:
                    wrong.append(f"{path}:{node.lineno} {node.name} has {length} lines")
    assert not wrong


def test_public_functions_and_modules_say_what_they_do():
    wrong = []
    for path in FILES:
        tree = tree_of(path)
        if not ast.get_docstring(tree):
            wrong.append(str(path))
        for node in tree.body:
            is_public = isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
            if is_public and not ast.get_docstring(node):
                wrong.append(f"{path}:{node.lineno} {node.name}")
    assert not wrong


def test_text_files_have_an_encoding_of_ours_and_not_of_the_locale():
    wrong = []
    for path in FILES:
        for node in ast.walk(tree_of(path)):
            if not isinstance(node, ast.Call) or any(keyword.arg == "encoding" for keyword in node.keywords):
                continue
            called = ast.unparse(node.func)
            if called == "foreign.read_text":  # which has an encoding of its own
                continue
            modes = [one.value for one in node.args if isinstance(one, ast.Constant) and isinstance(one.value, str)]
            is_binary = any("b" in mode for mode in modes)
            is_opened = called == "open" or (called.endswith((".open", ".fdopen")) and called != "os.open")
            if called.endswith((".read_text", ".write_text")) or (is_opened and not is_binary):
                wrong.append(f"{path}:{node.lineno} {ast.unparse(node)}")
    assert not wrong


def test_every_folder_has_a_sign_and_a_line_on_the_page_of_its_package():
    tables = {name: (ROOT / name / "README.md").read_text(encoding="utf-8").split("## Folders")[1] for name in ORDER}
    for folder in {path.parent for path in FILES} - {ROOT / name for name in ORDER}:
        assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text())), folder
        package = folder.relative_to(ROOT).parts[0]
        assert f"`{folder.name}/`" in tables[package], f"{package}/README.md has no line for {folder}"


def run_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout


@pytest.mark.parametrize("command", ORDER)
def test_help_answers_without_torch(command):
    package = {"profiles": "profile", "planner": "plan", "executor": "execute", "reports": "compare"}[command]
    code = f"""
import sys
sys.argv = ["{package}", "--help"]
from {command}.command import main
try:
    main()
except SystemExit as stop:
    assert stop.code == 0, stop.code
print("torch" in sys.modules, "transformers" in sys.modules, "plotly" in sys.modules, "pandas" in sys.modules)
"""
    assert run_python(code).split()[-4:] == ["False"] * 4


def test_planning_a_shipped_model_never_loads_torch():
    code = """
import sys
sys.argv = ["plan", "--model", "llama-3.1-8b", "--gpus", "64", "--device", "h100-sxm", "--top", "2"]
from planner.command import main
try:
    main()
except SystemExit as stop:
    assert stop.code == 0, stop.code
print("torch" in sys.modules, "pandas" in sys.modules)
"""
    assert run_python(code).split()[-2:] == ["False", "False"]

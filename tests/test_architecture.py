"""The house rules hold: import direction, where torch may be loaded, and the size of files and functions."""

import ast
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


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_package_imports_only_from_packages_to_its_left(path):
    own = ORDER.index(path.relative_to(ROOT).parts[0])
    for name in imports(ast.parse(path.read_text()), top_level_only=False):
        package = name.split(".")[0]
        assert package not in ORDER or ORDER.index(package) <= own, f"{path} imports {name}"
        assert package != "tests"


def module_name(path: Path) -> str:
    """The dotted name of a file."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def test_no_file_imports_itself_through_others():
    names = {module_name(path) for path in FILES}
    graph = nx.DiGraph()
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                whole = {f"{node.module}.{alias.name}" for alias in node.names} & names
                graph.add_edges_from((module_name(path), name) for name in whole or {node.module} & names)
    assert [circle for circle in nx.strongly_connected_components(graph) if len(circle) > 1] == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_torch_is_loaded_only_where_modules_run(path):
    package, within = path.relative_to(ROOT).parts[0], path.relative_to(ROOT / path.relative_to(ROOT).parts[0])
    everywhere = package in ("planner", "reports")
    if package == "executor" and within.as_posix() not in TORCH_FREE_IN_EXECUTOR:
        return
    if f"{package}/{within.parent.as_posix()}" in TORCH_FOLDERS:
        return
    found = imports(ast.parse(path.read_text()), top_level_only=not everywhere)
    assert not [n for n in found if n.split(".")[0] in ("torch", "transformers")], path


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_fit_in_the_head(path):
    text = path.read_text()
    assert text.count("\n") <= MAX_FILE_LINES, f"{path} has {text.count(chr(10))} lines"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            # Options, as a signature and as a docstring that says a line of each, are read as a list, not as logic.
            has_list = "\n* `" in (ast.get_docstring(node) or "")
            start = node.body[1 if has_list else 0].lineno if has_list or path.name == "command.py" else node.lineno
            length = (node.end_lineno or 0) - start + 1
            assert length <= MAX_FUNCTION_LINES, f"{path}:{node.lineno} {node.name} has {length} lines"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_public_functions_and_modules_say_what_they_do(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), path
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{path}:{node.lineno} {node.name}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_text_files_have_an_encoding_of_ours_and_not_of_the_locale(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call) or any(keyword.arg == "encoding" for keyword in node.keywords):
            continue
        called = ast.unparse(node.func)
        modes = [one.value for one in node.args if isinstance(one, ast.Constant) and isinstance(one.value, str)]
        is_binary = any("b" in mode for mode in modes)
        is_opened = called == "open" or (called.endswith((".open", ".fdopen")) and called != "os.open")
        is_text = called.endswith((".read_text", ".write_text")) or (is_opened and not is_binary)
        assert not is_text, f"{path}:{node.lineno} {ast.unparse(node)}"


def test_every_folder_has_a_sign_and_a_line_in_the_readme():
    tree = (ROOT / "README.md").read_text().split("## The tree")[1].split("## Words")[0]
    for folder in {path.parent for path in FILES} - {ROOT / name for name in ORDER}:
        assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text())), folder
        assert f"{folder.name}/ " in tree or f"{folder.name}/," in tree, f"README's tree lacks {folder}"


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

"""The house rules hold: import direction, where torch may be loaded, and the size of files and functions."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ORDER = ("profiles", "planner", "executor", "reports")
FILES = sorted(path for package in ORDER for path in (ROOT / package).rglob("*.py"))
MAX_FILE_LINES, MAX_FUNCTION_LINES = 300, 50
# Files that build, trace, measure or run modules; everything else loads torch inside functions, if at all.
TORCH_AT_IMPORT = {
    "profiles": {
        "blocks.py", "workloads.py", "trace.py", "recorder.py", "timing.py", "launcher.py", "rank.py", "stores.py",
        "measure.py", "measure_kernels.py", "measure_memory.py", "measure_links.py", "encodings.py", "quantised.py",
        "measure_layers.py", "measure_update.py", "measure_runtime.py", "measure_exchange.py",
        "factory.py", "reductions.py", "vision.py", "experts.py", "fakes.py", "precision.py",
    },
    "executor": None,
}  # fmt: skip
TORCH_FREE_IN_EXECUTOR = {
    "command.py", "emit.py", "follow.py", "legality.py", "measurement.py", "options.py", "rehearsed.py", "runs.py",
    "show_rehearsal.py", "show_run.py", "__init__.py", "__main__.py",
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


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_torch_is_loaded_only_where_modules_run(path):
    package, *_, name = path.relative_to(ROOT).parts
    everywhere = package in ("planner", "reports")
    if package == "executor" and name not in TORCH_FREE_IN_EXECUTOR:
        return
    if package == "profiles" and name in (TORCH_AT_IMPORT["profiles"] or ()):
        return
    found = imports(ast.parse(path.read_text()), top_level_only=not everywhere)
    assert not [n for n in found if n.split(".")[0] in ("torch", "transformers")], path


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_fit_in_the_head(path):
    text = path.read_text()
    assert text.count("\n") <= MAX_FILE_LINES, f"{path} has {text.count(chr(10))} lines"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            # A command's options are its signature: they are read as a list, not as logic.
            start = node.body[0].lineno if path.name == "command.py" else node.lineno
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

"""Tries an installed Trainwright as a stranger would, outside of any checkout.

`python tests/installed.py BIN [--no-torch]`: BIN is the folder of its commands. Uses the standard library alone; ends
with 0 where everything answers.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

PLAN = ("--model", "gpt2-small", "--gpus", "2", "--device", "a100-sxm-80gb", "--global-batch", "8", "--top", "1")


def run(folder: Path, binaries: Path, command: str, *arguments: str) -> str:
    """What a command prints; the trial ends where it fails or warns."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment |= {"TRAINWRIGHT_HOME": str(folder / "home"), "PYTHONWARNINGS": "error::SyntaxWarning"}
    done = subprocess.run(
        [binaries / command, *arguments], capture_output=True, text=True, cwd=folder, env=environment, check=False
    )
    if done.returncode or "Traceback" in done.stderr:
        sys.exit(f"{command} {' '.join(arguments)}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stdout


def catalogue(folder: Path, binaries: Path) -> None:
    """Every kind of data file is there."""
    version = run(folder, binaries, "trainwright", "--version")
    for command in ("profile", "plan", "execute", "compare"):
        assert run(folder, binaries, command, "--version") == version
        assert run(folder, binaries, "trainwright", command, "--help").startswith(f"Usage: trainwright {command}")
    for names, least in (("devices", 40), ("clusters", 5), ("models", 8), ("stacks", 8)):
        rows = run(folder, binaries, "plan", "--list", names).splitlines()
        assert len(rows) > least, (names, len(rows))
    print(version.strip())


def planned(folder: Path, binaries: Path) -> None:
    """A plan is made, written for other software (templates of scripts), and drawn (templates of pages)."""
    run(folder, binaries, "plan", *PLAN, "-o", "plan.json")
    assert json.loads((folder / "plan.json").read_text())["artifact"]
    run(folder, binaries, "plan", *PLAN, "--export", "accelerate", "-o", "exported")
    assert list((folder / "exported").iterdir())
    row = {"family": "own", "gpu_type": "A100-SXM4-80GB", "num_gpus": 8, "arch": "llama", "num_layers": 32}
    row |= {"hidden_size": 4096, "ffn_size": 11008, "num_heads": 32, "vocab_size": 32000, "seq_len": 2048}
    row |= {"global_batch": 64, "step_time_s": 2.9}
    (folder / "runs.csv").write_text(f"{','.join(row)}\n{','.join(map(str, row.values()))}\n")
    run(folder, binaries, "compare", "runs.csv", "-o", "report.html")
    assert "<html" in (folder / "report.html").read_text()
    print("planned, exported, compared")


def executed(folder: Path, binaries: Path) -> None:
    """A tiny model of one's own is traced, planned on this machine's kind, checked, run and compared."""
    config = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    config |= {"num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 64, "max_position_embeddings": 64}
    (folder / "config.json").write_text(json.dumps(config))
    run(folder, binaries, "profile", "model", "config.json", "--sequence-length", "16")
    small = (
        "--model",
        "config.json",
        "--gpus",
        "1",
        "--device",
        "t4",
        "--global-batch",
        "2",
        "--sequence-length",
        "16",
    )
    run(folder, binaries, "plan", *small, "--precision", "fp32", "-o", "small.json")
    run(folder, binaries, "execute", "small.json", "--steps", "3", "-o", "run.json")
    run(folder, binaries, "compare", "run.json", "-o", "run.html")
    print("traced, executed, compared")


def main(binaries: Path, with_torch: bool) -> None:
    """Try all of it in an empty folder."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        catalogue(folder, binaries)
        planned(folder, binaries)
        if with_torch:
            executed(folder, binaries)


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute(), "--no-torch" not in sys.argv)

"""`python -m executor.examples`: plans, executes and judges the examples; fails where one is no better than trivial."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from profiles.terminal import console

FOLDER = Path("out/examples")
app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def examples(
    names: Annotated[list[str] | None, typer.Argument(help="Which [all seven].")] = None,
    folder: Annotated[Path, typer.Option("-o", "--output", help="Where plans, runs and checkpoints go.")] = FOLDER,
    machine: Annotated[Path | None, typer.Option(help="A machine profile [this machine's stored one].")] = None,
    apply: Annotated[bool, typer.Option("--apply", help="Also train each by executor.apply.")] = False,
    train: Annotated[bool, typer.Option("--train", help="Also train each by execute --train.")] = False,
    steps: Annotated[int, typer.Option(min=0, help="Steps to train for [each example's own]; not judged then.")] = 0,
) -> None:
    """Plan, execute on two ranks and judge the examples named."""
    from executor.examples.run import NAMES, compare_own_loop, compare_training, run_example
    from profiles.errors import InputError, ToleranceError

    unknown = [name for name in names or () if name not in NAMES]
    if unknown:
        raise InputError(f"no example is called {unknown[0]}: there are {', '.join(NAMES)}")
    out = console.console()
    outcomes = []
    for name in names or NAMES:
        outcomes.append(run_example(name, folder, out, machine=machine, steps=steps))
        out.print(str(outcomes[-1]))
        if apply:
            off = compare_own_loop(name, folder, out)
            out.print(f"{name} by executor.apply in a loop of its own: losses of all steps equal within {off:.1e}")
        if train:
            off = compare_training(name, folder, out)
            out.print(f"{name} by execute --train: losses of all steps equal within {off:.1e}")
    for outcome in outcomes:
        out.print(str(outcome))
    failed = [outcome.name for outcome in outcomes if not outcome.quality.beats_baseline]
    if failed and not steps:
        raise ToleranceError(f"no better than a trivial answer: {', '.join(failed)}")


if __name__ == "__main__":
    console.run(app)

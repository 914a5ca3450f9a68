"""What came of compressing, as a table for people. Torch-free."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from executor.compress.results import CompressionFile, CompressionResult
    from planner.compression.recipes import CompressionChoice


def show(file: CompressionFile, out: Console, output: Path | None = None) -> None:
    """Predicted beside measured, one recipe a row."""
    from executor.compress.tensorrt import installed_tensorrt, trtexec_command
    from executor.compress.verdict import worth
    from profiles.terminal.tables import plain_table, print_table
    from profiles.units import format_seconds

    out.print(
        f"{file.model_name} on {file.environment.num_devices} x {file.environment.device}, {file.plan}; "
        f"{file.first_steps} steps first, global batch {file.global_batch_size} x {file.sequence_length} tokens of "
        f"{file.environment.data}"
    )
    table = plain_table()
    table.add_column("compression", no_wrap=True)
    for name in ("stored", "latency", "predicted", "step", "predicted", "loss before", "loss", "uncompressed", "right"):
        table.add_column(name, justify="right", no_wrap=True)
    for choice, result in zip(file.choices, file.results, strict=True):
        table.add_row(*_row(choice, result))
    print_table(table, out)
    out.print("loss: held-out, before and after training on; uncompressed: of the model as it is after as many seconds")
    out.print("right: the share of held-out answers whose likeliest is")
    for result in file.results[1:]:
        out.print(worth(file, result)[1])
    is_compiled = any(result.compiled_seconds is not None for result in file.results)
    for result in file.results:
        if is_compiled:
            own = result.compiled_seconds
            words = "cannot be compiled" if own is None else format_seconds(own)
            out.print(f"{result.recipe.name} under torch.compile: {words}")
        if result.onnx_file:
            seconds = format_seconds(result.onnxruntime_seconds or 0.0)
            out.print(f"{result.recipe.name} in ONNX Runtime: {seconds}; for TensorRT (not run here):")
            command = trtexec_command(Path(result.onnx_file), file.sample_shape, installed_tensorrt())
            out.print(f"  {command}")
    for note in file.notes:
        out.print(f"note: {note}")
    if output is not None:
        out.print(f"written to {output}; see it with: compare {output} -o report.html")


def _row(choice: CompressionChoice, result: CompressionResult) -> tuple[str, ...]:
    import statistics

    from profiles.units import format_bytes, format_seconds

    expected = "?" if choice.latency_seconds is None else format_seconds(choice.latency_seconds)
    trains = bool(result.step_seconds)
    return (
        result.recipe.name,
        format_bytes(result.stored_bytes),
        f"{format_seconds(result.latency_seconds)} ±{result.latency_spread_fraction / 2:.0%}",
        expected,
        format_seconds(statistics.median(result.step_seconds)) if trains else "",
        format_seconds(choice.step_seconds) if trains else "",
        f"{result.loss_before:.3f}",
        f"{result.loss:.3f}",
        f"{result.equal_time_loss:.3f}",
        f"{result.right_fraction:.1%}",
    )

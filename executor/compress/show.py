"""What came of compressing, as a table for people. Torch-free."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from executor.compress.results import CompressionFile, CompressionResult
    from executor.compress.runtime_latency import RuntimeLatency
    from planner.compression.recipes import CompressionChoice


def show(file: CompressionFile, out: Console, output: Path | None = None) -> None:
    """Predicted beside measured, one recipe a row."""
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
    out.print("loss: held-out, before and after further training; uncompressed: the unchanged model's after equal time")
    out.print("right: the share of held-out predictions that are right")
    for result in file.results[1:]:
        out.print(worth(file, result)[1])
    is_compiled = any(result.compiled_seconds is not None for result in file.results)
    for result in file.results:
        if is_compiled:
            own = result.compiled_seconds
            words = "cannot be compiled" if own is None else format_seconds(own)
            out.print(f"{result.recipe.name} under torch.compile: {words}")
        _show_runtimes(result, file.sample_shape, out)
    for note in file.notes:
        out.print(f"note: {note}")
    if output is not None:
        out.print(f"written to {output}; see it with: compare {output} -o report.html")


def _show_runtimes(result: CompressionResult, sample: tuple[int, ...], out: Console) -> None:
    """Latencies of the ONNX file, and where TensorRT has not timed it, the command that does."""
    from executor.compress.tensorrt import installed_tensorrt, timing_words, trtexec_command
    from executor.compress.trt_times import TENSORRT
    from profiles.units import format_seconds

    name = result.recipe.name
    if result.onnxruntime_seconds is not None and not result.runtimes:
        out.print(f"{name} in ONNX Runtime: {format_seconds(result.onnxruntime_seconds)}")
    for own in result.runtimes:
        out.print(f"{name} in {words_of(own)}")
        for layer, seconds in own.slowest:
            out.print(f"  {format_seconds(seconds)} in {layer}")
    if result.onnx_file and TENSORRT not in {own.runtime for own in result.runtimes}:
        path, version = Path(result.onnx_file), installed_tensorrt()
        command = trtexec_command(path, sample, version, is_sparse=result.recipe.part == "2:4")
        out.print(f"{name} for TensorRT (not run here; `compare FILE --trt-times` reads its times):")
        out.print(f"  {command} {timing_words(path, version)}")


def words_of(own: RuntimeLatency) -> str:
    """One latency in words: where, how long, and how right where that was judged."""
    from profiles.units import format_seconds

    words = f"{' '.join(filter(None, (own.runtime, own.version)))}, {own.precision}: "
    words += f"{format_seconds(own.latency_seconds)} ±{own.spread_fraction / 2:.0%}"
    if own.with_copies_seconds is not None:
        words += f", {format_seconds(own.with_copies_seconds)} with copies to the device and back"
    if own.loss is not None and own.right_fraction is not None:
        words += f", loss {own.loss:.3f}, right {own.right_fraction:.1%}"
    return words


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

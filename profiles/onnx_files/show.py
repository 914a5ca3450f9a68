"""`profile model FILE.onnx`: reads the file, writes the table, shows it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from profiles.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from profiles.onnx_files.profile import OnnxOperator, OnnxProfile

ENDING = ".onnx"
USUAL_LENGTH = 512


def is_onnx(model: str) -> bool:
    """Whether what a command names is an ONNX file."""
    return model.lower().endswith(ENDING)


def profile_onnx_file(
    model: str, sequence_length: int | None, dimensions: Sequence[str], json_output: bool, output: Path | None
) -> None:
    """Read the file, and show and write what it is made of.

    Raises: as `profile_of`, and EnvironmentFailure where the output cannot be written.
    """
    from profiles.artifacts import dump
    from profiles.files import write_text
    from profiles.terminal import console

    profile = profile_of(model, sequence_length, dimensions)
    text = dump("onnx-profile", profile)
    if output is not None:
        write_text(output, text)
    if json_output:
        console.print_json(text)
    out = console.console(json_output)
    show_onnx(profile, out)
    if output is not None:
        out.print(f"written to {output}")


def profile_of(model: str, sequence_length: int | None, dimensions: Sequence[str]) -> OnnxProfile:
    """The profile of an ONNX file, for batch 1.

    Raises: InputError where the file or an option cannot be used, or nothing says how large a dimension is;
    EnvironmentFailure where onnx is missing.
    """
    from profiles.onnx_files.counting import profile_onnx

    given = _dimensions(dimensions)
    profile, uses_length = profile_onnx(Path(model), sequence_length or USUAL_LENGTH, given)
    if sequence_length is not None and not uses_length:
        raise InputError(f"{model}: --sequence-length does not apply: no dimension of its inputs is a sequence")
    return profile


def _dimensions(words: Sequence[str]) -> dict[str, int]:
    """Sizes by name from `NAME=NUMBER`.

    Raises: InputError.
    """
    from profiles.inputs import limits

    given: dict[str, int] = {}
    for word in words:
        name, _, number = word.rpartition("=")
        if not name or not limits.is_whole(number) or not 0 <= int(number) <= limits.SEQUENCE:
            raise InputError(f"--dimension {word}: give NAME=NUMBER, such as height=224, of at most {limits.SEQUENCE}")
        given[name] = int(number)
    return given


def show_onnx(profile: OnnxProfile, out: Console) -> None:
    """One row for each kind of operator, those that compute most first."""
    from profiles.terminal.tables import plain_table, print_table
    from profiles.units import format_bytes, format_count

    out.print(
        f"{profile.name}: {format_count(profile.num_parameters)} parameters ({profile.num_parameters}), "
        f"{len(profile.operators)} operators, {format_count(profile.flops)} FLOP, opset {profile.opset}"
        + (f", from {profile.producer}" if profile.producer else "")
    )
    if profile.num_used_parameters != profile.num_parameters:
        more = profile.num_used_parameters
        out.print(f"{more} parameters if each use of a weight counts: tied weights, or equal ones stored once")
    sizes = ", ".join(f"{name} {size}" for name, size in profile.dimensions.items()) or "all sizes fixed in the file"
    table = plain_table(f"one forward pass of one sample: {sizes}")
    table.add_column("operator")
    for name in ("count", "FLOP", "parameters", "weights", "activations"):
        table.add_column(name, justify="right", no_wrap=True)
    for kind, own in by_kind(profile):
        known = [operator.activation_bytes for operator in own if operator.activation_bytes is not None]
        table.add_row(
            kind,
            str(len(own)),
            format_count(sum(operator.flops for operator in own)),
            format_count(sum(operator.num_parameters for operator in own)),
            format_bytes(sum(operator.weight_bytes for operator in own)),
            format_bytes(sum(known)) if len(known) == len(own) else "?",
        )
    print_table(table, out)
    out.print("activations: bytes read and written, each operand once; only matrix products do more than move them")
    for note in profile.notes:
        out.print(f"note: {note}")


def by_kind(profile: OnnxProfile) -> list[tuple[str, list[OnnxOperator]]]:
    """The operators of each kind, those that compute or else move most first."""
    kinds: dict[str, list[OnnxOperator]] = {}
    for operator in profile.operators:
        kinds.setdefault(operator.kind, []).append(operator)
    return sorted(kinds.items(), key=lambda pair: (-_sum_flops(pair[1]), -_sum_bytes(pair[1]), pair[0]))


def _sum_flops(operators: list[OnnxOperator]) -> float:
    return sum(operator.flops for operator in operators)


def _sum_bytes(operators: list[OnnxOperator]) -> float:
    return sum(operator.activation_bytes or 0 for operator in operators)

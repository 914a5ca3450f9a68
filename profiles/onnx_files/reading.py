"""An ONNX file read with care: its structure alone, nothing in it executed, no weight that lies outside it opened.

Torch-free; `onnx` is loaded where a file is read.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from profiles.errors import EnvironmentFailure, InputError
from profiles.inputs.foreign import shown

# What protobuf holds in one message; larger models keep their weights in a file beside it.
LARGEST_BYTES = 2**31 - 1
# Nodes, of all graphs in it: GPT-3's blocks written out one by one have 10,000.
MOST_NODES = 500_000
# No model has a tensor of more numbers.
MOST_NUMBERS = 2**48
WANTED = "give a file that torch.onnx.export or another ONNX exporter wrote"


def read_onnx(path: Path) -> Any:
    """The model in a file, as `onnx.ModelProto` without functions.

    Raises: EnvironmentFailure where onnx is missing; InputError where the file is missing, no ONNX, or not sound.
    """
    if find_spec("onnx") is None:
        raise EnvironmentFailure("reading ONNX files needs onnx: pip install 'trainwright[export]'")
    import google.protobuf.message
    import onnx

    content = _content(path)
    try:
        model = onnx.load_model_from_string(content)
    except (google.protobuf.message.DecodeError, ValueError, RecursionError):
        raise InputError(f"{path} is not an ONNX file, or is cut off: {WANTED}") from None
    if not model.graph.node or not model.opset_import:
        raise InputError(f"{path} is not an ONNX file: it has no graph of operators; {WANTED}")
    if not all(isinstance(name, str) for name in _names(model)):
        raise InputError(f"{path} is not an ONNX file, or is damaged: it has a name that is not text; {WANTED}")
    if model.functions:
        model = _inlined(model, path)
    _check(model.graph, path)
    return model


def _content(path: Path) -> bytes:
    try:
        found = path.stat()
        is_fit = stat.S_ISREG(found.st_mode) and found.st_size <= LARGEST_BYTES
        content = path.read_bytes() if is_fit else b""
    except FileNotFoundError:
        raise InputError(f"model {shown(str(path))}: no such file") from None
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {shown(str(path))}: {getattr(error, 'strerror', None) or error}") from None
    if not stat.S_ISREG(found.st_mode):
        raise InputError(f"{shown(str(path))} is not a file: {WANTED}")
    if not is_fit:
        raise InputError(f"{path} has more than 2 GiB, which no ONNX file has: keep its weights in external data")
    return content


def _inlined(model: Any, path: Path) -> Any:
    """The model with its functions written out; ones that call each other in a circle have no end."""
    import onnx.inliner

    bodies = {(function.domain, function.name): list(_nodes(function)) for function in model.functions}
    sizes: dict[tuple[str, str], int] = {}
    while bodies:
        ends = [name for name, nodes in bodies.items() if not any(_called(node) in bodies for node in nodes)]
        if not ends:
            raise InputError(f"{path}: its functions call each other in a cycle, first {shown(next(iter(bodies))[1])}")
        for name in ends:
            sizes[name] = sum(sizes.get(_called(node), 1) for node in bodies.pop(name))
    # Functions of functions can have more operators than memory holds.
    if sum(sizes.get(_called(node), 1) for node in _nodes(model.graph)) > MOST_NODES:
        raise InputError(f"{path} has more than {MOST_NODES} operators: export it with its loops")
    try:
        return onnx.inliner.inline_local_functions(model)
    except unsound() as error:
        raise InputError(f"{path}: its functions cannot be written out ({first_line(error)})") from None


def _called(node: Any) -> tuple[str, str]:
    return node.domain, node.op_type


def unsound() -> tuple[type[Exception], ...]:
    """What onnx raises for a model that is not sound: its own, and what its C++ becomes in Python."""
    from onnx.checker import ValidationError
    from onnx.shape_inference import InferenceError

    return ValidationError, InferenceError, RuntimeError, ValueError, TypeError, IndexError, OverflowError


def first_line(error: Exception) -> str:
    """What an error of the library says, in one line of bounded length."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return json.dumps(lines[0][:200])


def _check(graph: Any, path: Path) -> None:
    """Check what the graph says of itself: sizes, where weights lie, and that operators use what came before them.

    Raises: InputError.
    """
    if sum(1 for _ in _nodes(graph)) > MOST_NODES:
        raise InputError(f"{path} has more than {MOST_NODES} operators: export it with its loops")
    _check_order(graph, path, set())
    for tensor in (*graph.initializer, *(sparse.values for sparse in graph.sparse_initializer)):
        _check_tensor(tensor, path)


def _nodes(graph: Any) -> Iterator[Any]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                yield from _nodes(inner)


def _names(model: Any) -> Iterator[Any]:
    """All names that a model has; protobuf gives bytes where they are no text."""
    yield from (model.producer_name, model.producer_version, *(opset.domain for opset in model.opset_import))
    graphs = [model.graph, *model.functions]
    while graphs:
        graph = graphs.pop()
        for node in graph.node:
            yield from (node.name, node.op_type, node.domain, *node.input, *node.output)
            for attribute in node.attribute:
                yield attribute.name
                graphs += [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]
        if isinstance(graph, type(model.graph)):
            values = (*graph.input, *graph.output, *graph.value_info)
            yield from (value.name for value in values)
            yield from (size.dim_param for value in values for size in value.type.tensor_type.shape.dim)
            yield from (tensor.name for tensor in graph.initializer)
            yield from (sparse.values.name for sparse in graph.sparse_initializer)
        else:
            yield from (graph.name, graph.domain, *graph.input, *graph.output)


def _check_order(graph: Any, path: Path, outer: set[str]) -> None:
    known = {
        *outer,
        *(value.name for value in graph.input),
        *(tensor.name for tensor in graph.initializer),
        *(sparse.values.name for sparse in graph.sparse_initializer),
    }
    written: set[str] = set()
    for node in graph.node:
        for name in filter(None, node.input):
            if name not in known:
                raise InputError(
                    f"{path}: operator {_title(node)} takes {shown(name)}, which no operator before it gives: "
                    "its graph has a cycle, or a part is missing"
                )
        for attribute in node.attribute:
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                _check_order(inner, path, known)
        for name in filter(None, node.output):
            if name in written:
                raise InputError(f"{path}: {shown(name)} is written by two operators")
            written.add(name)
            known.add(name)


def _title(node: Any) -> str:
    return shown(node.name or node.op_type or "without a name")


def _check_tensor(tensor: Any, path: Path) -> None:
    """Check that a weight's data are as many as its sizes say, and lie in the file or beside it."""
    name = shown(tensor.name)
    if any(size < 0 for size in tensor.dims) or math.prod(tensor.dims) > MOST_NUMBERS:
        raise InputError(f"{path}: weight {name} has impossible sizes {shown(str(list(tensor.dims)))}")
    expected = num_bytes(tensor)
    if tensor.data_type == tensor.STRING:
        return
    if expected is None:
        raise InputError(f"{path}: weight {name} has an unknown type, number {tensor.data_type}")
    if tensor.data_location == tensor.EXTERNAL:
        _check_external(tensor, path)
        return
    if tensor.raw_data and len(tensor.raw_data) != expected:
        raise InputError(f"{path}: weight {name} should have {expected} bytes, but has {len(tensor.raw_data)}")
    fields = (tensor.float_data, tensor.int32_data, tensor.int64_data, tensor.double_data, tensor.uint64_data)
    held, numbers = sum(map(len, fields)), math.prod(tensor.dims)
    # Numbers of few bits are packed, complex ones have two parts.
    if not tensor.raw_data and not (numbers + 3) // 4 <= held <= 2 * numbers:
        raise InputError(f"{path}: weight {name} has {held} numbers, but sizes for {numbers}")


def _check_external(tensor: Any, path: Path) -> None:
    location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
    folder = Path(os.path.realpath(path.parent))
    try:
        is_inside = location and Path(os.path.realpath(folder / location)).is_relative_to(folder)
    except ValueError:
        is_inside = False
    if not is_inside:
        raise InputError(
            f"{path}: the data of weight {shown(tensor.name)} lie outside its folder ({shown(location)}): not read"
        )


def num_bytes(tensor: Any) -> int | None:
    """Bytes of a tensor as ONNX stores it, four bits packed by two; None of texts and types that are not known."""
    bits = type_bits(tensor.data_type)
    return None if bits is None else (math.prod(tensor.dims) * bits + 7) // 8


def type_bits(data_type: int) -> int | None:
    """Bits of one number of an ONNX type; None of texts and types that are not known."""
    import onnx

    name = onnx.TensorProto.DataType.Name(data_type) if data_type in onnx.TensorProto.DataType.values() else ""
    known = {"FLOAT": 32, "DOUBLE": 64, "BOOL": 8}
    digits = re.search(r"\d+", name)
    return known.get(name) or (int(digits[0]) if digits else None)

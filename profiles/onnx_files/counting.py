"""What a graph's operators compute, store and move, at the sizes of its inputs: from ONNX file to profile."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from profiles.errors import InputError
from profiles.inputs.foreign import shown
from profiles.onnx_files.binding import Bound, bind
from profiles.onnx_files.flops import FORMULAS, operator_flops
from profiles.onnx_files.profile import OnnxOperator, OnnxProfile
from profiles.onnx_files.reading import read_onnx, type_bits
from profiles.onnx_files.shapes import OWN_DOMAINS, Tensors, attributes, infer, start

# What moves no bytes: other views of the same tensor, and sizes.
VIEWS = ("Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Shape", "Size", "Constant", "Dropout")
# What runs a graph of its own.
GRAPHS = ("If", "Loop", "Scan", "SequenceMap")
# Running means and variances, which are no parameters.
STATISTICS = {"BatchNormalization": (3, 4)}
INFERENCE = "for inference: training is planned from a config.json or a module (`plan --model`), not from ONNX"


@dataclass(slots=True, kw_only=True)
class Weight:
    """A stored tensor: how many numbers, in how many bytes, and whether they are parameters."""

    num_numbers: int
    num_bytes: float
    is_parameter: bool
    num_uses: int = 0


@dataclass(slots=True, kw_only=True)
class Count:
    """The count so far; `origins` are the weights that a constant was made of, the empty set of other constants."""

    where: str
    opsets: list[Any]
    tensors: Tensors
    weights: dict[str, Weight] = field(default_factory=dict)
    origins: dict[str, frozenset[str]] = field(default_factory=dict)
    operators: list[OnnxOperator] = field(default_factory=list)
    uncounted: Counter[str] = field(default_factory=Counter)
    unknown: Counter[str] = field(default_factory=Counter)


def profile_onnx(path: Path, sequence_length: int, given: Mapping[str, int]) -> tuple[OnnxProfile, bool]:
    """What the model in a file is made of, and whether the sequence length says anything of it.

    Raises: EnvironmentFailure, InputError.
    """
    model, where = read_onnx(path), str(path)
    bound = bind(model.graph, where, sequence_length, given)
    count = Count(where=where, opsets=list(model.opset_import), tensors=start(model.graph, bound))
    _keep_weights(model.graph, count)
    _walk(model.graph, count)
    counted = [weight for weight in count.weights.values() if weight.is_parameter and weight.num_uses]
    own = [opset.version for opset in model.opset_import if opset.domain in OWN_DOMAINS]
    profile = OnnxProfile(
        name=path.stem,
        producer=" ".join(filter(None, (model.producer_name, model.producer_version)))[:80],
        opset=max([1, *own]),
        dimensions={name: bound.sizes[name] for name in bound.sizes},
        operators=tuple(count.operators),
        num_parameters=sum(weight.num_numbers for weight in counted),
        num_used_parameters=sum(weight.num_numbers * weight.num_uses for weight in counted),
        weight_bytes=sum(weight.num_bytes for weight in count.weights.values()),
        notes=_notes(count, bound, model.graph),
    )
    return profile, bool(bound.sequences - given.keys())


def _keep_weights(graph: Any, count: Count) -> None:
    for tensor in graph.initializer:
        _keep(count, tensor.name, tensor.data_type, tuple(tensor.dims))
    for sparse in graph.sparse_initializer:
        _keep(count, sparse.values.name, sparse.values.data_type, tuple(sparse.values.dims))


def _keep(count: Count, name: str, data_type: int, shape: tuple[int, ...]) -> None:
    bits, numbers = type_bits(data_type) or 0, math.prod(shape)
    # Whole numbers of more bits are positions and sizes; numbers without a dimension are constants of formulas.
    is_parameter = bool(shape) and (_is_float(data_type) or 0 < bits <= 8) and data_type != 9
    count.weights[name] = Weight(num_numbers=numbers, num_bytes=numbers * bits / 8, is_parameter=is_parameter)
    count.origins[name] = frozenset({name})


def _is_float(data_type: int) -> bool:
    import onnx

    return "FLOAT" in onnx.TensorProto.DataType.Name(data_type) or data_type == onnx.TensorProto.DOUBLE


def _walk(graph: Any, count: Count) -> None:
    for node in graph.node:
        infer(node, count.tensors, count.opsets, count.where)
        if node.op_type == "Constant" and node.domain in OWN_DOMAINS:
            _keep_constant(node, count)
        elif node.op_type in GRAPHS and node.domain in OWN_DOMAINS:
            _walk_inside(node, count)
        elif all(name in count.origins for name in node.input if name) and any(node.input):
            # Made of weights alone: computed once, when the model is loaded.
            made_of = frozenset().union(*(count.origins[name] for name in node.input if name))
            count.origins.update({name: made_of for name in node.output if name})
        else:
            count.operators.append(_operator(node, count))


def _keep_constant(node: Any, count: Count) -> None:
    for own in node.attribute:
        if own.name == "value" and own.HasField("t"):
            _keep(count, node.output[0], own.t.data_type, tuple(own.t.dims))
            return
    count.origins[node.output[0]] = frozenset()


def _walk_inside(node: Any, count: Count) -> None:
    """Walk the branch that a known condition takes; what else runs a graph is not counted."""
    condition = count.tensors.values.get(node.input[0]) if node.op_type == "If" and node.input else None
    wanted = None if condition is None or condition.size != 1 else "then_branch" if condition.all() else "else_branch"
    branch = next((own.g for own in node.attribute if own.name == wanted and own.HasField("g")), None)
    if branch is None:
        count.uncounted[node.op_type] += 1
        return
    _keep_weights(branch, count)
    for tensor in branch.initializer:
        import onnx

        count.tensors.types[tensor.name] = onnx.helper.make_tensor_type_proto(tensor.data_type, tuple(tensor.dims))
    _walk(branch, count)
    for outer, inner in zip(node.output, branch.output, strict=False):
        for known in (count.tensors.types, count.tensors.values, count.origins):
            _copy(known, inner.name, outer)


def _copy(known: dict[str, Any], name: str, to: str) -> None:
    if name in known:
        known[to] = known[name]


def _operator(node: Any, count: Count) -> OnnxOperator:
    kind = node.op_type if node.domain in OWN_DOMAINS else f"{node.domain}.{node.op_type}"
    tensors = count.tensors
    inputs = [tensors.shape(name) if name else () for name in node.input]
    outputs = [tensors.shape(name) for name in node.output if name]
    numbers, num_bytes = _used_weights(node, kind, count)
    moved = [name for name in (*node.input, *node.output) if name and name not in count.origins]
    is_known = all(tensors.shape(name) is not None for name in moved)
    if not is_known:
        count.unknown[kind] += 1
    return OnnxOperator(
        name=node.name[:200],
        kind=kind[:100],
        shape=(outputs[0] or ()) if outputs else (),
        flops=_flops(node, kind, inputs, outputs, count),
        num_parameters=numbers,
        weight_bytes=num_bytes,
        activation_bytes=_moved_bytes(kind, moved, tensors) if is_known else None,
    )


def _used_weights(node: Any, kind: str, count: Count) -> tuple[int, float]:
    """Parameters and bytes of the weights that an operator is the first to use."""
    numbers, num_bytes = 0, 0.0
    statistics = STATISTICS.get(kind, ())
    for place, name in enumerate(node.input):
        for origin in count.origins.get(name, ()):
            weight = count.weights[origin]
            weight.is_parameter = weight.is_parameter and place not in statistics
            if not weight.num_uses:
                numbers += weight.num_numbers if weight.is_parameter else 0
                num_bytes += weight.num_bytes
            weight.num_uses += 1
    return numbers, num_bytes


def _moved_bytes(kind: str, names: list[str], tensors: Tensors) -> float:
    if kind in VIEWS:
        return 0.0
    sizes = (math.prod(tensors.shape(name) or ()) * (type_bits(tensors.data_type(name)) or 0) / 8 for name in names)
    return sum(sizes)


def _flops(node: Any, kind: str, inputs: list[Any], outputs: list[Any], count: Count) -> float:
    """FLOPs of an operator.

    Raises: InputError where a product's sizes are not known, or do not suit it.
    """
    import onnx.defs

    title = shown(node.name or kind)
    if kind not in FORMULAS:
        is_known = node.domain in OWN_DOMAINS and onnx.defs.has(node.op_type)
        if not is_known and not kind.endswith(("QuantizeLinear", "DequantizeLinear")):
            count.uncounted[kind] += 1
        return 0.0
    if None in inputs or None in outputs:
        missing = next(name for name in (*node.input, *node.output) if name and count.tensors.shape(name) is None)
        raise InputError(
            f"{count.where}: operator {title} multiplies {shown(missing)}, whose size depends on the data: "
            "export the model with that size fixed"
        )
    try:
        return operator_flops(kind, inputs, outputs, attributes(node))
    except ValueError as error:
        raise InputError(f"{count.where}: operator {title}: {error}") from None


def _notes(count: Count, bound: Bound, graph: Any) -> tuple[str, ...]:
    notes = [INFERENCE]
    for kind, number in sorted(count.uncounted.items()):
        notes.append(f"not counted: {number} {kind}, so the FLOPs are a lower bound")
    if count.unknown:
        kinds = ", ".join(sorted(count.unknown))[:200]
        notes.append(
            f"sizes of {sum(count.unknown.values())} operators depend on the data, and are not counted: {kinds}"
        )
    if any(tensor.data_location == tensor.EXTERNAL for tensor in graph.initializer):
        notes.append("weights are in a separate file, which was not opened")
    return tuple(notes)

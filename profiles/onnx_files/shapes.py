"""The shape of every tensor of a graph whose inputs have known sizes, operator by operator, without running any.

ONNX's own rules give the shapes; what those rules need of values, such as the shape that a Reshape asks for, is
followed through small tensors. Where a rule gives none, what the file says stands.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from profiles.errors import InputError
from profiles.inputs.foreign import shown
from profiles.onnx_files.binding import LARGEST, Bound
from profiles.onnx_files.reading import first_line, unsound
from profiles.onnx_files.values import MOST_NUMBERS, Array, follow

Shape = tuple[int, ...]
# ONNX's word for its own operators, and how many numbers of a value its rules are given.
OWN_DOMAINS = ("", "ai.onnx")


@dataclass(slots=True, kw_only=True)
class Tensors:
    """What is known of the tensors so far: types, values of small ones, and what the file says of the others."""

    types: dict[str, Any] = field(default_factory=dict)
    values: dict[str, Array] = field(default_factory=dict)
    told: dict[str, Any] = field(default_factory=dict)

    def shape(self, name: str) -> Shape | None:
        """The shape of a tensor; None where it is not known whole."""
        own = self.types.get(name)
        if own is None or not own.HasField("tensor_type") or not own.tensor_type.HasField("shape"):
            return None
        sizes = own.tensor_type.shape.dim
        if not all(size.HasField("dim_value") for size in sizes):
            return None
        return tuple(int(size.dim_value) for size in sizes)

    def data_type(self, name: str) -> int:
        """ONNX's number of a tensor's type, 0 where it is not known."""
        own = self.types.get(name)
        return int(own.tensor_type.elem_type) if own is not None and own.HasField("tensor_type") else 0


def start(graph: Any, bound: Bound) -> Tensors:
    """What is known before the first operator: inputs, weights, and shapes that the file tells of the rest."""
    import onnx
    from onnx import numpy_helper

    tensors = Tensors()
    for value in graph.input:
        if value.name in bound.shapes:
            elem = value.type.tensor_type.elem_type
            tensors.types[value.name] = onnx.helper.make_tensor_type_proto(elem, bound.shapes[value.name])
    stored = [(weight, weight.dims) for weight in graph.initializer]
    for weight, dims in (*stored, *((sparse.values, sparse.dims) for sparse in graph.sparse_initializer)):
        tensors.types[weight.name] = onnx.helper.make_tensor_type_proto(weight.data_type, tuple(dims))
    for weight in graph.initializer:
        if math.prod(weight.dims) <= MOST_NUMBERS and weight.data_location != weight.EXTERNAL:
            _keep_value(tensors, weight.name, weight, numpy_helper)
    for value in (*graph.value_info, *graph.output):
        tensors.told[value.name] = _bound_type(value.type, bound)
    return tensors


def _keep_value(tensors: Tensors, name: str, weight: Any, numpy_helper: Any) -> None:
    try:
        value = numpy_helper.to_array(weight)
    except (ValueError, TypeError, RuntimeError, AttributeError):
        return
    if value.dtype.kind in "iufb":
        tensors.values[name] = value


def _bound_type(own: Any, bound: Bound) -> Any:
    """A type of the file with the bound sizes in the places of their names."""
    import onnx

    result = onnx.TypeProto()
    result.CopyFrom(own)
    if result.HasField("tensor_type"):
        for size in result.tensor_type.shape.dim:
            if size.dim_param in bound.sizes and not size.HasField("dim_value"):
                size.dim_value = bound.sizes[size.dim_param]
    return result


def infer(node: Any, tensors: Tensors, opsets: list[Any], where: str) -> None:
    """Find types, and where they are followed values, of what an operator gives.

    Raises: InputError where its inputs do not suit it.
    """
    import onnx

    outputs: dict[str, Any] = {}
    schema = _schema(node, opsets)
    if schema is not None:
        known = {name: tensors.types[name] for name in node.input if name in tensors.types}
        data = {name: _tensor(tensors.values[name]) for name in node.input if name in tensors.values}
        try:
            outputs = onnx.shape_inference.infer_node_outputs(schema, node, known, data, opset_imports=opsets)
        except KeyError:
            # One of its inputs has no type: what the file says stands.
            pass
        except unsound() as error:
            raise InputError(f"{where}: operator {shown(node.name or node.op_type)}: {first_line(error)}") from None
    for name in filter(None, node.output):
        own = _better(outputs.get(name), tensors.told.get(name))
        if own is not None:
            tensors.types[name] = own
        shape = tensors.shape(name)
        if shape is not None and not all(0 <= size <= LARGEST for size in shape):
            raise InputError(f"{where}: operator {shown(node.name or node.op_type)} gives an impossible shape")
    _follow(node, tensors)


def _schema(node: Any, opsets: list[Any]) -> Any:
    """ONNX's rules of an operator in the file's version; None of operators of other domains."""
    import onnx.defs

    domain = "" if node.domain in OWN_DOMAINS else node.domain
    version = max((own.version for own in opsets if (own.domain or "") in (domain, node.domain)), default=0)
    try:
        return onnx.defs.get_schema(node.op_type, version, domain)
    except (onnx.defs.SchemaError, TypeError):
        return None


def _better(found: Any, told: Any) -> Any:
    """The type that says more of its shape: what the rules find, or what the file tells."""
    if found is None or told is None:
        return found or told
    return max((found, told), key=_num_sizes)


def _num_sizes(own: Any) -> int:
    if not own.HasField("tensor_type") or not own.tensor_type.HasField("shape"):
        return -1
    return sum(size.HasField("dim_value") for size in own.tensor_type.shape.dim)


def _tensor(value: Array) -> Any:
    from onnx import numpy_helper

    return numpy_helper.from_array(np.ascontiguousarray(value).reshape(value.shape))


def _follow(node: Any, tensors: Tensors) -> None:
    """The value of what an operator gives, where it is a size or made of sizes."""
    if node.domain not in OWN_DOMAINS or not node.output or not node.output[0]:
        return
    name, shape = node.output[0], tensors.shape(node.input[0]) if node.input else None
    if node.op_type == "Shape" and shape is not None:
        own = attributes(node)
        tensors.values[name] = np.asarray(shape[own.get("start", 0) : own.get("end", len(shape))], dtype=np.int64)
    elif node.op_type == "Size" and shape is not None:
        tensors.values[name] = np.asarray(math.prod(shape), dtype=np.int64)
    elif node.op_type == "Constant":
        value = _constant(attributes(node))
        if value is not None:
            tensors.values[name] = value
    elif all(part in tensors.values for part in node.input if part):
        value = follow(node.op_type, [tensors.values.get(part) for part in node.input], attributes(node))
        if value is not None:
            tensors.values[name] = value


def _constant(own: dict[str, Any]) -> Array | None:
    for key, kind in (("value_int", np.int64), ("value_ints", np.int64), ("value_float", np.float32)):
        if key in own:
            return np.asarray(own[key], dtype=kind)
    value = own.get("value")
    return value if isinstance(value, np.ndarray) and value.size <= MOST_NUMBERS else None


def attributes(node: Any) -> dict[str, Any]:
    """The attributes of an operator, small tensors as arrays; graphs are left out."""
    import onnx
    from onnx import numpy_helper

    found: dict[str, Any] = {}
    for own in node.attribute:
        if own.type == onnx.AttributeProto.TENSOR:
            if math.prod(own.t.dims) <= MOST_NUMBERS:
                try:
                    found[own.name] = numpy_helper.to_array(own.t)
                except (ValueError, TypeError, RuntimeError, AttributeError):
                    continue
        elif own.type in (onnx.AttributeProto.INT, onnx.AttributeProto.FLOAT, onnx.AttributeProto.STRING):
            found[own.name] = onnx.helper.get_attribute_value(own)
        elif own.type in (onnx.AttributeProto.INTS, onnx.AttributeProto.FLOATS):
            found[own.name] = list(onnx.helper.get_attribute_value(own))
    return found

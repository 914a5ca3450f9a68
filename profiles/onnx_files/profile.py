"""What an ONNX file is made of, at given sizes: types of the ONNX profile file. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass

from profiles.artifacts import STRICT
from profiles.inputs.ranges import Amount, Count, Whole


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxOperator:
    """One operator of the graph at the sizes asked for; what is computed from weights alone is none.

    `kind` is ONNX's own word, with its domain where that is not ONNX's. A weight counts at the first operator that uses
    it. `activation_bytes` are read and written, each operand once; None where their sizes depend on the data.
    """

    __pydantic_config__ = STRICT

    name: str
    kind: str
    shape: tuple[Whole, ...] = ()
    flops: Amount = 0
    num_parameters: Whole = 0
    weight_bytes: Amount = 0
    activation_bytes: Amount | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxProfile:
    """An ONNX file as `profile model FILE.onnx` reads it: one forward pass at the sizes of `dimensions`.

    `num_parameters` are the numbers that it stores in weights; `num_used_parameters` counts a weight as often as
    operators use it, as the model may have had it: exporters store small weights of equal values once.
    """

    __pydantic_config__ = STRICT

    name: str
    producer: str
    opset: Count
    dimensions: dict[str, Whole]
    operators: tuple[OnnxOperator, ...]
    num_parameters: Whole
    num_used_parameters: Whole
    weight_bytes: Amount
    notes: tuple[str, ...] = ()

    @property
    def flops(self) -> float:
        """FLOPs of one forward pass."""
        return sum(operator.flops for operator in self.operators)

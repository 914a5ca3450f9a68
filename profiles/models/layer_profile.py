"""One distinct layer of a traced model: its operators, and what it holds, as functions of sizes. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass

from profiles.artifacts import STRICT
from profiles.inputs.ranges import Whole
from profiles.models.operators import Operator, Phase, Polynomial, add, constant, multiply


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One tensor-parallel collective of a layer: its phase, kind, and the bytes of the tensor it works on."""

    __pydantic_config__ = STRICT

    phase: Phase
    collective: str
    num_bytes: Polynomial


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerProfile:
    """One distinct layer at one precision.

    `num_parameters` are per tensor-parallel shard, `num_expert_parameters` those among them of routed experts, which
    ranks may share out, `num_frozen_parameters` those without gradients; `matrix_sides` sums rows and columns of its
    matrices. `saved_bytes` stay between forward and backward of one micro-batch; `forward_peak_bytes` and
    `backward_peak_bytes` are the most that lives beside what other layers saved.
    """

    __pydantic_config__ = STRICT

    name: str
    num_parameters: Polynomial
    num_parameter_tensors: Whole
    matrix_sides: Polynomial = ()
    num_vector_parameters: Polynomial = ()
    num_expert_parameters: Polynomial = ()
    num_frozen_parameters: Polynomial = ()
    num_parallel_linears: Whole = 0
    operators: tuple[Operator, ...]
    input_bytes: Polynomial
    output_bytes: Polynomial
    saved_bytes: Polynomial
    forward_peak_bytes: Polynomial
    backward_peak_bytes: Polynomial
    messages: tuple[Message, ...] = ()

    @property
    def num_trained_parameters(self) -> Polynomial:
        """Parameters that have gradients."""
        return add(self.num_parameters, multiply(constant(-1), self.num_frozen_parameters))

    def summed_bytes(self, again: bool) -> Polynomial:
        """Bytes of all its messages; what is recomputed stops before its last sum."""
        more = [message for message in self.messages if message.phase == "forward"][:-1] if again else []
        return add(*(message.num_bytes for message in (*self.messages, *more)))

    def of_phase(self, phase: Phase) -> tuple[Operator, ...]:
        """The operators of one phase, in order."""
        return tuple(op for op in self.operators if op.phase == phase)

    def flops(self, phase: Phase) -> Polynomial:
        """FLOPs of one phase of one micro-batch on one tensor-parallel shard."""
        return add(*(op.flops for op in self.of_phase(phase)))

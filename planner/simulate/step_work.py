"""What a simulated step consists of: seconds and bytes per stage, whoever computed them; and what comes of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from planner.schedules.steps import Shape

Span = Literal["node", "network"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """One collective or message as a rank sees it: the bytes that pass its link, after a latency.

    `stream` is the communication stream that it queues on: tensor, context, data, pipeline.
    """

    name: str
    stream: str
    span: Span
    num_bytes: float
    latency_seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """Gradients that go out when `done_fraction` of their stage's last backward is done."""

    done_fraction: float
    transfer: Transfer


@dataclass(frozen=True, slots=True, kw_only=True)
class StageWork:
    """What one micro-batch costs on a stage. `weight_seconds` is the part of `backward_seconds` that may run apart.

    `forward_comm` and `backward_comm` are waited for within a pass. `message` goes to the next stage, its gradient
    comes back. `gather` fetches one of `num_pieces` equal parts of the parameters, in every pass, while the part before
    runs.
    """

    forward_seconds: float
    backward_seconds: float
    weight_seconds: float = 0.0
    forward_comm: Transfer | None = None
    backward_comm: Transfer | None = None
    message: Transfer | None = None
    gather: Transfer | None = None
    num_pieces: int = 1
    buckets: tuple[Bucket, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class StepWork:
    """A whole step. `rank_slowdown` (replica class, rank) is how many times slower a device computes.

    `nic_of_rank` tells which ranks share a network interface: all their own where it is empty. `optimizer_seconds` and
    `after_optimizer` (gathers of parameters) are per rank. Bytes per second are of one direction of one link.
    """

    shape: Shape
    stages: tuple[StageWork, ...]
    node_bytes_per_second: float
    network_bytes_per_second: float
    optimizer_seconds: tuple[float, ...] = ()
    after_optimizer: tuple[Transfer | None, ...] = ()
    nic_of_rank: tuple[int, ...] = ()
    rank_slowdown: tuple[tuple[float, ...], ...] = ()
    compute_slowdown_fraction: float = 0.0
    communication_slowdown_fraction: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedSpan:
    """One action on one stream of one simulated device; stage and micro-batch are -1 where there is none."""

    replica: int
    rank: int
    stream: str
    name: str
    stage: int
    microbatch: int
    start_seconds: float
    stop_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulated:
    """`busy_seconds` (replica class, rank) is how long each device computed."""

    step_seconds: float
    busy_seconds: tuple[tuple[float, ...], ...]
    spans: tuple[SimulatedSpan, ...]

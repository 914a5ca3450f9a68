"""Event simulation of one training step: streams, shared links, interference, stragglers, buckets and prefetch.

Ranks that do the same are simulated once: one device per pipeline rank, for each class of replicas (usually one). So
the cost grows with stages and micro-batches, not with the number of devices.
"""

from __future__ import annotations

from collections.abc import Hashable

from planner.schedules.registry import rank_steps, stage_ranks
from planner.schedules.steps import Step
from planner.simulate.events import Engine, Rules, Task
from planner.simulate.step_work import Bucket, Simulated, SimulatedSpan, StageWork, StepWork, Transfer
from profiles.errors import PlanError

COMPUTE, PIPELINE = "compute", "pipeline"
# Names of what is simulated, as the executor notes them (executor/observe/events.py); input gradients are a backward.
NAMES = {"F": "F", "B": "B", "I": "B", "W": "W"}
OPTIMIZER = "optimizer"


def simulate(work: StepWork) -> Simulated:
    """Play one step.

    Model: a device computes in the order of its schedule; a transfer takes its latency, then moves its bytes at the
    smallest share of the links that it passes, shared equally; transfers of one stream go one after the other, in the
    order in which they became ready. While a device both computes and communicates, each takes so much longer. A data
    collective waits for all classes of replicas. Ignores: how one stage's collectives interleave with its kernels: they
    are lumped at the end of each pass, or of each piece. Raises: PlanError.
    """
    builder = _Builder(work)
    tasks = builder.build()
    step_seconds = Engine(tasks, builder.rules()).run()
    busy = [[0.0] * work.shape.num_ranks for _ in range(builder.num_replicas)]
    spans = []
    for task in tasks:
        stream, name, stage, microbatch = task.label
        for place in task.places[:1] if stream == PIPELINE else task.places:
            replica, rank = divmod(place, work.shape.num_ranks)
            if stream == COMPUTE:
                busy[replica][rank] += task.stop_seconds - task.start_seconds
            spans.append(
                SimulatedSpan(
                    replica=replica,
                    rank=rank,
                    stream=stream,
                    name=name,
                    stage=stage,
                    microbatch=microbatch,
                    start_seconds=task.start_seconds,
                    stop_seconds=task.stop_seconds,
                )
            )
    return Simulated(step_seconds=step_seconds, busy_seconds=tuple(map(tuple, busy)), spans=tuple(spans))


class _Builder:
    """Turns a step into tasks. A place is replica class * ranks + rank."""

    def __init__(self, work: StepWork) -> None:
        self.work, self.shape = work, work.shape
        ranks = self.shape.num_ranks
        self.slowdown = work.rank_slowdown or ((1.0,) * ranks,)
        self.num_replicas = len(self.slowdown)
        self.owners = stage_ranks(self.shape).tolist()
        self.tasks: list[Task] = []
        self.ports: dict[tuple[str, tuple[int, ...]], tuple[Hashable, ...]] = {}
        self.first: dict[tuple[int, str, int, int], Task] = {}
        self.last: dict[tuple[int, str, int, int], Task] = {}
        # Tasks by (rank, stage, number of the bucket) that must be done in every replica.
        self.ready_buckets: dict[tuple[int, int, int], list[Task]] = {}
        self.ends: list[list[Task]] = [[] for _ in range(ranks)]
        _check(work, self.slowdown)

    def rules(self) -> Rules:
        """The links of every place, each in both directions."""
        speeds = {"node": self.work.node_bytes_per_second, "network": self.work.network_bytes_per_second}
        links: dict[Hashable, float] = {
            (span, way, self._port(span, place)): speed
            for span, speed in speeds.items()
            for way in ("out", "in")
            for place in range(self.num_replicas * self.shape.num_ranks)
        }
        return Rules(
            link_bytes_per_second=links,
            slowdown=tuple(factor for row in self.slowdown for factor in row),
            compute_slowdown_fraction=self.work.compute_slowdown_fraction,
            communication_slowdown_fraction=self.work.communication_slowdown_fraction,
        )

    def build(self) -> list[Task]:
        """All tasks of the step."""
        for replica in range(self.num_replicas):
            for rank in range(self.shape.num_ranks):
                self._passes(replica, rank)
            self._messages(replica)
        self._gradients()
        return self.tasks

    def _port(self, span: str, place: int) -> tuple[int, int]:
        replica, rank = divmod(place, self.shape.num_ranks)
        nics = self.work.nic_of_rank
        return replica, nics[rank] if span == "network" and nics else rank

    def _passes(self, replica: int, rank: int) -> None:
        """The compute stream of one device: its steps in pieces, with gathers before and collectives within them."""
        steps = rank_steps(self.shape, rank)
        final = {step.stage: number for number, step in enumerate(steps) if step.action in ("B", "W")}
        place = replica * self.shape.num_ranks + rank
        history: list[Task] = []
        ends: list[Task] = []
        for number, step in enumerate(steps):
            stage = self.work.stages[step.stage]
            buckets = stage.buckets if final[step.stage] == number else ()
            whole = _seconds(stage, step)
            comm = {"F": stage.forward_comm, "W": None}.get(step.action, stage.backward_comm)
            done, begun = 0.0, len(history)
            for until in _cuts(stage, buckets):
                piece = self._add(Task((COMPUTE, NAMES[step.action], *_of(step)), (until - done) * whole, (place,)))
                if history:
                    piece.after(history[-1])
                if stage.gather and step.action != "W":
                    piece.after(self._gather(stage.gather, step, place, ends))
                history.append(piece)
                if comm:
                    history.append(self._transfer(_part(comm, until - done), step, place).after(piece))
                ends.append(history[-1])
                done = until
                for index, bucket in enumerate(buckets):
                    if bucket.done_fraction == until:
                        self.ready_buckets.setdefault((rank, step.stage, index), []).append(history[-1])
            self.first[(replica, *_key(step))] = history[begun]
            self.last[(replica, *_key(step))] = history[-1]
        self.ends[rank].append(history[-1])

    def _gather(self, gather: Transfer, step: Step, place: int, ends: list[Task]) -> Task:
        """Fetch parameters while the piece before runs, not earlier: memory for two pieces."""
        task = self._transfer(gather, step, place)
        return task.after(ends[-2]) if len(ends) > 1 else task

    def _messages(self, replica: int) -> None:
        """Activations to the next stage and gradients back; none between stages of one rank."""
        for (of, action, stage, microbatch), task in list(self.last.items()):
            step = 1 if action == "F" else -1
            target = self.first.get((replica, action, stage + step, microbatch))
            if of != replica or action == "W" or target is None:
                continue
            message = self.work.stages[min(stage, stage + step)].message
            ranks = self.owners[stage], self.owners[stage + step]
            if message is None or ranks[0] == ranks[1]:
                target.after(task)
                continue
            sender, receiver = (replica * self.shape.num_ranks + rank for rank in ranks)
            sent = Task(
                (PIPELINE, message.name, stage, microbatch),
                message.num_bytes,
                (sender, receiver),
                streams=((PIPELINE, sender, receiver),),
                links=(
                    (message.span, "out", self._port(message.span, sender)),
                    (message.span, "in", self._port(message.span, receiver)),
                ),
                latency_seconds=message.latency_seconds,
            )
            target.after(self._add(sent.after(task)))

    def _gradients(self) -> None:
        """Buckets when every replica has them, then the optimizer, then parameters that are gathered."""
        for (rank, stage, index), ready in self.ready_buckets.items():
            bucket = self.work.stages[stage].buckets[index]
            self.ends[rank].append(self._joint(bucket.transfer, rank, stage).after(*ready))
        for rank, ends in enumerate(self.ends):
            seconds = self.work.optimizer_seconds[rank] if self.work.optimizer_seconds else 0.0
            gather = self.work.after_optimizer[rank] if self.work.after_optimizer else None
            if not seconds and gather is None:
                continue
            updates = [
                self._add(Task((COMPUTE, OPTIMIZER, -1, -1), seconds, (place,)).after(*ends))
                for place in self._places(rank)
            ]
            if gather is not None:
                self._joint(gather, rank, -1).after(*updates)

    def _places(self, rank: int) -> tuple[int, ...]:
        return tuple(replica * self.shape.num_ranks + rank for replica in range(self.num_replicas))

    def _joint(self, transfer: Transfer, rank: int, stage: int) -> Task:
        """A collective over all classes of replicas."""
        return self._collective(transfer, (stage, -1), self._places(rank))

    def _transfer(self, transfer: Transfer, step: Step, place: int) -> Task:
        return self._collective(transfer, _of(step), (place,))

    def _collective(self, transfer: Transfer, of: tuple[int, int], places: tuple[int, ...]) -> Task:
        ways = self.ports.get((transfer.span, places))
        if ways is None:
            ways = tuple((transfer.span, way, self._port(transfer.span, p)) for p in places for way in ("out", "in"))
            self.ports[transfer.span, places] = ways
        return self._add(
            Task(
                (transfer.stream, transfer.name, *of),
                transfer.num_bytes,
                places,
                streams=tuple((transfer.stream, place) for place in places),
                links=ways,
                latency_seconds=transfer.latency_seconds,
            )
        )

    def _add(self, task: Task) -> Task:
        self.tasks.append(task)
        return task


def _check(work: StepWork, slowdown: tuple[tuple[float, ...], ...]) -> None:
    ranks = work.shape.num_ranks
    lengths = {len(work.stages) - work.shape.num_stages, *(len(row) - ranks for row in slowdown)}
    optional = (work.optimizer_seconds, work.after_optimizer, work.nic_of_rank)
    if lengths != {0} or any(len(values) not in (0, ranks) for values in optional):
        raise PlanError(
            f"simulation of {work.shape}: {len(work.stages)} stages given; stages and ranks must be as in the shape"
        )
    if min(work.node_bytes_per_second, work.network_bytes_per_second, *(f for row in slowdown for f in row)) <= 0:
        raise PlanError(f"simulation of {work.shape}: links and devices need a speed above zero")
    fractions = [bucket.done_fraction for stage in work.stages for bucket in stage.buckets]
    if any(not 0 < fraction <= 1 for fraction in fractions) or min(stage.num_pieces for stage in work.stages) < 1:
        raise PlanError(
            f"simulation of {work.shape}: buckets lie within a backward pass, and it has at least one piece"
        )


def _of(step: Step) -> tuple[int, int]:
    return step.stage, step.microbatch


def _key(step: Step) -> tuple[str, int, int]:
    return NAMES[step.action], step.stage, step.microbatch


def _seconds(stage: StageWork, step: Step) -> float:
    apart = stage.backward_seconds - stage.weight_seconds
    return {"F": stage.forward_seconds, "B": stage.backward_seconds, "I": apart, "W": stage.weight_seconds}[step.action]


def _cuts(stage: StageWork, buckets: tuple[Bucket, ...]) -> list[float]:
    """Fractions of a pass at which something starts or is waited for, the end among them."""
    pieces = stage.num_pieces if stage.gather else 1
    return sorted({*(i / pieces for i in range(1, pieces)), *(bucket.done_fraction for bucket in buckets), 1.0})


def _part(transfer: Transfer, fraction: float) -> Transfer:
    """A share of what is waited for within a pass."""
    if fraction == 1:
        return transfer
    return Transfer(
        name=transfer.name,
        stream=transfer.stream,
        span=transfer.span,
        num_bytes=transfer.num_bytes * fraction,
        latency_seconds=transfer.latency_seconds * fraction,
    )

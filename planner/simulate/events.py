"""A small event engine: tasks that wait for others, queue on streams, share links, and slow each other.

Between two events every running task advances at a constant rate; an event changes the rates of its neighbours only.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from profiles.errors import PlanError


@dataclass(slots=True, eq=False)
class Task:
    """Work on a device, or a transfer. `work` is seconds at full speed, or bytes where there are `links`.

    `places` are the devices that it keeps busy. A transfer waits in the queues of all its `streams`, in the order in
    which tasks become ready; work waits for nothing but what it was told to come after.
    """

    label: Any
    work: float
    places: tuple[int, ...]
    streams: tuple[Hashable, ...] = ()
    links: tuple[Hashable, ...] = ()
    latency_seconds: float = 0.0
    waits_for: int = 0
    followers: list[Task] = field(default_factory=list)
    start_seconds: float = -1.0
    stop_seconds: float = -1.0
    _rate: float = 0.0
    _since: float = 0.0
    _left: float = 0.0
    _version: int = 0
    _in_latency: bool = False

    def after(self, *others: Task) -> Task:
        """Let this one start only when `others` are done."""
        for other in others:
            other.followers.append(self)
        self.waits_for += len(others)
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """How tasks share: bytes per second of each link, each device's slowness, and what overlap costs either side."""

    link_bytes_per_second: dict[Hashable, float]
    slowdown: tuple[float, ...]
    compute_slowdown_fraction: float = 0.0
    communication_slowdown_fraction: float = 0.0


class Engine:
    """Runs tasks; afterwards each has its start and stop."""

    def __init__(self, tasks: Sequence[Task], rules: Rules) -> None:
        self.rules, self.tasks = rules, tasks
        self.now = 0.0
        self._events: list[tuple[float, int, int, Task]] = []
        self._number = 0
        self._queues: dict[Hashable, deque[Task]] = {}
        # Transfers that move bytes, by link and by device; what each device computes.
        self._on_link: dict[Hashable, dict[Task, None]] = {link: {} for link in rules.link_bytes_per_second}
        self._moving: list[dict[Task, None]] = [{} for _ in rules.slowdown]
        self._computing: list[dict[Task, None]] = [{} for _ in rules.slowdown]

    def run(self) -> float:
        """Seconds until the last task is done.

        Raises: PlanError where tasks wait for each other.
        """
        for task in [task for task in self.tasks if task.waits_for == 0]:
            self._ready(task)
        left = len(self.tasks)
        while self._events:
            when, _, version, task = heapq.heappop(self._events)
            if version != task._version:
                continue
            self.now = when
            if task._in_latency:
                task._in_latency = False
                self._move(task)
                continue
            self._finish(task)
            left -= 1
        if left:
            raise PlanError(f"the simulation of this plan deadlocks: {left} tasks never start")
        return self.now

    def _ready(self, task: Task) -> None:
        if not task.streams:
            self._start(task)
            return
        for stream in task.streams:
            self._queues.setdefault(stream, deque()).append(task)
        self._start_if_first(task)

    def _start_if_first(self, task: Task) -> None:
        if task.start_seconds < 0 and all(self._queues[stream][0] is task for stream in task.streams):
            self._start(task)

    def _start(self, task: Task) -> None:
        task.start_seconds = task._since = self.now
        task._left = task.work
        if task.latency_seconds > 0:
            task._in_latency = True
            self._schedule(task, self.now + task.latency_seconds)
        else:
            self._move(task)

    def _move(self, task: Task) -> None:
        """Begin the part of a task that takes a share of something."""
        task._since = self.now
        self._join(task)
        self._adjust(task)
        for other in self._neighbours(task):
            self._adjust(other)

    def _finish(self, task: Task) -> None:
        task.stop_seconds = self.now
        self._leave(task)
        for other in self._neighbours(task):
            self._adjust(other)
        for stream in task.streams:
            self._queues[stream].popleft()
        for follower in task.followers:
            follower.waits_for -= 1
            if follower.waits_for == 0:
                self._ready(follower)
        for stream in task.streams:
            if self._queues[stream]:
                self._start_if_first(self._queues[stream][0])

    def _join(self, task: Task) -> None:
        for link in task.links:
            self._on_link[link][task] = None
        for place in task.places:
            (self._moving if task.links else self._computing)[place][task] = None

    def _leave(self, task: Task) -> None:
        for link in task.links:
            del self._on_link[link][task]
        for place in task.places:
            del (self._moving if task.links else self._computing)[place][task]

    def _neighbours(self, task: Task) -> list[Task]:
        """Running tasks whose rate may depend on `task`, which itself is left out."""
        found: dict[Task, None] = {}
        for link in task.links:
            found |= self._on_link[link]
        if task.links and self.rules.compute_slowdown_fraction:
            for place in task.places:
                found |= self._computing[place]
        if not task.links and self.rules.communication_slowdown_fraction:
            for place in task.places:
                found |= self._moving[place]
        found.pop(task, None)
        return list(found)

    def _adjust(self, task: Task) -> None:
        """Account for what a task did at its old rate, and give it the new one."""
        rate = self._rate_of(task)
        if rate == task._rate and task._version:
            return
        task._left = max(0.0, task._left - task._rate * (self.now - task._since))
        task._since, task._rate = self.now, rate
        self._schedule(task, self.now + task._left / rate)

    def _rate_of(self, task: Task) -> float:
        rules = self.rules
        if task.links:
            rate = min(rules.link_bytes_per_second[link] / len(self._on_link[link]) for link in task.links)
            beside = any(self._computing[place] for place in task.places)
            return rate / (1 + rules.communication_slowdown_fraction * beside)
        place = task.places[0]
        return 1 / (rules.slowdown[place] * (1 + rules.compute_slowdown_fraction * bool(self._moving[place])))

    def _schedule(self, task: Task, when: float) -> None:
        task._version += 1
        self._number += 1
        heapq.heappush(self._events, (when, self._number, task._version, task))

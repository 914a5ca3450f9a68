"""What the ranks of a pipeline hold, step by step of its schedule, where the closed form has one moment for all steps.

The closed form knows how many micro-batches a stage has under way, and recomputation of all layers or of none. Here
every stage has the layers that the plan gives it, the first of them recomputed; gradients and gathered weights come and
go as torch.distributed.pipelining and fully_shard have it (read in their sources, and rehearsed).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from planner.cost.memory.stage_states import GATHERED_CHUNKS, GATHERED_LAYERS
from planner.schedules.laws import WAITING_SHARE
from planner.schedules.steps import B, F, I, Order, W

# Of a backward pass without a layer.
NO_MOMENT = {"activations": 0.0, "weights": 0.0, "casts": 0.0, "gradients": 0.0}


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer for one micro-batch, in bytes: what it keeps for backward, and what its backward adds to that.

    `passing` are its weights' gradients beside those activations, `finishing` all that it has when its experts' weights
    are done, where their gradients become one tensor for all.
    """

    kept: float
    backward: float
    passing: float
    finishing: float


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """One stage of the model as a rank holds it, in bytes.

    `weights` are its sharded weights when whole, 0 where they always are (`stays_whole` after a forward pass),
    `gradients` what its backward passes add up before `shards` of it are left, `reducing` those of a layer meanwhile.
    `casts` are copies of weights that wait for backward, `cached` those that do not, `lingering` gradients of weights
    that torch holds on to where they are done apart and are DTensors, `waiting` logits that wait for backward,
    `at_loss` and `at_head` what those moments take beside, `embedding` all gradients of the first layer of all.
    """

    layers: tuple[Layer, ...]
    casts: float
    cached: float
    lingering: float
    weights: float
    stays_whole: bool
    gradients: float
    shards: float
    reducing: float
    waiting: float
    at_loss: float
    at_head: float
    embedding: float

    @cached_property
    def activations(self) -> float:
        """What a micro-batch leaves between its forward pass and its backward."""
        return sum(layer.kept for layer in self.layers)

    def together(self, count: float) -> float:
        """Weights of `count` of the layers."""
        return self.weights * min(1.0, count / max(len(self.layers), 1))

    def fullest_of_backward(self, is_whole: bool, opens: bool) -> dict[str, float]:
        """What the fullest moment of a backward pass adds to what is there as it starts, by part.

        All else lasts as long as the pass, so that this moment is the fullest of each such pass.
        """
        return max(self._moments(is_whole, opens), key=lambda parts: sum(parts.values()), default=NO_MOMENT)

    def _moments(self, is_whole: bool, opens: bool) -> Iterator[dict[str, float]]:
        """Layer by layer from the last: what those before it keep, and what those after it gave."""
        freed, count = 0.0, len(self.layers)
        for done, layer in enumerate(reversed(self.layers)):
            weights = self.weights if is_whole else self.together(done + GATHERED_LAYERS)
            made = self.gradients * done / count if opens else 0.0
            # Copies of weights go with what their layers kept.
            both = {"weights": weights, "casts": -self.casts * done / count}
            yield {"activations": layer.backward - freed, **both, "gradients": made + layer.passing}
            yield {"activations": -freed, **both, "gradients": made + layer.finishing}
            freed += layer.kept


@dataclass(slots=True)
class Rank:
    """A rank that goes through its steps; `chunks` by their stage. `most` is the most that changes over a step."""

    chunks: dict[int, Chunk]
    most: dict[str, float] = field(default_factory=dict)
    _kept: float = 0.0
    _casts: float = 0.0
    _logits: float = 0.0
    _shards: float = 0.0
    # Stages whose weights are whole; those that the schedule believes are; those whose gradients are under way.
    _whole: set[int] = field(default_factory=set)
    _fetched: list[int] = field(default_factory=list)
    _open: set[int] = field(default_factory=set)
    # Stages that have done weight gradients apart.
    _lingering: set[int] = field(default_factory=set)
    # What the fullest moment of a backward pass adds, by its stage, whether that is whole, and the first of its passes.
    _fullest: dict[tuple[int, bool, bool], dict[str, float]] = field(default_factory=dict)
    _most_bytes: float = -math.inf

    def go_through(self, order: Order) -> None:
        """All steps in turn."""
        last = {int(stage): index for index, stage in enumerate(order.stage) if order.action[index] in (B, W)}
        coming = _coming(order) if self._looks_ahead else []
        for index, (action, stage) in enumerate(zip(order.action.tolist(), order.stage.tolist(), strict=True)):
            if coming:
                self._fetch(coming[index])
            # The first stage of all has no input gradients: all of its backward is done with those of its weights.
            is_first = self.chunks[stage].embedding > 0
            if action == F:
                self._forward(stage)
            elif action == W and not is_first:
                self._leave(self.chunks[stage], 1 + WAITING_SHARE)
            elif action != I or not is_first:
                self._backward(stage, waits=action == I)
            if action == W:
                self._lingering.add(stage)
            if index == last[stage]:
                self._reduce(stage)

    @property
    def most_bytes(self) -> float:
        """The most bytes of what changes."""
        return sum(self.most.values())

    @property
    def _looks_ahead(self) -> bool:
        # A schedule of one stage per rank leaves gathering to fully_shard.
        return len(self.chunks) > 1 and any(chunk.weights for chunk in self.chunks.values())

    def _fetch(self, needed: Sequence[int]) -> None:
        """Gather what the coming steps need, and shard what they do not, as the schedule believes it to be."""
        for stage in self._fetched:
            if stage not in needed:
                self._whole.discard(stage)
        self._whole.update(stage for stage in needed if stage not in self._fetched)
        self._fetched = list(needed)

    def _forward(self, stage: int) -> None:
        chunk, others = self.chunks[stage], self._weights(but=stage)
        is_whole = stage in self._whole or chunk.stays_whole
        self._note(weights=others + (chunk.weights if is_whole else chunk.together(GATHERED_LAYERS)))
        self._kept += chunk.activations
        self._casts += chunk.casts
        ending = chunk.weights if chunk.stays_whole else chunk.together(GATHERED_LAYERS)
        self._note(weights=others + ending, casts=chunk.cached)
        if chunk.at_loss:
            self._note(weights=others + (chunk.weights if chunk.stays_whole else 0.0), logits=chunk.at_loss)
        self._logits += chunk.waiting
        (self._whole.add if chunk.stays_whole else self._whole.discard)(stage)

    def _backward(self, stage: int, waits: bool) -> None:
        chunk, others, opens = self.chunks[stage], self._weights(but=stage), stage not in self._open
        self._logits -= chunk.waiting
        is_whole = stage in self._whole or chunk.stays_whole
        if chunk.at_head:
            whole = chunk.weights if is_whole else chunk.together(1.0)
            self._note(weights=others + whole, logits=chunk.at_head)
        fullest = self._fullest.get((stage, is_whole, opens))
        if fullest is None:
            fullest = self._fullest[stage, is_whole, opens] = chunk.fullest_of_backward(is_whole, opens)
        self._note(**fullest | {"weights": others + fullest["weights"]})
        self._open.add(stage)
        self._whole.add(stage)
        if waits:
            self._kept += WAITING_SHARE * chunk.activations
        else:
            self._leave(chunk, 1.0)
        if chunk.embedding:
            self._note(weights=self._weights(), gradients=chunk.embedding)

    def _leave(self, chunk: Chunk, share: float) -> None:
        self._kept -= share * chunk.activations
        self._casts -= chunk.casts

    def _reduce(self, stage: int) -> None:
        """A stage's gradients are shared out when its last backward pass is done, and its weights with them."""
        chunk = self.chunks[stage]
        if not chunk.weights:
            return
        self._note(weights=self._weights(), gradients=chunk.reducing)
        self._open.discard(stage)
        self._whole.discard(stage)
        self._shards += chunk.shards

    def _weights(self, but: int = -1) -> float:
        return sum(self.chunks[stage].weights for stage in self._whole if stage != but)

    def _note(
        self,
        *,
        weights: float = 0.0,
        activations: float = 0.0,
        logits: float = 0.0,
        casts: float = 0.0,
        gradients: float = 0.0,
    ) -> None:
        """Remember a moment, by part, where it is the fullest so far."""
        gradients += self._shards
        for stage in self._open:
            gradients += self.chunks[stage].gradients
        for stage in self._lingering:
            gradients += self.chunks[stage].lingering
        activations, logits, buffers = self._kept + activations, self._logits + logits, weights + self._casts + casts
        total = activations + logits + gradients + buffers
        if total > self._most_bytes:
            self._most_bytes = total
            self.most = {"activations": activations, "logits": logits, "gradients": gradients, "buffers": buffers}


def _coming(order: Order) -> list[tuple[int, ...]]:
    """The stages of the next steps from each on, no more than are gathered at once, in the order of their coming."""
    result: list[tuple[int, ...]] = []
    following: tuple[int, ...] = ()
    for stage in reversed(order.stage.tolist()):
        rest = tuple(other for other in following if other != stage)
        following = (stage, *rest)
        result.append(following[: int(GATHERED_CHUNKS)])
    return result[::-1]

"""torchtitan's batches: in samples, as 0.3.0 has them, or in tokens, as later versions do."""

from __future__ import annotations

from planner.plans import Plan
from planner.stacks.handover import Given
from planner.stacks.said import Settings
from planner.stacks.torchtitan.words import GLOBAL, LENGTH, LOCAL, MAX_LENGTH, PIECE, PIECES, STEP_TOKENS, TOKENS
from planner.stacks.words import Facts

# What torchtitan takes where nothing is said.
USUAL_LOCAL, USUAL_TOKENS = 8, 16384
IN_TOKENS = (TOKENS, STEP_TOKENS, PIECES)


def batch_of(
    facts: Facts, settings: Settings, axes: Plan, length: int, given: Given, assumed: list[str]
) -> tuple[int, int, int]:
    """Samples of a micro-batch, how many a replica has, and how many times a step its pipeline runs.

    `length`: tokens of a sample.
    Raises: InputError where they do not go together.
    """
    facts = _in_samples(facts, settings, axes, length, assumed)
    local = facts.get("local_batch")
    if local is None:
        local = USUAL_LOCAL
        assumed.append(f"local batches of {local}: torchtitan's default, unless a called function sets another")
    samples = facts.get("samples", -1)
    asked = given.global_batch_size
    if samples > 0 and asked not in (0, samples):
        why = f"--global-batch {asked} contradicts it: leave one of the two out"
        raise settings.contradiction((GLOBAL, STEP_TOKENS), why)
    samples = samples if samples > 0 else asked or local * axes.data_parallel
    passes, left = divmod(samples, local * axes.data_parallel)
    if left or not passes:
        text = f"{samples} samples are not a multiple of {local} on {axes.data_parallel} replicas"
        raise settings.contradiction((LOCAL, GLOBAL, *IN_TOKENS), f"{text}: correct one of them, or --gpus")
    if axes.pipeline_parallel == 1:
        return local, passes, 1
    piece = facts.get("piece", 1)
    if not piece or local % piece:
        raise settings.contradiction((LOCAL, PIECE), "the first is not a multiple of the second")
    return piece, local // piece * passes, passes


def _in_samples(facts: Facts, settings: Settings, axes: Plan, length: int, assumed: list[str]) -> Facts:
    """The facts with batches in samples where they are stated in tokens: of one pass of the model, and of a step.

    Raises: InputError where tokens are no whole samples.
    """
    if not any(settings.has(key) for key in (*IN_TOKENS, MAX_LENGTH)):
        return facts
    assumed.append("batches are in tokens, as versions after 0.3.0 state them")
    micro = _samples(facts.get("tokens", USUAL_TOKENS), length, settings, TOKENS)
    pieces = facts.get("pieces", 1) if axes.pipeline_parallel > 1 else 1
    step = facts.get("step_tokens", -1)
    samples = _samples(step, length, settings, STEP_TOKENS) if step > 0 else -1
    return {**facts, "local_batch": micro * pieces, "piece": micro, "samples": samples}


def _samples(tokens: int, length: int, settings: Settings, key: str) -> int:
    samples, left = divmod(tokens, length)
    if left or not samples:
        raise settings.contradiction(
            (key, MAX_LENGTH, LENGTH), f"{tokens} tokens are not whole samples of {length}: correct one of them"
        )
    return samples

"""How a run with checkpoints begins: it owns their folder, and goes on from the newest that is whole, to its end."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from executor.run.checkpoint import Checkpoints
from executor.run.checkpoint_choice import Choice, newest_whole
from executor.run.checkpoint_refused import for_all
from executor.run.faults import restarted
from executor.run.owner import own
from planner.plans import Plan
from profiles.codecs.codec import codec
from profiles.ranks.rank import report
from profiles.ranks.stores import num_restarts

# The first step makes gradients, moments and buffers, the second is like all that follow; PowerSGD's first two steps
# send gradients as they are, its third makes its factors, and other codecs keep what they leave out from the second on.
TRACKED_STEPS, TRACKED_STEPS_CODED = 2, 4


def begun(checkpoints: Checkpoints, end_step: int) -> Checkpoints:
    """Own the folder and choose where to go on from, which is told where it is not what was asked for; collective.

    `end_step` is the last step of the run.

    Raises: EnvironmentFailure where another run owns it, ArtifactError where no checkpoint is whole.
    """
    folder = Path(checkpoints.folder)
    for_all(lambda: own(folder))
    choice = Choice(path=None)
    if checkpoints.resume or num_restarts():
        # Ranks that died after the last step take the last steps again: their times went with them.
        choice = newest_whole(folder, before_step=end_step if num_restarts() else None)
    for notice in choice.notices:
        report(0.0, "going on", notice=notice)
    if num_restarts():
        report(0.0, "started again", notice=restarted(num_restarts(), choice.path))
    return replace(checkpoints, resume=choice.path is not None, chosen=str(choice.path or ""))


def end_step(plan: Plan, num_warmup_steps: int, num_steps: int) -> int:
    """The step that a run of so many steps ends with, whether or not it goes on from a checkpoint."""
    return warmup_steps(plan, num_warmup_steps) + num_steps


def warmup_steps(plan: Plan, asked: int) -> int:
    """The untimed steps of a run that starts anew: those that memory is measured in, and one more, at least."""
    return max(asked, tracked_steps(plan) + 1)


def tracked_steps(plan: Plan) -> int:
    """The steps after which a step holds what all later ones will."""
    used = codec(plan.codec)
    return TRACKED_STEPS_CODED if used.rank or used.feedback else TRACKED_STEPS

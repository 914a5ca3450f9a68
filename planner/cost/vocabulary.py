"""The vocabulary as a job's software holds it: padded to a multiple where its stack does so."""

from __future__ import annotations

import numpy as np

from planner.cost.job import Jobs
from profiles.models.transformer import Array


def padded_vocabulary(jobs: Jobs) -> Array:
    """Rows of the embedding and of the head over all tensor-parallel ranks. Shapes: one entry per job."""
    multiples = jobs.stack.read(lambda stack: float(stack.memory.vocabulary_multiple))
    multiple = np.where(multiples > 1, multiples * jobs.tensor, 1.0)
    return np.asarray(np.ceil(jobs.model.vocab_size / multiple) * multiple)

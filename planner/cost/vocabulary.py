"""The vocabulary as a job's software holds it: padded to a multiple where its stack does so."""

from __future__ import annotations

import numpy as np

from planner.cost.job import Jobs
from profiles.machines.stacks import load_stack
from profiles.models.transformer import Array


def padded_vocabulary(jobs: Jobs) -> Array:
    """Rows of the embedding and of the head over all tensor-parallel ranks. Shapes: one entry per job."""
    unique, inverse = np.unique(jobs.stack, return_inverse=True)
    multiples = np.array([float(load_stack(str(name)).memory.vocabulary_multiple) for name in unique])[inverse]
    multiple = np.where(multiples > 1, multiples * jobs.tensor, 1.0)
    return np.asarray(np.ceil(jobs.model.vocab_size / multiple) * multiple)

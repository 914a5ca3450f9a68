"""The layers of the models that a machine is measured with: of known families one by one, of tasks within the whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from profiles.machines.profile import LayerTiming
from profiles.measure.layers import Case, measure_layers
from profiles.measure.task_layers import TaskCase, measure_task_layers
from profiles.measure.timing import Bench
from profiles.models.profile import ModelProfile

# A module of a task takes longer than the layers of a family, of which there are few that differ.
SECONDS_PER_TASK = 15.0


def measure_models(
    bench: Bench,
    models: Sequence[ModelProfile],
    sizes: Sequence[tuple[int, int, int]],
    precisions: Sequence[str],
    memory_bytes: float,
    seconds: float,
    on_done: Callable[[float], None] = lambda _: None,
    trusted: Sequence[str] = (),
) -> tuple[list[LayerTiming], int]:
    """Timings of every distinct layer at all `sizes` (micro-batch, sequence, tensor-parallel degree) and precisions.

    And how many settings were left out, for memory or past `seconds` of known families, and so many of each task.
    """
    share = sum(bool(model.workload.task) for model in models) / max(1, len(models))
    cases = [
        Case(precision=precision, micro_batch_size=batch, sequence_length=sequence, tensor_parallel=degree)
        for batch, sequence, degree in sizes
        for precision in precisions
    ]
    timings, left_out = measure_layers(
        bench, models, cases, memory_bytes, seconds, lambda done: on_done((1 - share) * done), trusted
    )
    batches = sorted({batch for batch, _, _ in sizes})
    # The ends first: what lies between follows from them best.
    ordered = dict.fromkeys((batches[-1], batches[0], *batches))
    own = [TaskCase(precision=precision, micro_batch_size=batch) for batch in ordered for precision in precisions]
    more, more_left_out = measure_task_layers(
        bench, models, own, memory_bytes, SECONDS_PER_TASK, lambda done: on_done(1 - share + share * done), trusted
    )
    return timings + more, left_out + more_left_out

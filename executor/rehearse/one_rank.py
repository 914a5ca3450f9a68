"""One rank of a plan rehearsed: the executor's own program with fake tensors and a fake process group.

A job of any size needs one process, no weights and no network. What the program does is noted: operators, messages,
memory; shapes that do not fit together fail as they would on the cluster.
"""

from __future__ import annotations

import functools
import gc
import time
from collections.abc import Iterable
from dataclasses import asdict

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from executor.fake_group import fake_mode, fake_rank, whole_shapes_apart
from executor.mesh import Meshes, coordinates
from executor.observe.counters import Ledger
from executor.rehearse.progress import Progress, Watch, silent
from executor.rehearse.result import Rehearsed
from executor.run.going_on import TRACKED_STEPS
from executor.trainer import Trainer
from planner.plans import Plan
from profiles.codecs.codec import codec
from profiles.errors import PlanError, TrainwrightError
from profiles.workloads.foreign_code import calling_foreign_code
from profiles.workloads.precision import low_dtype
from profiles.workloads.workload import Workload


def rehearse(
    plan: Plan,
    workload: Workload,
    sequence_length: int,
    rank: int,
    on_progress: Progress = silent,
    step_flops: float = 0.0,
) -> Rehearsed:
    """Build and step `rank` of the plan as a real run would, and count its last step.

    Once per process: DTensor remembers the process groups of a mesh, and all ranks of a plan have equal meshes.
    `on_progress` hears from another thread how far it is, by the FLOPs that a step is expected to have.
    Raises: PlanError for what cannot be rehearsed, or what torch refuses, with its words; EnvironmentFailure in a
    process that is a rank already.
    """
    _check(plan)
    started = time.perf_counter()
    with fake_rank(rank, plan.num_devices) as own:
        mesh, mode = Meshes("cpu").of(plan), fake_mode()
        ledger = Ledger(plan, mesh, mode)
        watch = Watch(ledger, TRACKED_STEPS, step_flops, on_progress)
        edges, built = functools.partial(_edge, plan, workload, sequence_length), list[float]()
        with watch.telling(), mode, ledger, whole_shapes_apart():
            try:
                with calling_foreign_code(workload.spec, f"{workload.spec.title} does not run in plan {plan.id}"):
                    trainer = Trainer(
                        plan, workload, own, 0, mesh, edges, on_built=lambda: built.append(float(ledger.peak_bytes))
                    )
                    # Taken now: DDP over split parameters hides them from its first forward on.
                    parameters = list(trainer.parameters())
                    _step(trainer, ledger, sequence_length, watch)
            except TrainwrightError:
                raise
            except (RuntimeError, ValueError, AssertionError) as error:
                raise PlanError(f"plan {plan.id} cannot run on rank {rank}: {_first_line(error)}") from error
            moments = [value for own in trainer.moments_by_parameter.values() for value in own.values()]
            result = Rehearsed(
                rank=rank,
                place=asdict(coordinates(plan, rank)),
                num_operators=ledger.num_operators,
                flops={name: float(value) for name, value in ledger.flops.items()},
                messages=ledger.messages,
                peak_bytes=float(ledger.peak_bytes),
                build_peak_bytes=built[-1],
                state_bytes={"parameters": _held_bytes(parameters), "optimizer": _held_bytes(moments)},
                seconds=time.perf_counter() - started,
            )
        del trainer, parameters, moments
        gc.collect()
    return result


def _check(plan: Plan) -> None:
    if codec(plan.codec).rank:
        raise PlanError(f"codec={plan.codec}: torch's hook reads values of messages, which a rehearsal does not have")
    if plan.compiled:
        raise PlanError("compiled=True: kernels are not built for tensors without values, rehearse it without")


def _step(trainer: Trainer, ledger: Ledger, sequence_length: int, watch: Watch) -> None:
    """The first steps, and one like all that follow, of which alone the ledger tells."""
    tokens = torch.empty(trainer.plan.global_batch_size, sequence_length, dtype=torch.int64)
    for _ in range(TRACKED_STEPS - 1):
        watch.begin_step()
        trainer.step(tokens, tokens)
    gc.collect()
    ledger.clear()
    watch.begin_step()
    trainer.step(tokens, tokens)


def _held_bytes(values: Iterable[object]) -> float:
    """Bytes of what this rank holds of tensors."""
    held = (value.to_local() if isinstance(value, DTensor) else value for value in values)
    return float(sum(value.nbytes for value in held if isinstance(value, Tensor)))


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _edge(plan: Plan, workload: Workload, sequence_length: int, stage: int) -> tuple[Tensor, Tensor]:
    """Examples of what `stage` is given and gives: token ids, hidden states as a rank holds them, logits."""
    tokens = sequence_length // plan.context_parallel
    own = tokens // plan.tensor_parallel if plan.sequence_parallel else tokens
    low = low_dtype(plan.precision)
    columns = workload.vocab_size // plan.tensor_parallel if plan.vocab_parallel else workload.vocab_size

    def example(length: int, width: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(plan.micro_batch_size, length, width, dtype=dtype, requires_grad=True)

    first, last = stage == 0, stage == plan.num_stages - 1
    ids = torch.empty(plan.micro_batch_size, tokens, dtype=torch.int64)
    given = ids if first else example(own, workload.hidden_size, low)
    return given, example(tokens, columns, low) if last else example(own, workload.hidden_size, low)

"""From a plan file to a rehearsal file: which ranks are rehearsed, each in a process of its own, and what of."""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from importlib.metadata import version
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeAlias

import psutil

from executor.legality import check_plan, choose
from executor.mesh import coordinates
from executor.rehearse.one_rank import rehearse
from executor.rehearse.progress import Progress, Told
from executor.rehearse.result import PlanRehearsal, RankRehearsal, RehearsalFile, Rehearsed
from executor.run.checks import facts_of_workload
from planner.build_memory import build_peak_bytes
from planner.expected_counts import volumes
from planner.plans import Plan
from planner.prediction import PlanFile, Prediction
from planner.space.topology import first_group
from profiles import artifacts
from profiles.errors import EnvironmentFailure, InputError, PlanError
from profiles.machines.cores import usable_cores
from profiles.models.profile import ModelProfile, WorkloadSpec
from profiles.ranks.processes import die_with_parent
from profiles.tracing.trace import trace
from profiles.workloads.loading import load_workload

# What takes seconds to import, loaded once by the server that every rehearsal's process is forked from.
PRELOADED = [
    # First: it tells libraries to be quiet.
    "profiles.workloads.loading",
    "executor.rehearse.one_rank",
    "torch.testing._internal.distributed.fake_pg",
    "transformers.models.gpt2.modeling_gpt2",
    "transformers.models.llama.modeling_llama",
]
# A plan, what it trains, the length of its sequences, and the rank to rehearse.
Job: TypeAlias = tuple[Plan, WorkloadSpec, int, int]


def rehearse_file(
    path: Path,
    top: int,
    rank: int | None,
    all_stages: bool,
    advance: Progress,
    trusted: Sequence[str] = (),
    say: Callable[[str], object] = lambda words: None,
) -> RehearsalFile:
    """Rehearse the `top` best plans of a file: the rank that is given, one of every stage, or of the fullest.

    A module of the user's that builds the model is imported where it is `trusted`. `say` is told what will take time.

    Raises: ArtifactError; InputError for a rank that is none; PlanError for what does not run.
    """
    started = datetime.now(UTC).isoformat(timespec="seconds")
    file = artifacts.read(path, "plan", PlanFile)
    chosen, notes = choose(file, top, with_baseline=False)
    candidates = [file.candidates[index] for index in chosen]
    if file.workload.task:
        raise PlanError(f"{path}: {file.workload.title} is trained unchanged, which cannot be rehearsed yet: run it")
    workload = load_workload(file.workload, trusted, str(path))
    for candidate in candidates:
        check_plan(candidate.plan, file, facts_of_workload(workload))
    wanted = [(c, _ranks(c.plan, c.prediction, file, rank, all_stages)) for c in candidates]
    jobs = [(c.plan, file.workload, file.sequence_length, own) for c, ranks in wanted for own in ranks]
    for candidate, ranks in wanted:
        say(_beginning(candidate.plan, ranks, file.num_devices))
    traced = {precision: trace(workload, (precision,)) for precision in {c.plan.precision for c in candidates}}
    done = rehearse_all(jobs, advance, trusted, [_step_flops(job, traced) for job in jobs])
    plans = []
    for candidate, ranks in wanted:
        model = traced[candidate.plan.precision]
        own = tuple(_beside(candidate.plan, candidate.prediction, model, file, next(done)) for _ in ranks)
        plans.append(
            PlanRehearsal(rank=candidate.rank, plan=candidate.plan, prediction=candidate.prediction, ranks=own)
        )
    return RehearsalFile(
        model_name=file.model_name,
        workload=file.workload,
        num_parameters=file.num_parameters,
        machine_name=file.machine_name,
        num_devices=file.num_devices,
        global_batch_size=file.global_batch_size,
        sequence_length=file.sequence_length,
        plans=tuple(plans),
        torch=version("torch"),
        started=started,
        notes=tuple(notes),
    )


def _beginning(plan: Plan, ranks: Sequence[int], num_ranks: int) -> str:
    """What is said before ranks are rehearsed."""
    own = f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))} of {num_ranks}"
    return f"rehearsing {own} of {plan.id}: takes seconds, or minutes for the largest models"


def _ranks(plan: Plan, prediction: Prediction, file: PlanFile, rank: int | None, all_stages: bool) -> list[int]:
    if rank is not None:
        if not 0 <= rank < file.num_devices:
            raise InputError(f"--rank {rank}: the plan has ranks 0 to {file.num_devices - 1}")
        return [rank]
    first = first_group(plan, "pipeline")
    if all_stages:
        return list(first)
    return [first[max(range(len(first)), key=lambda place: _peak_bytes(plan, prediction, place))]]


def _peak_bytes(plan: Plan, prediction: Prediction, place: int) -> float:
    stages = prediction.stage_peak_bytes
    return stages[place] if len(stages) == plan.pipeline_parallel else prediction.peak_bytes


def _beside(plan: Plan, prediction: Prediction, model: ModelProfile, file: PlanFile, own: Rehearsed) -> RankRehearsal:
    place = own.place["pipeline"]
    return RankRehearsal(
        rehearsed=own,
        expected=volumes(plan, model, file.sequence_length, place),
        expected_peak_bytes=_peak_bytes(plan, prediction, place),
        expected_build_bytes=build_peak_bytes(plan, model, place),
    )


def _step_flops(job: Job, traced: Mapping[str, ModelProfile]) -> float:
    plan, _, sequence_length, rank = job
    return volumes(plan, traced[plan.precision], sequence_length, coordinates(plan, rank).pipeline).flops


def rehearse_all(
    jobs: list[Job], advance: Progress, trusted: Sequence[str] = (), step_flops: Sequence[float] = ()
) -> Iterator[Rehearsed]:
    """Every job in a process of its own, which a server that has loaded torch forks; as many at once as cores.

    `advance` hears from threads how far all are, where the FLOPs of each one's step are given.
    """
    context: Any = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    flops = step_flops or [0.0] * len(jobs)
    shares = [0.0] * len(jobs)
    is_one_plan, in_turn = len({plan.id for plan, *_ in jobs}) == 1, threading.Lock()

    def heard(index: int, fraction: float, words: str) -> None:
        plan, *_, rank = jobs[index]
        with in_turn:
            shares[index] = fraction
            advance(sum(shares) / len(jobs), f"{'' if is_one_plan else f'{plan.id}, '}rank {rank}: {words}")

    results = []
    with ThreadPoolExecutor(len(usable_cores())) as threads, _server():
        waiting = [
            threads.submit(_in_process, context, tuple(trusted), job, flops[index], functools.partial(heard, index))
            for index, job in enumerate(jobs)
        ]
        try:
            for index, one in enumerate(waiting):
                results.append(one.result())
                shares[index] = 1.0
        except BaseException:
            # Before the server ends, or they would start another.
            threads.shutdown(wait=False, cancel_futures=True)
            raise
    return iter(results)


def _in_process(
    context: Any, trusted: tuple[str, ...], job: Job, step_flops: float, on_progress: Progress
) -> Rehearsed:
    """One job, rehearsed by a process that takes no other.

    A pool of multiprocessing waits at its end for a lock that whoever was killed may hold, and for ever.
    """
    on_progress(0.0, "starting")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(sender, trusted, job, step_flops))
    process.start()
    sender.close()
    try:
        answer: Rehearsed | Exception | Told = receiver.recv()
        while isinstance(answer, Told):
            on_progress(answer.fraction, answer.words)
            answer = receiver.recv()
    except EOFError:
        process.join()
        raise EnvironmentFailure(
            f"the process that rehearsed rank {job[3]} of {job[0].id} was killed: did it run out of memory?"
        ) from None
    finally:
        receiver.close()
    process.join()
    if isinstance(answer, Exception):
        raise answer
    return answer


def _answer(sender: Connection, trusted: tuple[str, ...], job: Job, step_flops: float) -> None:
    die_with_parent()
    try:
        answer: Rehearsed | Exception = _rehearse_one(
            trusted, job, step_flops, lambda fraction, words: sender.send(Told(fraction=fraction, words=words))
        )
    except Exception as error:
        answer = error
    try:
        sender.send(answer)
    except Exception:  # an error of a library that cannot be handed to another process
        sender.send(PlanError(f"{job[0].id} cannot run on rank {job[3]}: {answer}"))


@contextlib.contextmanager
def _server() -> Iterator[None]:
    """The server that processes are forked from; where the block fails, it ends at once, with what it has forked.

    It lives on otherwise, for the next rehearsal. A Ctrl-C, which a terminal sends to all, and a SIGTERM, as
    `timeout` sends it, are this process's to answer: the server, loading, and processes that start would each say in a
    traceback what befell them.
    """
    # Before the server, so that this is the one child that is new.
    resource_tracker.ensure_running()
    known = set(psutil.Process().children())
    # What is started has the mask for good; here, a signal that comes meanwhile waits.
    unmasked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        try:
            forkserver.ensure_running()
        except OSError as error:
            # Its socket's address holds about a hundred letters.
            raise EnvironmentFailure(
                f"the server that ranks are forked from cannot start: {error}: set TMPDIR to a folder of a shorter name"
            ) from error
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, unmasked)
        yield
    except BaseException:
        for server in set(psutil.Process().children()) - known:
            for process in (server, *server.children(recursive=True)):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            # It is gone then, and still for multiprocessing to collect, which starts another when it next needs one.
            os.waitid(os.P_PID, server.pid, os.WEXITED | os.WNOWAIT)
        raise


def _rehearse_one(trusted: tuple[str, ...], job: Job, step_flops: float, on_progress: Progress) -> Rehearsed:
    plan, spec, sequence_length, rank = job
    # FSDP warns of whoever would write into a view that it returns; nobody does.
    warnings.filterwarnings("ignore", message=".*returned a view tensor")
    return rehearse(plan, load_workload(spec, trusted), sequence_length, rank, on_progress, step_flops)

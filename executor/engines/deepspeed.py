"""DeepSpeed as an engine: this program's layers under its ZeRO optimizers and its pipeline.

Model: layers, data, AdamW with its rate, and the order of ranks are those of `executor.trainer`. Sharding, averaging,
the pipeline's messages and 16-bit weights with a copy in 32 bits are DeepSpeed's. It takes its defaults from its
configuration, whose words are those of exported plans.
Ignores: buffers that are not averaged, such as statistics of batch norms: each replica keeps its own.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.pipe import PipelineModule
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer
from deepspeed.runtime.pipe import schedule
from deepspeed.utils import groups, logger
from torch import Tensor, nn

from executor.axes.optimizer import LEARNING_RATE
from executor.engines import Training
from executor.engines.watched import WatchedAdamW
from executor.observe.events import BACKWARD, FORWARD, OPTIMIZER, StepTrace
from executor.rank_model import RankModel
from planner.plans import Plan
from planner.stacks.deepspeed.words import UNCLIPPED, WORDS, facts_of
from planner.stacks.said import nested
from planner.stacks.words import written
from profiles.ranks.devices import BACKENDS
from profiles.ranks.rank import Rank, unpinned
from profiles.workloads.randomness import begin_random, random_kept


class DeepSpeedTrainer(RankModel):
    """This rank's part of a plan in the hands of DeepSpeed, whose groups are its own: `mesh` is not used."""

    def __init__(self, training: Training) -> None:
        plan = training.plan
        # In 16 bits all weights are, rather than what autocast would convert.
        computed = replace(plan, precision="fp32") if plan.precision == "bf16" else plan
        super().__init__(computed, training.workload, training.rank, training.seed, None, is_silent=training.is_silent)
        self.plan, self.measures_norm, self.gradient_norm = plan, False, 0.0
        self.axes: Any = None
        with _quiet(), unpinned(), self._own_axes():
            _join(training.rank)
            self.whole = self._whole()
            trained = [parameter for parameter in self.whole.parameters() if parameter.requires_grad]
            self.optimizer = WatchedAdamW(trained, lr=0.0, fused=True)
            self.engine, *_ = deepspeed.initialize(
                model=self.whole, optimizer=self.optimizer, config=configuration(plan), dist_init_required=False
            )
        self._forget_steps()
        if plan.pipeline_parallel > 1:
            self._note_actions()

    def step(self, *batch: Any) -> tuple[Tensor | None, StepTrace]:
        """One optimizer step on this replica's slice of the global batch: inputs and targets, or a task's samples.

        The loss is the mean of the replica's, of a pipeline that of all replicas; None on ranks that compute none.
        """
        parts = self.micro_batches(*(self.own_slice(samples) for samples in batch))
        self.optimizer.watch(self.measures_norm)
        self.recorder.begin()
        with self._own_axes(), random_kept() if self.draws else contextlib.nullcontext():
            loss = self._through_stages(parts) if self.plan.pipeline_parallel > 1 else self._through_all(parts)
        if self.measures_norm:
            self.gradient_norm = self.optimizer.norm(self._groups_of_squares(), self.device)
        self.finish_step()
        return loss, self.recorder.finish()

    @contextlib.contextmanager
    def _own_axes(self) -> Iterator[None]:
        """While entered, the axes that DeepSpeed asks for groups are this plan's.

        It has one set in a process, and asks in every step: gradients of other plans would be averaged over a
        pipeline's replicas.
        """
        groups.mpu = self.axes
        try:
            yield
        finally:
            self.axes, groups.mpu = groups.mpu, None

    def _whole(self) -> nn.Module:
        """What DeepSpeed is given: the model, or a pipeline whose layers are the plan's stages."""
        if self.plan.pipeline_parallel == 1:
            (module,) = self.modules.values()
            return module
        # One layer each, so that they are cut nowhere else; those of other ranks are not built here.
        stages = [self.modules.get(index, _elsewhere) for index in range(self.plan.num_stages)]
        pipeline: nn.Module = PipelineModule(
            stages, num_stages=self.plan.num_stages, loss_fn=self.loss, partition_method="uniform"
        )
        return pipeline

    def _through_all(self, parts: Sequence[tuple[Any, Any]]) -> Tensor:
        """Forward and backward of consecutive micro-batches, and the optimizer's step behind the last."""
        total = torch.zeros((), device=self.device)
        for index, (given, wanted) in enumerate(parts):
            if self.draws:
                begin_random(self._seed(index))
            start = self.recorder.now()
            loss = self.loss(self.engine(given), wanted)
            middle = self.recorder.now()
            self.recorder.note(FORWARD, index, start, middle)
            # Divides by the number of micro-batches itself.
            self.engine.backward(loss)
            end = self.recorder.now()
            self.recorder.note(BACKWARD, index, middle, end)
            self.engine.step()
            total += loss.detach().float() / len(parts)
        self.recorder.note(OPTIMIZER, -1, end)
        return total

    def _through_stages(self, parts: Sequence[tuple[Any, Any]]) -> Tensor | None:
        if self.draws:
            begin_random(self._seed(self.place.pipeline))
        self._counts = {FORWARD: 0, BACKWARD: 0}
        loss = self.engine.train_batch(data_iter=iter(parts))
        return loss.detach().clone() if self.engine.is_last_stage() else None

    def _forget_steps(self) -> None:
        """Start at the first step, with the rate of all.

        To make their moments some of its optimizers take a step over gradients of 0, at a rate of 0 here. That of bf16
        without ZeRO leaves it counted: AdamW's first step would be its second, and 0.74 times as long.
        """
        if isinstance(self.engine.optimizer, FP16_UnfusedOptimizer):
            self.optimizer.state.clear()
        for group in self.optimizer.param_groups:
            group["lr"] = LEARNING_RATE

    def _groups_of_squares(self) -> list[dist.ProcessGroup]:
        """Over whose ranks squares of the gradients that this rank's optimizer has seen add up."""
        over = []
        if self.engine.zero_optimization() or isinstance(self.engine.optimizer, BF16_Optimizer):
            # It has a share of what replicas have averaged.
            over.append(self.engine.seq_data_parallel_group)
        if self.plan.pipeline_parallel > 1:
            over.append(self.engine.grid.get_pipe_parallel_group())
        return over

    def _note_actions(self) -> None:
        """Note what the pipeline does, by its table of instructions, which is not documented."""
        table = dict(self.engine._INSTRUCTION_MAP)
        noted = {schedule.ForwardPass: FORWARD, schedule.BackwardPass: BACKWARD, schedule.OptimizerStep: OPTIMIZER}
        for kind, name in noted.items():
            table[kind] = self._noted(name, table[kind])
        self.engine._INSTRUCTION_MAP = table

    def _noted(self, name: str, run: Callable[..., None]) -> Callable[..., None]:
        def noting(engine: Any, **arguments: Any) -> None:
            start = self.recorder.now()
            run(engine, **arguments)
            # Each stage takes the micro-batches in their order.
            index = self._counts.get(name, -1)
            self.recorder.note(name, index, start)
            self._counts[name] = index + 1

        return noting


def configuration(plan: Plan) -> dict[str, Any]:
    """The plan in DeepSpeed's words; nothing is left to a default that changes what is computed."""
    return {
        **nested(written(WORDS, facts_of(plan))),
        **UNCLIPPED,
        # The optimizer is torch's own, which is in none of its lists, on a CPU too.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": None,
    }


def _elsewhere(hidden: Any) -> Any:
    raise AssertionError("a stage of another rank")


def _join(rank: Rank) -> None:
    """Let DeepSpeed use the process group that there is."""
    # It serves inference alone, and is compiled at the first start, for a minute; killed meanwhile, that leaves a lock
    # at which every later start hangs.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if not deepspeed.comm.is_initialized():
        deepspeed.init_distributed(BACKENDS[rank.device.type], auto_mpi_discovery=False, verbose=False)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hold back what it prints while it starts."""
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(before)

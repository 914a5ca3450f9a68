"""Runtimes that carry out a plan: what a run asks of one, and which there are. Torch-free.

Session, data, reference losses, measurement and run file are the same whichever runtime steps the model: an engine
gives a trainer, and the rules by which it refuses a plan.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

from executor.engines.rules import deepspeed_refusal, horovod_refusal
from planner.legality import refusal
from planner.model_facts import ModelFacts
from planner.plans import Plan
from profiles.errors import EnvironmentFailure, UnknownNameError
from profiles.machines.stacks import THIS_PROGRAM

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed.device_mesh import DeviceMesh

    from executor.axes.loss_scale import LossScale
    from executor.mesh import Coordinates
    from executor.observe.events import StepTrace
    from profiles.ranks.rank import Rank
    from profiles.workloads.workload import Workload

# Why an engine does not carry out a plan of a model with sequences of a length, or "".
Refusal = Callable[[Plan, ModelFacts, int], str]


class Trains(Protocol):
    """One plan in one process as a run steps it; all ranks step the same plans in order.

    `place` tells which samples of a global batch are this replica's. With `measures_norm` a step leaves in
    `gradient_norm` the 2-norm of the model's averaged gradients, of no clipping. `held_tensors` outlive a step and were
    made by other threads. `scale` is of losses in fp16, None in other precisions.
    """

    plan: Plan
    place: Coordinates
    num_steps: int
    measures_norm: bool
    gradient_norm: float
    scale: LossScale | None

    @property
    def held_tensors(self) -> list[Tensor]:
        """Tensors that no counter on this thread sees."""

    def step(self, *batch: Any) -> tuple[Tensor | None, StepTrace]:
        """One step of AdamW on the global batch: the loss of this replica, None where another rank has it, and notes.

        Weights depend on seed and position alone, rate and decay are those of `executor.axes.optimizer`, gradients are
        means over the global batch, and nothing is clipped.
        """


@dataclass(frozen=True, slots=True)
class Training:
    """What a trainer is built for: a plan of a workload on one rank, and the seed of its weights.

    `mesh` has the plan's axes, None where it has one device. A silent one draws no random numbers.
    """

    plan: Plan
    workload: Workload
    rank: Rank
    seed: int
    mesh: DeviceMesh | None
    is_silent: bool = False


class MakesTrainer(Protocol):
    """What an engine's module gives under the name that the engine says."""

    def __call__(self, training: Training) -> Trains:
        """Build this rank's part of a model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """A runtime: `stacks` are those whose plan files it carries out, `trainer` is the place of its class.

    `package` is what must be importable, "" for this program, and `extra` what is installed for it. `is_own`: whether
    weights, gradients and messages of its trainers can be looked at, saved and checked one by one.
    """

    name: str
    title: str
    stacks: tuple[str, ...]
    trainer: str
    refusal: Refusal
    package: str = ""
    module: str = ""
    extra: str = ""

    @property
    def is_own(self) -> bool:
        """Whether it is this program."""
        return not self.package

    @property
    def version(self) -> str:
        """The version that is installed, "" of this program: a run file has its commit."""
        return "" if self.is_own else importlib.metadata.version(self.package)

    def check_installed(self) -> None:
        """Check that its package is here.

        Raises: EnvironmentFailure.
        """
        if not self.is_own and importlib.util.find_spec(self.package) is None:
            raise EnvironmentFailure(f"--engine {self.name}: {self.title} is not importable here: {self.extra}")

    def maker(self) -> MakesTrainer:
        """What makes its trainers, loaded now.

        Raises: EnvironmentFailure where the package is here and cannot be imported.
        """
        module, _, name = self.trainer.partition(":")
        try:
            if self.module:
                importlib.import_module(self.module)
        except Exception as error:
            said = str(error).splitlines()
            raise EnvironmentFailure(
                f"--engine {self.name}: {self.title} does not import: {type(error).__name__}: {said[0] if said else ''}"
            ) from error
        return cast(MakesTrainer, getattr(importlib.import_module(module), name))


ENGINES = {
    engine.name: engine
    for engine in (
        Engine(
            name=THIS_PROGRAM,
            title="Trainwright",
            stacks=(THIS_PROGRAM,),
            trainer="executor.trainer:trainer_for",
            refusal=refusal,
        ),
        Engine(
            name="deepspeed",
            title="DeepSpeed",
            stacks=(THIS_PROGRAM, "deepspeed"),
            trainer="executor.engines.deepspeed:DeepSpeedTrainer",
            refusal=deepspeed_refusal,
            package="deepspeed",
            module="deepspeed",
            extra="pip install 'trainwright[deepspeed]'",
        ),
        Engine(
            name="horovod",
            title="Horovod",
            stacks=(THIS_PROGRAM, "horovod"),
            trainer="executor.engines.horovod:HorovodTrainer",
            refusal=horovod_refusal,
            package="horovod",
            module="horovod.torch",
            extra="it must be built for this torch, as executor/engines/README.md says",
        ),
    )
}


def engine(name: str) -> Engine:
    """The engine of that name.

    Raises: UnknownNameError.
    """
    if name not in ENGINES:
        raise UnknownNameError("engine", name, ENGINES)
    return ENGINES[name]


def engines_of(names: Sequence[str]) -> tuple[Engine, ...]:
    """Engines by name, each once; this program where none is named.

    Raises: UnknownNameError; EnvironmentFailure for one that is not installed.
    """
    found = tuple(engine(name) for name in dict.fromkeys(names or (THIS_PROGRAM,)))
    for one in found:
        one.check_installed()
    return found

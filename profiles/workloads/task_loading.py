"""The task that a configuration or a factory of the user's gives."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from profiles.errors import InputError
from profiles.models.families import BUILT_FAMILIES, is_own_module
from profiles.models.profile import WorkloadSpec
from profiles.workloads.foreign_code import foreign_code
from profiles.workloads.hf_task import task_of_class, task_of_config
from profiles.workloads.randomness import random_alike
from profiles.workloads.task import Batch, Sample, Task, samples_of, seeded, stack
from profiles.workloads.task_names import class_of
from profiles.workloads.trust import check_trusted
from profiles.workloads.user_module import import_factory
from profiles.workloads.workload import next_token_loss

USUAL_TOKENS = 128
LIBRARY = "transformers.models."


def load_task(spec: WorkloadSpec, trusted: Sequence[str] = (), where: str = "the file", size: int = 0) -> Task:
    """The task of `spec`: of a configuration, or of a module that is among the `trusted` ones.

    `where` is what names the model, for errors; `size` is that of its samples, 0 for the usual one.
    Raises: InputError where the module is not trusted, transformers has no such class, or the code of either fails.
    """
    check_trusted(spec, trusted, where)
    if spec.kind == "transformers":
        return task_of_config(spec, size)
    if spec.weights:
        raise InputError(f"{spec.factory} sets the weights of its module itself: leave out --weights")
    with foreign_code(spec, f"cannot import {spec.factory}"):
        factory: Callable[[], Any] = import_factory(spec)
    given = _given(spec)
    with foreign_code(spec, f"{spec.factory} fails"):
        if isinstance(given, Task):
            # Anew, because a module that it holds was built without weights; with the same ones on every rank.
            with random_alike():
                again: Task = factory()
            return again
        return _task_of_module(spec, factory, given, size)


def wants_task(spec: WorkloadSpec, trusted: Sequence[str] = (), where: str = "the file") -> bool:
    """Whether a workload is trained as its author wrote it, rather than by the blocks of a known family or as a list.

    Raises: InputError where its module is not trusted or fails.
    """
    if spec.task or spec.weights:
        return True
    if spec.kind == "transformers":
        return str(spec.config.get("model_type")) not in BUILT_FAMILIES or is_own_module(spec.config)
    check_trusted(spec, trusted, where)
    return _is_own(_given(spec))


def _is_own(given: object) -> bool:
    return isinstance(given, Task) or type(given).__module__.startswith(LIBRARY)


def _given(spec: WorkloadSpec) -> object:
    """What the factory gives on the meta device."""
    with foreign_code(spec, f"cannot import {spec.factory}"):
        factory: Callable[[], Any] = import_factory(spec)
    with (
        foreign_code(spec, f"{spec.factory} fails on the meta device, on which it is built without weights"),
        torch.device("meta"),
    ):
        return factory()


def _task_of_module(spec: WorkloadSpec, factory: Callable[[], Any], module: object, size: int) -> Task:
    if not isinstance(module, nn.Module):
        raise InputError(
            f"{spec.factory} gave a {type(module).__name__}: the factory must return an nn.Module or a Task"
        )
    if type(module).__module__.startswith(LIBRARY):
        config: Any = module.config
        named = type(module).__name__
        written = {"model_type": config.model_type, "architectures": [named]}
        _, task = class_of(spec.title, written, spec.task)
        return task_of_class(spec, task, named, config, factory, size)
    example = getattr(module, "example_input", None) or functools.partial(_tokens, spec, module)
    loss = getattr(module, "loss", next_token_loss)
    answers = getattr(module, "example_targets", None) or _targets
    longest = int(getattr(module, "max_sequence_length", 0) or 0)
    usual = size or min(USUAL_TOKENS, longest or USUAL_TOKENS)
    return Task(
        name="module",
        build=factory,
        example=functools.partial(_example, example, answers),
        batches=functools.partial(_batches, example, answers, usual),
        collate=stack,
        loss=functools.partial(_plain_loss, loss),
        unit="tokens",
        size=usual,
        longest_size=longest,
    )


def _tokens(spec: WorkloadSpec, module: nn.Module, samples: int, size: int) -> Tensor:
    sizes = [child.num_embeddings for child in module.modules() if isinstance(child, nn.Embedding)]
    vocabulary = int(getattr(module, "vocab_size", 0) or (sizes[0] if sizes else 0))
    if not vocabulary:
        raise InputError(
            f"{spec.factory}: the module has no nn.Embedding, so its input is unknown: "
            "give it example_input(samples, size), or return a Task"
        )
    return torch.randint(0, vocabulary, (samples, size))


def _targets(inputs: Tensor) -> Tensor:
    """Answers of next-token prediction. Shapes: those of the inputs."""
    return torch.zeros(inputs.shape[:2], dtype=torch.long) if inputs.is_floating_point() else inputs.clone()


def _example(
    example: Callable[[int, int], Tensor], answers: Callable[[Tensor], Tensor], samples: int, size: int
) -> Batch:
    inputs = example(samples, size)
    return {"inputs": inputs, "targets": answers(inputs)}


def _batches(
    example: Callable[[int, int], Tensor], answers: Callable[[Tensor], Tensor], size: int, step: int, samples: int
) -> list[Sample]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeded(step, 0).initial_seed())
        return samples_of(_example(example, answers, samples, size))


def _plain_loss(loss: Callable[[Tensor, Tensor], Tensor], module: nn.Module, batch: Batch) -> Tensor:
    return loss(module(batch["inputs"]), batch["targets"])

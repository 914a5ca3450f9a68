"""A task from a configuration of transformers: its own class, built with random weights or from a local folder."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from profiles.errors import InputError
from profiles.inputs import limits
from profiles.inputs.foreign import shown
from profiles.models.profile import WorkloadSpec
from profiles.workloads import example_mixtures as mixtures
from profiles.workloads import examples as made
from profiles.workloads.examples import Shape
from profiles.workloads.experts import EXPERTS, register_experts
from profiles.workloads.foreign_code import foreign_code
from profiles.workloads.task import Batch, Sample, Task, module_loss, samples_of, seeded, stack
from profiles.workloads.task_names import class_of, quiet_and_offline

# Fields of a configuration, or of a part of it, that say from where others load what, and how: weights, attention
# kernels, code.
NOT_READ = ("quantization_config", "auto_map", "transformers_weights", "attn_implementation", "_attn_implementation")
# How transformers calls files of weights as safetensors, whole and in pieces.
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """What a task's batches are like, how samples make one, and its loss."""

    shape: Callable[[Any], Shape]
    example: Callable[[Any, int, int, torch.Generator], Batch]
    collate: Callable[[list[Sample]], Batch] = stack
    samples: Callable[[Batch], list[Sample]] = samples_of
    loss: Callable[[nn.Module, Batch], Tensor] = module_loss


def _images(usual: int, step: int) -> Callable[[Any], Shape]:
    return lambda config: made.image_shape(config, usual, step)


KINDS: dict[str, Kind] = {
    "causal-lm": Kind(shape=made.text_shape, example=made.language),
    "masked-lm": Kind(shape=made.text_shape, example=made.masked_language),
    "translation": Kind(shape=functools.partial(made.text_shape, usual=128), example=made.translation),
    "question-answering": Kind(shape=functools.partial(made.text_shape, usual=384), example=made.question_answering),
    "sequence-classification": Kind(shape=made.text_shape, example=made.sequence_classification),
    "token-classification": Kind(shape=made.text_shape, example=made.token_classification),
    "multiple-choice": Kind(shape=functools.partial(made.text_shape, usual=128), example=made.multiple_choice),
    "image-classification": Kind(shape=_images(made.USUAL_PIXELS, 32), example=made.image_classification),
    "object-detection": Kind(shape=_images(made.DETECTION_PIXELS, 32), example=made.object_detection),
    "semantic-segmentation": Kind(shape=_images(made.SEGMENTATION_PIXELS, 32), example=made.semantic_segmentation),
    "universal-segmentation": Kind(shape=_images(made.SEGMENTATION_PIXELS, 32), example=made.universal_segmentation),
    "mask-generation": Kind(shape=_images(1024, 64), example=mixtures.mask_generation, loss=mixtures.mask_loss),
    "image-text-matching": Kind(
        shape=functools.partial(made.text_shape, usual=77), example=made.contrastive, loss=mixtures.contrastive_loss
    ),
    "image-text-to-text": Kind(
        shape=mixtures.image_text_shape,
        example=mixtures.image_text,
        collate=mixtures.collate_image_text,
        samples=mixtures.image_text_samples,
    ),
    "ctc": Kind(
        shape=lambda config: Shape(unit="values", size=made.USUAL_VALUES, step=made.VALUES_PER_LETTER),
        example=made.speech_letters,
    ),
    "speech-to-text": Kind(shape=mixtures.speech_text_shape, example=made.speech_text),
}


def task_of_config(spec: WorkloadSpec, size: int = 0) -> Task:
    """The task that a configuration and a task's name say, its samples of `size`, or of the usual one.

    Raises: InputError where transformers has no such class, or does not take the configuration or the weights.
    """
    check_weights(spec)
    name, task = class_of(spec.title, spec.config, spec.task)
    config = read_transformers_config(spec)
    build = functools.partial(_build, spec, name)
    made = task_of_class(spec, task, name, config, build, size)
    return replace(made, weights=spec.weights, skeleton=build) if spec.weights else made


def task_of_class(
    spec: WorkloadSpec, task: str, name: str, config: Any, build: Callable[[], nn.Module], size: int = 0
) -> Task:
    """The task of a class of transformers, by its name, whose modules `build` makes."""
    kind = KINDS[task]
    shape = kind.shape(config)
    size = checked_size(spec, shape, size)
    return Task(
        name=task,
        build=build,
        example=functools.partial(_example, kind, config, name),
        batches=functools.partial(_batches, kind, config, name, size),
        collate=kind.collate,
        loss=kind.loss,
        unit=shape.unit,
        size=size,
        size_step=shape.step,
        least_size=shape.least,
        longest_size=shape.longest,
    )


def checked_size(spec: WorkloadSpec, shape: Shape, size: int) -> int:
    """The size that samples have, where one is asked for.

    Raises: InputError where the model does not take it.
    """
    if not size:
        return shape.size
    if shape.longest and size > shape.longest:
        raise InputError(
            f"{spec.title}: samples of {size} {shape.unit}: its configuration allows at most {shape.longest}"
        )
    if size < shape.least:
        raise InputError(f"{spec.title}: samples of {size} {shape.unit}: an image takes at least {shape.least} of them")
    if size % shape.step:
        raise InputError(f"{spec.title}: samples of {size} {shape.unit}: give a multiple of {shape.step}")
    return size


def read_transformers_config(spec: WorkloadSpec) -> Any:
    """The configuration as transformers has it: trained in fp32, without caches of what generating needs.

    Raises: InputError where transformers does not take it.
    """
    quiet_and_offline()
    from transformers import AutoConfig

    register_experts()
    fields = _read_fields(spec.config)
    family = str(fields.pop("model_type", ""))
    _check_numbers(spec, fields)
    with foreign_code(spec, f"{spec.title}: transformers does not accept its configuration"):
        config = AutoConfig.for_model(family, **fields)
        for part in (config, *_parts(config)):
            part.dtype = torch.float32
            if getattr(part, "use_cache", None):
                part.use_cache = False
            for name in [name for name in vars(part) if "layerdrop" in name or name == "layer_drop"]:
                # Leaving out layers at random leaves other parameters without gradients in every rank.
                setattr(part, name, 0.0)
            part._experts_implementation = EXPERTS  # documented as experts_implementation of from_pretrained
        if getattr(config, "is_encoder_decoder", False) and getattr(config, "decoder_start_token_id", None) is None:
            config.decoder_start_token_id = getattr(config, "pad_token_id", None) or 0
    return config


def _read_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: _read_fields(value) if isinstance(value, Mapping) else value
        for name, value in config.items()
        if name not in NOT_READ
    }


def _check_numbers(spec: WorkloadSpec, fields: Mapping[str, Any]) -> None:
    """Check that no number is beyond all that any model has, for each layer is built.

    Raises: InputError.
    """
    for name, value in fields.items():
        if isinstance(value, Mapping):
            _check_numbers(spec, value)
            continue
        most = limits.LAYERS if any(word in name for word in ("layer", "depth", "block")) else limits.POSITIONS
        for number in value if isinstance(value, list | tuple) else (value,):
            if isinstance(number, int) and not -most <= number <= most:
                raise InputError(f"{spec.title}: at {name}: {shown(number)} should be at most {most:,}")


def _parts(config: Any) -> list[Any]:
    names = getattr(config, "sub_configs", {})
    parts = [getattr(config, name, None) for name in names]
    return [part for part in parts if hasattr(part, "to_dict")]


def _build(spec: WorkloadSpec, name: str) -> nn.Module:
    import transformers

    config = read_transformers_config(spec)
    kind = getattr(transformers, name)
    with foreign_code(spec, f"{spec.title}: {name} cannot be built"):
        # On the meta device, where a module is traced, there is nothing to read weights into.
        is_read = spec.weights and torch.get_default_device().type != "meta"
        module: nn.Module = _with_weights(spec, kind, config) if is_read else kind(config)
        return module.train()


def _with_weights(spec: WorkloadSpec, kind: Any, config: Any) -> nn.Module:
    """The module with the weights of a folder; those that the folder lacks, as a new task's head, are new.

    Raises: InputError where it lacks all.
    """
    module: nn.Module
    module, told = kind.from_pretrained(
        Path(spec.weights),
        config=config,
        dtype=torch.float32,
        local_files_only=True,
        use_safetensors=True,
        output_loading_info=True,
    )
    if {name for name, _ in module.named_parameters()} <= set(told["missing_keys"]):
        raise InputError(f"{spec.title}: the weights in {shown(spec.weights)} are another model's: none fits")
    return module


def check_weights(spec: WorkloadSpec) -> None:
    """Check that weights are there, as safetensors: a pickle runs what its writer wants.

    Raises: InputError.
    """
    if spec.weights and not any((Path(spec.weights) / name).is_file() for name in WEIGHTS):
        raise InputError(f"{spec.title}: {shown(spec.weights)} has no {WEIGHTS[0]} to read weights from")


def _example(kind: Kind, config: Any, name: str, samples: int, size: int) -> Batch:
    return _taken(kind.example(config, samples, size, seeded(0, 0)), name, kind.loss is not module_loss)


def _batches(kind: Kind, config: Any, name: str, size: int, step: int, samples: int) -> list[Sample]:
    own_loss = kind.loss is not module_loss
    return [
        sample
        for position in range(samples)
        for sample in kind.samples(_taken(kind.example(config, 1, size, seeded(step, position)), name, own_loss))
    ]


def _taken(batch: Batch, name: str, own_loss: bool) -> Batch:
    """The values of a batch that the class's forward takes; all, where the task has a loss of its own."""
    import transformers

    arguments = inspect.signature(getattr(transformers, name).forward).parameters
    if own_loss or any(argument.kind is argument.VAR_KEYWORD for argument in arguments.values()):
        optional = {"attention_mask", "token_type_ids"} - set(arguments)
        return {key: value for key, value in batch.items() if key not in optional}
    return {key: value for key, value in batch.items() if key in arguments}

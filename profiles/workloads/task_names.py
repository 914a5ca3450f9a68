"""Tasks by name: which classes of transformers they are trained with, and what users call them otherwise."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from typing import Any

from profiles.errors import LONGEST_NAME, InputError, UnknownNameError
from profiles.inputs.foreign import shown
from profiles.models.families import BUILT_FAMILIES, VISION_FAMILIES

# Each with the table of transformers that says which class of a family does it.
TASKS = {
    "causal-lm": "CAUSAL_LM",
    "translation": "SEQ_TO_SEQ_CAUSAL_LM",
    "masked-lm": "MASKED_LM",
    "question-answering": "QUESTION_ANSWERING",
    "sequence-classification": "SEQUENCE_CLASSIFICATION",
    "token-classification": "TOKEN_CLASSIFICATION",
    "multiple-choice": "MULTIPLE_CHOICE",
    "image-classification": "IMAGE_CLASSIFICATION",
    "object-detection": "OBJECT_DETECTION",
    "semantic-segmentation": "SEMANTIC_SEGMENTATION",
    "universal-segmentation": "UNIVERSAL_SEGMENTATION",
    "mask-generation": "MASK_GENERATION",
    "image-text-matching": "ZERO_SHOT_IMAGE_CLASSIFICATION",
    "image-text-to-text": "IMAGE_TEXT_TO_TEXT",
    "ctc": "CTC",
    "speech-to-text": "SPEECH_SEQ_2_SEQ",
}
# What they are called elsewhere.
OTHER_NAMES = {
    "text-generation": "causal-lm",
    "dialogue": "causal-lm",
    "fill-mask": "masked-lm",
    "seq2seq": "translation",
    "text2text-generation": "translation",
    "summarization": "translation",
    "text-classification": "sequence-classification",
    "detection": "object-detection",
    "segmentation": "semantic-segmentation",
    "instance-segmentation": "universal-segmentation",
    "zero-shot-image-classification": "image-text-matching",
    "automatic-speech-recognition": "speech-to-text",
}
# How classes end that no table has, such as those of a family's older tasks.
ENDINGS = {
    "ForCausalLM": "causal-lm",
    "LMHeadModel": "causal-lm",
    "ForMaskedLM": "masked-lm",
    "ForQuestionAnswering": "question-answering",
    "ForQuestionAnsweringSimple": "question-answering",
    "ForSequenceClassification": "sequence-classification",
    "ForTokenClassification": "token-classification",
    "ForImageClassification": "image-classification",
    "ForObjectDetection": "object-detection",
    "ForSemanticSegmentation": "semantic-segmentation",
    "ForCTC": "ctc",
}


def quiet_and_offline() -> None:
    """Keep transformers from downloading, and from telling of libraries that it would like to have."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


def task_name(word: str) -> str:
    """The name of a task that users may call otherwise.

    Raises: UnknownNameError.
    """
    name = OTHER_NAMES.get(word, word)
    if name not in TASKS:
        raise UnknownNameError("task", word, (*TASKS, *OTHER_NAMES))
    return name


def class_of(title: str, config: Mapping[str, Any], task: str) -> tuple[str, str]:
    """The class of transformers to build, and the task it is for.

    `config` is a configuration as it is written; its `architectures` name the class unless `task` says another.
    Raises: InputError where neither is known to transformers, or the class computes no loss.
    """
    quiet_and_offline()
    import transformers

    family = str(config.get("model_type", ""))
    if family not in transformers.CONFIG_MAPPING:
        close = difflib.get_close_matches(
            family[:LONGEST_NAME].lower(), list(transformers.CONFIG_MAPPING), n=1, cutoff=0.6
        )
        hint = f"did you mean {close[0]!r}? Code from" if close else "code from"
        raise InputError(
            f"{title}: transformers {transformers.__version__} knows no model_type {shown(family)}: {hint} "
            "elsewhere is not run, give package.module:factory for a module of your own"
        )
    if task:
        name = task_name(task)
        known = tables()[name].get(family)
        if known is None:
            able = [other for other, table in tables().items() if family in table]
            raise InputError(f"{title}: no {family} is for the task {task}: there are {', '.join(able) or 'none'}")
        return _first(known), name
    return _named(title, config, family)


def _named(title: str, config: Mapping[str, Any], family: str) -> tuple[str, str]:
    """The class that the configuration names, or the only one that its family has."""
    import transformers

    able = {name: _first(table[family]) for name, table in tables().items() if family in table}
    written = config.get("architectures")
    named = str(written[0]) if isinstance(written, list | tuple) and written else ""
    if named and hasattr(transformers, named):
        for name, known in able.items():
            if known == named:
                return named, name
        for ending, name in ENDINGS.items():
            if named.endswith(ending):
                return named, name
    words = f"{named} is for no known task" if named else "its configuration names no architectures"
    usual = "image-classification" if family in VISION_FAMILIES else "causal-lm"
    if not named and family in BUILT_FAMILIES:
        return able[usual], usual
    if not named and len(able) == 1:
        ((name, known),) = able.items()
        return known, name
    raise InputError(f"{title}: {words}: give --task, for a {family} one of {', '.join(able) or 'none'}")


def tables() -> dict[str, Mapping[str, Any]]:
    """For each task, the class of each family."""
    from transformers.models.auto import modeling_auto

    return {name: getattr(modeling_auto, f"MODEL_FOR_{table}_MAPPING_NAMES") for name, table in TASKS.items()}


def _first(known: str | tuple[str, ...]) -> str:
    return known if isinstance(known, str) else known[0]

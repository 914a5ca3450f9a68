"""Turns of a user and an assistant, of which only the assistant's are learnt: a small Llama.

The dialogues are synthetic, made from a few patterns: a user tells three things and asks for two of them. What is asked
for stands in the dialogue, so that an answer is right or wrong; what is told together in dialogues that are held out is
never told together in others.
"""

from __future__ import annotations

import zlib

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from executor.examples.one_size import task_of
from executor.examples.quality import Quality, outputs
from profiles.workloads.task import Batch, Sample, Task, seeded

# Steps that train it within a minute on two cores, and samples of each.
STEPS, SAMPLES = 400, 32
# How a thing is told, asked for and answered, and what it may be.
FACTS = (
    ("i am", "who am i", "you are", "anna ben clara david emma felix greta hugo"),
    ("i live in", "where do i live", "you live in", "berlin cairo delhi lima oslo paris quito rome"),
    ("i like", "what do i like", "you like", "cider cocoa coffee juice milk tea water wine"),
    ("i have a", "what do i have", "you have a", "bird cat dog goat horse mouse snake turtle"),
    ("i work as a", "what do i do", "you work as a", "baker cook driver nurse painter pilot singer tailor"),
)
PADDING, USER, ASSISTANT, END = "<padding>", "<user>", "<assistant>", "<end>"
WORDS = sorted({word for fact in FACTS for part in fact for word in part.split()})
NUMBERS = {word: number for number, word in enumerate((PADDING, USER, ASSISTANT, END, "noted", *WORDS))}
TOLD, ASKED, SIZE = 3, 2, 64
# Of each so many things told together one is held out; so many dialogues are judged.
EVERY, HELD_OUT = 5, 300
IGNORED = -100


def build() -> nn.Module:
    """A network of transformers, its weights new."""
    module: nn.Module = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(NUMBERS), hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4,
            num_key_value_heads=4, max_position_embeddings=SIZE, use_cache=False, pad_token_id=0, bos_token_id=None,
            eos_token_id=None,
        )
    )  # fmt: skip
    return module


def dialogue(generator: torch.Generator, held_out: bool) -> list[tuple[str, str]]:
    """Turns, and what is answered to each."""
    while True:
        kinds = [FACTS[int(kind)] for kind in torch.randperm(len(FACTS), generator=generator)[:TOLD]]
        picks = [int(torch.randint(8, (), generator=generator)) for _ in kinds]
        values = [fact[3].split()[pick] for fact, pick in zip(kinds, picks, strict=True)]
        if (zlib.crc32(" ".join(sorted(values)).encode()) % EVERY == 0) == held_out:
            break
    told = [(f"{fact[0]} {value}", "noted") for fact, value in zip(kinds, values, strict=True)]
    order = torch.randperm(TOLD, generator=generator)[:ASKED].tolist()
    return told + [(kinds[place][1], f"{kinds[place][2]} {values[place]}") for place in order]


def sample(turns: list[tuple[str, str]]) -> Sample:
    """A dialogue as the numbers of its words; labels are those of the assistant's turns and of their ends."""
    tokens, is_answer = [], []
    for asked, answered in turns:
        question = [USER, *asked.split(), END, ASSISTANT]
        answer = [*answered.split(), END]
        tokens += question + answer
        is_answer += [False] * len(question) + [True] * len(answer)
    rest = SIZE - len(tokens)
    numbers = torch.tensor([NUMBERS[word] for word in tokens] + [NUMBERS[PADDING]] * rest)
    answers = torch.tensor(is_answer + [False] * rest)
    return {
        "input_ids": numbers,
        "attention_mask": (numbers != NUMBERS[PADDING]).long(),
        "labels": numbers.where(answers, IGNORED),
    }


def loss(module: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy of the next word where it is the assistant's; each dialogue counts alike, however long it is."""
    logits = module(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    wanted = batch["labels"][:, 1:]
    losses = functional.cross_entropy(logits[:, :-1].transpose(1, 2), wanted, ignore_index=IGNORED, reduction="none")
    counts: Tensor = (wanted != IGNORED).sum(1)
    return (losses.sum(1) / counts).mean()


def batches(step: int, samples: int) -> list[Sample]:
    """New dialogues in every step."""
    return [sample(dialogue(seeded(step, place), held_out=False)) for place in range(samples)]


def task() -> Task:
    """What `plan --model executor.examples.dialogue:task` trains."""
    return task_of("dialogue", build, batches, "tokens", SIZE, loss)


def quality(module: nn.Module) -> Quality:
    """The share of held-out questions answered right in every word, against one answer to all who ask the same."""
    held_out = [dialogue(seeded(-1, place), held_out=True) for place in range(HELD_OUT)]
    right = [one for batch in outputs(task(), module, [sample(turns) for turns in held_out], rights) for one in batch]
    known = [turns for place in range(HELD_OUT) for turns in dialogue(seeded(-2, place), held_out=False)[TOLD:]]
    given: dict[str, list[str]] = {}
    for asked, answered in known:
        given.setdefault(asked, []).append(answered)
    usual = {asked: max(sorted(set(answers)), key=answers.count) for asked, answers in given.items()}
    return Quality(
        measure="share of held-out questions answered right",
        value=float(np.mean(right)),
        baseline="the most frequent answer to the same question",
        baseline_value=float(np.mean([usual[asked] == turn for turns in held_out for asked, turn in turns[TOLD:]])),
    )


def rights(module: nn.Module, batch: Batch) -> list[bool]:
    """Whether each answer to a question is right: every word the likeliest after those before it."""
    found = module(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1].argmax(-1)
    wanted = batch["labels"][:, 1:]
    answers = []
    for words, labels in zip(found, wanted, strict=True):
        places = (labels != IGNORED).nonzero().flatten()
        # An answer is a run of places; the first ones, where nothing was asked, are left out.
        runs = torch.tensor_split(places, (places.diff() > 1).nonzero().flatten() + 1)[TOLD:]
        answers += [bool((words[run] == labels[run]).all()) for run in runs]
    return answers

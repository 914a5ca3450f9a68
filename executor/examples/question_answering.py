"""Where in a passage the answer stands: a small BERT on spans of Python's own help.

Real text, synthetic questions: words of the passage, with those that are asked for left out (a cloze). A search for the
question's words would answer most; a module has to learn to.
"""

from __future__ import annotations

import zlib
from typing import TypeAlias

import numpy as np
import torch
from torch import nn
from transformers import BertConfig, BertForQuestionAnswering

from executor.examples.one_size import task_of
from executor.examples.quality import Quality, outputs
from executor.examples.texts import words
from profiles.workloads.task import Batch, Sample, Task, seeded

# Steps that train it within a minute on two cores, and samples of each.
STEPS, SAMPLES = 600, 32
# Words get the number of their hash, so that those of another text have one too; the first few are marks.
VOCABULARY, PADDING, START, END, GAP = 4096, 0, 1, 2, 3
PASSAGE, AROUND, LONGEST_ANSWER = 48, 4, 3
SIZE = 1 + 2 * AROUND + 1 + 1 + PASSAGE + 1
HELD_OUT = 1000
# The first and the last word of an answer, in question and passage together.
Span: TypeAlias = tuple[int, int]


def build() -> nn.Module:
    """A network of transformers, its weights new."""
    module: nn.Module = BertForQuestionAnswering(
        BertConfig(
            vocab_size=VOCABULARY, hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4,
            max_position_embeddings=SIZE, type_vocab_size=3, initializer_range=0.1, hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    )  # fmt: skip
    return module


def number(word: str) -> int:
    """A word's number, the same in every process."""
    return zlib.crc32(word.encode()) % (VOCABULARY - GAP - 1) + GAP + 1


def sample(generator: torch.Generator, held_out: bool) -> Sample:
    """A question, a passage and where in both the answer begins and ends."""
    text = words(held_out)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=generator))

    begin, length = draw(0, len(text) - PASSAGE), draw(1, LONGEST_ANSWER + 1)
    first = draw(AROUND, PASSAGE - AROUND - length + 1)
    passage = [number(word) for word in text[begin : begin + PASSAGE]]
    question = [*passage[first - AROUND : first], GAP, *passage[first + length : first + length + AROUND]]
    before = [START, *question, END]
    tokens = [*before, *passage, END]
    return {
        "input_ids": torch.tensor(tokens),
        # What a reader sees at a glance: words of the passage that are in the question too.
        "token_type_ids": torch.tensor([0] * len(before) + [1 + (word in question) for word in passage] + [1]),
        "attention_mask": torch.ones(SIZE, dtype=torch.long),
        "start_positions": torch.tensor(len(before) + first),
        "end_positions": torch.tensor(len(before) + first + length - 1),
    }


def batches(step: int, samples: int) -> list[Sample]:
    """New questions in every step."""
    return [sample(seeded(step, place), held_out=False) for place in range(samples)]


def task() -> Task:
    """What `plan --model executor.examples.question_answering:task` trains."""
    return task_of("question-answering", build, batches, "tokens", SIZE)


def quality(module: nn.Module) -> Quality:
    """Overlap of answered and right spans in held-out topics, against the span that answers most often."""
    samples = [sample(seeded(-1, place), held_out=True) for place in range(HELD_OUT)]
    wanted = [span(one) for one in samples]
    found = [one for batch in outputs(task(), module, samples, answer) for one in batch]
    known = [span(sample(seeded(-2, place), held_out=False)) for place in range(HELD_OUT)]
    usual = max(sorted(set(known)), key=known.count)
    exact = float(np.mean([one == other for one, other in zip(found, wanted, strict=True)]))
    return Quality(
        measure="F1 of spans in held-out topics",
        value=mean_f1(found, wanted),
        baseline="the most frequent span",
        baseline_value=mean_f1([usual] * HELD_OUT, wanted),
        also=f"exact match {exact:.3f}",
    )


def span(one: Sample) -> Span:
    """Where an answer begins and ends."""
    return int(one["start_positions"]), int(one["end_positions"])


def answer(module: nn.Module, batch: Batch) -> list[Span]:
    """The likeliest span of a passage that is no longer than answers are."""
    found = module(**{name: value for name, value in batch.items() if not name.endswith("_positions")})
    scores = found.start_logits[:, :, None] + found.end_logits[:, None]
    allowed = torch.ones(SIZE, SIZE).triu().tril(LONGEST_ANSWER - 1).bool()
    best = scores.masked_fill(~allowed, -torch.inf).flatten(1).argmax(1)
    return [(int(place) // SIZE, int(place) % SIZE) for place in best]


def mean_f1(found: list[Span], wanted: list[Span]) -> float:
    """The mean harmonic mean of precision and recall of words."""
    overlaps = [
        2 * max(0, min(one[1], other[1]) - max(one[0], other[0]) + 1) / (one[1] - one[0] + other[1] - other[0] + 2)
        for one, other in zip(found, wanted, strict=True)
    ]
    return float(np.mean(overlaps))

"""English to German, sentences that people translated: a small BART, an encoder and a decoder, on letters.

The pairs are those of Django's interface, a few hundred short ones. That is enough to learn how the two languages are
written and some of the words, not to translate: the numbers say so.
"""

from __future__ import annotations

import functools
from collections import Counter

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import BartConfig, BartForConditionalGeneration

from executor.examples.locales import pairs
from executor.examples.one_size import task_of
from executor.examples.quality import Quality, outputs
from profiles.workloads.task import Batch, Sample, Task, seeded

# Steps that train it within a minute on two cores, and samples of each.
STEPS, SAMPLES = 900, 32
LANGUAGE = "de"
PADDING, START, END, UNKNOWN = range(4)
IGNORED = -100
SIZE = 32


@functools.cache
def letters() -> dict[str, int]:
    """Letters of the pairs to learn from, and their numbers."""
    seen = sorted({letter for pair in pairs(LANGUAGE, held_out=False) for text in pair for letter in text})
    return {letter: number for number, letter in enumerate(seen, UNKNOWN + 1)}


def numbers(text: str) -> list[int]:
    """A text as numbers, with its end."""
    return [letters().get(letter, UNKNOWN) for letter in text[: SIZE - 1]] + [END]


def build() -> nn.Module:
    """A network of transformers, its weights new."""
    module: nn.Module = BartForConditionalGeneration(
        BartConfig(
            vocab_size=UNKNOWN + 1 + len(letters()), d_model=128, encoder_layers=2, decoder_layers=2,
            encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=256, decoder_ffn_dim=256,
            max_position_embeddings=SIZE, dropout=0.3, pad_token_id=PADDING, bos_token_id=START, eos_token_id=END,
            decoder_start_token_id=START, forced_eos_token_id=None, use_cache=False,
        )
    )  # fmt: skip
    return module


def sample(english: str, german: str) -> Sample:
    """A pair by the names that the module's forward has for it; it shifts the labels itself."""
    source, target = numbers(english), numbers(german)
    return {
        "input_ids": filled(source, PADDING),
        "attention_mask": filled([1] * len(source), 0),
        "labels": filled(target, IGNORED),
    }


def filled(values: list[int], rest: int) -> Tensor:
    """Values, and as many more as a sample has."""
    return torch.tensor(values + [rest] * (SIZE - len(values)))


def loss(module: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy of the German letters; each sentence counts alike, however long it is."""
    logits = module(**batch).logits
    losses = functional.cross_entropy(logits.transpose(1, 2), batch["labels"], ignore_index=IGNORED, reduction="none")
    counts: Tensor = (batch["labels"] != IGNORED).sum(1)
    return (losses.sum(1) / counts).mean()


def batches(step: int, samples: int) -> list[Sample]:
    """Pairs of one step, drawn at random."""
    known = pairs(LANGUAGE, held_out=False)
    chosen = torch.randint(len(known), (samples,), generator=seeded(step, 0))
    return [sample(*known[int(index)]) for index in chosen]


def task() -> Task:
    """What `plan --model executor.examples.translation:task` trains."""
    return task_of("translation", build, batches, "tokens", SIZE, loss)


def quality(module: nn.Module) -> Quality:
    """The share of held-out German letters guessed from those before and the English, against guessing from two before.

    Beside it chrF of whole translations, against that of leaving the English as it is.
    """
    unseen = pairs(LANGUAGE, held_out=True)
    samples = [sample(*pair) for pair in unseen]
    wanted = torch.stack([one["labels"] for one in samples])
    guesses = outputs(task(), module, samples, lambda module, batch: module(**batch).logits.argmax(-1))
    texts = [text for batch in outputs(task(), module, samples, translate) for text in batch]
    german = [one for _, one in unseen]
    copied = chrf([one for one, _ in unseen], german)
    return Quality(
        measure="share of held-out German letters guessed right",
        value=accuracy(torch.cat(guesses), wanted),
        baseline="the most frequent letter after the two before",
        baseline_value=accuracy(frequent(wanted), wanted),
        also=f"chrF {chrf(texts, german):.3f}, of copying {copied:.3f}",
    )


def accuracy(guesses: Tensor, wanted: Tensor) -> float:
    """The share of what is wanted that is guessed."""
    return float((guesses == wanted)[wanted != IGNORED].float().mean())


def frequent(wanted: Tensor) -> Tensor:
    """The letter that follows the two before it most often in training. Shapes: (sentence, SIZE) both."""
    counts: dict[tuple[int, ...], Counter[int]] = {}
    for _, german in pairs(LANGUAGE, held_out=False):
        text = [START, START, *numbers(german)]
        for place in range(2, len(text)):
            for before in ((text[place - 2], text[place - 1]), (text[place - 1],), ()):
                counts.setdefault(before, Counter())[text[place]] += 1
    start = torch.full((len(wanted), 2), START)
    rows = torch.cat([start, wanted], 1).tolist()
    return torch.tensor([[best(counts, row[place], row[place + 1]) for place in range(SIZE)] for row in rows])


def best(counts: dict[tuple[int, ...], Counter[int]], first: int, second: int) -> int:
    """The most frequent of what followed, or of what followed the second alone, or of all."""
    found = counts.get((first, second)) or counts.get((second,)) or counts[()]
    return found.most_common(1)[0][0]


def translate(module: nn.Module, batch: Batch) -> list[str]:
    """Translations, the likeliest letter at a time."""
    english = {name: batch[name] for name in ("input_ids", "attention_mask")}
    german = torch.full((len(batch["input_ids"]), 1), START)
    for _ in range(SIZE - 1):
        likeliest = module(**english, decoder_input_ids=german).logits[:, -1].argmax(-1, keepdim=True)
        german = torch.cat([german, likeliest], 1)
    names = {number: letter for letter, number in letters().items()}
    texts = ([int(number) for number in row] for row in german[:, 1:])
    return ["".join(names.get(one, "") for one in (row[: row.index(END)] if END in row else row)) for row in texts]


def chrf(texts: list[str], wanted: list[str], longest: int = 6, recall_weight: float = 2.0) -> float:
    """F score of runs of one to six letters, over all texts, without spaces, recall counting twice (Popovic 2015)."""
    precisions, recalls = [], []
    for length in range(1, longest + 1):
        found, right = runs(texts, length), runs(wanted, length)
        both = (found & right).total()
        precisions.append(both / max(found.total(), 1))
        recalls.append(both / max(right.total(), 1))
    precision, recall, weight = float(np.mean(precisions)), float(np.mean(recalls)), recall_weight**2
    return (1 + weight) * precision * recall / max(weight * precision + recall, 1e-9)


def runs(texts: list[str], length: int) -> Counter[tuple[int, str]]:
    """How often each run of letters stands in each of the texts."""
    whole = [text.replace(" ", "") for text in texts]
    return Counter(
        (place, text[start : start + length])
        for place, text in enumerate(whole)
        for start in range(len(text) - length + 1)
    )

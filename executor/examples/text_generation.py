"""The next byte of Python's own help: a small Llama."""

from __future__ import annotations

import functools
import math

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from executor.examples.one_size import task_of
from executor.examples.quality import Quality, outputs
from executor.examples.texts import topics
from profiles.workloads.task import Sample, Task, seeded

# Steps that train it within a minute on two cores, and samples of each.
STEPS, SAMPLES = 250, 16
NUM_BYTES = 256
SIZE = 128


def build() -> nn.Module:
    """A network of transformers, its weights new."""
    module: nn.Module = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=NUM_BYTES, hidden_size=128, intermediate_size=256, num_hidden_layers=3, num_attention_heads=4,
            num_key_value_heads=4, max_position_embeddings=SIZE, use_cache=False, pad_token_id=None, bos_token_id=None,
            eos_token_id=None,
        )
    )  # fmt: skip
    return module


@functools.cache
def text(held_out: bool) -> npt.NDArray[np.uint8]:
    """The topics as bytes."""
    return np.frombuffer("\n".join(topics(held_out)).encode(), dtype=np.uint8)


def sample(start: int, held_out: bool) -> Sample:
    """One window of the text. The module shifts the labels itself."""
    window = torch.from_numpy(text(held_out)[start : start + SIZE].astype(np.int64))
    return {"input_ids": window, "labels": window}


def batches(step: int, samples: int) -> list[Sample]:
    """Windows of one step, drawn at random."""
    starts = torch.randint(len(text(held_out=False)) - SIZE, (samples,), generator=seeded(step, 0))
    return [sample(int(start), held_out=False) for start in starts]


def task() -> Task:
    """What `plan --model executor.examples.text_generation:task` trains."""
    return task_of("text-generation", build, batches, "tokens", SIZE)


def quality(module: nn.Module) -> Quality:
    """Bits that a byte of the held-out topics takes, against those that it takes when only the one before is known."""
    known, unseen = text(held_out=False), text(held_out=True)
    samples = [sample(start, held_out=True) for start in range(0, len(unseen) - SIZE, SIZE)]
    losses = outputs(task(), module, samples, lambda module, batch: module(**batch).loss * len(batch["labels"]))
    counts = np.ones((NUM_BYTES, NUM_BYTES))
    np.add.at(counts, (known[:-1], known[1:]), 1)
    shares = counts / counts.sum(1, keepdims=True)
    return Quality(
        measure="bits per byte of held-out topics",
        value=float(sum(losses)) / len(samples) / math.log(2),
        baseline="counts of pairs of bytes",
        baseline_value=float(-np.log2(shares[unseen[:-1], unseen[1:]]).mean()),
        higher_is_better=False,
    )

"""What a model is worth on this device: its bytes, how long an answer takes, and its loss on text it has not seen."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from executor.compress.fake_quantise import stored_tensors
from profiles.workloads.workload import Workload

CHUNK = 8
WARMUP_CALLS, NUM_CALLS = 3, 15


def num_stored_bytes(model: nn.Module) -> int:
    """Bytes of the model's weights as they lie in memory."""
    return sum(tensor.numel() * tensor.element_size() for tensor in stored_tensors(model))


def num_zeros(model: nn.Module) -> int:
    """Weights of matrices that are zero."""
    return sum(int((p == 0).sum()) for p in model.parameters() if p.dim() == 2 and type(p.data) is Tensor)


@torch.no_grad()
def held_out(
    model: Callable[[Tensor], Tensor], workload: Workload, batch: tuple[Tensor, Tensor]
) -> tuple[float, float]:
    """Mean loss over held-out samples, and the share of answers whose likeliest is right.

    Shapes: inputs (sample, ...), targets (sample, ...), one for each of the model's answers.
    """
    inputs, targets = batch
    loss = right = 0.0
    for given, wanted in zip(inputs.split(CHUNK), targets.split(CHUNK), strict=True):
        answers = model(given)
        loss += float(workload.loss(answers, wanted)) * len(given) / len(inputs)
        right += float((answers.argmax(dim=-1) == wanted).sum()) / targets.numel()
    return loss, right


def compiled_latencies(models: Mapping[str, nn.Module], tokens: Tensor) -> dict[str, float]:
    """Seconds of one forward pass under torch.compile, layer by layer, models in turns; compiles them where they are.

    Models that torch cannot compile are left out.
    """
    ready = {}
    for name, model in models.items():
        for layer in model.children():
            layer.compile()
        try:
            with torch.inference_mode():
                model(tokens)
        except RuntimeError:  # all that torch.compile raises is one
            continue
        ready[name] = model
    return {name: seconds for name, (seconds, _) in latencies(ready, tokens).items()}


@torch.inference_mode()
def latencies(models: Mapping[str, nn.Module], tokens: Tensor) -> dict[str, tuple[float, float]]:
    """Seconds of one forward pass of `tokens` and their spread (interquartile range over median), models in turns."""
    return in_turns({name: functools.partial(model, tokens) for name, model in models.items()}, tokens)


def in_turns(calls: Mapping[str, Callable[[], object]], tokens: Tensor) -> dict[str, tuple[float, float]]:
    """Seconds of each call and their spread, the calls in turns, on the device of `tokens`."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(WARMUP_CALLS + NUM_CALLS):
        for name, call in calls.items():
            _synchronise(tokens)
            start = time.perf_counter()
            call()
            _synchronise(tokens)
            if number >= WARMUP_CALLS:
                taken[name].append(time.perf_counter() - start)
    return {name: _middle(values) for name, values in taken.items()}


def _middle(values: Sequence[float]) -> tuple[float, float]:
    low, middle, high = statistics.quantiles(values, n=4)
    return middle, (high - low) / middle


def _synchronise(tokens: Tensor) -> None:
    if tokens.is_cuda:
        torch.cuda.synchronize()

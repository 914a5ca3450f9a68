"""What a workload is: layers in order, each built alone and seeded by its position, its batches and its loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from profiles.errors import InputError
from profiles.models.families import BlockPaths, Style
from profiles.models.profile import WorkloadSpec
from profiles.workloads.adapted import adapt
from profiles.workloads.foreign_code import foreign_code
from profiles.workloads.randomness import begin_random, random_kept
from profiles.workloads.task import Task


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSpec:
    """One layer position: `build` makes the module, `styles` says how tensor parallel splits its linears."""

    name: str
    build: Callable[[], nn.Module]
    styles: dict[str, Style] = field(default_factory=dict)
    paths: BlockPaths = field(default_factory=BlockPaths)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """A model to train: its layers in order and what the planner asks about its sizes.

    `answers_once`: one answer for a whole sample, rather than one for each token of it. `whole` builds a user's model
    at once, with weights that its own code gives them; `shared_weights` are names of those that several of its layers
    share, and `num_shared` how many parameters are counted twice for it. With a `task`, its module is trained as it is:
    then layers are only counted, as what runs before its blocks, each block, and what runs behind them.
    """

    spec: WorkloadSpec
    layers: tuple[LayerSpec, ...]
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    ffn_size: int
    vocab_size: int
    max_sequence_length: int
    tied_embeddings: bool
    example_input: Callable[[int, int], Tensor]
    loss: Callable[[Tensor, Tensor], Tensor]
    num_experts: int = 0
    experts_per_token: int = 0
    answers_once: bool = False
    whole: Callable[[], nn.Sequential] | None = None
    shared_weights: tuple[str, ...] = ()
    num_shared: int = 0
    task: Task | None = None

    def example_targets(self, inputs: Tensor) -> Tensor:
        """Answers of the right shape for some inputs, all 0. Shapes: (batch,), or (batch, sequence)."""
        return torch.zeros(inputs.shape[: 1 if self.answers_once else 2], dtype=torch.long, device=inputs.device)

    @property
    def can_tensor_parallel(self) -> bool:
        """Whether any layer says how to split its linears; adapters beside them are not split.

        A task's module is asked when it is built.
        """
        splits = self.task is not None or any(layer.styles for layer in self.layers)
        return splits and not self.spec.adapters.freezes

    @property
    def can_pipeline(self) -> bool:
        """Whether the model is a sequence that can be cut; a tied weight would sit on two stages."""
        return len(self.layers) > 1 and not (self.tied_embeddings or self.shared_weights)

    def build_layer(self, position: int) -> nn.Module:
        """The layer at `position`, its weights as its own code leaves them, with adapters where those are trained.

        Raises: InputError where its code fails.
        """
        return adapt(self._build_bare(position), self.spec.adapters)

    def _build_bare(self, position: int) -> nn.Module:
        layer = self.layers[position]
        with foreign_code(self.spec, f"{self.spec.title}: layer {layer.name} cannot be built"):
            return layer.build()

    def build(self, start: int, stop: int, seed: int) -> nn.Sequential:
        """Layers `start` to `stop` with their initial weights, as `each` builds them."""
        return nn.Sequential(*self.each(start, stop, seed))

    def each(self, start: int, stop: int, seed: int) -> Iterator[nn.Module]:
        """Layers `start` to `stop` one after the other, with initial weights that depend on `seed` and position alone.

        A user's own code chooses its weights itself, all of them at once: layers that share one go on doing so. What
        adapters are beside has the weights that it has without them.
        """
        if self.whole is not None:
            with random_kept(), foreign_code(self.spec, f"{self.spec.title} cannot be built"):
                begin_random(seed)
                layers = list(self.whole())[start:stop]
            self._check_values(layers)
            yield from layers
            return
        first: nn.Module | None = None
        for position in range(start, stop):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed * 100_003 + position)
                layer = self._build_bare(position)
                _initialise(layer)
                layer = adapt(layer, self.spec.adapters)
            if self.shares_ends(start, stop):
                first = layer if first is None else first
                if position == stop - 1:
                    layer.get_submodule("projection").weight = first.get_parameter("tokens.weight")
            yield layer

    def _check_values(self, layers: Iterable[nn.Module]) -> None:
        """Check that a user's own code gave its weights values, unless it was asked for none."""
        if torch.get_default_device().type == "meta":
            return
        for layer in layers:
            for name, own in layer.named_parameters():
                if own.is_meta:
                    raise InputError(
                        f"{self.spec.title} leaves {name} of a {type(layer).__name__} on the meta device: let its "
                        "factory build it with weights"
                    )

    def shares_ends(self, start: int, stop: int) -> bool:
        """Whether the first and the last of these layers share a weight."""
        return self.tied_embeddings and start == 0 and stop == len(self.layers)


def next_token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy in fp32. Shapes: logits (batch, sequence, vocabulary), targets (batch, sequence)."""
    return nn.functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten())


def token_ids(vocab_size: int, batch: int, sequence: int) -> Tensor:
    """Random tokens. Shapes: (batch, sequence)."""
    return torch.randint(0, vocab_size, (batch, sequence))


def _initialise(module: nn.Module) -> None:
    """GPT-2's initialisation: normal weights of deviation 0.02, biases 0, norms 1."""
    for name, parameter in module.named_parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.02)
        else:
            nn.init.constant_(parameter, 0.0 if name.endswith("bias") else 1.0)

"""A traced model where sizes of a transformer are asked for: every distinct layer is a kind of its own. Torch-free."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from profiles.models.cutting import nearest
from profiles.models.layer_profile import LayerProfile
from profiles.models.operators import Polynomial, evaluate
from profiles.models.profile import ModelProfile
from profiles.models.transformer import Array, Flags, Transformer

FLAGS = ("gated", "tied", "biases")


@dataclass(frozen=True, slots=True, kw_only=True)
class TracedSizes(Transformer):
    """A traced model at one precision and one length of sequence, as one or several entries that are alike.

    `num_layers` counts all of its layers, the first and the last among them, and `hidden_size` the numbers per token
    that a layer in the midst hands on. It has no vocabulary that could be split, nor attention whose place is known.
    """

    profile: ModelProfile
    precision: str
    sequence_length: int

    def take(self, index: NDArray[np.int64] | Flags) -> TracedSizes:
        """As many entries as are at `index`."""
        return replace(self, **{field.name: getattr(self, field.name)[index] for field in fields(Transformer)})

    @property
    def layers(self) -> tuple[LayerProfile, ...]:
        """The distinct layers."""
        return self.profile.precision_layers(self.precision)

    def layer(self, kind: str) -> LayerProfile:
        """The layer that a kind is."""
        return self.layers[self.kinds.index(kind)]

    def shared(self, kind: str) -> dict[int, LayerProfile]:
        """The same as ranks have it that share experts, by how many those are."""
        place = self.kinds.index(kind)
        return {degree: layers[place] for degree, layers in self.profile.sharing.at(self.precision).items()}

    def on_rank(
        self, size: Callable[[LayerProfile], Polynomial], kind: str, batch: Array, tensor: Array, expert: Array
    ) -> Array:
        """A size of a layer on one of the ranks that split its linears or share its experts. Shapes: all alike."""
        result = self.at(size(self.layer(kind)), batch, tensor)
        for degree, layer in self.shared(kind).items():
            if (own := expert == degree).any():
                result = np.where(own, self.at(size(layer), batch, tensor), result)
        return result

    def routed_parameters(self, kind: str, expert: Array) -> Array:
        """Trained parameters of all experts of a layer, where `expert` ranks share them; else they are as others."""
        one = np.ones(len(expert))
        own = self.on_rank(lambda layer: layer.num_expert_parameters, kind, one, one, expert)
        return np.where(expert > 1, own * expert, 0.0)

    def at(self, polynomial: Polynomial, batch: Array, tensor: Array) -> Array:
        """A size of a layer. Shapes: broadcast."""
        return evaluate(polynomial, batch, float(self.sequence_length), tensor)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The names of the distinct layers, in the order in which they first stand."""
        # Names of layers may be those of the ends that other models have.
        return tuple(f"layer {layer.name}" for layer in self.layers)

    @property
    def first_position(self) -> int:
        """Its layers are counted from the first on."""
        return 0

    @property
    def num_positions(self) -> int:
        """All of its layers."""
        return self.profile.num_layers

    @property
    def is_alike(self) -> bool:
        """Whether there is one kind of layer alone: stages differ where layers do."""
        return len(self.kinds) == 1

    @property
    def can_cut_anywhere(self) -> bool:
        """Whether it is a list of layers, rather than a module that is cut where its trace says."""
        return not self.profile.cutting.positions

    def cut_near(self, bounds: tuple[int, ...]) -> tuple[int, ...]:
        """Where stages begin that should begin behind so many layers: where they can."""
        return bounds if self.can_cut_anywhere else nearest(bounds, self.profile.cutting.positions)

    def received_bytes(self, position: Array, batch: Array) -> Array:
        """Bytes that come to stages that begin at some positions; 0 where none can. Shapes: both alike."""
        result, cuts = np.zeros(np.shape(position)), self.profile.cutting
        for place in set(np.unique(position).astype(int).tolist()) & set(cuts.positions):
            own = position == place
            received = cuts.received_at(place, self.precision)
            result[own] = evaluate(received, batch[own], float(self.sequence_length), 1.0)
        return result

    def shared_parameters(self, start: Array, stop: Array) -> Array:
        """Parameters that stages of some layers hold beside those of their layers. Shapes: both alike."""
        result = np.zeros(np.shape(start))
        for own in self.profile.cutting.shared:
            places = np.array(own.positions)
            is_used = np.searchsorted(places, stop) > np.searchsorted(places, start)
            result += own.num_parameters * (is_used & (places[0] < start))
        return result

    def can_recompute(self, kind: str) -> bool:
        """Whether recomputation covers layers of a kind: all but the model's first and last."""
        ends = {self.profile.structure[0], self.profile.structure[-1]}
        return self.kinds.index(kind) not in ends

    def num_of(self, kind: str) -> Array:
        """Layers of a kind."""
        return np.full(len(self.num_layers), float(self.profile.structure.count(self.kinds.index(kind))))

    def num_before(self, kind: str, position: Array) -> Array:
        """Layers of a kind among the first `position` layers. Shapes: that of `position`."""
        own = np.array(self.profile.structure) == self.kinds.index(kind)
        counts = np.concatenate([[0.0], np.cumsum(own)])
        places = np.arange(len(counts), dtype=float)
        # Chunks of a stage may begin within a layer.
        return np.asarray(np.interp(position, places, counts))

    def parameters_of(self, kind: str) -> tuple[Array, Array]:
        """Parameters of a layer of a kind: none is routed, but where ranks share experts."""
        one = np.ones(len(self.num_layers))
        return self.at(self.layer(kind).num_parameters, one, one), 0 * one

    def num_matrices(self, kind: str) -> Array:
        """One, of all: how many a traced layer has is not said."""
        return np.ones(len(self.num_layers))

    @property
    def dense_layer_parameters(self) -> Array:
        """Parameters of a layer, as a mean over all."""
        return np.asarray(sum(self.num_of(kind) * self.parameters_of(kind)[0] for kind in self.kinds) / self.num_layers)

    @property
    def embedding_parameters(self) -> Array:
        """None beside its layers'."""
        return np.zeros(len(self.num_layers))

    @property
    def head_parameters(self) -> Array:
        """None beside its layers'."""
        return np.zeros(len(self.num_layers))

    @property
    def num_parameters(self) -> Array:
        """All parameters."""
        return np.full(len(self.num_layers), float(self.profile.num_parameters))

    @property
    def linear_sizes(self) -> tuple[float, float]:
        """Weights of all matrices, and their rows and columns together."""
        layers = list(self.profile.each_layer(self.precision))
        whole, vectors, sides = (
            sum(float(evaluate(getattr(layer, name), 1, self.sequence_length, 1)) for layer in layers)
            for name in ("num_parameters", "num_vector_parameters", "matrix_sides")
        )
        return max(whole - vectors, 1.0), sides

    def flops_per_sample(self, sequence: int) -> float:
        """FLOPs that a training step must do for a sample."""
        return self.profile.model_flops(1, sequence)


def is_of_task(model: Transformer) -> bool:
    """Whether a model is a task's own module."""
    return isinstance(model, TracedSizes) and bool(model.profile.workload.task)


def traced_sizes(profile: ModelProfile, precision: str, sequence_length: int) -> TracedSizes:
    """The sizes of a traced model, as one entry."""
    layers, structure = profile.precision_layers(precision), profile.structure
    middle = layers[structure[len(structure) // 2]]
    element = 4.0 if precision in ("fp32", "tf32") else 2.0
    output = float(evaluate(middle.output_bytes, 1, sequence_length, 1))
    if not output:
        # It takes part in no gradient, as a backbone that is frozen.
        output = max(element, *(float(evaluate(layer.output_bytes, 1, sequence_length, 1)) for layer in layers))
    sizes = {
        "num_layers": profile.num_layers,
        "hidden_size": output / element / sequence_length,
        "ffn_size": profile.ffn_size,
        "num_heads": profile.num_heads,
        "num_kv_heads": profile.num_kv_heads,
        "head_dim": profile.hidden_size / profile.num_heads,
    }
    columns = {field.name: sizes.get(field.name, 0.0) for field in fields(Transformer)}
    return TracedSizes(
        **{name: np.array([value], dtype=bool if name in FLAGS else float) for name, value in columns.items()},
        profile=profile,
        precision=precision,
        sequence_length=sequence_length,
    )

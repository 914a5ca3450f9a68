"""A model as the planner sees it: an ordered list of layers, each a list of operators. Torch-free."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

from profiles.artifacts import STRICT
from profiles.errors import ArtifactError
from profiles.inputs.ranges import Count, Whole
from profiles.models.adapters import EVERYTHING, Adapters
from profiles.models.cutting import Cutting
from profiles.models.families import VISION_FAMILIES
from profiles.models.hf_config import check_given
from profiles.models.layer_profile import LayerProfile
from profiles.models.operators import NUM_DIMS, evaluate
from profiles.models.sharing import SHARES, Sharing
from profiles.models.splitting import DEGREES, Splitting

if TYPE_CHECKING:
    import networkx
    import pandas

Precision = Literal["fp32", "tf32", "bf16", "fp16", "fp8"]
PRECISIONS: tuple[str, ...] = get_args(Precision)
# Those that a model is traced at unless others are asked for.
USUAL_PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")
# Those in which activations, and weights that FSDP gathers, have 16 bits.
MIXED = ("bf16", "fp16", "fp8")
# That whose smallest numbers are larger than many gradients: losses are scaled up, and gradients down again.
SCALED = "fp16"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadSpec:
    """What is trained, enough to build it: a transformers configuration or the user's own factory.

    `adapters` say what of it is trained. `task` says what it is trained for, where its own module is trained rather
    than blocks of a known family; `weights` is a local folder that they are read from.
    """

    __pydantic_config__ = STRICT

    kind: Literal["transformers", "module"]
    name: str
    config: dict[str, Any] = field(default_factory=dict)
    factory: str = ""
    adapters: Adapters = EVERYTHING
    task: str = ""
    weights: str = ""

    @property
    def reads_text(self) -> bool:
        """Whether it is a transformer of tokens, with norms, attention and vocabulary where they are expected."""
        is_family = self.kind == "transformers" and not self.task
        return is_family and self.config.get("model_type") not in VISION_FAMILIES

    def check(self) -> None:
        """Check what the configuration says, for a file from elsewhere may say anything.

        Raises: ArtifactError.
        """
        check_given(self.name, self.config)
        self.adapters.check(self.name)

    @property
    def module(self) -> str:
        """The module that the factory stands in; "" where transformers builds the model."""
        return self.factory.partition(":")[0] if self.kind == "module" else ""

    @property
    def title(self) -> str:
        """What it is called in an error."""
        return self.factory if self.kind == "module" else f"model {self.name}"

    @property
    def digest(self) -> str:
        """Twelve hexadecimal digits that identify this workload."""
        said = {name: value for name, value in asdict(self).items() if value or name not in ("task", "weights")}
        if not self.adapters.freezes:
            # As it was before there were any.
            del said["adapters"]
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:12]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelProfile:
    """A traced model: its distinct layers at each precision, and the order in which they stand.

    `num_shared` parameters stand in more than one layer of a user's own, beyond the first. Of a task's module, samples
    are counted in `unit`, and `usual_size` of those is usual; `is_fixed` where they have one size alone. `traced_for`
    is the kind of device where its dropout is that of one: "cpu", "cuda", or "". `cutting` is how its forward pass is
    cut into stages, `splitting` over how many tensor-parallel ranks it is split, `sharing` over how many those
    are that share its experts.
    """

    __pydantic_config__ = STRICT

    name: str
    workload: WorkloadSpec
    hidden_size: Whole
    num_heads: Count
    num_kv_heads: Count
    ffn_size: Whole
    vocab_size: Whole
    max_sequence_length: Whole
    tied_embeddings: bool
    can_tensor_parallel: bool
    can_pipeline: bool
    structure: tuple[Whole, ...]
    layers: dict[str, tuple[LayerProfile, ...]]
    traced_with: str
    num_experts: Whole = 0
    experts_per_token: Whole = 0
    num_shared: Whole = 0
    unit: str = ""
    usual_size: Whole = 0
    is_fixed: bool = False
    traced_for: str = ""
    cutting: Cutting = Cutting()
    splitting: Splitting = Splitting()
    sharing: Sharing = Sharing()

    def check(self) -> None:
        """Check what its parts say of each other, and its workload.

        Raises: ArtifactError.
        """
        self.workload.check()
        self._check_sizes()
        known = {len(layers) for layers in self.layers.values()}
        if len(known) != 1 or not self.structure or max(self.structure) >= min(known):
            raise ArtifactError(
                f"model profile {self.name}: at structure: it should name only layers of all precisions: trace again"
            )
        self._check_cutting()
        if not set(self.splitting.degrees) <= set(DEGREES):
            raise ArtifactError(f"model profile {self.name}: at splitting: degrees should be of {DEGREES}: trace again")
        self._check_sharing()
        for layer in self._every_layer():
            for index, operator in enumerate(layer.operators):
                if len(operator.dims) != NUM_DIMS[operator.kind]:
                    raise ArtifactError(
                        f"model profile {self.name}: at {layer.name}: operator {index} should have "
                        f"{NUM_DIMS[operator.kind]} dims, as any {operator.kind}"
                    )
                if any(source >= index for source in operator.inputs):
                    raise ArtifactError(
                        f"model profile {self.name}: at {layer.name}: operator {index} takes inputs of later ones"
                    )

    def _every_layer(self) -> Iterator[LayerProfile]:
        """All that it says of layers, as ranks that share experts have them too."""
        for layers in (*self.layers.values(), *(one for own in self.sharing.layers.values() for one in own)):
            yield from layers

    def _check_sharing(self) -> None:
        own, counts = self.sharing, {len(layers) for layers in self.layers.values()}
        if not set(own.degrees) <= set(SHARES):
            raise ArtifactError(f"model profile {self.name}: at sharing: degrees should be of {SHARES}: trace again")
        if any(
            len(shared) != len(own.degrees) or any(len(layers) not in counts for layers in shared)
            for shared in own.layers.values()
        ):
            raise ArtifactError(
                f"model profile {self.name}: at sharing: it should have every layer at each degree: trace again"
            )

    def _check_cutting(self) -> None:
        cuts, where = self.cutting, f"model profile {self.name}: at cutting:"
        places = [cuts.positions, *(own.positions for own in cuts.shared)]
        for positions in places:
            if list(positions) != sorted(set(positions)) or (positions and positions[-1] >= self.num_layers):
                raise ArtifactError(
                    f"{where} positions should rise, and be of its {self.num_layers} layers: trace again"
                )
        received = cuts.received_bytes
        if cuts.positions and (
            cuts.positions[0] == 0
            or received.keys() != self.layers.keys()
            or any(len(own) != len(cuts.positions) for own in received.values())
        ):
            raise ArtifactError(f"{where} received_bytes should say what each position receives: trace again")

    def _check_sizes(self) -> None:
        if self.workload.kind != "transformers" or self.workload.task:
            return
        for name in ("hidden_size", "ffn_size", "vocab_size"):
            if not getattr(self, name):
                raise ArtifactError(f"model profile {self.name}: at {name}: 0 should be at least 1")
        if self.num_heads % self.num_kv_heads:
            words = f"{self.num_kv_heads} should divide num_heads, {self.num_heads}"
            raise ArtifactError(f"model profile {self.name}: at num_kv_heads: {words}")

    @property
    def num_layers(self) -> int:
        """Number of layer positions, embedding and head included."""
        return len(self.structure)

    def precision_layers(self, precision: str) -> tuple[LayerProfile, ...]:
        """The distinct layers at `precision`.

        Raises: KeyError where the model was not traced at that precision.
        """
        return self.layers[precision]

    def each_layer(self, precision: str) -> Iterator[LayerProfile]:
        """The layers in model order, repeated ones repeated."""
        distinct = self.layers[precision]
        return (distinct[index] for index in self.structure)

    @property
    def num_parameters(self) -> int:
        """Parameters of the whole model; tied ones count once."""
        layers = next(iter(self.layers))
        total = sum(float(evaluate(layer.num_parameters, 1, 1, 1)) for layer in self.each_layer(layers))
        return round(total - self.num_shared - (self.vocab_size * self.hidden_size if self.tied_embeddings else 0))

    def model_flops(self, batch: int, sequence: int) -> float:
        """FLOPs a training step must do for `batch` samples: three times the forward pass, no recomputation."""
        layers = next(iter(self.layers))
        return 3 * sum(float(evaluate(layer.flops("forward"), batch, sequence, 1)) for layer in self.each_layer(layers))

    def graph(self, precision: str = "fp32") -> networkx.DiGraph:
        """The distinct layers' operators as a graph; nodes carry the Operator, edges follow the data."""
        import networkx

        graph = networkx.DiGraph(name=self.name)
        for layer in self.layers[precision]:
            for index, op in enumerate(layer.operators):
                graph.add_node((layer.name, index), operator=op)
                graph.add_edges_from(((layer.name, source), (layer.name, index)) for source in op.inputs)
        return graph

    def to_frame(self, batch: int = 1, sequence: int = 512, precision: str = "fp32") -> pandas.DataFrame:
        """One row per operator of each distinct layer, evaluated at `batch` and `sequence` without tensor parallel."""
        import pandas

        at = (batch, sequence, 1)
        rows = [
            {
                "layer": layer.name,
                "count": self.structure.count(position),
                "operator": op.name,
                "kind": op.kind,
                "phase": op.phase,
                "path": op.path,
                "shape": "x".join(f"{float(evaluate(dim, *at)):.0f}" for dim in op.dims),
                "flops": float(evaluate(op.flops, *at)),
                "read_bytes": float(evaluate(op.read_bytes, *at)),
                "written_bytes": float(evaluate(op.written_bytes, *at)),
                "saved_bytes": float(evaluate(op.saved_bytes, *at)),
            }
            for position, layer in enumerate(self.layers[precision])
            for op in layer.operators
        ]
        return pandas.DataFrame(rows)

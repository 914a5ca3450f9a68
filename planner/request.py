"""What plans are asked for, as a command line or a notebook says it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from planner.plans import DEFAULT_SAMPLES_PER_DEVICE, DEFAULT_SEQUENCE_LENGTH
from profiles.codecs.codec import codec
from profiles.errors import InputError
from profiles.inputs import limits
from profiles.library import NOTHING, Asked, load_model, load_sizes, trace_sizes
from profiles.machines.clusters import Cluster, MixedCluster, find_cluster
from profiles.machines.stacks import THIS_PROGRAM
from profiles.models.adapters import EVERYTHING, Adapters
from profiles.models.families import BUILT_FAMILIES
from profiles.models.profile import ModelProfile
from profiles.models.sizes import ModelSizes

# Tried where none is named; on a measured machine, those that it was measured for.
AUTO, USUAL_CODECS = "auto", ("none", "bf16", "int8", "topk-1", "powersgd-1", "powersgd-4")
# Of a model of the user's that says nothing of how long its samples are.
TRACED_SEQUENCE_LENGTH = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is asked; None is the usual. `simulate` also offers what the executor cannot run.

    `model` is an alias or a path, or its sizes, of which a data sheet needs no more; `trusted` are modules of the
    user's that may build it. The machine is measured: `machine` is its profile, the one stored here where neither a
    `device` nor a `cluster` is named; with a `cluster`, nodes and network are that one's. `learned` is a file of what
    runs on it taught; `asked` is a task of the model's, `adapters` say what of it is trained. `attention_kernel`,
    `tensor_overlap` and `gradient_dtype` are those of the stack where None. `codecs` of None are USUAL_CODECS.
    `headroom_fraction` of each device's memory is left free. `traces` are those made before, by what they are of:
    requests that differ in devices share them.
    """

    model: str | ModelSizes
    num_devices: int
    machine: str | Path | None = None
    learned: Path | None = None
    device: str | None = None
    cluster: str | None = None
    global_batches: tuple[int, ...] = ()
    sequence_length: int | None = None
    stack: str = THIS_PROGRAM
    attention_kernel: str | None = None
    tensor_overlap: bool | None = None
    gradient_dtype: str | None = None
    precisions: tuple[str, ...] = ()
    codecs: tuple[str, ...] | None = ("none",)
    adapters: Adapters = EVERYTHING
    top: int = 10
    simulate: bool = False
    all_file: Path | None = None
    trusted: tuple[str, ...] = ()
    asked: Asked = NOTHING
    headroom_fraction: float = 0.0
    traces: dict[tuple[object, ...], ModelProfile] = field(default_factory=dict, compare=False, repr=False)

    @property
    def is_measured(self) -> bool:
        """Whether a measured machine is asked about, not the data sheet of a shipped device."""
        return self.machine is not None or (self.device is None and self.cluster is None)

    def find_cluster(self) -> Cluster | MixedCluster | None:
        """The cluster that is named."""
        return find_cluster(self.cluster) if self.cluster else None

    def sizes(self) -> ModelSizes | None:
        """The sizes of the model; None of one that has to be traced.

        Raises: UnknownNameError.
        """
        if isinstance(self.model, str):
            sizes = load_sizes(self.model, self.asked.task or self.asked.weights)
            if sizes is not None and self._is_run_as_written(sizes):
                return None
        else:
            sizes = self.model
        return replace(sizes, adapters=self.adapters) if sizes and self.adapters.freezes else sizes

    def _is_run_as_written(self, sizes: ModelSizes) -> bool:
        """Whether a model that is known by its sizes alone is to be run: then as its own class of transformers."""
        config = sizes.workload.config
        is_known = str(config.get("model_type")) in BUILT_FAMILIES
        return bool(not is_known and config.get("architectures") and not self.simulate and self.stack == THIS_PROGRAM)

    def trace(self, precisions: Sequence[str], device_kind: str = "cuda") -> ModelProfile:
        """The model's trace at these precisions, for a kind of device.

        Raises: UnknownNameError, InputError.
        """
        name = self.model if isinstance(self.model, str) else self.model.name
        key = name, tuple(precisions), device_kind, self.adapters, self.asked, self.trusted
        if key not in self.traces:
            self.traces[key] = self._trace(precisions, device_kind)
        return self.traces[key]

    def _trace(self, precisions: Sequence[str], device_kind: str) -> ModelProfile:
        if self.adapters.freezes and (sizes := self.sizes()) is not None:
            return trace_sizes(replace(sizes, profile=None), precisions, self.trusted)
        if isinstance(self.model, str):
            return load_model(self.model, precisions, self.trusted, replace(self.asked, device_kind=device_kind))
        return trace_sizes(self.model, precisions, self.trusted)


def sizes_asked(
    request: Request, name: str, longest: int, notes: list[str], usual: int = DEFAULT_SEQUENCE_LENGTH
) -> tuple[int, tuple[int, ...]]:
    """Sequence length and global batches for a model, with notes on what was assumed.

    `longest` is what the model's positions allow, 0 where they set no limit, and a sample has the `usual` length.
    Raises: InputError where one does not suit the model.
    """
    sequence, batches = request.sequence_length, request.global_batches
    if sequence is None:
        sequence = min(longest or usual, DEFAULT_SEQUENCE_LENGTH)
        notes.append(f"sequence length assumed: {sequence} tokens")
    if not batches:
        batches = (DEFAULT_SAMPLES_PER_DEVICE * request.num_devices,)
        notes.append(f"global batch assumed: {batches[0]} samples")
    limits.check("--gpus", request.num_devices, 1, limits.DEVICES)
    limits.check("--sequence-length", sequence, 1, limits.SEQUENCE)
    for batch in batches:
        limits.check("--global-batch", batch, 1, limits.SAMPLES)
    if longest and sequence > longest:
        raise InputError(f"--sequence-length {sequence}: {name} takes 1 to {longest} tokens")
    return sequence, batches


def sizes_asked_of(request: Request, model: ModelProfile, notes: list[str], usual: int) -> tuple[int, tuple[int, ...]]:
    """Size of samples and global batches for a traced model, with notes on what was assumed.

    `usual` is the length of samples that it says nothing of. Raises: InputError where one does not suit the model.
    """
    if not model.unit and not model.workload.task:
        return sizes_asked(request, model.name, model.max_sequence_length, notes, usual)
    if not model.unit:
        if request.sequence_length not in (None, 1):
            asked = f"--sequence-length {request.sequence_length}"
            raise InputError(f"{asked}: samples of {model.name} have a fixed size: leave it out")
        return 1, sizes_asked(replace(request, sequence_length=1), model.name, 0, notes)[1]
    size = request.sequence_length or model.usual_size
    if request.sequence_length is None:
        notes.append(f"size of samples assumed: {size} {model.unit}")
    if model.is_fixed and size != model.usual_size:
        raise InputError(f"--sequence-length {size}: {model.name} was traced at {model.usual_size} {model.unit} only")
    _, batches = sizes_asked(replace(request, sequence_length=size), model.name, model.max_sequence_length, notes)
    return size, batches


def codecs_asked(text: str) -> tuple[str, ...] | None:
    """The codecs that an option names, gradients as they are among them; None for the usual ones, `auto`.

    Raises: UnknownNameError.
    """
    if text == AUTO:
        return None
    names = tuple(codec(name.strip()).name for name in text.split(","))
    return names if "none" in names else ("none", *names)


def parse_headroom(text: str | None) -> float:
    """The share of memory that `5%` leaves free; 0 of None.

    Raises: InputError where it is no percentage.
    """
    if text is None:
        return 0.0
    number = text.strip().removesuffix("%").strip()
    try:
        percent = float(number)
    except ValueError:
        percent = float("nan")
    if not text.strip().endswith("%") or not 0 <= percent <= 100 * limits.HEADROOM:
        raise InputError(f"--headroom {text}: give a share of memory such as 5%, at most {limits.HEADROOM:.0%}")
    return percent / 100

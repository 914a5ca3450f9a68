"""How gradients are averaged over the data axis: DDP communication hooks, one per codec; run here, and timed.

Every codec, none included, is a hook, because the hook sees when a bucket is ready; that is where exposed
communication starts. DDP checks a hook's annotations at run time, so they must not be postponed to strings here.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from profiles.codecs.codec import ALL_REDUCE, DECODE, ENCODE, Codec, codec
from profiles.codecs.wire_format import add_decoded, encode
from profiles.ranks.collectives import all_gather

# The first steps send gradients as they are: the buckets are rebuilt after the first one, and error feedback needs one.
FIRST_POWERSGD_STEP = 2
HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}

if TYPE_CHECKING:

    class GradBucket(Protocol):
        """What torch's type stubs leave out of a gradient bucket."""

        def buffer(self) -> Tensor:
            """All gradients of the bucket, one after the other."""

        def index(self) -> int:
            """Number of the bucket, in the order in which they are ready."""

else:
    from torch.distributed import GradBucket


class Notes(Protocol):
    """Who notes what a hook does and when; a mark is whatever its clock gives."""

    def now(self) -> Any:
        """A point in time."""

    def bucket_ready(self) -> Any:
        """Note that a bucket is handed over now."""

    def note(self, name: str, microbatch: int, start: Any, stop: Any = None) -> None:
        """Note an action from `start` to `stop`, or to now."""


class NoNotes:
    """Notes nothing."""

    def now(self) -> None:
        """No mark."""

    def bucket_ready(self) -> None:
        """No mark."""

    def note(self, name: str, microbatch: int, start: Any, stop: Any = None) -> None:
        """Forgotten."""


Hook = Callable[["Reduction", GradBucket], Future[Tensor]]


@dataclass(slots=True, kw_only=True)
class Feedback:
    """What each bucket's messages have left out so far; kept from the second step on, when buckets are as they stay."""

    left_out: dict[int, Tensor] = field(default_factory=dict)
    num_steps: int = 0

    def corrected(self, bucket: GradBucket) -> Tensor:
        """The bucket's gradients with what its messages left out before."""
        if bucket.index() == 0:
            self.num_steps += 1
        if bucket.index() in self.left_out:
            return self.left_out[bucket.index()].add_(bucket.buffer())
        # Its own memory: the bucket's is overwritten with the mean before the rest is known.
        return bucket.buffer().clone()

    def keep(self, index: int, step: int, rest: Tensor) -> None:
        """Keep what a message of this step left out."""
        if step > 1:
            self.left_out[index] = rest


@dataclass(frozen=True, slots=True, kw_only=True)
class Reduction:
    """What a hook needs: the ranks that average, and who notes the times."""

    group: dist.ProcessGroup
    recorder: Notes
    codec: Codec
    powersgd: PowerSGDState | None = None
    feedback: Feedback = field(default_factory=Feedback)

    @property
    def held_tensors(self) -> list[Tensor]:
        """What the codec keeps from step to step: error feedback and factors."""
        state = self.powersgd
        memories = () if state is None else (state.error_dict, state.p_memory_dict, state.q_memory_dict)
        return [tensor for memory in (*memories, self.feedback.left_out) for tensor in memory.values()]


def register(module: DistributedDataParallel, name: str, group: dist.ProcessGroup, recorder: Notes) -> Reduction:
    """Let `module` average its gradients over `group` with the codec called `name`."""
    used = codec(name)
    state = None
    hook: Hook = average_half if name in HALVES else average_gathered if used.gathered else average
    if used.rank:
        hook = average_low_rank
        state = PowerSGDState(
            process_group=group, matrix_approximation_rank=used.rank, start_powerSGD_iter=FIRST_POWERSGD_STEP
        )
    reduction = Reduction(group=group, recorder=recorder, codec=used, powersgd=state)
    module.register_comm_hook(reduction, hook)
    return reduction


def bucket_options(name: str, module: nn.Module) -> dict[str, Any]:
    """DDP's options for the codec called `name`.

    PowerSGD starts its second all-reduce when the first has come back; with several buckets under way, gloo's threads
    would start them in another order on every rank, which ends the job. It gets a single bucket.
    """
    if not codec(name).rank:
        return {}
    num_bytes = sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())
    return {"bucket_cap_mb": num_bytes // 2**20 + 1}


def average(reduction: Reduction, bucket: GradBucket) -> Future[Tensor]:
    """Mean of the gradients in fp32."""
    ready = reduction.recorder.bucket_ready()
    buffer = bucket.buffer().div_(reduction.group.size())
    future = _all_reduce(buffer, reduction.group)

    def finish(done: Future[Tensor]) -> Tensor:
        done.value()  # raises where the message failed
        reduction.recorder.note(ALL_REDUCE, -1, ready)
        return buffer

    return future.then(finish)


def average_half(reduction: Reduction, bucket: GradBucket) -> Future[Tensor]:
    """Mean of the gradients, sent in 16 bits; of torch's own hooks the one for bf16 refuses gloo."""
    recorder = reduction.recorder
    begun = recorder.now()
    compressed = bucket.buffer().to(HALVES[reduction.codec.name]).div_(reduction.group.size())
    ready = recorder.bucket_ready()
    recorder.note(ENCODE, -1, begun, ready)
    future = _all_reduce(compressed, reduction.group)

    def finish(done: Future[Tensor]) -> Tensor:
        done.value()
        arrived = recorder.now()
        recorder.note(ALL_REDUCE, -1, ready, arrived)
        result = bucket.buffer().copy_(compressed)
        recorder.note(DECODE, -1, arrived)
        return result

    return future.then(finish)


def average_gathered(reduction: Reduction, bucket: GradBucket) -> Future[Tensor]:
    """Mean of what all ranks' messages say; what this rank's left out goes into its next one (error feedback)."""
    used, recorder, num_ranks = reduction.codec, reduction.recorder, reduction.group.size()
    begun = recorder.now()
    gradients, step = reduction.feedback.corrected(bucket), reduction.feedback.num_steps
    message = encode(used, gradients)
    messages = message.new_empty(num_ranks * message.numel())
    ready = recorder.bucket_ready()
    recorder.note(ENCODE, -1, begun, ready)
    work = all_gather(messages, message, reduction.group, async_op=True)
    assert work is not None

    def finish(done: Future[Tensor]) -> Tensor:
        done.value()
        arrived = recorder.now()
        recorder.note(ALL_REDUCE, -1, ready, arrived)
        add_decoded(used, message, gradients, factor=-1.0)
        reduction.feedback.keep(bucket.index(), step, gradients)
        total = bucket.buffer().zero_()
        for one in messages.chunk(num_ranks):
            add_decoded(used, one, total, factor=1.0 / num_ranks)
        recorder.note(DECODE, -1, arrived)
        return total

    return work.get_future().then(finish)


def average_low_rank(reduction: Reduction, bucket: GradBucket) -> Future[Tensor]:
    """Low-rank approximation of the mean, with error feedback (torch's PowerSGD)."""
    assert reduction.powersgd is not None
    ready = reduction.recorder.bucket_ready()

    def finish(done: Future[Tensor]) -> Tensor:
        reduction.recorder.note(ALL_REDUCE, -1, ready)
        return _tensor_of(done)

    return powerSGD_hook(reduction.powersgd, bucket).then(finish)


def _all_reduce(tensor: Tensor, group: dist.ProcessGroup) -> Future[Tensor]:
    """Sum `tensor` over the group where it lies; the future tells when."""
    work = dist.all_reduce(tensor, group=group, async_op=True)
    assert work is not None
    future: Future[Tensor] = work.get_future()
    return future


def _tensor_of(done: Future[Tensor]) -> Tensor:
    # A list of one tensor on some backends, the tensor itself on others.
    value: Tensor | list[Tensor] = done.value()
    return value if isinstance(value, Tensor) else value[0]

"""Software stacks: how the programs that train behave in time and memory, one catalogue file each. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

from profiles.artifacts import STRICT, read_toml
from profiles.catalog import CATALOG
from profiles.errors import UnknownNameError
from profiles.machines.abilities import Abilities

FOLDER = CATALOG / "stacks"
# The stack whose plans `execute` carries out.
THIS_PROGRAM = "trainwright"
UNFUSED_GENERATIONS = ("pascal", "volta", "turing")
Fusion = Literal["layer_norm", "rms_norm", "rotation", "activation", "residual_norm", "bias", "conversion"]
Recipe = Literal["tensorwise", "current", "delayed", "rowwise", "blockwise", "mxfp8-block32"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StackTime:
    """What a stack adds to its kernels.

    `product_slowdown`: seconds of a product over the best library's. `fuses`: which operators have kernels of their
    own, where PyTorch would spell them out: "layer_norm", "rms_norm", "rotation", "activation", "residual_norm" (joined
    with the norm behind it), "bias" (its gradient comes with a product) and "conversion" to 8 bits; a compiler fuses
    them all. `packs_gates`: gate and value are one product's result; `spells_gelu`: GELU is spelled out as well.
    `score_passes`: memory traffic of unfused attention's scores over that of a fused softmax.
    `fp8_recipe`: what shares a scale in 8 bits; `keeps_low_weights`:
    weights are converted once a step; `lowers_experts`: experts compute in 8 bits as well.
    `cast_bytes`: bytes per parameter and pass to round weights to 16 bits, and to widen their gradients.
    `selective_product_share`: share of a layer's products that selective recomputation repeats, with all element-wise
    work but not attention; 0 where it repeats attention's core alone. `loss_bytes`: bytes
    moved per logit, forward and backward together. `accumulate_bytes`: bytes per parameter and micro-batch to add
    gradients up, beside products; `adds_up_in_products`: whether products of weight gradients do that themselves;
    `optimizer_bytes`: bytes per updated parameter and step; `unscale_bytes`: per gradient of a loss that is scaled for
    fp16. `*_message_bytes`: bytes per parameter that is reduced or gathered. `reduces_every_microbatch`: whether
    sharded gradients are reduced for each micro-batch. `keeps_in_pipeline`: whether a pipeline reduces them once a step
    all the same, and keeps whole what a backward pass has gathered; `gathers_every_microbatch`: whether else ZeRO stage
    2 gathers weights for each micro-batch.
    `scatters_pipeline`: whether tensor-parallel ranks each send a share of what goes to the next stage.
    `host_layer_us`: host time to launch one layer's forward; `host_step_ms`: of a step outside the layers.
    `tensor_overlap`: share of tensor-parallel messages hidden where the job overlaps them;
    `hides_input_gradients`: whether sums of what column-wise linears give their input in backward always go beside
    the products of weight gradients; `gathers_low`: whether activations that are split along the sequence are converted
    to 8 bits before they are gathered, where products compute in these. `compiled_*`: the same
    numbers under a compiler.
    `overlaps_shards`: whether sharded weights and gradients are sent beside compute. `gathers_tensors`: whether each
    matrix of a layer is a message of its own there, and not the layer; `shard_rank_us`: what such a message costs for
    each rank that has a part of it; `gather_copy_bytes`, `scatter_copy_bytes`: bytes per parameter that pass as sharded
    weights are copied out of the buffer they are gathered in, and gradients into that which is reduced;
    `reuse_parameters`: of how many parameters a layer is gathered once for its
    recomputation and its backward pass, 0 for any. `pipeline_action_us`: what the
    pipeline's runtime adds to one pass of one micro-batch through a stage. `linears_apart`: whether linears that
    read the same are products of their own, and tensor-parallel ranks sum what each gives its input in backward, as
    DTensor does. `gradient_bucket_mib`: MiB of gradients that go in one message, the last after the backward pass, and
    layers with sharded gradients one by one; 0 where messages are as long as one likes. `owners_send_weights`: whether
    ZeRO stage 1 averages whole gradients, and who updated weights sends them as they are, in 32 bits.
    `exchanges_heads`: whether context-parallel ranks compute whole sequences of some heads, and not parts of all.
    `passes_blocks`: whether else keys and values go round block by block, and not to all at once. Every rank has a
    piece from both ends of a sequence: a causal mask leaves all with as much attention.
    `accumulates_ends`: whether embedding and head add gradients up as layers do.
    """

    __pydantic_config__ = STRICT

    product_slowdown: float = 1.0
    fuses: tuple[Fusion, ...] = ()
    packs_gates: bool = False
    spells_gelu: bool = False
    cast_bytes: float = 0.0
    selective_product_share: float = 0.0
    score_passes: float
    loss_bytes: float
    fp8_recipe: Recipe = "delayed"
    keeps_low_weights: bool = False
    lowers_experts: bool = False
    accumulate_bytes: float
    adds_up_in_products: bool = False
    optimizer_bytes: float
    unscale_bytes: float = 0.0
    gradient_message_bytes: float
    parameter_message_bytes: float = 2.0
    reduces_every_microbatch: bool = False
    keeps_in_pipeline: bool = False
    gathers_every_microbatch: bool = False
    scatters_pipeline: bool = False
    host_layer_us: float
    compiled_host_layer_us: float = 250.0
    host_step_ms: float
    tensor_overlap: float = 0.6
    hides_input_gradients: bool = False
    gathers_low: bool = False
    overlaps_shards: bool = True
    gathers_tensors: bool = False
    shard_rank_us: float = 0.0
    gather_copy_bytes: float = 0.0
    scatter_copy_bytes: float = 0.0
    reuse_parameters: float = 0.0
    pipeline_action_us: float = 0.0
    linears_apart: bool = False
    gradient_bucket_mib: float = 0.0
    owners_send_weights: bool = False
    exchanges_heads: bool = False
    passes_blocks: bool = False
    accumulates_ends: bool = False


# NCCL's buffers of one communicator, assumed: 4 MiB (its NCCL_BUFFSIZE) on 16 channels, for two neighbours in a ring
# and four in trees.
COMMUNICATOR_MIB = 16 * 6 * 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StackMemory:
    """What a stack keeps in memory.

    Bytes per parameter, in 16-bit training: `weight_bytes`, `gradient_bytes`, `master_bytes` and `moment_bytes` as
    held between steps (`shards_weights_at`: the lowest ZeRO stage whose weights are sharded); `step_bytes` in use
    while the optimizer updates, per updated parameter; `fp16_gradient_bytes` (0: the same) and `fp16_step_bytes` (more)
    where losses are scaled; `low_gradient_bytes` of 16-bit gradients beside those that are added up in 32 bits, where
    a run says so; `bucket_gradient_bytes` of copies in DDP's buckets; `cast_bytes` of 16-bit copies that each
    micro-batch in flight keeps of layers that are not recomputed; `gathered_bytes` and `gathered_gradient_bytes` of a
    layer whose shards are together; `layer_gradient_bytes` of scratch for the weight gradients of one layer,
    `head_gradient_bytes` of the vocabulary's. Bytes per logit: `loss_logit_bytes` in the loss, `split_logit_bytes`
    besides where the vocabulary is split over tensor ranks, `head_logit_bytes` while the head goes backward;
    `plain_logit_bytes` and `fused_logit_bytes` where a run says that its loss is one or the other.

    What layers keep: `fused_activation` no sigmoid-weighted gate, `keeps_packed_qkv` the packed product beside rotated
    queries and keys, `keeps_gathered` linears' inputs gathered and not as sequence-parallel shards,
    `keeps_dropout_masks` masks of dropout, `norm_extra_bytes` per element that a norm keeps beside input and output,
    `attention_output_copies` of attention's output and `context_output_copies` under context parallelism,
    `keeps_low_precision` linears' inputs in 8 or 4 bits. `selective_by_operator`: selective recomputation keeps every
    second product and attention's output, where others recompute attention's core.

    Beside the tensors: `vocabulary_multiple` (times tensor) that vocabularies are padded to, `bucket_mib` of
    communication buffers, `workspaces` of the matrix library and `routed_workspaces` for grouped products,
    `receives_whole_step` whether a pipeline allots what it receives for all micro-batches of a step at once,
    `keeps_outputs` whether it keeps what a stage gave, as it was sent, until its backward pass, `live_parameters` that
    ZeRO stage 3 has gathered at the most (0: two layers, whatever their size), `accumulates_whole` whether a pipeline
    with sharded weights adds up whole gradients in 32 bits until the step ends, `experts_in_turns` whether a layer's
    experts compute one by one and their weights' gradients become one tensor, `frees_by_moment` whether, of sharded
    weights and gradients, each moment of a pass has what it needs and no more, where others are as full at all of them
    as in a layer's backward pass; `frees_gradients` whether there are none from an update to the next backward pass;
    `cuts_by_parameters` whether pipeline stages are cut by parameters, the head's among them, and not by layers. What
    the allocator holds beyond: `vocabulary_slack`, `logit_slack` and `working_slack`, as shares of the vocabulary's
    16-bit gradients, of 16-bit logits and of activations; `idle_logit_bytes` a logit more, which it gives back before
    it fails. `context_gib`: the device's context, outside of it; `communicator_mib` of each group of ranks come on top.
    `band`: by what share a peak may be off, below what is allocated and above what is held; what 90 % of the runs of a
    stack that were measured are within.
    """

    __pydantic_config__ = STRICT

    weight_bytes: float
    gradient_bytes: float
    master_bytes: float
    moment_bytes: float = 8.0
    step_bytes: float = 0.0
    fp16_gradient_bytes: float = 0.0
    fp16_step_bytes: float = 0.0
    low_gradient_bytes: float = 0.0
    bucket_gradient_bytes: float = 0.0
    cast_bytes: float = 0.0
    shards_weights_at: int = 3
    gathered_bytes: float = 2.0
    gathered_gradient_bytes: float = 2.0
    layer_gradient_bytes: float = 0.0
    head_gradient_bytes: float = 2.0
    loss_logit_bytes: float
    head_logit_bytes: float
    split_logit_bytes: float = 0.0
    plain_logit_bytes: float = 0.0
    fused_logit_bytes: float = 4.0
    fused_activation: bool
    keeps_packed_qkv: bool
    keeps_gathered: bool = False
    keeps_dropout_masks: bool = False
    norm_extra_bytes: float = 0.0
    attention_output_copies: float = 0.0
    context_output_copies: float = 0.0
    keeps_low_precision: bool = False
    selective_by_operator: bool = False
    vocabulary_multiple: int = 1
    bucket_mib: float = 0.0
    workspaces: float = 1.0
    routed_workspaces: float = 0.0
    receives_whole_step: bool = False
    keeps_outputs: bool = False
    live_parameters: float = 0.0
    accumulates_whole: bool = False
    experts_in_turns: bool = False
    frees_by_moment: bool = False
    frees_gradients: bool = False
    cuts_by_parameters: bool = False
    vocabulary_slack: float
    logit_slack: float
    idle_logit_bytes: float = 0.0
    working_slack: float
    context_gib: float
    communicator_mib: float = COMMUNICATOR_MIB
    band: float = 0.15


@dataclass(frozen=True, slots=True, kw_only=True)
class StackHabits:
    """What a stack does where a job does not say otherwise.

    `overlaps_gradients`, `overlaps_parameters` and `overlaps_tensor`: whether it sends these beside compute;
    `can_overlap_tensor`: whether it has that as an option, which plans take, with sequence parallelism.
    `hides_messages_of`: schedules whose messages between stages go beside the next micro-batch.
    `attention`: its usual attention kernel, `attention_on` the one on some generations of devices.
    `splits_sequence`: sequence parallelism goes with tensor parallelism. `zero_stage`: of plain data parallelism.
    `dispatcher`: what sends routed tokens: alltoall (a copy per expert), deepep or hybrid (one per rank), allgather.
    `follows_stage_bounds`: whether its pipeline stages may have any number of layers each.
    `experts_on_data`: ranks that share experts are neighbours on the data axis, with tensor and context ranks between.
    """

    __pydantic_config__ = STRICT

    overlaps_gradients: bool = True
    overlaps_parameters: bool = False
    overlaps_tensor: bool = False
    can_overlap_tensor: bool = False
    attention: str = "flash2"
    attention_on: dict[str, str] = field(default_factory=dict)
    hides_messages_of: tuple[str, ...] = ()
    splits_sequence: bool = False
    zero_stage: int = 0
    dispatcher: str = "alltoall"
    follows_stage_bounds: bool = False
    experts_on_data: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """One program that trains; `sources` says whence each number is.

    `group`: stacks whose layers are written alike, so that runs of one tell of the others: "megatron" fuses by hand,
    "native" runs PyTorch's own operators, "compiler" leaves it to a compiler. `schedules`: which pipeline schedules it
    has, of those that the planner knows; none named are all that torch.distributed.pipelining has. `like`: another
    stack, whose entries hold where its own file has none, and whose runs tell of it. `runs`: what it can run, None
    where nobody has tried.
    """

    __pydantic_config__ = STRICT

    name: str
    title: str
    group: str
    habits: StackHabits
    schedules: tuple[str, ...] = ()
    like: str = ""
    runs: Abilities | None = None
    time: StackTime
    memory: StackMemory
    sources: dict[str, str]

    @property
    def learned_as(self) -> str:
        """The stack whose runs tell of this one."""
        return self.like or self.name

    def attention_kernel(self, generation: str) -> str:
        """The attention kernel it takes on a generation of devices; before Ampere there are no fused ones."""
        if generation in UNFUSED_GENERATIONS:
            return "unfused"
        return self.habits.attention_on.get(generation, self.habits.attention)


def stack_names() -> list[str]:
    """The names of all shipped stacks."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


@lru_cache(maxsize=64)
def load_stack(name: str) -> Stack:
    """The shipped stack called `name`.

    Raises: UnknownNameError with the nearest name.
    """
    if name not in stack_names():
        raise UnknownNameError("stack", name, stack_names())
    return read_toml(FOLDER / f"{name}.toml", Stack, like="like")

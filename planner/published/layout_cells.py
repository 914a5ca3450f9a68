"""The columns that describe how the job is split over its devices, and its batch."""

from __future__ import annotations

from collections.abc import Mapping

from planner.published.cells import Cells, Refused
from planner.schedules.registry import USUAL, USUAL_OF_SEVERAL, Schedule, published_names, schedule
from profiles.laws.collectives import infiniband_seconds
from profiles.machines.stacks import Stack


def read_layout(
    cells: Cells, stack: Stack, model: Mapping[str, float | bool], devices: float
) -> dict[str, float | bool | str]:
    """Degrees, schedule, sharding and batch.

    Raises: Refused where they do not go together.
    """
    tensor, pipeline, context = (cells.size(name, 1) for name in ("tp", "pp", "cp"))
    split = tensor * pipeline * context
    data = cells.size("dp", max(devices / split, 1.0), noted=False)
    if split * data != devices:
        raise Refused(
            f"tp x pp x cp x dp is {tensor:g} x {pipeline:g} x {context:g} x {data:g}, not num_gpus ({devices:g})"
        )
    if float(model["num_heads"]) % tensor:
        raise Refused(f"num_heads ({model['num_heads']:g}) is not divisible by tp ({tensor:g})")
    rules, chunks = _schedule(cells, pipeline)
    if pipeline * chunks > float(model["num_layers"]):
        raise Refused(f"pp x vp is {pipeline:g} x {chunks:g}, more than num_layers ({model['num_layers']:g})")
    return {
        "tensor": tensor,
        "vocabulary_split": tensor,
        "pipeline": pipeline,
        "chunks": chunks,
        "context": context,
        "data": data,
        "schedule": rules.name,
        "first_fewer": cells.size("first_stage_fewer_layers", 0, least=0, noted=False),
        "last_fewer": cells.size("last_stage_fewer_layers", 0, least=0, noted=False),
        "sequence_parallel": tensor > 1
        and cells.flag("sequence_parallel", stack.habits.splits_sequence, noted=tensor > 1),
        "overlap_tensor": cells.flag("overlap_tp", stack.habits.overlaps_tensor, noted=tensor > 1),
        "overlap_pipeline": cells.flag(
            "overlap_pp",
            pipeline > 1 and rules.name in stack.habits.hides_messages_of,
            noted=pipeline > 1,
        ),
        "data_outside": False,
        "network_latency_seconds": infiniband_seconds(),
        "gradient_wire_fraction": 1.0,
        "codec_passes": 0.0,
        "codec_state_bytes": 0.0,
        "gradient_gather_fraction": 0.0,
        "codec_decode_passes": 0.0,
        "codec_message_bytes": 0.0,
        **_experts(cells, model, data * context * tensor),
        **_sharding(cells, stack, data * context),
        **_batch(cells, data),
    }


def _schedule(cells: Cells, pipeline: float) -> tuple[Schedule, float]:
    """The pipeline's schedule, and the stages that each of its ranks has."""
    is_several = pipeline > 1 and cells.size("vp", 1, noted=False) > 1
    usual = USUAL_OF_SEVERAL if is_several else USUAL
    rules = schedule(cells.word("schedule", published_names(), usual, noted=pipeline > 1))
    chunks = cells.size("vp", rules.stages.least if pipeline > 1 and rules.stages.is_v else 1, noted=pipeline > 1)
    if pipeline > 1 and rules.stages.is_v and not rules.stages.allows(int(chunks)):
        raise Refused(f"vp is {chunks:g}; {rules.name} has {rules.stages.words}")
    return rules, chunks


def _experts(cells: Cells, model: Mapping[str, float | bool], ranks: float) -> dict[str, float]:
    experts = float(model["num_experts"])
    expert = cells.size("ep", 1, noted=experts > 0)
    split = cells.size("etp", 1, noted=experts > 0)
    if not experts:
        return {"expert": 1.0, "expert_tensor": 1.0}
    if experts % expert:
        raise Refused(f"num_experts ({experts:g}) is not divisible by ep ({expert:g})")
    if expert * split > ranks:
        raise Refused(f"ep x etp is {expert:g} x {split:g}, more than the {ranks:g} ranks of a pipeline stage")
    return {"expert": expert, "expert_tensor": split}


def _sharding(cells: Cells, stack: Stack, ranks: float) -> dict[str, float | bool]:
    usual = 3 if cells.text("dp_shard") is not None else stack.habits.zero_stage
    zero = cells.size("zero_stage", usual, least=0)
    if zero > 3:
        raise Refused(f"zero_stage is {zero:g}; it must be 0, 1, 2 or 3")
    shard = cells.size("dp_shard", ranks, noted=zero == 3) if zero == 3 else 1.0
    if shard > ranks or ranks % shard:
        raise Refused(f"dp_shard is {shard:g}; it must divide the {ranks:g} data- and context-parallel ranks")
    return {
        "zero_stage": zero,
        "shard": shard,
        "reshard_after_forward": zero == 3 and cells.flag("reshard_after_forward", True),
    }


def _batch(cells: Cells, data: float) -> dict[str, float]:
    whole = cells.text("global_batch_size")
    micro_text, count_text = cells.text("micro_batch_size"), cells.text("num_microbatches")
    if whole is None and micro_text is None:
        raise Refused("global_batch_size and micro_batch_size are both empty; give one of them")
    if whole is None:
        micro = cells.size("micro_batch_size")
        return {"micro_batch": micro, "num_microbatches": cells.size("num_microbatches", 1)}
    samples = cells.size("global_batch_size")
    if micro_text is None and count_text is not None:
        count = cells.size("num_microbatches")
        micro = samples / (data * count)
        cells.assume("micro_batch_size", micro)
    else:
        micro = cells.size("micro_batch_size", 1)
        count = samples / (micro * data)
    if micro < 1 or count < 1 or count != round(count) or micro != round(micro):
        raise Refused(
            f"global_batch_size ({samples:g}) is not a whole number of micro-batches of {micro:g} on {data:g} ranks"
        )
    return {"micro_batch": micro, "num_microbatches": count}

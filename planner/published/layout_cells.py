"""The columns that describe how the job is split over its devices, and its batch."""

from __future__ import annotations

from collections.abc import Mapping

from planner.published.cells import Cells, Refused
from planner.published.columns import ONE_AT_A_TIME
from planner.schedules.registry import USUAL, USUAL_OF_SEVERAL, Schedule, schedule
from profiles.laws.collectives import infiniband_seconds
from profiles.machines.stacks import Stack

# Marks a job whose micro-batch the row does not say.
UNKNOWN_BATCH = "unknown_batch"
# Each stage of an interleaved pipeline has so many layers, where their length is unknown.
FEWEST_LAYERS = 2


def read_layout(
    cells: Cells, stack: Stack, model: Mapping[str, float | bool], devices: float
) -> dict[str, float | bool | str]:
    """Degrees, schedule, sharding and batch.

    Raises: Refused where they do not go together.
    """
    tensor, pipeline, context = (cells.size(name) for name in ("tp", "pp", "cp"))
    split = tensor * pipeline * context
    data = cells.size("dp", max(devices / split, 1.0))
    if split * data != devices:
        raise Refused(
            f"tp x pp x cp x dp is {tensor:g} x {pipeline:g} x {context:g} x {data:g}, not num_gpus ({devices:g})"
        )
    if float(model["num_heads"]) % tensor:
        raise Refused(f"num_heads ({model['num_heads']:g}) is not divisible by tp ({tensor:g})")
    name, rules, chunks = _schedule(cells, pipeline, float(model["num_layers"]))
    batch = _batch(cells, data)
    passes = batch["num_microbatches"] if name == ONE_AT_A_TIME else cells.size("pipeline_passes_per_step")
    return {
        "tensor": tensor,
        "vocabulary_split": tensor,
        "pipeline": pipeline,
        "chunks": chunks,
        "context": context,
        "data": data,
        "schedule": rules.name,
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
        **batch,
        "pipeline_passes": min(passes, batch["num_microbatches"]) if pipeline > 1 else 1.0,
    }


def _schedule(cells: Cells, pipeline: float, layers: float) -> tuple[str, Schedule, float]:
    """The pipeline's schedule by the row's word and by ours, and the stages that each of its ranks has."""
    is_several = pipeline > 1 and cells.size("vp", noted=False) > 1
    name = cells.word("schedule", USUAL_OF_SEVERAL if is_several else USUAL, noted=pipeline > 1)
    rules = schedule("gpipe" if name == ONE_AT_A_TIME else name)
    fewer = cells.size("first_stage_fewer_layers") + cells.size("last_stage_fewer_layers")
    chunks = _chunks(cells, rules, pipeline, layers + fewer)
    if pipeline * chunks > layers + fewer:
        more = f" and the {fewer:g} that first and last stage have fewer" if fewer else ""
        raise Refused(f"pp x vp is {pipeline:g} x {chunks:g}, more than num_layers ({layers:g}){more}")
    return name, rules, chunks


def _chunks(cells: Cells, rules: Schedule, pipeline: float, places: float) -> float:
    """Stages of a rank; `places` are layers, and those that the ends have fewer."""
    if pipeline > 1 and rules.stages.is_v:
        chunks = cells.size("vp", rules.stages.least)
        # Tables that count one stage per rank do not count the V's way back.
        chunks = max(chunks, float(rules.stages.least))
        if not rules.stages.allows(int(chunks)):
            raise Refused(f"vp is {chunks:g}; {rules.name} has {rules.stages.words}")
        return chunks
    if pipeline > 1 and rules.name == USUAL_OF_SEVERAL and cells.text("vp") is None:
        chunks = _usual_chunks(places / pipeline)
        cells.guess("vp", f"{chunks:g} assumed (stages of {FEWEST_LAYERS} layers, or the fewest above)")
        return chunks
    return cells.size("vp", noted=pipeline > 1)


def _usual_chunks(layers: float) -> float:
    """Into how many stages a rank's layers are cut where that is not said: many, as bubbles ask for."""
    most = int(layers / FEWEST_LAYERS)
    return float(max((count for count in range(1, most + 1) if layers % count == 0), default=1))


def _experts(cells: Cells, model: Mapping[str, float | bool], ranks: float) -> dict[str, float]:
    experts = float(model["num_experts"])
    expert = cells.size("ep", noted=experts > 0)
    split = cells.size("etp", noted=experts > 0)
    if not experts:
        return {"expert": 1.0, "expert_tensor": 1.0}
    if experts % expert:
        raise Refused(f"num_experts ({experts:g}) is not divisible by ep ({expert:g})")
    if expert * split > ranks:
        raise Refused(f"ep x etp is {expert:g} x {split:g}, more than the {ranks:g} ranks of a pipeline stage")
    return {"expert": expert, "expert_tensor": split}


def _sharding(cells: Cells, stack: Stack, ranks: float) -> dict[str, float | bool]:
    usual = 3 if cells.text("dp_shard") is not None else stack.habits.zero_stage
    zero = cells.size("zero_stage", usual)
    shard = cells.size("dp_shard", ranks, noted=zero == 3) if zero else 1.0
    if zero < 3 and shard == ranks:
        shard = 1.0
    if shard > ranks or ranks % shard:
        raise Refused(f"dp_shard is {shard:g}; it must divide the {ranks:g} data- and context-parallel ranks")
    return {
        "zero_stage": zero,
        "shard": shard,
        "reshard_after_forward": zero == 3 and cells.flag("reshard_after_forward"),
    }


def _batch(cells: Cells, data: float) -> dict[str, float]:
    whole = cells.text("global_batch_size")
    micro_text, count_text = cells.text("micro_batch_size"), cells.text("num_microbatches")
    if whole is None and micro_text is None:
        raise Refused("global_batch_size and micro_batch_size are both empty; give one of them")
    if whole is None:
        micro = cells.size("micro_batch_size")
        return {"micro_batch": micro, "num_microbatches": cells.size("num_microbatches")}
    samples = cells.size("global_batch_size")
    if micro_text is None and count_text is not None:
        count = cells.size("num_microbatches")
        micro = samples / (data * count)
        cells.assume("micro_batch_size", micro)
    elif micro_text is None:
        # What a planner would take is found when all else is known: planner/published/unknowns.
        _check_batch(samples, 1.0, samples / data, data)
        return {"micro_batch": 1.0, "num_microbatches": samples / data, UNKNOWN_BATCH: 1.0}
    else:
        micro = cells.size("micro_batch_size")
        count = samples / (micro * data)
    _check_batch(samples, micro, count, data)
    return {"micro_batch": micro, "num_microbatches": count}


def _check_batch(samples: float, micro: float, count: float, data: float) -> None:
    if micro < 1 or count < 1 or count != round(count) or micro != round(micro):
        raise Refused(
            f"global_batch_size ({samples:g}) is not a whole number of micro-batches of {micro:g} on {data:g} ranks"
        )

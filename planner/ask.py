"""From what a command line or a notebook asks to the answer: plans for measured machines and for data sheets alike."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from planner.answers import Answers, PoolAlone
from planner.compression.recipes import Recipe
from planner.prediction import PlanFile
from planner.request import Request, sizes_asked
from planner.schedules.registry import torch_names
from planner.settings import planned_for, settings_of
from planner.space.answers import Answer, answer
from planner.space.beside import Questions, answers_to
from planner.space.compare_questions import WORTH_FRACTION, try_settings
from planner.space.explore import NO_ROOM
from planner.space.export import write_all
from planner.space.layouts import Options
from planner.space.question import Setting
from planner.space.questions import parse_wanted
from planner.space.replay_best import in_order
from planner.terminal.progress import OnNote, OnProgress, pieces, silent, unheard
from profiles.errors import InputError, NoFeasiblePlanError
from profiles.inputs import limits
from profiles.inputs.bounds import whole_numbers
from profiles.machines.clusters import MixedCluster, load_pools
from profiles.units import format_percent

COUNT = re.compile(r"(\d+(?:\.\d+)?(?:e\+?\d{1,2})?)([kmbt]?)", re.IGNORECASE)
RANGE = re.compile(r"(?P<first>\d+)(?:-(?P<last>\d+)|(?:,\d+)*)")
# Of the time of a search with questions that take long.
SEARCH_SHARE = 0.8
SCALES = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A plan file, and the answer of the search that it was made from; None where there was more than one."""

    file: PlanFile
    answer: Answer | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Compression:
    """What models are compressed by, and what share of the whole model's they may have by name."""

    recipes: tuple[Recipe, ...]
    targets: dict[str, float]


def ask(
    request: Request,
    questions: Questions,
    on_progress: OnProgress = silent,
    on_note: OnNote = unheard,
    compression: Compression | None = None,
) -> PlanFile:
    """The plan file, with the answers to the questions in it; `on_note` hears what must be known before the end.

    Raises: InputError for what cannot be; NoFeasiblePlanError where nothing fits.
    """
    return ask_whole(request, questions, on_progress, on_note, compression).file


def ask_whole(
    request: Request,
    questions: Questions,
    on_progress: OnProgress = silent,
    on_note: OnNote = unheard,
    compression: Compression | None = None,
) -> Asked:
    """The same, with the search behind it, which answers further questions.

    Raises: InputError for what cannot be; NoFeasiblePlanError where nothing fits.
    """
    cluster = request.find_cluster()
    if isinstance(cluster, MixedCluster):
        _refuse_for_pools(request, questions)
        return Asked(file=mixed(request, cluster, on_progress))
    if questions.why_not is not None:
        # Before a long search.
        parse_wanted(questions.why_not)
    planning, compressing = pieces(on_progress, (1.0, 1.0) if compression else (1.0, 0.0))
    found = answer_to(request, questions, planning, on_note)
    if compression is None:
        return Asked(file=found.file, answer=found)
    from planner.compression.prices import compression_choices

    choices = compression_choices(found.space.at, compression.recipes, compression.targets, compressing)
    return Asked(file=replace(found.file, compression=choices), answer=found)


def mixed(request: Request, cluster: MixedCluster, on_progress: OnProgress = silent) -> PlanFile:
    """The best plans across two kinds of devices, and what each kind would do alone.

    Raises: InputError for what cannot be; NoFeasiblePlanError where nothing fits.
    """
    from planner.mixed.answers import mixed_answer
    from planner.mixed.mixture import mixture

    model, pools = request.sizes(), load_pools(cluster)
    if model is None:
        raise InputError(f"model {request.model}: two kinds of devices are planned for text models of known sizes only")
    if request.num_devices != cluster.num_devices:
        raise InputError(f"--gpus {request.num_devices}: the pools of {cluster.name} have {cluster.num_devices}")
    notes = planned_for(cluster.title, request.stack)
    sequence, batches = sizes_asked(request, model.name, model.longest_sequence, notes)
    if request.codecs != ("none",):
        notes.append("gradients are sent uncompressed: codecs are not tried across two kinds of devices")
    precision = (request.precisions or ("bf16",))[0]
    together, *apart = pieces(on_progress, (1.0, *(1.0 for _ in pools)))
    found = mixed_answer(
        mixture(model, pools, batches[0], sequence, request.stack, precision, cluster.network_gb_per_second),
        request.top,
        request.simulate,
        notes,
        together,
    )
    alone = []
    for pool, on_search in zip(pools, apart, strict=True):
        one = replace(
            request, num_devices=pool.num_devices, device=pool.device.name, global_batches=batches, top=1,
            cluster=pool.cluster.name if pool.cluster else None, sequence_length=sequence, precisions=(precision,),
        )  # fmt: skip
        alone.append(_alone(one, found.candidates[0].prediction.tokens_per_second, on_search))
    return replace(found, answers=Answers(pools=tuple(alone)))


def _alone(request: Request, tokens_per_second: float, on_progress: OnProgress) -> PoolAlone:
    """What one of the pools would do by itself, against all of them."""
    alone = PoolAlone(device=request.device or "", num_devices=request.num_devices)
    try:
        best = answer_to(request, on_progress=on_progress).file.candidates[0]
    except (InputError, NoFeasiblePlanError) as error:
        return replace(alone, refusal=str(error))
    own = best.prediction.tokens_per_second
    return replace(alone, plan=best.plan.id, tokens_per_second=own, share_fraction=own / tokens_per_second)


def _refuse_for_pools(request: Request, questions: Questions) -> None:
    """Refuse what is not answered across kinds of devices, by name."""
    given = {
        "--why-not": questions.why_not, "--sensitivity": questions.sensitivity, "--tokens": questions.tokens,
        "--trace": questions.trace_file, "--all": request.all_file, "--device": request.device,
        "--machine": request.machine is not None, "--learned": request.learned is not None,
        "--peft": request.adapters.freezes,
        "several --precision": len(request.precisions) > 1, "several --global-batch": len(request.global_batches) > 1,
    }  # fmt: skip
    for name, value in given.items():
        if value:
            raise InputError(f"{name} needs a cluster of one kind of device: ask about each pool by itself")


def answer_to(
    request: Request,
    questions: Questions | None = None,
    on_progress: OnProgress = silent,
    on_note: OnNote = unheard,
) -> Answer:
    """The search, its best plans and its answers; every plan is written on the way where a file is asked for.

    Raises: InputError for what cannot be; NoFeasiblePlanError where nothing fits.
    """
    settings, notes = settings_of(request)
    questions = questions or Questions()
    is_long = questions.sensitivity or questions.trace_file is not None
    searching, answering = pieces(on_progress, (SEARCH_SHARE, 1 - SEARCH_SHARE) if is_long else (1.0, 0.0))
    options = options_of(request, settings[0])
    if request.all_file is None:
        space, found = try_settings(settings, options, request.simulate, searching)
        notes += found
    elif len(settings) > 1:
        raise InputError("--all writes the plans of a single setting: give one precision, codec and global batch")
    else:
        space = in_order(write_all(settings[0], options, request.all_file, searching, on_note))
        notes.append(f"all {space.accepted + space.rejected[NO_ROOM]:,} legal plans written to {request.all_file}")
    result = answer(space, request.top, request.simulate, notes)
    if request.codecs == ("none",) and not request.adapters.freezes:
        result = replace(result, file=_with_codec_note(result.file))
    answers = answers_to(result, request.simulate, questions, answering, request.cluster or "")
    return replace(result, file=replace(result.file, answers=answers, cluster=request.cluster or ""))


def _with_codec_note(file: PlanFile) -> PlanFile:
    """The file, which says what its best plan could gain at most by lossy gradients, where that is worth trying."""
    best = file.candidates[0].prediction
    share = best.seconds["data_comm"] / best.step_seconds
    if share < WORTH_FRACTION:
        return file
    sent = f"sending gradients and weights takes {format_percent(share)} of the best plan's step"
    return replace(file, notes=(*file.notes, f"{sent}: --codecs auto tries lossy gradients"))


def options_of(request: Request, at: Setting) -> Options:
    """What a search may choose from, beside the degrees: on CPUs, where a sum is dear, whole vocabularies as well."""
    runs = None if request.simulate else at.stack.runs
    usual = (0, 1) if at.device_kind == "cpu" else (1,)
    return Options(
        schedules=at.stack.schedules or torch_names(),
        offload=Options().offload if request.simulate else runs.offload if runs else ("none",),
        vocab_parallel=tuple(int(is_on) for is_on in runs.vocab_parallel) if runs else usual,
        as_stack_runs=runs is not None,
        short_pipelines=runs is not None and runs.short_pipelines,
    )


def parse_count(text: str, option: str = "--tokens") -> float:
    """A number such as 300B, 1.5T or 2e12.

    Raises: InputError where it is none.
    """
    match = COUNT.fullmatch(text.strip())
    if match is None or not float(match.group(1)):
        raise InputError(f"{option} {text}: give a number such as 300B or 2e12")
    count = float(match.group(1)) * SCALES[match.group(2).lower()]
    limits.check(option, count, 1, limits.TOKENS)
    return count


def parse_batches(text: str) -> tuple[int, ...]:
    """Global batches from 512, 256,512 or 256-1024, which doubles as long as it can.

    Raises: InputError where it is none of these.
    """
    return _doublings(
        "--global-batch", text, limits.SAMPLES, "samples such as 512, several such as 256,512, or 256-1024"
    )


def parse_counts(text: str) -> tuple[int, ...]:
    """Counts of devices from 64, 64,256 or 64-1024, which doubles as long as it can.

    Raises: InputError where it is none of these.
    """
    return _doublings("--gpus", text, limits.DEVICES, "devices such as 64, several such as 64,256, or 64-1024")


def _doublings(option: str, text: str, most: int, wanted: str) -> tuple[int, ...]:
    match = RANGE.fullmatch(text.strip())
    if limits.is_whole(text.removeprefix("-")):
        limits.check(option, int(text), 1, most)
    ends = (match["first"], match["last"] or "1") if match else ("",)
    if match is None or not all(map(limits.is_whole, ends)):
        raise InputError(f"{option} {text}: give {wanted}")
    if match["last"] is None:
        return whole_numbers(option, text, 1, most)
    first, last = map(int, ends)
    limits.check(option, last, 1, most)
    if not 0 < first <= last:
        raise InputError(f"{option} {text}: the first must be at least 1 and no more than the last")
    return tuple(first * 2**power for power in range((last // first).bit_length()))


def parse_compression(recipes_text: str, target: str | None) -> Compression:
    """What models are to be compressed by, and how far.

    Raises: UnknownNameError, InputError.
    """
    from planner.compression.prices import parse_targets
    from planner.compression.recipes import recipes

    return Compression(recipes=recipes(recipes_text), targets=parse_targets(target))

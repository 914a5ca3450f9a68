"""Plans for shipped devices and clusters: from what a command line or a notebook asks to the answer."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, replace
from pathlib import Path

from planner.answers import Answers, PoolAlone
from planner.plans import DEFAULT_SAMPLES_PER_DEVICE, DEFAULT_SEQUENCE_LENGTH
from planner.prediction import PlanFile
from planner.schedules.registry import torch_names
from planner.space.answers import Answer, answer
from planner.space.beside import Questions, answers_to
from planner.space.compare_questions import try_settings
from planner.space.explore import NO_ROOM
from planner.space.export import write_all
from planner.space.layouts import Options
from planner.space.question import Setting, setting
from planner.space.questions import parse_wanted
from planner.space.replay_best import in_order
from planner.terminal.progress import OnNote, OnProgress, pieces, silent, unheard
from profiles.errors import InputError, NoFeasiblePlanError
from profiles.inputs import limits
from profiles.inputs.bounds import whole_numbers
from profiles.machines.clusters import Cluster, MixedCluster, find_cluster, load_pools
from profiles.machines.devices import find_device
from profiles.machines.stacks import THIS_PROGRAM, load_stack
from profiles.models.sizes import ModelSizes

COUNT = re.compile(r"(\d+(?:\.\d+)?)([kmbt]?)", re.IGNORECASE)
BATCHES = re.compile(r"(?P<first>\d+)(?:-(?P<last>\d+)|(?:,\d+)*)")
# Of the time of a search with questions that take long.
SEARCH_SHARE = 0.8
SCALES = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is asked; None is the usual. `simulate` also offers what the executor cannot run."""

    model: ModelSizes
    num_devices: int
    device: str | None = None
    cluster: str | None = None
    global_batches: tuple[int, ...] = ()
    sequence_length: int | None = None
    stack: str = THIS_PROGRAM
    precisions: tuple[str, ...] = ()
    codecs: tuple[str, ...] = ("none",)
    top: int = 10
    simulate: bool = False
    all_file: Path | None = None


def ask(
    request: Request, questions: Questions, on_progress: OnProgress = silent, on_note: OnNote = unheard
) -> PlanFile:
    """The plan file, with the answers to the questions in it; `on_note` hears what must be known before the end.

    Raises: InputError for what cannot be; NoFeasiblePlanError where nothing fits.
    """
    cluster = _cluster_of(request)
    if isinstance(cluster, MixedCluster):
        _refuse_for_pools(request, questions)
        return mixed(request, cluster, on_progress)
    if questions.why_not is not None:
        # Before a long search.
        parse_wanted(questions.why_not)
    return answer_to(request, questions, on_progress, on_note).file


def mixed(request: Request, cluster: MixedCluster, on_progress: OnProgress = silent) -> PlanFile:
    """The best plans across two kinds of devices, and what each kind would do alone.

    Raises: InputError for what cannot be; NoFeasiblePlanError where nothing fits.
    """
    from planner.mixed.answers import mixed_answer
    from planner.mixed.mixture import mixture

    pools = load_pools(cluster)
    if request.num_devices != cluster.num_devices:
        raise InputError(f"--gpus {request.num_devices}: the pools of {cluster.name} have {cluster.num_devices}")
    notes = _planned_for(cluster.title, request.stack)
    sequence, batches = _sizes(request, notes)
    if request.codecs != ("none",):
        notes.append("gradients are sent as they are: codecs are not tried across two kinds of devices")
    precision = (request.precisions or ("bf16",))[0]
    together, *apart = pieces(on_progress, (1.0, *(1.0 for _ in pools)))
    found = mixed_answer(
        mixture(request.model, pools, batches[0], sequence, request.stack, precision, cluster.network_gb_per_second),
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
        "several --precision": len(request.precisions) > 1, "several --global-batch": len(request.global_batches) > 1,
    }  # fmt: skip
    for name, value in given.items():
        if value:
            raise InputError(f"{name} is not answered for a cluster of two kinds of devices: ask about each pool alone")


def _cluster_of(request: Request) -> Cluster | MixedCluster | None:
    return find_cluster(request.cluster) if request.cluster else None


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
    options = Options(schedules=load_stack(request.stack).schedules or torch_names())
    options = options if request.simulate else replace(options, offload=("none",))
    if request.all_file is None:
        space, found = try_settings(settings, options, request.simulate, searching)
        notes += found
    elif len(settings) > 1:
        raise InputError("--all writes the plans of one setting: give one precision, codec and global batch")
    else:
        space = in_order(write_all(settings[0], options, request.all_file, searching, on_note))
        notes.append(f"all {space.accepted + space.rejected[NO_ROOM]:,} legal plans written to {request.all_file}")
    result = answer(space, request.top, request.simulate, notes)
    answers = answers_to(result, request.simulate, questions, answering)
    return replace(result, file=replace(result.file, answers=answers))


def settings_of(request: Request) -> tuple[list[Setting], list[str]]:
    """The settings that a request asks to compare, and what was assumed.

    Raises: InputError where sizes or the precision do not suit the model or the device; UnknownNameError.
    """
    cluster = _cluster_of(request)
    if isinstance(cluster, MixedCluster):
        raise InputError(f"--cluster {cluster.name} has two kinds of devices: the command `plan` plans for those")
    device = find_device(request.device or (cluster.device if cluster else ""))
    if cluster and find_device(cluster.device) != device:
        raise InputError(f"--cluster {cluster.name} has {cluster.device}, not {request.device}: give one of the two")
    notes = _planned_for(cluster.title if cluster else device.title, request.stack)
    sequence, batches = _sizes(request, notes)
    precisions = request.precisions or ("bf16" if "bf16" in device.peak_tflops else "fp16",)
    for precision in precisions:
        if precision not in device.peak_tflops:
            known = ", ".join(sorted(device.peak_tflops))
            raise InputError(f"unknown precision '{precision}' on {device.title}: it has {known}")
    return [
        setting(request.model, device, request.num_devices, batch, sequence, request.stack, precision, cluster, codec)
        for precision, codec, batch in itertools.product(precisions, request.codecs, batches)
    ], notes


def _planned_for(where: str, stack: str) -> list[str]:
    """Notes on what is planned for.

    Raises: UnknownNameError for a stack that is not shipped.
    """
    load_stack(stack)
    words = [f"planned for {where} with {stack}: data sheet and published runs, not measured"]
    return words if stack == THIS_PROGRAM else [*words, f"these plans are for {stack}: `execute` does not run them"]


def _sizes(request: Request, notes: list[str]) -> tuple[int, tuple[int, ...]]:
    """Sequence length and global batches, with notes on what was assumed.

    Raises: InputError where one does not suit the model.
    """
    sequence, batches = request.sequence_length, request.global_batches
    longest = request.model.longest_sequence
    if sequence is None:
        sequence = min(longest or DEFAULT_SEQUENCE_LENGTH, DEFAULT_SEQUENCE_LENGTH)
        notes.append(f"sequence length assumed: {sequence} tokens")
    if not batches:
        batches = (DEFAULT_SAMPLES_PER_DEVICE * request.num_devices,)
        notes.append(f"global batch assumed: {batches[0]} samples")
    limits.check("--gpus", request.num_devices, 1, limits.DEVICES)
    limits.check("--sequence-length", sequence, 1, limits.SEQUENCE)
    for batch in batches:
        limits.check("--global-batch", batch, 1, limits.SAMPLES)
    if longest and sequence > longest:
        raise InputError(f"--sequence-length {sequence}: {request.model.name} takes 1 to {longest} tokens")
    return sequence, batches


def parse_count(text: str) -> float:
    """A number such as 300B or 1.5T.

    Raises: InputError where it is none.
    """
    match = COUNT.fullmatch(text.strip())
    if match is None or not float(match.group(1)):
        raise InputError(f"--tokens {text}: give a number such as 300B or 1T")
    count = float(match.group(1)) * SCALES[match.group(2).lower()]
    limits.check("--tokens", count, 1, limits.TOKENS)
    return count


def parse_batches(text: str) -> tuple[int, ...]:
    """Global batches from 512, 256,512 or 256-1024, which doubles as long as it can.

    Raises: InputError where it is none of these.
    """
    match = BATCHES.fullmatch(text.strip())
    if match is None:
        raise InputError(f"--global-batch {text}: give samples such as 512, several such as 256,512, or 256-1024")
    if match["last"] is None:
        return whole_numbers("--global-batch", text, 1, limits.SAMPLES)
    first, last = int(match["first"]), int(match["last"])
    limits.check("--global-batch", last, 1, limits.SAMPLES)
    if not 0 < first <= last:
        raise InputError(f"--global-batch {text}: the first must be at least 1 and no more than the last")
    return tuple(first * 2**power for power in range((last // first).bit_length()))

"""What can be said of a plan file without building its model: which of its plans run, and what none of them may be.

Torch-free: job files are written after these checks, and runs begin with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from executor.engines import ENGINES, Refusal, engine
from planner.legality import refusal
from planner.model_facts import ModelFacts, facts_of_sizes
from planner.plans import Plan
from planner.prediction import Candidate, PlanFile
from profiles import artifacts
from profiles.errors import InputError, PlanError
from profiles.machines.stacks import THIS_PROGRAM
from profiles.models.families import BUILT_FAMILIES
from profiles.models.sizes import sizes_of

# Text is fed as bytes.
BYTE_VALUES = 256


def checked(path: Path, engines: Sequence[str] = ()) -> tuple[PlanFile, Candidate, str]:
    """A plan file, its best plan that can be run, and what of that could not be checked without building the model.

    Raises: ArtifactError, PlanError, InputError.
    """
    file = artifacts.read(path, "plan", PlanFile)
    (best, *_), _ = choose(file, 1, with_baseline=False, engines=engines)
    candidate, spec = file.candidates[best], file.workload
    if not spec.reads_text or spec.task:
        _check_by(engines, candidate.plan, file, _hardly_known(file))
        return file, candidate, f"the sizes of {spec.title} are not known"
    if spec.config.get("model_type") not in BUILT_FAMILIES:
        raise PlanError(f"the executor does not build models of the family {spec.config.get('model_type')}")
    sizes = sizes_of(spec.name, spec.config)
    _check_by(engines, candidate.plan, file, facts_of_sizes(sizes))
    check_text(file, spec.name, int(sizes.transformer.vocab_size[0]), sizes.longest_sequence)
    return file, candidate, ""


def _check_by(engines: Sequence[str], plan: Plan, file: PlanFile, model: ModelFacts) -> None:
    for name in engines or (THIS_PROGRAM,):
        check_plan(plan, file, model, engine(name).refusal)


def _hardly_known(file: PlanFile) -> ModelFacts:
    """The facts of a model that allows whatever depends on it, but for what no model of its kind does."""
    return ModelFacts(
        name=file.workload.name,
        num_layers=file.num_layers,
        num_heads=0,
        num_kv_heads=0,
        ffn_size=0,
        vocab_size=0,
        tied_embeddings=False,
        can_tensor_parallel=True,
        can_pipeline=True,
        is_transformer=False,
        num_experts=None if file.workload.task else 0,
        is_task=bool(file.workload.task),
    )


def choose(
    file: PlanFile, top: int, with_baseline: bool, engines: Sequence[str] = ()
) -> tuple[tuple[int, ...], list[str]]:
    """Indices of the plans that engines are to run, best first, and what is left out.

    Raises: PlanError where the file has none to run.
    """
    for name in engines or (THIS_PROGRAM,):
        if file.stack not in engine(name).stacks:
            raise PlanError(f"the plans of this file are for {file.stack}: {_otherwise(file.stack)}")
    best = sorted(range(len(file.candidates)), key=lambda index: file.candidates[index].rank)
    runnable = [index for index in best if file.candidates[index].executable]
    if not runnable:
        raise PlanError("no plan of this file can be run, all are simulate only: plan again with fewer choices")
    chosen = runnable[:top]
    worst = file.candidates[chosen[-1]].rank
    left_out = [file.candidates[index] for index in best if file.candidates[index].rank < worst and index not in chosen]
    notes = [f"plan {candidate.plan.id} is simulate only and left out" for candidate in left_out]
    notes += [
        f"plan {candidate.rank}, {candidate.plan.id}, is also run: the table of `plan` counts it as similar to "
        f"{candidate.folded_into}"
        for candidate in (file.candidates[index] for index in chosen)
        if candidate.folded_into
    ]
    if with_baseline:
        baseline = file.baseline
        if baseline < 0:
            notes.append("there is no baseline: plain data parallel is not legal here")
        elif not 0 <= baseline < len(file.candidates):
            raise PlanError(f"plan file baseline={baseline}: there are {len(file.candidates)} candidates")
        elif baseline not in chosen:
            chosen = [*chosen, baseline]
    return tuple(chosen), notes


def _otherwise(stack: str) -> str:
    """What to do with plans of a stack that is not to run them."""
    runs = "".join(f"run them with --engine {one.name}, " for one in ENGINES.values() if stack in one.stacks)
    return (
        f"{runs}write one down for it with plan --from FILE --export {stack} -o DIR, or plan again with --stack "
        f"{THIS_PROGRAM}"
    )


def check_plan(plan: Plan, file: PlanFile, model: ModelFacts, refuses: Refusal = refusal) -> None:
    """Check that `plan` can be carried out on this model with this many ranks, by what refuses so.

    Raises: PlanError that names the field, its value and the rule.
    """
    plan.check(model.num_layers)
    reason = refuses(plan, model, file.sequence_length)
    if reason:
        raise PlanError(reason)
    if plan.num_devices != file.num_devices:
        raise PlanError(f"plan {plan.id} is for {plan.num_devices} devices, its file for {file.num_devices}")
    if plan.global_batch_size != file.global_batch_size:
        raise PlanError(
            f"plan {plan.id} takes {plan.global_batch_size} samples per step, its file {file.global_batch_size}"
        )


def check_text(file: PlanFile, name: str, vocab_size: int, longest: int, otherwise: str = "") -> None:
    """Check that bytes as tokens fit a model with such a vocabulary, and sequences of `longest` tokens, 0 for any.

    `otherwise` says what else can be done.

    Raises: InputError.
    """
    if vocab_size < BYTE_VALUES:
        raise InputError(
            f"{name} has a vocabulary of {vocab_size}: text is read as bytes, which needs at least {BYTE_VALUES}"
            f"{': ' if otherwise else ''}{otherwise}"
        )
    if longest and file.sequence_length > longest:
        raise InputError(f"sequences of {file.sequence_length} tokens are longer than the {longest} of {name}")

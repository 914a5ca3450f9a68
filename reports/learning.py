"""The closed loop: what measured steps teach the next prediction on the same machine, judged on plans left out.

Model: a measured step is the sum of the predicted parts, each times its multiple, with an error of NOISE. Multiples are
bounded and held near 1 by how far a part is usually off; outliers are damped. Bubbles and recomputation go with
compute, since the laws make them of it; stragglers and offloading are left as they are.
Ignores: that machines drift. Runs of one session share its speed, and only those of several tell what stays.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Final, get_args

import numpy as np

from planner.cost.measured.corrections import Corrections
from planner.parts import HIGHEST_MULTIPLE, LOWEST_MULTIPLE, PART_SPREADS, CorrectedPart, Multiples
from planner.plans import Plan
from profiles.errors import InputError
from profiles.models.transformer import Array, Flags
from profiles.units import format_percent
from reports.comparison import Row, Source, rows_of

PARTS: Final[tuple[CorrectedPart, ...]] = get_args(CorrectedPart)
# What a part takes with it.
FOLLOWERS: Final = {"compute": ("recompute", "bubble")}
# The choices that make two plans different ways to split the work; others are variants that share their errors.
LAYOUT_FIELDS: Final = (
    "data_parallel", "tensor_parallel", "pipeline_parallel", "context_parallel", "expert_parallel", "shard_degree",
    "sequence_parallel", "vocab_parallel", "axis_order", "zero_stage", "offload", "compiled", "codec", "precision",
)  # fmt: skip
# A part is learned where so many layouts have at least this share of it: less is hidden by the noise of a step.
FEWEST_LAYOUTS, VISIBLE_SHARE = 3, 0.05
# By how much a calm machine's medians differ between runs, and from which error (of the logarithm) a run counts less.
NOISE, DAMPED_FROM = 0.03, 0.1
# What left-out plans must gain in the median, and in the mean of layouts over its standard error. Of drawn runs with
# nothing to learn but noise the median alone falls so far in up to 32 %, the mean too in up to 2 %.
LEAST_GAIN_FRACTION, LEAST_GAIN_SHARE, LEAST_GAIN_ERRORS = 0.003, 0.05, 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """Judged runs of one machine. Shapes: one entry per run; `parts` (run, part) in the order of PARTS.

    `layout` and `file` are numbers by which variants of one layout, and runs of one file, are known; `rest` seconds
    that no part covers.
    """

    layout: Array
    file: Array
    parts: Array
    rest: Array
    measured: Array

    def take(self, index: Flags) -> Steps:
        """The runs at `index`."""
        return Steps(**{field.name: getattr(self, field.name)[index] for field in fields(self)})

    def errors(self, multiples: Array) -> Array:
        """Predicted / measured - 1 with such multiples."""
        return np.asarray((self.parts @ multiples + self.rest) / self.measured - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """What runs taught: the `corrections` to write, None where `why_not` says why there are none."""

    corrections: Corrections | None
    why_not: str = ""

    @property
    def sentence(self) -> str:
        """The lesson in one line."""
        if self.corrections is None:
            return f"nothing learned: {self.why_not}, so nothing was written"
        own = self.corrections
        multiples = ", ".join(f"{part} x {multiple:.3g}" for part, multiple in own.multiples.items())
        return (
            f"learned from {own.num_plans} layouts in {own.num_runs} runs: {multiples}; median error of plans left out "
            f"{format_percent(own.error_fraction_before)} -> {format_percent(own.error_fraction_after)}"
        )


def learn(sources: Sequence[Source]) -> Lesson:
    """What the judged runs of one machine teach; runs whose losses are wrong compute something else and do not.

    Raises: InputError where runs are of several machines, of one that was not measured, or not of the one planned for.
    """
    name, digest = _machine(sources)
    # Predictions with older corrections are brought to those of the latest run, whose multiples the new ones multiply.
    before = max(sources, key=lambda source: source.file.environment.started).file.learned
    steps = steps_of(sources, before)
    chosen = learnable(steps)
    if not chosen.any():
        return Lesson(corrections=None, why_not=f"fewer than {FEWEST_LAYOUTS} layouts have times that are judged")
    plain, taught = errors_as_predicted(steps), left_out_errors(steps, steps.layout, chosen, before)
    why = why_no_gain(plain, taught, steps.layout)
    if not why and len(set(steps.file.tolist())) > 1:
        others = left_out_errors(steps, steps.file, chosen, before)
        if not is_fall(plain, others):
            why = f"what one file teaches does not hold for others, {_from_to(plain, others)} with a file left out"
    if why:
        return Lesson(corrections=None, why_not=why)
    found = fit(steps, chosen, before)
    return Lesson(
        corrections=Corrections(
            machine_name=name,
            machine_fingerprint=digest,
            multiples=composed(before, found, chosen),
            num_runs=len(steps.measured),
            num_plans=len(set(steps.layout.tolist())),
            error_fraction_before=median_error(plain),
            error_fraction_after=median_error(taught),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )
    )


def median_error(errors: Array) -> float:
    """The median of errors' sizes."""
    return float(np.median(abs(errors)))


def is_fall(before: Array, after: Array) -> bool:
    """Whether the median error falls visibly."""
    was = median_error(before)
    return was - median_error(after) >= max(LEAST_GAIN_FRACTION, LEAST_GAIN_SHARE * was)


def why_no_gain(before: Array, after: Array, layout: Array) -> str:
    """Why errors fall no more than by chance, in the median or in the mean of layouts; "" where they do."""
    gains = abs(before) - abs(after)
    means = np.array([gains[layout == one].mean() for one in np.unique(layout)])
    changed = f"{_from_to(before, after)} with a layout left out of {len(means)}"
    if not is_fall(before, after):
        return f"corrections do not help, {changed}"
    margin = LEAST_GAIN_ERRORS * means.std(ddof=1) / np.sqrt(len(means))
    return "" if means.mean() > margin else f"what corrections gain may be chance, {changed}"


def _from_to(before: Array, after: Array) -> str:
    return f"median error {format_percent(median_error(before))} -> {format_percent(median_error(after))}"


def composed(before: Multiples, found: Array, chosen: Flags) -> Multiples:
    """The multiples of predictions without corrections, from those found of predictions with `before`."""
    factors = {part: float(found[index]) for index, part in enumerate(PARTS) if chosen[index]}
    products = {part: before.get(part, 1.0) * factors.get(part, 1.0) for part in PARTS if part in {**before, **factors}}
    return {part: min(max(value, LOWEST_MULTIPLE), HIGHEST_MULTIPLE) for part, value in products.items()}


def learnable(steps: Steps) -> Flags:
    """Which parts enough layouts have as a visible share: of the predictions alone, so that it tells nothing of runs.

    Shapes: one entry per part.
    """
    visible = steps.parts >= VISIBLE_SHARE * (steps.parts.sum(axis=1) + steps.rest)[:, None]
    return np.array([len(set(steps.layout[column].tolist())) >= FEWEST_LAYOUTS for column in visible.T])


def fit(steps: Steps, chosen: Flags, before: Multiples) -> Array:
    """The multiples of the chosen parts, 1 of the others: the most likely ones. Shapes: one entry per part."""
    from scipy.optimize import least_squares

    result = np.ones(len(PARTS))
    own = np.log([before.get(part, 1.0) for part in PARTS])[chosen]
    spread = np.array([PART_SPREADS[part] for part in PARTS])[chosen]
    # A layout counts as many independent runs as the square root of its own: they share what is off.
    _, inverse, counts = np.unique(steps.layout, return_inverse=True, return_counts=True)
    weight = 1 / np.sqrt(np.sqrt(counts[inverse])) / NOISE

    def residuals(x: Array) -> Array:
        result[chosen] = np.exp(x)
        error = np.log1p(steps.errors(result))
        # Huber's loss by hand: the penalties must stay quadratic.
        scaled = np.maximum(abs(error) / DAMPED_FROM, 1.0)
        damped = np.where(scaled > 1, DAMPED_FROM * np.sqrt(2 * scaled - 1), abs(error)) * np.sign(error)
        return np.concatenate([damped * weight, x / spread])

    # The product with what was learned before stays inside the bounds.
    limits = np.log(LOWEST_MULTIPLE) - own - 1e-9, np.log(HIGHEST_MULTIPLE) - own + 1e-9
    result[chosen] = np.exp(least_squares(residuals, np.zeros(len(own)), bounds=limits).x)
    return result


def errors_as_predicted(steps: Steps) -> Array:
    """Errors without new corrections. Shapes: one entry per run."""
    return steps.errors(np.ones(len(PARTS)))


def left_out_errors(steps: Steps, groups: Array, chosen: Flags, before: Multiples) -> Array:
    """Errors of the runs of each group (layout or file) with what all others taught. Shapes: one entry per run."""
    errors = np.empty(len(groups))
    for group in np.unique(groups):
        is_out = groups == group
        errors[is_out] = steps.take(is_out).errors(fit(steps.take(~is_out), chosen, before))
    return errors


def steps_of(sources: Sequence[Source], before: Mapping[CorrectedPart, float]) -> Steps:
    """The runs that teach, as they would be predicted with the multiples `before`.

    Runs of another engine teach nothing of this one. Lossy codecs, whose losses are exempt, teach: their times are
    judged, and no other plan tells what a codec takes.
    """
    numbers: dict[tuple[object, ...], int] = {}
    layouts, files, parts, rest, measured = [], [], [], [], []
    for number, source in enumerate(sources):
        for row in rows_of(source):
            if row.is_judged and row.run.is_own and row.run.measurement.loss_check.status != "failed":
                layouts.append(numbers.setdefault(layout_of(row.run.plan), len(numbers)))
                files.append(number)
                own = seconds_of(row)
                parts.append([own[part] * before.get(part, 1.0) / source.file.learned.get(part, 1.0) for part in PARTS])
                rest.append(row.predicted_seconds - sum(own.values()))
                measured.append(row.measured_seconds)
    return Steps(
        layout=np.array(layouts),
        file=np.array(files),
        parts=np.array(parts).reshape(-1, len(PARTS)),
        rest=np.array(rest),
        measured=np.array(measured),
    )


def seconds_of(row: Row) -> dict[CorrectedPart, float]:
    """Predicted seconds of each part with what goes along with it."""
    seconds = row.run.prediction.seconds
    return {part: sum(seconds.get(name, 0.0) for name in (part, *FOLLOWERS.get(part, ()))) for part in PARTS}


def layout_of(plan: Plan) -> tuple[object, ...]:
    """What plans of one layout have in common."""
    return tuple(getattr(plan, name) for name in LAYOUT_FIELDS)


def _machine(sources: Sequence[Source]) -> tuple[str, str]:
    """Name and fingerprint of the machine that all runs were planned for and made on."""
    for source in sources:
        planned, here = source.file.machine_fingerprint, source.file.environment.fingerprint
        if planned != here:
            what = f"another machine ({planned})" if planned else "no machine that was measured"
            raise InputError(
                f"{source.name} was planned for {what} and ran on {here}: learn from plans for the machine they run on"
            )
    digests = Counter(source.file.machine_fingerprint for source in sources)
    if len(digests) > 1:
        raise InputError(f"--learn takes runs of one machine, but these are of {len(digests)}: {', '.join(digests)}")
    return sources[0].file.machine_name, sources[0].file.machine_fingerprint

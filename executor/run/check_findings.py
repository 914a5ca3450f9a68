"""What a check has found: comparisons of whole tensors with a plain loop's, and the verdict on all of them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from executor.run.check_bounds import (
    ROUNDINGS,
    Scale,
    allowed_cosine,
    allowed_fraction,
    allowed_loss,
    beyond,
    dot,
    projection_error,
    rounded,
)
from executor.run.measurement import LossCheck, Status
from executor.run.plain_loop import PlainLoop
from planner.plans import Plan
from profiles.codecs.codec import codec

GRADIENTS, WEIGHTS, COSINE, LOSS = "gradient", "weight after plain descent", "cosine of all gradients", "loss"
OPTIMIZER, COPIES, RESUMED = "weight after the optimizer's steps", "copies on other ranks", "what was resumed"
NOTHING_SENT = "gradients that were sent"
# Weights are rounded to 24 bits at every step, and so is what is added to them.
WEIGHT_ROUNDING = 2.0**-23
# A tensor of fewer elements may be left out by a codec that sends some alone.
SENT_SHARE = 0.9
# Of what a codec loses, how much comes back in the gradients of later steps.
DRIFT = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One comparison: what of which tensor, how far it is off, and how far it may be."""

    what: str
    name: str
    difference: float
    allowed: float

    @property
    def ratio(self) -> float:
        """The difference over what is allowed; above 1 where something is wrong."""
        if not math.isfinite(self.difference):
            return math.inf
        return self.difference / self.allowed if self.allowed else (math.inf if self.difference else 0.0)

    @property
    def words(self) -> str:
        """The comparison as a sentence's end."""
        where = f" of {self.name}" if self.name else ""
        return f"{self.what}{where} is off by {self.difference:.1e}, {self.allowed:.1e} allowed"


@dataclass(slots=True)
class Findings:
    """What rank 0 has found so far, the worst of each kind."""

    worst: dict[str, Finding] = field(default_factory=dict)

    def add(self, what: str, name: str, difference: float, allowed: float) -> None:
        """Note a comparison."""
        found = Finding(what=what, name=name, difference=difference, allowed=allowed)
        if what not in self.worst or found.ratio > self.worst[what].ratio:
            self.worst[what] = found


def compare_loss(plan: Plan, found: float, wanted: float, scale: Scale, findings: Findings) -> None:
    """Compare the first loss."""
    findings.add(LOSS, "", abs(found - wanted) / (abs(wanted) or 1.0), allowed_loss(plan, scale))


def compare_gradients(
    plan: Plan, plain: PlainLoop, scale: Scale, gathered: Iterable[tuple[str, Tensor]], findings: Findings
) -> None:
    """Compare gradients, one tensor after the other, with those that the plain loop has."""
    weights, left = dict(plain.weights()), set(_trained(plain))
    product = found_square = wanted_square = 0.0
    num_sent = num_there = 0
    for name, found in gathered:
        if name not in left:
            if name not in weights:
                findings.add(GRADIENTS, name, math.inf, 0.0)
            continue
        left.discard(name)
        wanted = _gradient(weights[name])
        off = float(beyond(plan, found, wanted, plain.parts.get(name), plain.largest).norm())
        allowed = allowed_fraction(plan, name, wanted, scale)
        findings.add(GRADIENTS, name, off / scale.of(name, wanted), allowed)
        product += dot(found, wanted)
        found_square += dot(found, found)
        wanted_square += dot(wanted, wanted)
        num_sent += int(found.count_nonzero())
        num_there += int(wanted.count_nonzero())
    for name in sorted(left):
        findings.add(GRADIENTS, name, math.inf, 0.0)
    if not codec(plan.codec).lossy:
        cosine = product / math.sqrt(found_square * wanted_square or 1.0)
        findings.add(COSINE, "", 1 - min(1.0, cosine), allowed_cosine(plan, scale))
    if codec(plan.codec).is_sparse:
        least = SENT_SHARE * codec(plan.codec).kept_fraction * num_there
        findings.add(NOTHING_SENT, "", max(0.0, least - num_sent), 0.5)


def compare_projections(
    plan: Plan, plain: PlainLoop, scale: Scale, gathered: Iterable[tuple[str, Tensor]], findings: Findings
) -> None:
    """Compare gradients of a low rank with those of which they are a projection."""
    weights = dict(plain.weights())
    for name, found in gathered:
        wanted = _gradient(weights[name])
        share = float(wanted.norm()) / scale.of(name, wanted)
        # Two sums of the gradient with itself, one after the other; and two more steps behind the first.
        allowed = 10 * allowed_fraction(plan, name, wanted, scale)
        findings.add("low-rank gradient", name, share * projection_error(found, wanted), allowed)


def compare_weights(
    plan: Plan,
    plain: PlainLoop,
    scale: Scale,
    rate: float,
    num_steps: int,
    gathered: Iterable[tuple[str, Tensor]],
    findings: Findings,
) -> None:
    """Compare weights after steps of plain descent, relative to how far they have gone."""
    weights = dict(plain.weights())
    usual = Scale(usual=scale.usual * rate * num_steps, rounding={})
    for name, found in gathered:
        wanted, moved = weights[name].detach().float(), plain.moved.get(name)
        if moved is None:
            findings.add(WEIGHTS, name, float((found - wanted).norm()), 0.0)
            continue
        size, off = usual.of(name, moved), (found - wanted).abs()
        rounding = WEIGHT_ROUNDING * num_steps * float(wanted.norm()) / size
        if name in plain.sent:
            # What a message left out may go into the next one; gradients of weights that are off are off themselves.
            lost = rate * rounded(plan, plain.sent[name], plain.largest_sent)
            off = (off - 2 * lost).clamp(min=0.0)
            rounding += DRIFT * float(lost.norm()) / size
        allowed = 2 * allowed_fraction(plan, name, _gradient(weights[name]), scale) + rounding
        allowed += ROUNDINGS * scale.weight_rounding.get(name, 0.0) / size
        findings.add(WEIGHTS, name, float(off.norm()) / size, allowed)


def verdict(plan: Plan, words: str, findings: Findings) -> LossCheck:
    """The verdict, as a run file keeps it."""
    ordered = sorted(findings.worst.values(), key=lambda finding: -finding.ratio)
    gradient, weight = findings.worst[GRADIENTS], findings.worst.get(WEIGHTS)
    status: Status = "failed" if ordered[0].ratio > 1 else "passed"
    where = f", {words}" if words else ""
    if status == "failed":
        reason = f"{ordered[0].words}, beside a plain loop{where}"
    else:
        gone = "" if weight is None else f", weights within {weight.difference:.0e}"
        reason = f"gradients within {gradient.difference:.0e}{gone} of a plain loop{where}"
    loss = findings.worst[LOSS]
    return LossCheck(
        status=status,
        reason=reason,
        tolerance_fraction=loss.allowed,
        largest_difference_fraction=_finite(loss.difference),
        gradient_tolerance_fraction=_finite(gradient.allowed) or 0.0,
        largest_gradient_difference_fraction=_finite(gradient.difference),
        largest_weight_difference_fraction=None if weight is None else _finite(weight.difference),
        found={finding.what: _finite(finding.ratio) for finding in ordered},
    )


def _finite(value: float) -> float | None:
    return min(value, 1e6) if math.isfinite(value) else None


def _trained(plain: PlainLoop) -> list[str]:
    return [name for name, weight in plain.weights() if weight.requires_grad]


def _gradient(weight: Tensor) -> Tensor:
    return torch.zeros_like(weight, dtype=torch.float32) if weight.grad is None else weight.grad.float()

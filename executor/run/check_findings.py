"""What a check has found: comparisons of whole tensors with a plain loop's, and the verdict on all of them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from executor.run.check_bounds import Scale, allowed_fraction, beyond, projection_error
from executor.run.measurement import LossCheck, Status
from executor.run.plain_loop import PlainLoop
from planner.plans import Plan
from profiles.codecs.codec import codec

LOSS_FRACTIONS = {"fp32": 1e-5, "tf32": 1e-3, "bf16": 2e-3, "fp8": 2e-2}
# 1 less the cosine of all gradients with the plain loop's.
COSINE_FRACTIONS = {"fp32": 1e-6, "tf32": 1e-3, "bf16": 1e-3, "fp8": 5e-3}
GRADIENTS, WEIGHTS, COSINE, LOSS = "gradient", "weight after plain descent", "cosine of all gradients", "loss"
OPTIMIZER, COPIES, RESUMED = "weight after the optimizer's steps", "copies on other ranks", "what was resumed"
NOTHING_SENT = "gradients that were sent"
# Weights are rounded to 24 bits at every step, and so is what is added to them.
WEIGHT_ROUNDING = 2.0**-23
# A tensor of fewer elements may be left out by a codec that sends some alone.
SENT_SHARE = 0.9


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


def compare_loss(plan: Plan, found: float, wanted: float, findings: Findings) -> None:
    """Compare the first loss."""
    findings.add(LOSS, "", abs(found - wanted) / (abs(wanted) or 1.0), LOSS_FRACTIONS[plan.precision])


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
        product += float((found.double() * wanted.double()).sum())
        found_square += float(found.double().square().sum())
        wanted_square += float(wanted.double().square().sum())
        num_sent += int(found.count_nonzero())
        num_there += int(wanted.count_nonzero())
    for name in sorted(left):
        findings.add(GRADIENTS, name, math.inf, 0.0)
    if not codec(plan.codec).lossy:
        cosine = product / math.sqrt(found_square * wanted_square or 1.0)
        findings.add(COSINE, "", 1 - min(1.0, cosine), COSINE_FRACTIONS[plan.precision])
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
        wanted, parts = weights[name].detach().float(), plain.parts.get(name)
        moved = plain.moved.get(name)
        if moved is None:
            findings.add(WEIGHTS, name, float((found - wanted).norm()), 0.0)
            continue
        off = (found - wanted) / (rate * num_steps)
        if parts is not None:
            # Twice what one step may lose: what a message left out goes into the next one.
            off = beyond(plan, off / 2, torch.zeros_like(off), parts, plain.largest) * 2
        size = usual.of(name, moved)
        rounding = WEIGHT_ROUNDING * num_steps * float(wanted.norm()) / size
        allowed = allowed_fraction(plan, name, _gradient(weights[name]), scale)
        findings.add(WEIGHTS, name, float(off.norm()) * rate * num_steps / size, 2 * allowed + rounding)


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

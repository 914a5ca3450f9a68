"""What is trained of a model: all of it, or matrices of low rank beside weights that are frozen. Torch-free.

Source: LoRA (arXiv 2106.09685) for the matrices, QLoRA (arXiv 2305.14314) for a frozen base in few bits.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from profiles.artifacts import STRICT
from profiles.errors import ArtifactError, InputError, UnknownNameError
from profiles.inputs import limits
from profiles.inputs.ranges import Whole

# Of a frozen weight in each format, with its scales: 4 bits in blocks of 64 with 32-bit scales (QLoRA; doubly quantised
# these are 8 bits in blocks of 256), and groups of 128 with 16-bit scales and integer zeros (GPTQ).
FORMAT_BYTES = {
    "nf4": 0.5 + 4 / 64, "nf4-dq": 0.5 + 1 / 64 + 4 / (64 * 256), "int4": 0.5 + 2.5 / 128, "int8": 1.0 + 3 / 128,
}  # fmt: skip
AS_IT_IS = "none"
FORMATS = (AS_IT_IS, *FORMAT_BYTES)
ATTENTION_TARGETS, NETWORK_TARGETS = ("q", "k", "v", "o"), ("gate", "up", "down")
TARGETS = (*ATTENTION_TARGETS, *NETWORK_TARGETS)
# Words for several at once.
GROUPS = {"attention": ATTENTION_TARGETS, "mlp": NETWORK_TARGETS, "all": TARGETS}
USUAL_TARGETS = ATTENTION_TARGETS
METHOD, USUAL_RANK, LARGEST_RANK = "lora", 16, limits.HIDDEN
WANTED = "give lora:16, or with its linears lora:16:q,v"


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapters:
    """What is trained: with `rank` 0 all of the model, else pairs of matrices of that rank beside the `targets`.

    All else is then frozen: it has no gradients and no optimizer states. Linears of its layers are stored in the format
    `base`, and made 16 bits wide as they are used.
    """

    __pydantic_config__ = STRICT

    rank: Whole = 0
    targets: tuple[str, ...] = ()
    base: str = AS_IT_IS

    @property
    def freezes(self) -> bool:
        """Whether the model's own weights are frozen."""
        return self.rank > 0

    @property
    def base_bytes(self) -> float:
        """Bytes of a frozen weight in its format; 0 where it is as wide as what is computed."""
        return FORMAT_BYTES.get(self.base, 0.0)

    def rank_of(self, *targets: str) -> float:
        """The rank beside any of these linears, which may be one product; 0 where there is none."""
        return float(self.rank) if set(targets) & set(self.targets) else 0.0

    def has_any(self, *targets: str) -> float:
        """Whether inputs of any of these linears are kept for a weight gradient, their own or an adapter's: 1 or 0."""
        return 1.0 if not self.freezes or set(targets) & set(self.targets) else 0.0

    def check(self, name: str) -> None:
        """Check what a file from elsewhere says.

        Raises: ArtifactError.
        """
        known = {"targets": (self.targets, TARGETS), "base": ((self.base,), FORMATS)}
        for field, (given, names) in known.items():
            if set(given) - set(names):
                raise ArtifactError(f"{name}: at adapters.{field}: should be among {', '.join(names)}")
        if self.rank > LARGEST_RANK or self.freezes != bool(self.targets):
            raise ArtifactError(f"{name}: at adapters.rank: should be 0 to {LARGEST_RANK:,}, 0 without targets")

    @property
    def words(self) -> str:
        """What it is called: `lora:16:q,k,v,o nf4`; "" where all of the model is trained."""
        if not self.freezes:
            return ""
        base = "" if self.base == AS_IT_IS else f" {self.base}"
        return f"{METHOD}:{self.rank}:{','.join(self.targets)}{base}"


EVERYTHING = Adapters()


@lru_cache(maxsize=256)
def adapters(rank: int, targets: tuple[str, ...] = USUAL_TARGETS, base: str = AS_IT_IS) -> Adapters:
    """One object for all that are alike, with the targets in order."""
    return Adapters(rank=rank, targets=tuple(name for name in TARGETS if name in targets), base=base)


def parse_targets(words: Iterable[str]) -> tuple[str, ...]:
    """Targets by name, or by the words for several.

    Raises: UnknownNameError.
    """
    found: set[str] = set()
    for word in words:
        if word not in (*TARGETS, *GROUPS):
            raise UnknownNameError("linear for adapters", word, (*TARGETS, *GROUPS))
        found |= set(GROUPS.get(word, (word,)))
    return tuple(name for name in TARGETS if name in found)


def parse_adapters(peft: str | None, base: str | None) -> Adapters:
    """What `--peft lora:16[:q,v]` and `--quantised-base nf4` ask for; all of the model where neither is given.

    Raises: InputError, UnknownNameError.
    """
    if base is not None and base not in FORMATS:
        raise UnknownNameError("format of a frozen base", base, FORMATS)
    if peft is None:
        if base not in (None, AS_IT_IS):
            raise InputError(f"--quantised-base {base}: weights in few bits cannot be trained: give --peft lora:16 too")
        return EVERYTHING
    method, _, rest = peft.partition(":")
    rank, _, targets = rest.partition(":")
    if method != METHOD or (rank and not limits.is_whole(rank)) or (":" in rest and not targets):
        raise InputError(f"--peft {peft}: {WANTED}")
    number = int(rank) if rank else USUAL_RANK
    limits.check("--peft rank", number, 1, LARGEST_RANK)
    named = parse_targets(word.strip() for word in targets.split(",")) if targets else USUAL_TARGETS
    return adapters(number, named, base or AS_IT_IS)

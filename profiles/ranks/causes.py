"""Why a job failed, in one sentence: from the words that its ranks left, how they ended, and who ended them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from profiles import errors
from profiles.errors import RankFailure, TrainwrightError
from profiles.ranks.exhausted import Counted, counted, words_for_a_kill
from profiles.ranks.leftovers import GRACE_SECONDS
from profiles.ranks.rank import Failure, result_path


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How the ranks of an attempt ended: `codes` of those that failed; `killed` by the launcher, as others were gone.

    `memory_before` is what was counted before they were started, `steps` where each said last that it stands.
    """

    folder: Path
    num_ranks: int
    codes: Mapping[int, int] = field(default_factory=dict)
    killed: frozenset[int] = frozenset()
    memory_before: Counted = field(default_factory=counted)
    steps: Mapping[int, int] = field(default_factory=dict)


def first_cause(ended: Ended) -> TrainwrightError:
    """What happened first: a rank killed from outside, then a rank's own error, then one that left or lost a peer."""
    folder, num_ranks = ended.folder, ended.num_ranks
    killed = {
        rank: -code
        for rank, code in ended.codes.items()
        if code < 0 and -code != signal.SIGTERM and rank not in ended.killed
    }
    # A library may abort a rank because another one failed: that one's own word comes first.
    aborted = {rank for rank, number in killed.items() if number == signal.SIGABRT}
    for rank in killed.keys() - aborted:
        return RankFailure(_killed(ended, rank, killed[rank]))
    words = [Failure(**json.loads(path.read_text(encoding="utf-8"))) for path in sorted(folder.glob("failure-*.json"))]
    for word in sorted(words, key=lambda word: (word.is_lost_peer, not word.is_ours, word.rank)):
        if word.is_lost_peer:
            break
        if word.is_ours:
            return _ours(word)
        kept = _keep_log(folder, word.rank)
        cause = f"{word.error}: {word.message}" if word.message else word.error
        return RankFailure(f"rank {word.rank} of {num_ranks} failed: {cause}{kept}")
    for rank in sorted(aborted):
        where = _where(ended, rank)
        kept = _keep_log(folder, rank)
        return RankFailure(f"rank {rank} of {num_ranks} was aborted by a library{where.rstrip(',')}{kept}")
    return _without_a_cause(ended, words)


def _without_a_cause(ended: Ended, words: list[Failure]) -> TrainwrightError:
    """What is said where nobody knows why: who left, who was lost, who had to be ended."""
    num_ranks, said = ended.num_ranks, {word.rank for word in words}
    for rank in range(num_ranks):
        code = ended.codes.get(rank, 0)
        is_ended = rank in said or rank in ended.killed or code == -signal.SIGTERM
        if not is_ended and not result_path(ended.folder, rank).exists():
            return RankFailure(f"rank {rank} of {num_ranks} exited early with code {code}; run it again")
    for rank in sorted(ended.killed):
        return RankFailure(
            f"rank {rank} of {num_ranks} hung{_where(ended, rank).rstrip(',')}: the others had ended, it had not in "
            f"{GRACE_SECONDS:g} s, and the launcher killed it"
        )
    for word in words:
        if word.is_ours:
            return _ours(word)
        return RankFailure(f"rank {word.rank} of {num_ranks} lost its peers: {word.error}: {word.message}")
    return RankFailure(f"the {num_ranks} ranks were stopped from outside (SIGTERM); run it again")


def _killed(ended: Ended, rank: int, number: int) -> str:
    by = words_for_a_kill(ended.memory_before, counted()) if number == signal.SIGKILL else ""
    kept = "" if number == signal.SIGKILL else _keep_log(ended.folder, rank)
    name = signal.Signals(number).name
    # Its last sign of life is some moments older than that of others.
    where = _where(ended, rank, beside_others=False)
    return f"rank {rank} of {ended.num_ranks} was killed by {name}{where if by else where.rstrip(',')}{by}{kept}"


def _where(ended: Ended, rank: int, *, beside_others: bool = True) -> str:
    """In which step a rank stood, where it had said so, and who stood elsewhere."""
    step = ended.steps.get(rank, 0)
    if not step:
        return ""
    behind = [other for other, at in ended.steps.items() if beside_others and 0 < at < step]
    others = f" (rank {behind[0]} in step {ended.steps[behind[0]]})" if behind else ""
    return f", last seen in step {step}{others},"


def _ours(word: Failure) -> TrainwrightError:
    kind = getattr(errors, word.error, RankFailure)
    error: TrainwrightError = kind.__new__(kind)  # not called: some of these errors compose their message themselves
    error.args, error.details = (word.message,), word.details
    return error


def _keep_log(folder: Path, rank: int) -> str:
    logs = sorted(folder.glob(f"**/{rank}/stderr.log"))
    if not logs or not logs[-1].stat().st_size:
        return ""
    kept = Path(tempfile.gettempdir(), f"trainwright-rank{rank}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log")
    shutil.copyfile(logs[-1], kept)
    return f" (its log is {kept})"

"""In which order samples are read: every epoch all of them once, shuffled by the seed, with nothing kept in memory.

Torch-free.
"""

from __future__ import annotations

import hashlib

ROUNDS = 4


def sample_at(number: int, count: int, seed: int, *, shuffle: bool) -> int:
    """Which of `count` samples is the `number`-th that is read, from 0 and over epochs.

    Within an epoch every sample comes once. Shuffling is a permutation by a Feistel network over the next even power
    of two, walked until it is within range (Black and Rogaway, Ciphers with Arbitrary Finite Domains, 2002).
    """
    epoch, place = divmod(number, count)
    if not shuffle or count == 1:
        return place
    half = ((count - 1).bit_length() + 1) // 2
    keys = [_key(seed, epoch, turn) for turn in range(ROUNDS)]
    while True:
        place = _permuted(place, half, keys)
        if place < count:
            return place


def _key(seed: int, epoch: int, turn: int) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed} {epoch} {turn}".encode(), digest_size=8).digest(), "little")


def _permuted(place: int, half: int, keys: list[int]) -> int:
    mask = (1 << half) - 1
    left, right = place >> half, place & mask
    for key in keys:
        left, right = right, left ^ (_mixed(right ^ key) & mask)
    return left << half | right


def _mixed(value: int) -> int:
    """The bits of a number spread over all (the finaliser of MurmurHash3)."""
    value &= 2**64 - 1
    value = (value ^ value >> 33) * 0xFF51AFD7ED558CCD % 2**64
    value = (value ^ value >> 33) * 0xC4CEB9FE1A85EC53 % 2**64
    return value ^ value >> 33

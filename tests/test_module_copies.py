"""What is taken out of a module before it is traced: blocks that others stand for, wherever they lie."""

import gc

import pytest
import torch
from torch import nn

from profiles.tracing.module_copies import shorten, stretches
from profiles.tracing.storages import UNNUMBERED, Storages


@pytest.mark.parametrize(
    ("looks", "left"),
    [
        ("AAAAAA", "AA"),
        ("ABBBBB", "AB"),
        ("SFSFSFSF", "SFS"),
        ("SSSSSFSSSSSFSS", "SSSSSFS"),
        ("AABBBBBCCCD", "AABBCCD"),
        ("ABABABABC", "ABABC"),
        ("ABCD", "ABCD"),
        ("AA", "AA"),
        ("A", "A"),
    ],
)
def test_each_block_that_is_taken_out_has_one_that_is_left_in_its_place(looks, left):
    found = stretches(looks, any_place=True)
    out = {place for first, last, _ in found for place in range(first, last)}
    assert "".join(look for place, look in enumerate(looks) if place not in out) == left
    for first, last, period in found:
        assert (last - first) % period == 0 or last == len(looks)
        for place in range(first, last):
            like = first - period + (place - first) % period
            assert like not in out
            assert looks[like] == looks[place]


def test_blocks_in_the_midst_stay_where_they_may_be_known_by_number():
    assert stretches("AABBBBBCCCD", any_place=False) == []


class Block(nn.Module):
    def __init__(self, index, width):
        super().__init__()
        self.index, self.groups = index, 2
        self.inner = nn.Linear(width, width)


def test_what_is_left_names_the_blocks_that_each_stands_for():
    # Numbers of blocks coincide with their other settings: 2 groups, block 2.
    blocks = [Block(index, 4 if index < 4 else 8) for index in range(9)]
    module = nn.Sequential(*blocks)
    assert shorten(module) == {"1": ["1"] * 2, "3": ["3"] * 3}
    assert [block.inner.in_features for block in module] == [4, 4, 8, 8]


def test_storages_count_while_they_live_beside_what_others_saved():
    storages = Storages()
    first, second, third = (torch.empty(count) for count in (10, 20, 30))
    numbers = [storages.number(tensor) for tensor in (first, second, third)]
    storages.save(numbers[1], 3)
    storages.save(numbers[2], 4)
    assert numbers == [0, 1, 2]
    assert storages.number(first[2:]) == 0
    assert storages.live_bytes(3) == 4 * 30
    assert storages.live(4) == {0, 2}
    del first
    gc.collect()
    assert storages.live_bytes(3) == 4 * 20
    storages.leave_out(numbers[1])
    assert storages.live_bytes(3) == 0
    assert storages.living(torch.empty(7)) == UNNUMBERED
    assert storages.num_bytes == [40, 80, 120]


def test_what_autograd_holds_lives_until_backward():
    storages = Storages()
    weight = torch.ones(5, requires_grad=True)
    held = weight.exp()
    number = storages.number(held)
    loss = held.square().sum()
    del held
    assert storages.live(0) == {number}
    loss.backward()
    assert storages.live(0) == frozenset()


def test_the_last_blocks_stay_where_they_may_differ_by_what_follows_them():
    module = nn.Sequential(*(Block(index, 4) for index in range(9)))
    assert shorten(module, keeps_ends=True) == {"2": ["2"] * 5}
    assert [block.index for block in module] == [0, 1, 2, 8]
    few = nn.Sequential(*(Block(index, 4) for index in range(4)))
    assert shorten(few, keeps_ends=True) == {}
    assert len(few) == 4

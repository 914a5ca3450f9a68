"""Splits of modules over ranks: what is found is what is split by hand, and what is wrong is not proven."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from profiles.errors import PlanError
from profiles.workloads import split_ranks
from profiles.workloads.experts import experts
from profiles.workloads.split_comparison import Failure
from profiles.workloads.split_proof import prove, with_numbers
from profiles.workloads.split_ranks import Ranks, run_as_rank
from profiles.workloads.split_search import find_split
from profiles.workloads.tensor_splits import CHOSEN, COLUMNS, COLUMNS_INSIDE, EXPERTS, ROWS, Split

WIDTH, HEADS, LENGTH = 8, 4, 6


class Transposed(nn.Module):
    """A linear whose weight has inputs first."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(inputs, outputs) * 0.3), nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


class Fused(nn.Module):
    """Attention with one linear for queries, keys and values: in three parts, or head by head."""

    def __init__(self, by_head: bool = False) -> None:
        super().__init__()
        self.heads, self.width, self.by_head = HEADS, WIDTH, by_head
        self.qkv, self.out = Transposed(WIDTH, 3 * WIDTH), Transposed(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        if self.by_head:
            q, k, v = self.qkv(x).view(*x.shape[:2], self.heads, -1).chunk(3, -1)
        else:
            q, k, v = (part.view(*x.shape[:2], self.heads, -1) for part in self.qkv(x).split(self.width, -1))
        attended = functional.scaled_dot_product_attention(*(part.transpose(1, 2) for part in (q, k, v)))
        return self.out(attended.transpose(1, 2).flatten(2))


class Apart(nn.Module):
    """Attention with three linears; of keys and values fewer heads, a bias of each head, a norm that all share."""

    def __init__(self, kv_heads: int = 2, hard: bool = False) -> None:
        super().__init__()
        self.size = WIDTH // HEADS
        self.q, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH, bias=False)
        self.k, self.v = (nn.Linear(WIDTH, kv_heads * self.size) for _ in range(2))
        self.groups = HEADS // kv_heads
        self.norm, self.bias = nn.LayerNorm(self.size), nn.Parameter(torch.randn(3, HEADS))
        self.register_buffer("place", torch.arange(LENGTH)[:, None].sub(torch.arange(LENGTH)).clamp(-1, 1) + 1)
        self.hard = hard

    def forward(self, x: Tensor) -> Tensor:
        shape = (*x.shape[:2], HEADS if self.hard else -1, self.size)
        q = self.norm(self.q(x).view(shape)).transpose(1, 2)
        k, v = (own.view(*x.shape[:2], -1, self.size).transpose(1, 2) for own in (self.k(x), self.v(x)))
        k, v = (own.repeat_interleave(self.groups, 1) for own in (k, v))
        scores = q @ k.transpose(-1, -2) + self.bias[self.place].permute(2, 0, 1)
        return self.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


class Latent(nn.Module):
    """Keys and values of all heads come from few features, one of which every head also sees itself."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.down, self.up = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 5), nn.Linear(4, 2 * WIDTH)
        self.norm, self.out = nn.LayerNorm(4), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        latent, seen = self.down(x).split([4, 1], -1)
        k, v = self.up(self.norm(latent)).view(*x.shape[:2], -1, 2, 2).unbind(3)
        q = self.q(x).view(*x.shape[:2], -1, 2)
        attended = functional.scaled_dot_product_attention(
            *(own.transpose(1, 2) for own in (q * seen[..., None], k, v))
        )
        return self.out(attended.transpose(1, 2).flatten(2))


class Wide(nn.Module):
    """A gate, on or off for each feature."""

    def __init__(self, norm: bool = False) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.norm = nn.LayerNorm(2 * WIDTH) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.up(x).chunk(2, -1)
        return self.down(self.norm(functional.relu(gate) * up))


class Mixture(nn.Module):
    """Experts as transformers keeps them."""

    def __init__(self) -> None:
        super().__init__()
        self.num_experts, self.has_gate = 4, False
        self.up_proj = nn.Parameter(torch.randn(4, 2 * WIDTH, WIDTH) * 0.3)
        self.down_proj = nn.Parameter(torch.randn(4, WIDTH, 2 * WIDTH) * 0.3)

    def act_fn(self, x: Tensor) -> Tensor:
        return functional.gelu(x)

    def forward(self, hidden: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        return experts(self, hidden, index, weights)


class Routed(nn.Module):
    """Two of four experts for each token."""

    def __init__(self) -> None:
        super().__init__()
        self.router, self.experts = nn.Linear(WIDTH, 4), Mixture()

    def forward(self, x: Tensor) -> Tensor:
        weights, index = self.router(x.flatten(0, 1)).softmax(-1).topk(2, -1)
        return self.experts(x.flatten(0, 1), index, weights).view(x.shape)


class Model(nn.Module):
    """Two blocks that add to what they are given."""

    def __init__(self, *parts: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.ModuleDict({str(at): made() for at, made in enumerate(parts)}) for _ in range(2))
        for block in self.blocks:
            block.forward = self._block(block)  # type: ignore[method-assign]

    @staticmethod
    def _block(block: nn.Module) -> Callable[[Tensor], Tensor]:
        def forward(x: Tensor) -> Tensor:
            for part in block.values():  # type: ignore[operator]
                x = x + part(functional.layer_norm(x, x.shape[-1:]))
            return x

        return forward

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x.square().mean()


def model(*parts: Callable[[], nn.Module]) -> tuple[nn.Module, Callable[[nn.Module], Tensor]]:
    torch.manual_seed(1)
    made, x = Model(*parts), torch.randn(2, LENGTH, WIDTH)
    return made, lambda module: module(x)


def found(*parts: Callable[[], nn.Module], degree: int = 2) -> Split:
    return find_split(*model(*parts), degree)


def of_first(split: Split) -> dict[str, tuple[str, Any]]:
    """Ways and pieces of the first part of the first block."""
    start = "blocks.0.0."
    return {p.removeprefix(start): (s, split.pieces[p]) for p, s in split.styles.items() if p.startswith(start)}


HALVES = (((0, 4),), ((4, 8),))


def test_parts_of_a_fused_linear_are_the_rows_of_whole_heads() -> None:
    split = found(Fused)
    assert of_first(split) == {
        "out": (ROWS, HALVES),
        "qkv": (COLUMNS, (((0, 4), (8, 12), (16, 20)), ((4, 8), (12, 16), (20, 24)))),
    }
    assert split.attributes["blocks.0.0"] == {"heads": 2, "width": 4}
    assert "blocks.0.0.qkv" in split.transposed
    by_head = found(lambda: Fused(by_head=True))
    assert of_first(by_head)["qkv"] == (COLUMNS, (((0, 12),), ((12, 24),)))
    assert by_head.attributes["blocks.0.0"] == {"heads": 2}
    assert not split.summed | by_head.summed


def test_four_ranks_have_a_head_each() -> None:
    assert of_first(found(lambda: Fused(by_head=True), degree=4))["qkv"] == (
        COLUMNS,
        (((0, 6),), ((6, 12),), ((12, 18),), ((18, 24),)),
    )


def test_what_heads_have_of_their_own_is_split_and_what_they_share_adds_up() -> None:
    split = found(Apart)
    assert of_first(split) == {
        "out": (ROWS, HALVES),
        "q": (COLUMNS, HALVES),
        "k": (COLUMNS, (((0, 2),), ((2, 4),))),
        "v": (COLUMNS, (((0, 2),), ((2, 4),))),
    }
    assert split.parameters["blocks.0.0.bias"] == (1, (((0, 2),), ((2, 4),)))
    assert {name for name in split.summed if name.startswith("blocks.0.")} == {
        "blocks.0.0.bias", "blocks.0.0.norm.weight", "blocks.0.0.norm.bias",
    }  # fmt: skip


def test_keys_and_values_of_all_heads_are_whole_on_every_rank() -> None:
    split = found(lambda: Apart(kv_heads=1))
    assert of_first(split)["k"] == (CHOSEN, (((0, 2),), ((0, 2),)))
    assert split.attributes["blocks.0.0"] == {"groups": 2}


def test_features_that_all_heads_come_from_enter_once() -> None:
    split = found(Latent)
    assert of_first(split) == {
        "out": (ROWS, HALVES),
        "q": (COLUMNS, HALVES),
        "down": (CHOSEN, (((0, 5),), ((0, 5),))),
        "up": (COLUMNS_INSIDE, (((0, 8),), ((8, 16),))),
    }
    assert "blocks.0.0.norm.weight" in split.summed


def test_a_gate_is_split_with_what_it_opens() -> None:
    own = of_first(found(Wide))
    assert own["up"] == (COLUMNS, (((0, 8), (16, 24)), ((8, 16), (24, 32))))
    assert own["down"] == (ROWS, (((0, 8),), ((8, 16),)))


def test_experts_are_shared_out() -> None:
    made, run = model(Routed)
    split = find_split(made, run, 2)
    assert of_first(split) == {"experts": (EXPERTS, (((0, 2),), ((2, 4),)))}
    assert not split.summed
    wrong = replace(split, pieces={**split.pieces, "blocks.1.0.experts": (((0, 2),), ((1, 3),))})
    with with_numbers(made), pytest.raises(Failure, match="do not add up") as told:
        prove(made, wrong, run)
    assert told.value.path == "blocks.1.0.experts"
    with pytest.raises(PlanError, match=r"blocks\.0\.0\.experts keeps its experts whole: 4 are not a multiple of 3"):
        find_split(made, run, 3)


def test_weights_that_others_have_too_stay_whole() -> None:
    made, run = model(Wide, mlp)
    made.blocks[1]["1"][0].weight = made.blocks[0]["1"][0].weight
    assert {path.rpartition(".")[0] for path in find_split(made, run, 2).styles} == {"blocks.0.0", "blocks.1.0"}


class Listening(Ranks):
    """A rank whose parts are kept."""

    def __init__(self, rank: int) -> None:
        super().__init__(rank)
        self.parts: list[Tensor] = []

    def added(self, path: str, value: Tensor, bias: Tensor | None) -> Tensor:
        self.parts.append(value)
        return super().added(path, value, bias)


def test_a_rank_gives_what_its_heads_give_by_hand() -> None:
    made, _ = model(Fused)
    split, (part, x) = found(Fused), (made.get_submodule("blocks.0.0"), torch.randn(2, LENGTH, WIDTH))
    for rank in range(2):
        one = Listening(rank)
        with run_as_rank(made, split, one):
            part(x)
        q, k, v = (x @ part.qkv.weight + part.qkv.bias).chunk(3, -1)
        whole = 0
        for head in (2 * rank, 2 * rank + 1):
            own = slice(2 * head, 2 * head + 2)
            scores = (q[..., own] @ k[..., own].transpose(1, 2)) / 2**0.5
            whole = whole + scores.softmax(-1) @ v[..., own] @ part.out.weight[own]
        torch.testing.assert_close(one.parts[0], whole)
    assert part(x).shape == x.shape
    assert "forward" not in part.qkv.__dict__
    assert part.heads == HEADS


@pytest.mark.parametrize(
    ("part", "words"),
    [
        (lambda: Wide(norm=True), "no linears of Model can be split"),
        (lambda: Apart(hard=True), "blocks.0.0 splits into no equal parts: blocks.0.0.out"),
        (lambda: nn.Linear(WIDTH, WIDTH), "no linears of Model can be split"),
    ],
)
def test_what_cannot_be_split_is_refused_by_name(part: Callable[[], nn.Module], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        found(part)


def test_heads_that_are_fewer_than_ranks_leave_the_rest_to_be_split() -> None:
    split = found(lambda: Apart(hard=True), Wide)
    assert set(split.styles) == {f"blocks.{at}.1.{name}" for at in range(2) for name in ("up", "down")}
    assert [words.partition(" ")[0] for words in split.left_whole] == ["blocks.0.0", "blocks.1.0"]


def swapped(split: Split) -> Split:
    """The first rank has a row of the second's queries, and the other way round."""
    first, second = (((0, 3), (4, 5), (8, 12), (16, 20)), ((3, 4), (5, 8), (12, 16), (20, 24)))
    return replace(split, pieces={**split.pieces, "blocks.0.0.qkv": (first, second)})


def undivided(split: Split) -> Split:
    return replace(split, attributes={**split.attributes, "blocks.0.0": {"width": 4}})


def never_entered(split: Split) -> Split:
    return replace(split, styles={**split.styles, "blocks.1.1.0": COLUMNS_INSIDE})


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))


@pytest.mark.parametrize(
    ("change", "path"), [(swapped, "blocks.0.0.out"), (undivided, "blocks.0.0.out"), (never_entered, "blocks.")]
)
def test_a_wrong_split_is_not_proven(change: Callable[[Split], Split], path: str) -> None:
    made, run = model(Fused, mlp)
    split = find_split(made, run, 2)
    with with_numbers(made):
        assert prove(made, split, run) == split.summed
        with pytest.raises(Failure) as told:
            prove(made, change(split), run)
    assert told.value.path.startswith(path)


def test_a_bias_that_every_rank_adds_is_not_proven(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = split_ranks._rows

    def twice(split: Split, ranks: Ranks, path: str, part: Any, forward: Any, value: Tensor) -> Tensor:
        class Adding(Ranks):
            def added(self, path: str, value: Tensor, bias: Tensor | None) -> Tensor:
                return ranks.added(path, value + bias, bias)

        one = Adding(ranks.rank)
        return rows(split, one, path, part, forward, value)

    made, run = model(Fused)
    split = find_split(made, run, 2)
    monkeypatch.setitem(split_ranks._WAYS, ROWS, twice)
    # Its biases are zero as it is built.
    with with_numbers(made), pytest.raises(Failure, match="the ranks' outputs do not add up") as told:
        prove(made, split, run)
    assert told.value.path == "blocks.0.0.out"


def test_a_module_is_as_before_when_its_split_was_looked_for() -> None:
    made, run = model(Fused, lambda: nn.Sequential(nn.Linear(WIDTH, 16), nn.Dropout(0.5), nn.Linear(16, WIDTH)))
    before = {name: value.clone() for name, value in made.state_dict().items()}
    modes = [part.training for part in made.modules()]
    fields = [set(part.__dict__) for part in made.modules()]
    kinds = [type(part) for part in made.modules()]
    find_split(made, run, 2)
    assert all(torch.equal(value, before[name]) for name, value in made.state_dict().items())
    assert [part.training for part in made.modules()] == modes
    assert [set(part.__dict__) for part in made.modules()] == fields
    assert [type(part) for part in made.modules()] == kinds


def test_a_mistake_of_ours_is_not_told_as_a_split_that_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    def mistaken(*_: Any) -> Tensor:
        raise KeyError("ours")

    monkeypatch.setitem(split_ranks._WAYS, ROWS, mistaken)
    with pytest.raises(KeyError, match="ours"):
        found(Fused)

"""LoRA for tokens of several particles in one batch, by the extension, against float64."""

import itertools

import pytest
import torch
from helpers_rows import restored_extension

from modelswarms_fast.engines.vllm.low_rank import LowRank, LowRankPart, TokenGroups, group_tokens
from modelswarms_fast.ops import _C

__all__ = ["restored_extension"]
pytestmark = pytest.mark.usefixtures("restored_extension")

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
BLOCKS = 3
MIXTURES = torch.tensor([[0.5, -0.25, 0.75], [1.0, 0.0, 0.0], [0.3, 0.3, 0.4], [1.0, 0.5, -0.25]])


def make(inputs: int, outputs: tuple[int, ...], ranks: tuple[int, ...], dtype: torch.dtype) -> list[LowRankPart]:
    """Parts beside each other, the second's A in a wider matrix, all with room between their blocks."""
    generator = torch.Generator().manual_seed(inputs)
    parts = []
    for index, (size, rank, column) in enumerate(
        zip(outputs, ranks, itertools.accumulate(outputs, initial=0), strict=False)
    ):
        a = (torch.randn((BLOCKS, rank + 1, inputs + 7), generator=generator) / inputs**0.5).to(dtype)
        b = torch.randn((BLOCKS, size + 1, rank), generator=generator).to(dtype)
        parts.append(LowRankPart(a[:, :rank, 3 * index : 3 * index + inputs], b[:, :size], column, 0.5 + index))
    return parts


def right(parts: list[LowRankPart], x: torch.Tensor, y: torch.Tensor, of_token: torch.Tensor) -> torch.Tensor:
    """In float64, token by token, with weights that are mixed and then rounded as those of a particle are."""
    wanted = y.double()
    for token, whose in enumerate(of_token.tolist()):
        for a, b, column, scaling in parts if whose >= 0 else ():
            mixed_a, mixed_b = (
                torch.einsum("j,jrk->rk", MIXTURES[whose], one.float()).to(one.dtype).double() for one in (a, b)
            )
            wanted[token, column : column + b.shape[1]] += scaling * mixed_b @ (mixed_a @ x[token].double())
    return wanted


def grouped(of_token: torch.Tensor) -> TokenGroups:
    found = group_tokens(of_token, lambda whose: (0, MIXTURES[whose].tolist()))
    assert found is not None
    return found


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("inputs", "outputs", "ranks"),
    [
        (1, (1,), (1,)),
        (33, (70, 5), (3, 2)),
        (576, (576, 192, 192), (4, 4, 4)),
        (40, (70, 13), (4, 8)),
        (300, (64, 40), (32, 7)),
    ],
)
def test_each_token_gets_its_own_mixture_at_every_level(
    dtype: torch.dtype, inputs: int, outputs: tuple[int, ...], ranks: tuple[int, ...]
) -> None:
    """Base tokens and padding keep their bits, and the levels have the same."""
    parts = make(inputs, outputs, ranks, dtype)
    generator = torch.Generator().manual_seed(1)
    of_token = torch.randint(-1, len(MIXTURES), (45,), generator=generator)
    x, y = (torch.randn((50, size + 2), generator=generator).to(dtype)[:, 2:] for size in (inputs, sum(outputs)))
    wanted, given = right(parts, x, y, of_token), y.clone()
    found = {}
    for level in _C.simd_levels():
        _C.set_simd_level(level)
        y.copy_(given)
        LowRank(parts).add(x, y, grouped(of_token))
        found[level] = y.clone()
    scale = wanted.abs().max()
    # A value near the middle of two may be rounded to the other one where a mixture was.
    allowed = {torch.float32: 2e-6, torch.bfloat16: 0.02, torch.float16: 0.003}[dtype]
    assert (found["portable"].double() - wanted).abs().max() <= allowed * scale
    assert all(torch.equal(one, found["portable"]) for one in found.values())
    others = torch.cat([of_token < 0, torch.ones(5, dtype=torch.bool)])
    assert torch.equal(found["portable"][others], given[others])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_block_as_it_is_needs_no_mixing(dtype: torch.dtype) -> None:
    """As in a slot: the bits are those of a sum of blocks of which the others have no share."""
    parts, (x, start) = make(300, (64, 40), (8, 4), dtype), (torch.randn(9, size).to(dtype) for size in (300, 104))
    one, sum_of_all = start.clone(), start.clone()
    for y, blocks_of in (
        (one, lambda whose: (whose, [1.0])),
        (sum_of_all, lambda whose: (0, torch.eye(BLOCKS)[whose].tolist())),
    ):
        groups = group_tokens(torch.arange(9) % BLOCKS, blocks_of)
        assert groups is not None
        LowRank(parts).add(x, y, groups)
    assert torch.equal(one, sum_of_all)
    assert not torch.equal(one, start)


def test_threads_and_neighbours_change_no_bit() -> None:
    """A token's sums are its own: alone, on one thread or two, and beside a NaN."""
    parts = make(300, (64, 40), (8, 4), torch.bfloat16)
    of_token = torch.arange(90) % 3
    x, start = torch.randn(90, 300).bfloat16(), torch.randn(90, 104).bfloat16()
    _C.set_num_threads(1)
    one = start.clone()
    LowRank(parts).add(x, one, grouped(of_token))
    _C.set_num_threads(2)
    two = start.clone()
    x[4] = torch.nan
    LowRank(parts).add(x, two, grouped(of_token))
    alone = start[7:8].clone()
    LowRank(parts).add(x[7:8], alone, grouped(of_token[7:8]))
    kept = torch.arange(90) != 4
    assert torch.equal(one[kept], two[kept])
    assert torch.equal(one[7:8], alone)
    assert two[4].isnan().all()


def test_parts_of_the_inputs_are_added_up() -> None:
    """As on ranks of a tensor-parallel engine."""
    parts = make(64, (24, 16), (4, 4), torch.float32)
    x, of_token = torch.randn(20, 64), torch.arange(20) % 3
    whole, split = torch.zeros(20, 40), torch.zeros(20, 40)
    LowRank(parts).add(x, whole, grouped(of_token))
    halves = [[part._replace(a=part.a[:, :, half : half + 32]) for part in parts] for half in (0, 32)]
    seen: list[torch.Tensor] = []

    def first(low: torch.Tensor) -> torch.Tensor:
        seen.append(low.clone())
        return torch.zeros_like(low)

    LowRank(halves[0]).add(x[:, :32], split, grouped(of_token), first)
    assert not split.any()
    LowRank(halves[1]).add(x[:, 32:], split, grouped(of_token), lambda low: low + seen[0])
    torch.testing.assert_close(split, whole, rtol=1e-5, atol=1e-6)


def test_groups_of_a_step() -> None:
    assert group_tokens(torch.tensor([-1, -1]), lambda whose: (0, [1.0])) is None
    asked: list[int] = []

    def blocks_of(whose: int) -> tuple[int, list[float]]:
        asked.append(whose)
        return 0, [1.0]

    found = group_tokens(torch.tensor([7, -1, 2, 7]), blocks_of)
    assert found is not None
    assert (found.rows, found.tokens, asked) == (4, 3, [2, 7])


def test_what_makes_no_sense_is_refused() -> None:
    parts = make(16, (8,), (2,), torch.float32)
    one = LowRank(parts)
    x, y = torch.zeros(3, 16), torch.zeros(3, 8)
    step = grouped(torch.tensor([0, 1, 2]))
    with pytest.raises(ValueError, match=r"x is .*float32 and y .*bfloat16"):
        one.add(x, y.bfloat16(), step)
    with pytest.raises(ValueError, match="3 tokens or more, 16 inputs and 8 outputs"):
        one.add(x[:2], y, step)
    with pytest.raises(ValueError, match="3 tokens or more, 16 inputs and 8 outputs"):
        one.add(x, y[:, :7], step)
    many = group_tokens(torch.tensor([0]), lambda whose: (2, [1.0, 1.0]))
    assert many is not None
    with pytest.raises(ValueError, match="blocks that there are not"):
        one.add(x, y, many)
    with pytest.raises(ValueError, match="groups must have all"):
        _C.TokenGroups(torch.zeros(2, dtype=torch.long).data_ptr(), 2, [(1, 0, [1.0])])
    assert not LowRank.able([part._replace(a=part.a.double(), b=part.b.double()) for part in parts])
    assert not LowRank.able([part._replace(b=part.b[:, ::2]) for part in parts])

"""Names of rows: the same for the same bytes everywhere, and another for any other bytes."""

import numpy as np
import pytest
import torch
from helpers_rows import restored_extension

from modelswarms_fast.ops import _C
from modelswarms_fast.weights.row_name import row_name

__all__ = ["restored_extension"]
pytestmark = pytest.mark.usefixtures("restored_extension")

CHUNK, LEVELS = 1024, 8
SIZES = (0, 1, 7, 1023, 1024, 1025, 32_767, 32_768, 32_769, 1_000_003, 33 * 32_768 + 5)


def keys():
    """SplitMix64: for each level four times 256 words of 32 bits, then twelve numbers of 128 bits."""
    count = LEVELS * 4 * CHUNK // 8 + 24
    with np.errstate(over="ignore"):
        z = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ z >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ z >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    last = [int(low) | int(high) << 64 for low, high in z[-24:].reshape(-1, 2)]
    return z[:-24].view(np.uint32).reshape(LEVELS, 4, CHUNK // 8, 2), np.array(last, dtype=object).reshape(4, 3)


LEVEL_KEYS, LAST = keys()


def reference(data: bytes) -> bytes:
    """csrc/row_name.h in numpy and Python's integers."""
    found, level = data, 0
    while level < 2 or len(found) > 32:
        padded = found.ljust(max(1, -(-len(found) // CHUNK)) * CHUNK, b"\0")
        words = np.frombuffer(padded, dtype=np.uint32).reshape(-1, 1, CHUNK // 8, 2)
        mixed = (words + LEVEL_KEYS[level]).astype(np.uint64)  # mod 2^32
        found = (mixed[..., 0] * mixed[..., 1]).sum(-1, dtype=np.uint64).tobytes()  # mod 2^64
        level += 1
    sums = np.frombuffer(found, dtype=np.uint64).tolist()
    parts = [((a * y + b * len(data) + c) % 2**128) >> 96 for y, (a, b, c) in zip(sums, LAST, strict=True)]
    return np.array(parts, dtype=np.uint32).tobytes()


def some_bytes(size, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8))


@pytest.mark.parametrize("size", SIZES)
def test_every_level_and_thread_count_gives_the_name_of_the_reference(size):
    row = some_bytes(size)
    expected = reference(row.numpy().tobytes())
    for level in _C.simd_levels():
        _C.set_simd_level(level)
        for threads in (1, 2, 3):
            _C.set_num_threads(threads)
            assert row_name(row) == expected
    assert len(expected) == 16


def test_a_name_is_that_of_the_bytes_wherever_they_lie():
    row = torch.randn(10_001)
    name = row_name(row)
    shifted = torch.empty(10_002 * 4 + 1, dtype=torch.uint8)[1 : 1 + row.nbytes].copy_(row.view(torch.uint8))
    assert row_name(shifted) == name  # at an odd address
    strided = torch.zeros(10_001, 2)
    strided[:, 1] = row
    assert row_name(strided[:, 1]) == name
    assert row_name(row.view(torch.bfloat16)) == name
    assert row_name(row.requires_grad_()) == name
    assert row_name(-torch.zeros(4)) != row_name(torch.zeros(4))  # by bits, not by value


def test_any_flipped_bit_changes_the_name_and_about_half_of_its_bits():
    for size in (12, 1030, 70_000):
        row, draw = some_bytes(size), np.random.default_rng(1)
        name, changed = row_name(row), []
        for position in draw.choice(8 * size, min(8 * size, 2000), replace=False).tolist():
            row[position // 8] ^= 1 << position % 8
            bits = np.frombuffer(row_name(row), np.uint8) ^ np.frombuffer(name, np.uint8)
            changed.append(int(np.unpackbits(bits).sum()))
            row[position // 8] ^= 1 << position % 8
        assert min(changed) > 20
        assert 60 < np.mean(changed) < 68
        assert row_name(row) == name


def test_rows_that_are_made_of_the_same_parts_have_different_names():
    """Swapped words, chunks and blocks, shifted rows, repeated ones, and zeros of every length."""
    row = some_bytes(4 * 32_768)
    names = {row_name(row)}
    rows = 1
    for width in (1, 2, 4, 8, 16, 32, 64, 1024, 32_768):
        parts = row.view(-1, width)
        for first, second in ((0, 1), (0, 2), (1, 3), (0, len(parts) - 1)):
            order = list(range(len(parts)))
            order[first], order[second] = second, first
            names.add(row_name(parts[order].flatten()))
            rows += 1
    for width in (1, 4, 64, 1024):
        names |= {row_name(row.roll(width)), row_name(row[width:]), row_name(row[:-width])}
        rows += 3
    for size in [*range(2100), 32_768, 65_536, 1 << 20]:
        names.add(row_name(torch.zeros(size, dtype=torch.uint8)))
        rows += 1
    assert len(names) == rows


def test_close_rows_have_different_names():
    """One number away from zero, at every place; and counters, as the sums of a weak hash would add up."""
    names = set()
    for place in range(4096):
        row = torch.zeros(4096)
        row[place] = 1e-30
        names.add(row_name(row))
    for number in range(4096):
        names.add(row_name(torch.full((64,), number, dtype=torch.int32)))
    assert len(names) == 2 * 4096


def test_a_negative_length_is_refused():
    with pytest.raises(ValueError, match="must not be negative"):
        _C.row_name(0, -1)

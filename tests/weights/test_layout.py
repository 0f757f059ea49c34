"""The table of a flat row: alignment, views that do not copy, shards that cover."""

import itertools

import pytest
import torch

from modelswarms_fast.weights.layout import Layout, TensorSpec


def _tensors(dtype: torch.dtype = torch.bfloat16) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"z": (5, 7), "a": (33,), "m": (2, 3, 4), "scalar": (), "exact": (4, 32)}
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_sorted_aligned_and_without_holes(dtype: torch.dtype) -> None:
    layout = Layout.of(_tensors(dtype))
    assert layout.dtype == dtype
    assert [spec.name for spec in layout.specs] == ["a", "exact", "m", "scalar", "z"]
    ends = [spec.offset for spec in layout.specs[1:]] + [layout.size]
    for spec, following in zip(layout.specs, ends, strict=True):
        assert spec.offset * dtype.itemsize % 64 == 0
        assert 0 <= (following - spec.offset - spec.numel) * dtype.itemsize < 64
    assert layout.size * dtype.itemsize % 64 == 0
    assert layout.nbytes == layout.size * dtype.itemsize


def test_flatten_writes_the_values_and_zeroes_the_padding_of_a_strided_row() -> None:
    tensors = _tensors()
    layout = Layout.of(tensors)
    matrix = torch.full((3, layout.size + 5), 9.0, dtype=torch.bfloat16)
    row = matrix[1, : layout.size]
    layout.flatten(tensors, row)
    views = layout.views(row)
    assert all(torch.equal(views[name], tensor) for name, tensor in tensors.items())
    used = torch.zeros(layout.size, dtype=torch.bool)
    for spec in layout.specs:
        used[spec.offset : spec.offset + spec.numel] = True
    assert used.sum() == sum(tensor.numel() for tensor in tensors.values())
    assert not row[~used].any()
    assert (matrix[0] == 9).all()
    assert (matrix[1, layout.size :] == 9).all()
    assert (matrix[2] == 9).all()


def test_views_share_the_row() -> None:
    layout = Layout.of(_tensors())
    matrix = torch.zeros((2, layout.size), dtype=torch.bfloat16)
    views = layout.views(matrix[1])
    views["m"].fill_(3)
    assert matrix.sum() == 3 * 24
    assert views["m"].shape == (2, 3, 4)
    assert views["scalar"].shape == ()
    assert all(view.untyped_storage().data_ptr() == matrix.untyped_storage().data_ptr() for view in views.values())


@pytest.mark.parametrize(
    "row",
    [
        torch.zeros(31, dtype=torch.bfloat16),
        torch.zeros(32, dtype=torch.float32),
        torch.zeros(1, 32, dtype=torch.bfloat16),
        torch.zeros(64, dtype=torch.bfloat16)[::2],
    ],
    ids=["size", "dtype", "dimensions", "stride"],
)
def test_views_refuse_another_row(row: torch.Tensor) -> None:
    layout = Layout((TensorSpec("a", 0, (32,)),), 32, torch.bfloat16)
    with pytest.raises(ValueError, match="contiguous"):
        layout.views(row)


def test_flatten_refuses_other_names_and_shapes() -> None:
    tensors = _tensors()
    layout = Layout.of(tensors)
    row = torch.zeros(layout.size, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="names"):
        layout.flatten({"a": tensors["a"]}, row)
    with pytest.raises(ValueError, match=r"tensor m has shape \[24\]"):
        layout.flatten(tensors | {"m": tensors["m"].flatten()}, row)
    assert not row.any()


def test_a_dtype_casts_and_mixed_dtypes_need_one() -> None:
    tensors = _tensors(torch.float32) | {"a": torch.ones(33, dtype=torch.float16)}
    with pytest.raises(ValueError, match="one dtype"):
        Layout.of(tensors)
    layout = Layout.of(tensors, torch.bfloat16)
    row = torch.empty(layout.size, dtype=torch.bfloat16)
    layout.flatten(tensors, row)
    assert torch.equal(layout.views(row)["z"], tensors["z"].bfloat16())


@pytest.mark.parametrize("k", [1, 2, 3, 7, 10, 40])
def test_shards_cover_the_row_in_balance_at_aligned_bounds(k: int) -> None:
    layout = Layout.of(_tensors())  # 320 elements: 10 blocks of 64 bytes
    shards = layout.shards(k)
    assert len(shards) == k
    assert shards[0].start == 0
    assert shards[-1].stop == layout.size
    assert all(left.stop == right.start for left, right in itertools.pairwise(shards))
    assert all(shard.start * 2 % 64 == 0 for shard in shards)
    sizes = [shard.stop - shard.start for shard in shards]
    assert max(sizes) - min(sizes) <= 32


def test_a_row_cannot_be_cut_into_no_shards() -> None:
    with pytest.raises(ValueError, match="0 shards"):
        Layout.of(_tensors()).shards(0)


@pytest.mark.parametrize(
    ("specs", "size", "message"),
    [
        ((), 0, "at least one tensor"),
        ((TensorSpec("a", 0, (4,)), TensorSpec("a", 16, (4,))), 32, "same name"),
        ((TensorSpec("a", 0, (0, 4)),), 16, "a of shape .* no elements"),
        ((TensorSpec("a", 0, (17,)), TensorSpec("b", 16, (4,))), 32, "b lies at offset 16, not at 32"),
        ((TensorSpec("a", 16, (4,)), TensorSpec("b", 0, (4,))), 32, "a lies at offset 16, not at 0"),
        ((TensorSpec("a", 0, (4,)), TensorSpec("b", 4, (4,))), 16, "b lies at offset 4, not at 16"),
        ((TensorSpec("a", 0, (4,)), TensorSpec("b", 32, (4,))), 48, "b lies at offset 32, not at 16"),
        ((TensorSpec("a", 0, (4,)),), 4, "ends at 16, its size says 4"),
    ],
    ids=["none", "same-name", "empty", "overlap", "unsorted", "unaligned", "hole", "size"],
)
def test_a_wrong_table_is_refused(specs: tuple[TensorSpec, ...], size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Layout(specs, size, torch.float32)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_the_first_tensor_that_is_not_finite_is_named(value: float) -> None:
    layout = Layout.of(_tensors())
    row = torch.zeros(layout.size, dtype=torch.bfloat16)
    assert layout.first_not_finite(row) is None
    layout.views(row)["z"][4, 6] = value
    assert layout.first_not_finite(row) == "z"
    layout.views(row)["m"][1, 2, 3] = value
    assert layout.first_not_finite(row) == "m"

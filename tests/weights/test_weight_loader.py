"""Loads against torch: every tensor where it belongs, nothing beside it, the same bits whoever computes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from helpers_rows import GPU, NEEDS_GPU, Wrapper
from torch import Tensor

from modelswarms_fast.ops import _C, mix_
from modelswarms_fast.weights import weight_loader
from modelswarms_fast.weights.layout import Layout, TensorSpec
from modelswarms_fast.weights.weight_loader import CopyTarget, LoraMerger, MergeTarget, WeightCopier

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
UNTOUCHED = 7.0


def layout_of(shapes: dict[str, tuple[int, ...]], dtype: torch.dtype) -> Layout:
    return Layout.of({name: torch.empty(shape, device="meta") for name, shape in shapes.items()}, dtype)


def random_row(layout: Layout, seed: int = 0) -> Tensor:
    return torch.randn(layout.size, generator=torch.Generator().manual_seed(seed)).to(layout.dtype)


def spec(layout: Layout, name: str) -> TensorSpec:
    return next(spec for spec in layout.specs if spec.name == name)


def place_of(shape: tuple[int, ...], dtype: torch.dtype, gap: int) -> tuple[Tensor, Tensor]:
    """A place with `gap` columns after each of its rows, and all the memory that it is part of."""
    whole = torch.full((*shape[:-1], shape[-1] + gap), UNTOUCHED, dtype=dtype)
    return whole[..., : shape[-1]], whole


# A LoRA's A and B, widths that no register fits, rows longer than the buffer, one row, no dimension.
SHAPES = {"a": (8, 96), "b": (300, 8), "c": (5, 7), "d": (3, 5000), "e": (1, 1), "f": (65,), "g": (40, 4), "h": ()}


@pytest.fixture(params=["compiled", "torch"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "torch":
        monkeypatch.setattr(weight_loader, "_compiles", lambda place: False)
    return str(request.param)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("gap", [0, 8])
@pytest.mark.parametrize("scaling", [1.0, 2.0, 0.3])
def test_a_copy_is_each_tensor_times_its_scaling(backend: str, dtype: torch.dtype, gap: int, scaling: float) -> None:
    layout = layout_of(SHAPES, dtype)
    row = random_row(layout)
    targets, memory = [], {}
    for one in layout.specs:
        if len(one.shape) == 2:
            place, memory[one.name] = place_of(one.shape, dtype, gap)
        else:
            place = memory[one.name] = torch.zeros(one.shape, dtype=dtype)
        targets.append(CopyTarget(one, place, scaling))
    plan = WeightCopier(targets)
    plan.load(row)
    for target in targets:
        tensor = row[target.spec.offset : target.spec.end].view(target.spec.shape)
        if backend == "compiled" or scaling != 0.3:
            assert torch.equal(target.place, tensor * scaling), target.spec.name
        else:  # torch may round the factor to a half type first
            torch.testing.assert_close(target.place, tensor * scaling, rtol=2**-7, atol=0)
        if len(target.spec.shape) == 2 and gap:
            assert (memory[target.spec.name][:, -gap:] == UNTOUCHED).all()


def test_a_scaling_of_zero_is_an_adapter_without_effect(backend: str) -> None:
    layout = layout_of({"b": (40, 8)}, torch.bfloat16)
    place, _ = place_of((40, 8), torch.bfloat16, 8)
    plan = WeightCopier([CopyTarget(layout.specs[0], place, 0.0)])
    plan.load(random_row(layout))
    assert (place == 0).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_threads_and_simd_levels_copy_the_same(dtype: torch.dtype) -> None:
    layout = layout_of({"a": (64, 2000), "b": (9000, 8), "c": (300_000,)}, dtype)
    row = random_row(layout)
    results = []
    for level in _C.simd_levels():
        for threads in (1, 2, 3):
            targets = []
            for one in layout.specs:
                whole = torch.zeros(*one.shape[:-1], one.shape[-1] + (8 if one.name == "b" else 0), dtype=dtype)
                targets.append(CopyTarget(one, whole[..., : one.shape[-1]], 0.7))
            with_level(level, threads, lambda targets=targets: WeightCopier(targets).load(row))
            results.append(torch.cat([target.place.flatten() for target in targets]))
    assert all(torch.equal(result, results[0]) for result in results)
    expected = torch.cat([row[one.offset : one.end] for one in layout.specs]) * 0.7
    torch.testing.assert_close(results[0], expected, rtol=2**-8, atol=0)


def with_level(level: str, threads: int, call: Callable[[], None]) -> None:
    before = _C.simd_level(), _C.num_threads()
    _C.set_simd_level(level)
    _C.set_num_threads(threads)
    try:
        call()
    finally:
        _C.set_simd_level(before[0])
        _C.set_num_threads(before[1])


# rank, out, in
MERGES = [(1, 1, 1), (2, 7, 33), (4, 12, 64), (8, 75, 576), (16, 3, 131), (3, 64, 16), (100, 5, 77)]


def make_merge(dtype: torch.dtype, gap: int = 0) -> tuple[Layout, list[MergeTarget]]:
    shapes = {}
    for number, (rank, out, columns) in enumerate(MERGES):
        shapes |= {f"{number}.a": (rank, columns), f"{number}.b": (out, rank)}
    layout = layout_of(shapes, dtype)
    targets = []
    for number, (_, out, columns) in enumerate(MERGES):
        base = torch.randn(out, columns, generator=torch.Generator().manual_seed(number)).to(dtype)
        live, _ = place_of((out, columns), dtype, gap)
        targets.append(MergeTarget(spec(layout, f"{number}.a"), spec(layout, f"{number}.b"), base, live, 0.5 + number))
    return layout, targets


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("gap", [0, 24])
def test_merge_is_base_and_product(backend: str, dtype: torch.dtype, gap: int) -> None:
    layout, targets = make_merge(dtype, gap)
    row = random_row(layout)
    before = [target.base.clone() for target in targets]
    LoraMerger(targets).load(row)
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-6 if backend == "torch" else 1e-12}.get(dtype)
    for target, base in zip(targets, before, strict=True):
        a, b = (row[one.offset : one.end].view(one.shape).double() for one in (target.a, target.b))
        expected = base.double() + target.scaling * (b @ a)
        if tolerance is None:  # one unit in the last place, and sums that cancel
            torch.testing.assert_close(
                target.live.double(), expected, rtol=2**-7 if dtype == torch.bfloat16 else 2**-10, atol=2e-5
            )
        else:
            torch.testing.assert_close(target.live.double(), expected, rtol=tolerance, atol=10 * tolerance)
        assert torch.equal(target.base, base)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_threads_and_simd_levels_merge_the_same(dtype: torch.dtype) -> None:
    results = []
    for level in _C.simd_levels():
        for threads in (1, 2, 3):
            layout, targets = make_merge(dtype)
            shape = (600, 1200)  # enough for several threads
            big = layout_of({"a": (8, shape[1]), "b": (shape[0], 8)}, dtype)
            live = torch.zeros(shape, dtype=dtype)
            base = torch.linspace(-1, 1, live.numel()).view(shape).to(dtype)
            target = MergeTarget(spec(big, "a"), spec(big, "b"), base, live, 2.0)
            with_level(
                level, threads, lambda targets=targets, layout=layout: LoraMerger(targets).load(random_row(layout))
            )
            with_level(level, threads, lambda target=target, big=big: LoraMerger([target]).load(random_row(big)))
            results.append(torch.cat([one.live.flatten() for one in (*targets, target)]))
    assert all(torch.equal(result, results[0]) for result in results)


def test_a_zero_adapter_gives_the_base_bit_for_bit() -> None:
    layout, targets = make_merge(torch.bfloat16)
    LoraMerger(targets).load(torch.zeros(layout.size, dtype=torch.bfloat16))
    assert all(torch.equal(target.live, target.base) for target in targets)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("count", [1, 2, 5, 12])
@pytest.mark.parametrize("gap", [0, 8])
def test_a_mixture_is_loaded_as_its_row_would_be(backend: str, dtype: torch.dtype, count: int, gap: int) -> None:
    """Bit for bit, in places with gaps, with and without a scaling, by any number of threads."""
    copies = layout_of(SHAPES | {"long": (30, 4000)}, dtype)
    merges, targets = make_merge(dtype, gap)
    mixture = torch.linspace(-0.4, 0.9, count).to(torch.float64 if dtype == torch.float64 else torch.float32)
    for threads in (1, 2, 3):
        for scaling in (1.0, 0.3):
            found = []
            for mixed in (True, False):
                places = [place_of(one.shape, dtype, gap)[0] if one.shape else torch.zeros((), dtype=dtype)
                          for one in copies.specs]  # fmt: skip
                plan = WeightCopier(
                    [CopyTarget(one, place, scaling) for one, place in zip(copies.specs, places, strict=True)]
                )
                load(plan, copies, count, mixture, mixed=mixed, threads=threads)
                found.append(torch.cat([place.flatten() for place in places]))
            assert torch.equal(*found)
        found = []
        for mixed in (True, False):
            load(LoraMerger(targets), merges, count, mixture, mixed=mixed, threads=threads)
            found.append(torch.cat([target.live.flatten() for target in targets]))
            for target in targets:
                target.live.fill_(UNTOUCHED)
        assert torch.equal(*found)


# Of a weight [out, in]: rows, columns, both, all of it.
PARTS = [((3, 0), (4, 96)), ((0, 24), (300, 40)), ((7, 5), (64, 33)), ((0, 0), (300, 96))]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("gap", [0, 8])
@pytest.mark.parametrize(("start", "shape"), PARTS, ids=str)
def test_a_part_is_that_part_of_the_whole(
    backend: str, dtype: torch.dtype, gap: int, start: tuple[int, int], shape: tuple[int, int]
) -> None:
    """Rows and mixtures: the bits that the whole gives there, for vectors too, and nothing beside."""
    layout = layout_of({"a": (8, 96), "b": (300, 8), "bias": (300,), "long": (400, 5000), "w": (300, 96)}, dtype)
    mixture = torch.tensor([0.7, -0.2]).to(torch.promote_types(dtype, torch.float32))
    a, b, bias, long, w = layout.specs
    (first, column), (rows, columns) = start, shape
    here = (slice(first, first + rows), slice(column, column + columns))
    base = torch.randn(300, 96, generator=torch.Generator().manual_seed(9)).to(dtype)
    whole_live, whole_w = torch.empty_like(base), torch.empty_like(base)
    whole_bias, whole_long = torch.empty(300, dtype=dtype), torch.empty(400, 5000, dtype=dtype)
    live, live_memory = place_of(shape, dtype, gap)
    place, place_memory = place_of(shape, dtype, gap)
    some_bias, some_long = torch.empty(rows, dtype=dtype), torch.empty(rows, 4900, dtype=dtype)
    wholes = (
        LoraMerger([MergeTarget(a, b, base, whole_live, 0.5)]),
        WeightCopier([CopyTarget(w, whole_w, 2.0), CopyTarget(bias, whole_bias), CopyTarget(long, whole_long, 2.0)]),
    )
    copies = [CopyTarget(w, place, 2.0, start), CopyTarget(bias, some_bias, start=(first, 0))]
    copies.append(CopyTarget(long, some_long, 2.0, (first, 17)))
    parts = (LoraMerger([MergeTarget(a, b, base[here].contiguous(), live, 0.5, start)]), WeightCopier(copies))
    for mixed in (False, True):
        for threads in (1, 2):
            forget(whole_live, whole_w, whole_bias, whole_long, live, place, some_bias, some_long)
            for plan in (*wholes, *parts):
                load(plan, layout, 2, mixture, mixed=mixed, threads=threads)
            if backend == "compiled":
                assert torch.equal(live, whole_live[here])
            else:  # a product of another shape may add in another order
                torch.testing.assert_close(live, whole_live[here], rtol=2**-7, atol=1e-5)
            assert torch.equal(place, whole_w[here])
            assert torch.equal(some_bias, whole_bias[first : first + rows])
            assert torch.equal(some_long, whole_long[first : first + rows, 17:4917])
            if gap:
                assert (live_memory[:, -gap:] == UNTOUCHED).all()
                assert (place_memory[:, -gap:] == UNTOUCHED).all()


def test_parts_that_stick_out_are_refused() -> None:
    layout = layout_of({"a": (4, 64), "b": (8, 4), "bias": (8,), "s": ()}, torch.float32)
    a, b, bias, s = layout.specs
    for target in (
        CopyTarget(a, torch.zeros(2, 64), start=(3, 0)),
        CopyTarget(a, torch.zeros(2, 32), start=(0, 33)),
        CopyTarget(a, torch.zeros(2, 32), start=(-1, 0)),
        CopyTarget(a, torch.zeros(2), start=(0, 0)),
        CopyTarget(bias, torch.zeros(4), start=(5, 0)),
        CopyTarget(bias, torch.zeros(4), start=(0, 4)),
        CopyTarget(s, torch.zeros(()), start=(0, 0)),
    ):
        with pytest.raises(ValueError, match="has shape"):
            WeightCopier([target])
    with pytest.raises(ValueError, match="has shape"):
        LoraMerger([MergeTarget(a, b, torch.zeros(4, 64), torch.zeros(4, 64), 1.0, (5, 0))])


def load(
    plan: WeightCopier | LoraMerger, layout: Layout, count: int, mixture: Tensor, *, mixed: bool, threads: int
) -> None:
    """A mixture of random rows that have gaps between them: at once, or through a row."""
    experts = torch.stack([random_row(layout, seed) for seed in range(count)])
    experts = torch.nn.functional.pad(experts, (0, 32))[:, : layout.size]
    row = torch.empty(1, layout.size, dtype=layout.dtype)
    mix_(row, experts, mixture[None])
    call = (lambda: plan.load_mixture(experts, mixture)) if mixed else (lambda: plan.load(row[0]))
    with_level(_C.simd_level(), threads, call)


def test_every_simd_level_loads_the_same_mixture() -> None:
    layout, targets = make_merge(torch.bfloat16)
    experts, mixture = torch.stack([random_row(layout, seed) for seed in range(3)]), torch.tensor([0.2, 1.1, -0.3])
    place = torch.zeros(layout.size, dtype=torch.bfloat16)
    copy, merge = WeightCopier([CopyTarget(TensorSpec("row", 0, (layout.size,)), place, 0.7)]), LoraMerger(targets)
    written = [place, *(target.live for target in targets)]
    found = []
    for level in _C.simd_levels():
        forget(*written)
        with_level(level, 1, lambda: (merge.load_mixture(experts, mixture), copy.load_mixture(experts, mixture)))
        found.append(torch.cat([tensor.flatten() for tensor in written]))
    assert all(torch.equal(result, found[0]) for result in found)  # a NaN is equal to none


def forget(*places: Tensor) -> None:
    """Leave nothing of an earlier load: a later one that writes nothing would pass."""
    for place in places:
        place.fill_(float("nan"))


def test_a_plan_keeps_the_memory_that_a_parameter_leaves(backend: str) -> None:
    layout = layout_of({"a": (4, 64), "b": (6, 4)}, torch.float32)
    row, weight = random_row(layout), torch.randn(6, 64)
    place, base, live = (torch.nn.Parameter(torch.zeros(shape)) for shape in ((4, 64), (6, 64), (6, 64)))
    base.data.copy_(weight)
    addresses = [one.data_ptr() for one in (place, base, live)]
    copy = WeightCopier([CopyTarget(layout.specs[0], place)])
    merge = LoraMerger([MergeTarget(*layout.specs, base, live, 1.0)])
    for parameter in (place, base, live):
        parameter.data = parameter.data.half()  # as `module.half()` does
    kept = (copy._targets[0].place, merge._targets[0].base, merge._targets[0].live)
    assert [one.data_ptr() for one in kept] == addresses
    copy.load(row)
    merge.load(row)
    a, b = layout.views(row).values()
    assert torch.equal(kept[0], a)
    torch.testing.assert_close(kept[2], weight + b @ a)


def test_mixtures_of_other_rows_are_refused() -> None:
    layout = layout_of({"a": (4, 64)}, torch.float32)
    plan = WeightCopier([CopyTarget(layout.specs[0], torch.zeros(4, 64))])
    with pytest.raises(ValueError, match="rows of this plan"):
        plan.load_mixture(torch.zeros(2, 255), torch.zeros(2))
    with pytest.raises(ValueError, match="rows of this plan"):
        plan.load_mixture(torch.zeros(0, 256), torch.zeros(0))
    with pytest.raises(ValueError, match="a mixture of 2 rows"):
        plan.load_mixture(torch.zeros(2, 256), torch.zeros(3))


def test_rows_that_cannot_be_read_where_they_lie_are_refused(backend: str) -> None:
    layout, targets = make_merge(torch.float32)
    row, mixture = torch.zeros(layout.size), torch.zeros(2)
    for plan in (WeightCopier([CopyTarget(TensorSpec("row", 0, (layout.size,)), row.clone())]), LoraMerger(targets)):
        for experts in (torch.zeros(2, layout.size, device="meta"), Wrapper(2, layout.size)):
            with pytest.raises(ValueError, match="experts must be a dense tensor with memory"):
                plan.load_mixture(experts, mixture)
        with pytest.raises(ValueError, match="mixture is a negative view"):
            plan.load_mixture(row.expand(2, -1), torch._neg_view(mixture))
        for one in (row.to("meta"), Wrapper(layout.size)):
            with pytest.raises(ValueError, match="row must be a dense tensor with memory"):
                plan.load(one)
    with pytest.raises(ValueError, match="the place of row must be a dense tensor with memory"):
        WeightCopier([CopyTarget(TensorSpec("row", 0, (8,)), Wrapper(8))])


@GPU
@NEEDS_GPU
def test_a_mixture_of_rows_on_a_gpu_is_loaded_into_places_of_the_host() -> None:
    layout = layout_of({"a": (4, 64)}, torch.float32)
    place, experts = torch.zeros(4, 64), torch.stack([random_row(layout, seed) for seed in range(2)])
    WeightCopier([CopyTarget(layout.specs[0], place)]).load_mixture(experts.cuda(), torch.tensor([1.0, 0.0]))
    assert torch.equal(place.flatten(), experts[0])


@pytest.mark.parametrize("start", [0, 1, 31, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_places_that_begin_anywhere_get_their_own_bytes_alone(dtype: torch.dtype, start: int) -> None:
    """Long pieces are written past the caches, whole lines at a time; what lies before the first and after the last?"""
    layout = layout_of({"a": (5, 4001)}, dtype)
    row, experts = random_row(layout), torch.stack([random_row(layout, seed) for seed in range(2)])
    memory = torch.full((start + 5 * 4001 + 50,), UNTOUCHED, dtype=dtype)
    place = memory[start : start + 5 * 4001]
    plan = WeightCopier([CopyTarget(layout.specs[0], place.view(5, 4001))])
    mixed = torch.empty(1, layout.size, dtype=dtype)
    mix_(mixed, experts, torch.tensor([[0.4, 0.7]]))
    for load, expected in (
        (lambda: plan.load(row), row),
        (lambda: plan.load_mixture(experts, torch.tensor([0.4, 0.7])), mixed[0]),
    ):
        load()
        assert torch.equal(place, expected[: len(place)])
        assert (memory[:start] == UNTOUCHED).all()
        assert (memory[start + len(place) :] == UNTOUCHED).all()
        place.zero_()


def test_a_load_of_a_tensor_looks_at_it_first() -> None:
    """The way without Python takes a plain row alone; every other is left as it was, for Python to see to."""
    layout = layout_of({"a": (4, 64), "b": (6, 4)}, torch.float32)
    # What is compiled alone does not keep the memory that it writes to.
    place, weight, live = torch.zeros(4, 64), torch.zeros(6, 64), torch.zeros(6, 64)
    copy = WeightCopier([CopyTarget(layout.specs[0], place)])._compiled
    merge = LoraMerger([MergeTarget(*layout.specs, weight, live, 1.0)])._compiled
    assert copy is not None
    assert merge is not None
    row = random_row(layout)
    assert copy.load_tensor(row) is merge.load_tensor(row) is True
    assert torch.equal(place, row[:256].view(4, 64))
    for other in (row[:255], row.bfloat16(), row[None], torch.randn(640)[::2], row.clone().requires_grad_(), None, 3):
        assert copy.load_tensor(other) is False
        assert merge.load_tensor(other) is False
    assert merge.load_tensor(row[:256]) is False  # A is there, B is not
    assert torch.equal(place, row[:256].view(4, 64))


def test_rows_of_another_dtype_are_converted_on_load() -> None:
    layout = layout_of({"a": (4, 64)}, torch.float32)
    row = random_row(layout)
    place = torch.zeros(4, 64, dtype=torch.bfloat16)
    plan = WeightCopier([CopyTarget(layout.specs[0], place)])
    plan.load(row)
    assert torch.equal(place, row.bfloat16().view(4, 64))


def test_a_place_may_be_the_transpose_of_a_matrix() -> None:
    """GPT-2's checkpoints hold their matrices so; alone, and beside places that are not."""
    layout = layout_of({"a": (4, 64), "b": (4, 64), "c": (6,)}, torch.float32)
    row, places = random_row(layout), [torch.zeros(70, 4)[3:67].t(), torch.zeros(4, 64), torch.zeros(6)]
    views = layout.views(row)
    for count in (1, 3):
        targets = [CopyTarget(spec, place) for spec, place in zip(layout.specs[:count], places, strict=False)]
        copier = WeightCopier(targets)
        copier.load(row)
        for target in targets:
            assert torch.equal(target.place, views[target.spec.name])
        copier.load_mixture(torch.stack((row, row)), torch.tensor([0.5, 1.5]))
        for target in targets:
            assert torch.equal(target.place, 2 * views[target.spec.name])


@pytest.mark.parametrize(
    "row", [torch.zeros(255), torch.zeros(1, 256), torch.zeros(512)[::2]], ids=["short", "matrix", "gaps"]
)
def test_rows_that_are_none_are_refused(row: Tensor) -> None:
    layout = layout_of({"a": (4, 64)}, torch.float32)
    with pytest.raises(ValueError, match="a row of this plan"):
        WeightCopier([CopyTarget(layout.specs[0], torch.zeros(4, 64))]).load(row)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (torch.zeros(4, 63), "has shape"),
        (torch.zeros(64, 8).t()[::2], "gaps between its columns"),
        (torch.zeros(1, 64).expand(4, 64), "gaps between its columns"),
        (torch.zeros(4, 64, dtype=torch.float16), "others torch.float32"),
    ],
    ids=["shape", "transposed with gaps", "one row four times", "dtype"],
)
def test_places_that_do_not_fit_are_refused(place: Tensor, message: str) -> None:
    layout = layout_of({"a": (4, 64), "b": (4, 64)}, torch.float32)
    with pytest.raises(ValueError, match=message):
        WeightCopier([CopyTarget(layout.specs[0], torch.zeros(4, 64)), CopyTarget(layout.specs[1], place)])


def test_merges_that_do_not_fit_are_refused() -> None:
    layout = layout_of({"a": (4, 64), "b": (8, 4), "c": (8, 3)}, torch.float32)
    a, b, c = layout.specs
    weight = torch.zeros(8, 64)
    with pytest.raises(ValueError, match="has rank 4, but c has rank 3"):
        LoraMerger([MergeTarget(a, c, weight, weight.clone(), 1.0)])
    with pytest.raises(ValueError, match="has shape"):
        LoraMerger([MergeTarget(a, b, weight[:7], weight.clone(), 1.0)])
    with pytest.raises(ValueError, match="not contiguous"):
        LoraMerger([MergeTarget(a, b, torch.zeros(8, 65)[:, :64], weight.clone(), 1.0)])


def test_a_rank_beyond_the_extension_goes_through_torch() -> None:
    layout = layout_of({"a": (513, 16), "b": (4, 513)}, torch.float64)
    row, base = random_row(layout), torch.zeros(4, 16, dtype=torch.float64)
    live = torch.empty_like(base)
    a, b = layout.specs
    LoraMerger([MergeTarget(a, b, base, live, 1.0)]).load(row)
    assert torch.allclose(live, row[b.offset : b.end].view(b.shape) @ row[a.offset : a.end].view(a.shape))
    with pytest.raises(ValueError, match="rank above 512"):
        _C.LoraMerger([(0, 513 * 16, 513, 4, 16, 16, base.data_ptr(), live.data_ptr(), 16, 1.0)], 3)


def test_the_extension_refuses_what_makes_no_sense() -> None:
    memory = torch.zeros(64)
    place = memory.data_ptr()
    for part in (
        (0, 1, 8, 8, 0, 8, 1.0),
        (0, 2, 8, 8, place, 7, 1.0),
        (0, 2, 8, 7, place, 8, 1.0),
        (0, 0, 8, 8, place, 8, 1.0),
    ):
        with pytest.raises(ValueError, match="copy plan"):
            _C.WeightCopier([part], 0)
    for part in ((0, 8, 0, 1, 8, 8, place, place, 8, 1.0), (0, 8, 1, 1, 8, 7, place, place, 8, 1.0)):
        with pytest.raises(ValueError, match="merge plan"):
            _C.LoraMerger([part], 0)


def test_places_that_the_gpu_kernels_do_not_know_go_through_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_loader, "_C", SimpleNamespace(has_cuda=True))
    for dtype in (torch.bfloat16, torch.float64, torch.int8, torch.float8_e4m3fn):
        place = SimpleNamespace(device=torch.device("cuda"), dtype=dtype, numel=lambda: 8)
        assert weight_loader._launches(place, [place]) is (dtype == torch.bfloat16)


@GPU
@NEEDS_GPU
@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
def test_a_gpu_loads_the_same_bits(dtype: torch.dtype) -> None:
    layout = layout_of(SHAPES, dtype)
    places = [
        [torch.zeros(one.shape, dtype=dtype, device=device) for one in layout.specs] for device in ("cpu", "cuda")
    ]
    on_cpu, on_gpu = (
        WeightCopier([CopyTarget(one, place, 0.3) for one, place in zip(layout.specs, some, strict=True)])
        for some in places
    )
    row = random_row(layout)
    on_cpu.load(row)
    on_gpu.load(row.cuda())
    for one, other in zip(*places, strict=True):
        assert torch.equal(one, other.cpu())


@GPU
@NEEDS_GPU
@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
def test_a_gpu_merges_the_same_bits(dtype: torch.dtype) -> None:
    layout, targets = make_merge(dtype)
    moved = [replace(target, base=target.base.cuda(), live=target.live.cuda()) for target in targets]
    experts, mixture = torch.stack([random_row(layout, seed) for seed in range(3)]), torch.tensor([0.5, -0.3, 0.8])
    plan, same = LoraMerger(targets), LoraMerger(moved)
    for load in (lambda one, rows: one.load(rows[0]), lambda one, rows: one.load_mixture(rows, mixture)):
        load(plan, experts)
        load(same, experts.cuda())
        for target, other in zip(targets, moved, strict=True):
            assert torch.equal(target.live, other.live.cpu())

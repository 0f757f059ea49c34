"""Device code without a device: compiled for sm_80 and sm_90 and read; Triton in its interpreter, CUDA as plain C++."""

import ctypes
import importlib.util
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from modelswarms_fast.ops import mix_, swarm_update_, swarm_update_rows_
from modelswarms_fast.ops.reference import round_stochastically
from modelswarms_fast.ops.validation import DTYPE_CODES
from modelswarms_fast.weights import weight_loader
from modelswarms_fast.weights.layout import Layout

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
STEP = 0.7
KERNELS = ROOT / "kernels"
ARCHITECTURES = (80, 90)
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Variant:
    """A kernel as it is compiled: the mix has one, the update has a switch for each of these."""

    name: str
    table: bool = False
    stochastic: bool = False
    coordinate: bool = False

    def __str__(self) -> str:
        return "-".join([self.name, *(key for key in ("table", "stochastic", "coordinate") if getattr(self, key))])


UPDATES = [Variant("swarm_update", *flags) for flags in itertools.product((False, True), repeat=3)]
VARIANTS = [*UPDATES, Variant("mix")]


def with_types(variants: Sequence[Variant]) -> list[Any]:
    """Each with the types of rows that it is for: float32 rows are not rounded."""
    both = itertools.product(variants, TYPES)
    return [pytest.param(v, t, id=f"{v}-{t}") for v, t in both if not (v.stochastic and t == "fp32")]


def load_static_gpu() -> ModuleType:
    """benchmarks/gpu/static_gpu.py, which is no part of the package."""
    spec = importlib.util.spec_from_file_location("static_gpu", ROOT / "benchmarks" / "gpu" / "static_gpu.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["static_gpu"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


static_gpu = load_static_gpu()


# ---- Triton ----


def triton_kernel(variant: Variant) -> tuple[ModuleType, dict[str, str], dict[str, Any]]:
    """The module of a kernel, its signature, with `row` where the rows' type belongs, and its constants."""
    if variant.name == "swarm_update":
        from modelswarms_fast.ops.kernels import swarm_update

        rows = ("position", "velocity", "personal_best")
        strided = {key: kind for row in rows for key, kind in ((row, "*row"), (f"{row}_stride", "i32"))}
        signature = strided | {"global_best": "*row", "global_worst": "*row"}
        signature |= {"table": "*i64" if variant.table else "constexpr", "coefficients": "*fp32"}
        signature |= {"step_length": "fp32", "particles": "i32", "size": "i32"}
        signature |= {"seed": "i64", "iteration": "i32", "first_column": "i64"}
        constants: dict[str, Any] = {} if variant.table else {"table": None}
        constants |= {"BLOCK": swarm_update.BLOCK, "STOCHASTIC": variant.stochastic, "COORDINATE": variant.coordinate}
        return swarm_update, signature | dict.fromkeys(constants, "constexpr"), constants
    from modelswarms_fast.ops.kernels import mix

    signature = {"out": "*row", "out_stride": "i32", "experts": "*row", "experts_stride": "i32"}
    signature |= {"mixture": "*fp32", "particles": "i32", "count": "i32", "size": "i32", "BLOCK": "constexpr"}
    return mix, signature, {"BLOCK": mix.BLOCK}


def triton_compile(variant: Variant, dtype: str, architecture: int, aligned: bool) -> Mapping[str, Any]:
    """PTX and cubin as the launcher's settings give it, for rows at multiples of 16 bytes or anywhere."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    module, kinds, constants = triton_kernel(variant)
    signature = {key: kind.replace("row", dtype) for key, kind in kinds.items()}
    divisible = [
        number
        for number, (key, kind) in enumerate(signature.items())
        if kind.startswith("*") or key.endswith("stride") or key == "size"
    ]
    hints = {(number,): [["tt.divisibility", 16]] for number in divisible} if aligned else {}
    source = ASTSource(getattr(module, f"{variant.name}_kernel"), signature, constants, hints)
    target = GPUTarget("cuda", architecture, 32)
    return triton.compile(source, target=target, options=module.OPTIONS).asm


def memory_instructions(sass: str) -> Counter[str]:
    """How often SASS loads and stores global memory, by kind and width: "LDG.128", "STG.32"."""
    found: Counter[str] = Counter()
    for kind, modifiers in re.findall(r"\b(LDG|STG)((?:\.\w+)*)", sass):
        width = next((word for word in modifiers.split(".") if word in ("U8", "U16", "64", "128")), "32")
        found[f"{kind}.{width.removeprefix('U')}"] += 1
    return found


# Loads and stores of 16 bytes for the rows of a block of half numbers, twice as many for float32. The scalars
# are four coefficients and the five rows of a particle, or the shares of one expert in four particles.
ROW_LOADS = {"swarm_update": 5, "mix": 1}
ROW_STORES = {"swarm_update": 2, "mix": 4}
SCALAR_LOADS = 4
TABLE_LOADS = 5


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("variant", "dtype"), with_types(VARIANTS))
def test_triton_moves_16_bytes_at_a_time(variant: Variant, dtype: str, architecture: int, tmp_path: Path) -> None:
    compiled = triton_compile(variant, dtype, architecture, aligned=True)
    ptx = compiled["ptx"]
    moves = Counter(re.findall(r"\b(?:ld|st)\.global[.\w]*", ptx))
    wide = TYPES[dtype].itemsize // 2
    vectors = ("ld.global.v4.b32", "st.global.v4.b32")
    assert moves["ld.global.v4.b32"] == wide * ROW_LOADS[variant.name], moves
    assert moves["st.global.v4.b32"] == wide * ROW_STORES[variant.name], moves
    scalars = SCALAR_LOADS + TABLE_LOADS * variant.table
    assert sum(moves.values()) - sum(moves[vector] for vector in vectors) == scalars, moves
    # With a table v and p have a condition of their own: they are not always read.
    conditions = set(re.findall(r"@(%p\d+) ld\.global\.v4", ptx))
    assert len(conditions) == (3 if variant.table else 1) * max(1, wide), conditions

    cubin = tmp_path / "kernel.cubin"
    cubin.write_bytes(compiled["cubin"])
    usage = static_gpu.run(static_gpu.cuobjdump(), "--dump-resource-usage", str(cubin))
    assert re.findall(r"STACK:(\d+).*LOCAL:(\d+)", usage) == [("0", "0")], usage  # spills would lie there
    sass = memory_instructions(static_gpu.run(static_gpu.cuobjdump(), "-sass", str(cubin)))
    assert sass["LDG.128"] >= moves["ld.global.v4.b32"], sass
    assert sass["STG.128"] >= moves["st.global.v4.b32"], sass


@pytest.mark.parametrize(("variant", "dtype"), with_types(VARIANTS))
def test_triton_rounds_as_the_reference(variant: Variant, dtype: str) -> None:
    """No multiply-add is fused, no denormal is flushed, divisions and rows are rounded to nearest even."""
    ptx = triton_compile(variant, dtype, 90, aligned=True)["ptx"]
    assert not re.search(r"\bfma\.", ptx)
    assert ".ftz" not in ptx
    assert "mul.rn.f32" in ptx or "mul.f32" in ptx
    # A thread has eight columns.
    assert re.findall(r"\bdiv\.[.\w]*f32", ptx) == ["div.rn.f32"] * 8 * variant.coordinate
    if dtype != "fp32":
        assert (f"cvt.rn.{dtype.replace('fp', 'f')}" in ptx) != variant.stochastic


@pytest.mark.parametrize(("variant", "dtype"), with_types(VARIANTS))
def test_triton_takes_unaligned_rows_one_number_at_a_time(variant: Variant, dtype: str) -> None:
    """Without Triton's promise of alignment a wide load would fault."""
    ptx = triton_compile(variant, dtype, 90, aligned=False)["ptx"]
    moves = Counter(re.findall(r"\b(?:ld|st)\.global[.\w]*", ptx))
    assert not [move for move in moves if re.search(r"\.v[248]\.", move)], moves
    assert sum(moves.values()) > 16


def test_triton_interpreter_equals_the_reference() -> None:
    """In a process of its own, because Triton reads the switch when it is imported."""
    folders = [*sys.path, str(ROOT / "tests" / "support")]
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(folders)}
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "94 cases\n"


def interpret() -> None:
    """The body of the test above: both kernels, three dtypes, odd sizes, strided rows, unaligned starts."""
    cases = 0
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for particles, size in ((1, 1), (1, 7), (2, 1023), (3, 1024), (5, 65), (6, 2100)):
            for start, gap in ((0, 0), (1, 0), (3, 5)):
                interpret_one(dtype, particles, size, start, gap)
                cases += 1
        for variant in UPDATES:
            for size, gap in ((1021, 3), (2052, 0)):
                if not (variant.stochastic and dtype == torch.float32):
                    # The interpreter cuts bfloat16 off where the compiled kernel rounds it to nearest: one unit.
                    units = int(dtype == torch.bfloat16 and not variant.stochastic)
                    check_variant(variant, dtype, size, 2 + gap, gap, DRAWS, triton_update, units)
                    cases += 1
    print(f"{cases} cases")


def interpret_one(dtype: torch.dtype, particles: int, size: int, start: int, gap: int) -> None:
    from helpers_rows import guarded, random_rows

    position, velocity, personal_best, experts, out = (
        guarded(random_rows(particles, size, dtype, seed), start, gap) for seed in range(5)
    )
    best, worst = (guarded(random_rows(1, size, dtype, seed), start).rows[0] for seed in (6, 7))
    coefficients = torch.rand(particles, 4, generator=torch.Generator().manual_seed(8))
    mixture = torch.rand(particles, particles, generator=torch.Generator().manual_seed(9))

    expected = [row.rows.clone() for row in (position, velocity, out)]
    rest = (personal_best.rows, best, worst, coefficients, 0.7)
    swarm_update_(expected[0], expected[1], *rest, backend="reference")
    mix_(expected[2], experts.rows, mixture, backend="reference")
    swarm_update_(position.rows, velocity.rows, *rest, backend="triton")
    mix_(out.rows, experts.rows, mixture, backend="triton")

    for actual, wanted in zip((position, velocity, out), expected, strict=True):
        if dtype == torch.bfloat16:
            # The interpreter cuts bfloat16 off where the compiled kernel rounds it: one unit.
            ulps = actual.rows.contiguous().view(torch.int16).int() - wanted.view(torch.int16).int()
            assert ulps.abs().max() <= 1
        else:
            assert torch.equal(actual.rows, wanted)
    assert all(row.intact() for row in (position, velocity, personal_best, experts, out))


# ---- Every variant of the update, by whatever runs it ----

# The counter of a draw has a column past 2^32, the key two words, and 2 * iteration + 1 does not fit 31 bits.
DRAWS = {"seed": 0x123456789ABCDEF0, "iteration": 2**30 + 5, "first_column": 2**34 - 8}
# Eleven rows of three particles: a velocity of zero and p = x, in place, and all apart; then g and w.
TABLE = torch.tensor([[0, 1, -1, 2, 0], [3, 3, 4, 4, 5], [6, 7, 8, 9, 10]])

Update = Callable[[Variant, Sequence[Tensor], Tensor, Mapping[str, int]], None]


def triton_update(variant: Variant, rows: Sequence[Tensor], coefficients: Tensor, draws: Mapping[str, int]) -> None:
    through_ops("triton", variant, rows, coefficients, draws)


def through_ops(
    backend: str, variant: Variant, rows: Sequence[Tensor], coefficients: Tensor, draws: Mapping[str, int]
) -> None:
    """Rows are x, v, p and the two of g and w; or the slab that a table speaks of."""
    options: dict[str, Any] = dict(draws, backend=backend)
    options["rounding"] = "stochastic" if variant.stochastic else "nearest"
    options["randomness"] = "coordinate" if variant.coordinate else "particle"
    if variant.table:
        swarm_update_rows_(rows[0], TABLE, 11, 12, coefficients, STEP, **options)
    else:
        swarm_update_(*rows[:3], *rows[3], coefficients, STEP, **options)


def check_variant(
    variant: Variant,
    dtype: torch.dtype,
    size: int,
    start: int,
    gap: int,
    draws: Mapping[str, int],
    update: Update,
    units: int = 0,
) -> None:
    """The same bits as the reference, or some units in the last place apart, and nothing else written."""
    from helpers_rows import BITS, guarded, random_rows

    counts = [13] if variant.table else [3, 3, 3, 2]
    rows = [guarded(awkward(random_rows(count, size, dtype, count)), start, gap) for count in counts]
    expected = [row.rows.clone() for row in rows]
    coefficients = torch.rand(3, 4, generator=torch.Generator().manual_seed(8))
    through_ops("reference", variant, expected, coefficients, draws)
    update(variant, [row.rows for row in rows], coefficients, draws)
    for actual, wanted in zip(rows, expected, strict=True):
        assert actual.intact()
        nan = wanted.isnan()
        assert torch.equal(actual.rows.isnan(), nan)
        bits = BITS[dtype.itemsize]
        difference = (actual.rows.contiguous().view(bits).long() - wanted.view(bits).long()).masked_fill(nan, 0)
        assert difference.abs().max() <= units, (variant, dtype, size, int((difference != 0).sum()))


def awkward(rows: Tensor) -> Tensor:
    """Random rows of all magnitudes that float16 and the reference tell apart, with infinity and NaN among them."""
    scales = 2.0 ** torch.arange(-44, 18).repeat(rows.shape[1] // 62 + 1)[: rows.shape[1]]
    rows = (rows.double() * scales).to(rows.dtype)
    if rows.shape[1] > 100:
        rows[0, 7], rows[1, 70], rows[2 % len(rows), 71], rows[0, 90] = torch.inf, torch.nan, -torch.inf, -0.0
    return rows


# ---- CUDA, as plain C++ ----


@pytest.fixture(scope="module")
def on_cpu(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The source of the CUDA kernels as a library for this machine; see tests/cuda_on_cpu."""
    target = tmp_path_factory.mktemp("cuda_on_cpu") / "kernels.so"
    flags = ("-std=c++17", "-O1", "-ffp-contract=off", "-fno-strict-aliasing", "-shared", "-fPIC", "-w", "-x", "c++")
    folders = (f"-I{Path(__file__).parents[1] / 'cuda_on_cpu'}", f"-I{KERNELS}")
    sources = [
        *(KERNELS / f"{name}.cu" for name in ("swarm_update", "mix", "plan")),
        Path(__file__).parents[1] / "cuda_on_cpu" / "extra.cpp",
    ]
    static_gpu.run("g++", *flags, *folders, *map(str, sources), "-o", str(target))
    return ctypes.CDLL(str(target))


def cuda_on_cpu(library: ctypes.CDLL) -> Update:
    def update(variant: Variant, rows: Sequence[Tensor], coefficients: Tensor, draws: Mapping[str, int]) -> None:
        x, v, p, (g, w) = [rows[0]] * 3 + [rows[0][11:]] if variant.table else rows
        strided = [value for row in (x, v, p) for value in (row.data_ptr(), row.stride(0))]
        addresses = (g.data_ptr(), w.data_ptr(), TABLE.data_ptr() if variant.table else 0, coefficients.data_ptr())
        code = library.modelswarms_swarm_update_cuda(
            *map(ctypes.c_int64, (*strided, *addresses)),
            ctypes.c_float(STEP),
            *map(ctypes.c_int64, (len(coefficients), x.shape[1])),
            *(DTYPE_CODES[x.dtype], ctypes.c_bool(variant.stochastic), ctypes.c_bool(variant.coordinate)),
            *(ctypes.c_uint64(draws["seed"]), ctypes.c_uint32(draws["iteration"])),
            *(ctypes.c_int64(draws["first_column"]), 0, ctypes.c_void_p(0)),
        )
        assert code == 0

    return update


@pytest.mark.parametrize(("size", "start", "gap"), [(1, 0, 7), (1000, 0, 0), (4101, 0, 3), (3001, 1, 0)])
@pytest.mark.parametrize(("variant", "dtype"), with_types(UPDATES))
def test_cuda_source_equals_the_reference(
    variant: Variant, dtype: str, size: int, start: int, gap: int, on_cpu: ctypes.CDLL
) -> None:
    """Packs and the columns after the last, rows that start anywhere, all through the launchers."""
    check_variant(variant, TYPES[dtype], size, start, gap, DRAWS, cuda_on_cpu(on_cpu))


@pytest.mark.parametrize(("table", "rows"), [(False, 3 * 3 + 2), (True, 3 + 2 + 2 + 2)])
def test_cuda_source_reads_a_row_once_or_not_at_all(table: bool, rows: int, on_cpu: ctypes.CDLL) -> None:
    """x, v and p of three particles, g and w; in the table a velocity is zero and a personal best is the position."""
    on_cpu.read_once.restype = ctypes.c_int64
    before = on_cpu.read_once()
    variant = Variant("swarm_update", table=table)
    check_variant(variant, torch.bfloat16, 800, 0, 0, DRAWS, cuda_on_cpu(on_cpu))
    assert on_cpu.read_once() - before == rows * 800 * 2


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_cuda_source_rounds_up_and_down_as_the_reference(dtype: str, on_cpu: ctypes.CDLL) -> None:
    """Every exponent and sign of a float32, denormals, infinities and NaN, with noise that is random or extreme."""
    generator = torch.Generator().manual_seed(4)
    heads = torch.arange(512).repeat_interleave(400) << 23
    tails = torch.randint(0, 1 << 23, heads.shape, generator=generator)
    tails[::5], tails[1::5] = 0, (1 << 23) - 1
    noise = torch.randint(0, 1 << 16, heads.shape, generator=generator)
    noise[::7], noise[1::7], noise[2::7] = 0, 0xFFFF, 0xFFFF - noise[2::7] % 256
    values = (heads | tails).to(torch.int32).view(torch.float32)
    expected = round_stochastically(values, noise, TYPES[dtype])
    actual = torch.empty_like(expected)
    words = noise.to(torch.int32)
    addresses = map(ctypes.c_void_p, (values.data_ptr(), words.data_ptr(), actual.data_ptr()))
    on_cpu[f"round_{dtype}"](*addresses, ctypes.c_int64(len(values)))
    nan = expected.isnan()
    assert torch.equal(actual.isnan(), nan)
    assert torch.equal(actual[~nan].view(torch.int16), expected[~nan].view(torch.int16))


@pytest.mark.parametrize("dtype", TYPES.values(), ids=str)
def test_cuda_source_of_the_mix_equals_the_reference(dtype: torch.dtype, on_cpu: ctypes.CDLL) -> None:
    from helpers_rows import assert_same, guarded, random_rows

    for particles, count, size, start in ((1, 1, 5, 0), (2, 5, 1000, 0), (4, 4, 65, 1), (11, 9, 2051, 0), (3, 0, 8, 0)):
        out = guarded(random_rows(particles, size, dtype, 1), start, 5)
        experts = random_rows(count, size, dtype, 2)
        mixture = torch.rand(particles, count, generator=torch.Generator().manual_seed(3))
        expected = out.rows.clone()
        mix_(expected, experts, mixture, backend="reference")
        numbers = (out.rows.data_ptr(), out.rows.stride(0), experts.data_ptr(), experts.stride(0), mixture.data_ptr())
        words = map(ctypes.c_int64, (*numbers, particles, count, size))
        assert on_cpu.modelswarms_mix_cuda(*words, DTYPE_CODES[dtype], 0, ctypes.c_void_p(0)) == 0
        assert_same(out.rows, expected)
        assert out.intact()


def run_plan(library: ctypes.CDLL, name: str, table: weight_loader.Table, row: Tensor) -> None:
    """What `Table.launch` does, by the source of the kernel as plain C++."""
    address, parts, tiles, count, dtype = table.arguments(row)
    words = [ctypes.c_int64(word) for word in (address, parts, tiles, count)]
    assert library[f"modelswarms_{name}_plan_cuda"](*words, dtype, 0, ctypes.c_void_p(0)) == 0


# Wide and narrow rows, more than a tile, a part of a tensor with columns left out, rows that no pack fits.
COPIES = {"a": (8, 96, None), "b": (700, 8, (100, 0)), "c": (5, 7, None), "d": (9, 2048, (2, 256)), "e": (300, 4, None)}


@pytest.mark.parametrize("start", [0, 1])
@pytest.mark.parametrize("scaling", [1.0, 0.3])
@pytest.mark.parametrize("dtype", TYPES.values(), ids=str)
def test_cuda_source_of_a_copy_plan_equals_the_cpu_one(
    dtype: torch.dtype, scaling: float, start: int, on_cpu: ctypes.CDLL
) -> None:
    shapes = {name: torch.empty(rows, columns, device="meta") for name, (rows, columns, _) in COPIES.items()}
    layout = Layout.of(shapes, dtype)
    places: list[list[Tensor]] = [[], []]
    targets: list[list[weight_loader.CopyTarget]] = [[], []]
    for spec in layout.specs:
        rows, columns, part = COPIES[spec.name]
        top, left = part or (0, 0)
        for mine, ours in zip(places, targets, strict=True):
            mine.append(torch.full((rows - top, columns - left + 8), 7.0, dtype=dtype))
            ours.append(weight_loader.CopyTarget(spec, mine[-1][:, : columns - left], scaling, part))
    row = torch.randn(layout.size + start, generator=torch.Generator().manual_seed(1)).to(dtype)[start:]
    plan, table = weight_loader.WeightCopier(targets[0]), weight_loader.copy_table(targets[1])
    assert table.parts[:, 7].any(), "some move 16 bytes at a time"
    assert not table.parts[:, 7].all()
    plan.load(row)
    run_plan(on_cpu, "copy", table, row)
    for one, other in zip(*places, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("start", [0, 1])
@pytest.mark.parametrize("dtype", TYPES.values(), ids=str)
def test_cuda_source_of_a_merge_plan_equals_the_cpu_one(dtype: torch.dtype, start: int, on_cpu: ctypes.CDLL) -> None:
    # rank, rows, columns, and the part of them
    merges = [(4, 50, 96, None), (1, 3, 7, None), (16, 37, 128, (5, 64)), (3, 17, 640, (1, 0))]
    generator, shapes = torch.Generator().manual_seed(2), {}
    for number, (rank, rows, columns, _) in enumerate(merges):
        shapes |= {f"{number}a": torch.empty(rank, columns), f"{number}b": torch.empty(rows, rank)}
    layout = Layout.of(shapes, dtype)
    specs = {spec.name: spec for spec in layout.specs}
    lives: list[list[Tensor]] = [[], []]
    targets: list[list[weight_loader.MergeTarget]] = [[], []]
    for number, (_, rows, columns, part) in enumerate(merges):
        top, left = part or (0, 0)
        base = torch.randn(rows - top, columns - left, generator=generator).to(dtype)
        for mine, ours in zip(lives, targets, strict=True):
            mine.append(torch.full((rows - top, columns - left + 8), 7.0, dtype=dtype))
            live = mine[-1][:, : columns - left]
            ours.append(
                weight_loader.MergeTarget(specs[f"{number}a"], specs[f"{number}b"], base, live, 0.3 + number, part)
            )
    row = torch.randn(layout.size + start, generator=generator).to(dtype)[start:]
    table = weight_loader.merge_table(targets[1])
    assert table.parts[:, 10].any()
    assert not table.parts[:, 10].all()
    weight_loader.LoraMerger(targets[0]).load(row)
    run_plan(on_cpu, "merge", table, row)
    for one, other in zip(*lives, strict=True):
        assert torch.equal(one, other)
        assert (one[:, -8:] == 7.0).all()


# ---- CUDA, compiled ----

NEEDS_NVCC = pytest.mark.skipif(shutil.which("nvcc") is None, reason="this machine has no nvcc")
# A type has eight updates, float32 four, each with a path of 16 bytes and one of single numbers.
CUDA_KERNELS = {"swarm_update": 40, "mix": 6}


@NEEDS_NVCC
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", CUDA_KERNELS)
def test_cuda_rounds_as_the_reference(name: str, architecture: int) -> None:
    """No multiply-add is fused and no denormal flushed; single numbers never move 16 bytes; nothing spills."""
    report, functions = static_gpu.compiled(name, architecture)
    spills = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", report)
    assert spills == [("0", "0", "0")] * CUDA_KERNELS[name], report
    # Template arguments, in the mangled name: the numbers of a pack, then table, stochastic and coordinate.
    forms = {key: re.search(r"Li([148])E(?:Lb[01]ELb[01]ELb([01])E)?", key) for key in functions}
    assert Counter(form and form[1] for form in forms.values())["1"] == CUDA_KERNELS[name] // 2
    for key, body in functions.items():
        form = forms[key]
        assert form is not None
        # A division is made of multiply-adds, and scales what is denormal by itself.
        if form[2] != "1":
            assert "FFMA" not in body, f"{key} fuses a multiply-add"
            assert ".FTZ" not in body, f"{key} flushes denormals"
        stores = {kind for kind in memory_instructions(body) if kind.startswith("STG")}
        assert len(stores) == 1
        assert (stores == {"STG.128"}) == (form[1] != "1"), (key, stores)


@NEEDS_NVCC
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_cuda_plans_compiled(architecture: int) -> None:
    """Both kernels of each type move 16 bytes at a time where they can, spill nothing and fuse nothing."""
    report, functions = static_gpu.compiled("plan", architecture)
    spills = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", report)
    assert spills == [("0", "0", "0")] * 6, report  # copy and merge
    assert len(functions) == 6
    for key, body in functions.items():
        assert "FFMA" not in body, f"{key} fuses a multiply-add"
        # Only what an integer division is made of.
        assert set(re.findall(r"\w+(?:\.\w+)*\.FTZ", body)) <= {"F2I.FTZ"}, key
        moves = memory_instructions(body)
        assert moves["LDG.128"], (key, moves)
        assert moves["STG.128"], (key, moves)


@NEEDS_NVCC
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_cuda_divides_as_the_reference(architecture: int, tmp_path: Path) -> None:
    """The compiler writes a correctly rounded division for each column of the kernels that have one, and no others."""
    target = tmp_path / "swarm_update.ptx"
    flags = ("-std=c++17", "-O3", f"-arch=compute_{architecture}", "-ptx")
    static_gpu.run("nvcc", *flags, str(KERNELS / "swarm_update.cu"), "-o", str(target))
    text = target.read_text()
    assert ".ftz" not in text
    assert not re.search(r"\bfma\.", text)
    entries = re.findall(r"\.entry (\w+)(.*?)(?=\.entry |\Z)", text, re.DOTALL)
    assert len(entries) == CUDA_KERNELS["swarm_update"]
    for name, body in entries:
        form = re.search(r"Li([148])E(?:Lb[01]E){2}Lb([01])E", name)
        assert form is not None
        assert re.findall(r"\bdiv\.\w+\.f32", body) == ["div.rn.f32"] * int(form[1]) * int(form[2])


@NEEDS_NVCC
def test_cuda_bytes_registers_and_instructions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """benchmarks/gpu/static_gpu.py finds nothing wrong, has every variant, and knows a wrong one."""
    target = tmp_path / "static_gpu.json"
    assert static_gpu.main(["--json", str(target)]) == 0, capsys.readouterr().out
    variants = json.loads(target.read_text())["variants"]
    # Updates: three types, with a table or not, by randomness; half types by rounding as well. One mix a type.
    assert Counter(one["kernel"] for one in variants) == {"swarm_update": 2 * 20, "mix": 2 * 3}
    for one in variants:
        itemsize = 4 if one["dtype"] == "float32" else 2
        assert one["bytes_moved"] == itemsize * (7 if one["kernel"] == "swarm_update" else 2)


@NEEDS_NVCC
@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("STG.E.EF.128", "STG.E.EF.64", "do not move 16 bytes"),
        ("STG.E.EF.128", "NOP", "does not load and store"),
        ("FADD", "FADD R0, R0, R0 ;" + " /*0000*/ FADD R0, R0, R0 ;" * 40 + " /*0000*/ FADD", "more instructions"),
    ],
)
def test_static_gpu_knows_a_wrong_kernel(old: str, new: str, complaint: str) -> None:
    functions = static_gpu.compiled("swarm_update", 90)[1]
    sass = next(body for name, body in functions.items() if "bfloat16Li8ELb0ELb0ELb0E" in name)
    # A repeated instruction keeps the address of the one before it, so that it stays inside of the loop.
    wrong = re.sub(r"/\*([0-9a-f]{4,})\*/(\s+)" + old, lambda m: f"/*{m[1]}*/{m[2]}" + new.replace("0000", m[1]), sass)
    right = static_gpu.judge("swarm_update", 90, "bfloat16", (False, False, False), sass, 64, 0)
    assert right.wrong == []
    judged = static_gpu.judge("swarm_update", 90, "bfloat16", (False, False, False), wrong, 64, 0)
    assert any(complaint in line for line in judged.wrong), judged.wrong
    starved = static_gpu.judge("swarm_update", 90, "bfloat16", (False, False, False), sass, 255, 8)
    assert [line.split()[0] for line in starved.wrong] == ["spills", "feeds"]


if __name__ == "__main__":
    interpret()

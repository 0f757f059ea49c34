"""Device code without a device: compiled for sm_80 and sm_90 and read, Triton run in its interpreter."""

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from modelswarms_fast.ops import mix_, swarm_update_

KERNELS = Path(__file__).parent.parent / "kernels"
ARCHITECTURES = (80, 90)
TRITON_TYPES = {"fp32": 4, "bf16": 2, "fp16": 2}


def cuobjdump() -> str:
    """The reader of compiled kernels that Triton ships."""
    import triton

    found = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    assert found.exists(), "the triton package has no cuobjdump"
    return str(found)


def run(*command: str) -> str:
    """Output and errors of a command that must succeed."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command[0]} failed:\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def assert_no_spills(report: str, kernels: int) -> None:
    spills = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", report)
    assert len(spills) == kernels, report
    assert set(spills) == {("0", "0", "0")}, report


def memory_instructions(sass: str) -> Counter[str]:
    """How often SASS loads and stores global memory, by kind and width: "LDG.128", "STG.32"."""
    found: Counter[str] = Counter()
    for kind, modifiers in re.findall(r"\b(LDG|STG)((?:\.\w+)*)", sass):
        width = next((word for word in modifiers.split(".") if word in ("U8", "U16", "64", "128")), "32")
        found[f"{kind}.{width.removeprefix('U')}"] += 1
    return found


# ---- Triton ----


def triton_kernel(name: str) -> tuple[ModuleType, dict[str, str]]:
    """The module of a kernel and its signature, with `row` where the rows' type belongs."""
    if name == "swarm_update":
        from modelswarms_fast.kernels import swarm_update

        rows = ("position", "velocity", "personal_best")
        strided = {key: kind for row in rows for key, kind in ((row, "*row"), (f"{row}_stride", "i32"))}
        signature = strided | {"global_best": "*row", "global_worst": "*row", "coefficients": "*fp32"}
        signature |= {"step_length": "fp32", "particles": "i32", "size": "i32", "BLOCK": "constexpr"}
        return swarm_update, signature
    from modelswarms_fast.kernels import mix

    signature = {"out": "*row", "out_stride": "i32", "experts": "*row", "experts_stride": "i32"}
    signature |= {"mixture": "*fp32", "particles": "i32", "count": "i32", "size": "i32", "BLOCK": "constexpr"}
    return mix, signature


def triton_compile(name: str, dtype: str, architecture: int, aligned: bool) -> Mapping[str, Any]:
    """PTX and cubin as the launcher's settings give it, for rows at multiples of 16 bytes or anywhere."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    module, kinds = triton_kernel(name)
    signature = {key: kind.replace("row", dtype) for key, kind in kinds.items()}
    divisible = [
        number
        for number, (key, kind) in enumerate(signature.items())
        if kind.startswith("*") or key.endswith("stride") or key == "size"
    ]
    hints = {(number,): [["tt.divisibility", 16]] for number in divisible} if aligned else {}
    source = ASTSource(getattr(module, f"{name}_kernel"), signature, {"BLOCK": module.BLOCK}, hints)
    target = GPUTarget("cuda", architecture, 32)
    return triton.compile(source, target=target, options=module.OPTIONS).asm


# Loads and stores of 16 bytes for the rows of a block of half numbers, twice as many for float32. The scalars
# are four coefficients of a particle, or the shares of one expert in four particles.
ROW_LOADS = {"swarm_update": 5, "mix": 1}
ROW_STORES = {"swarm_update": 2, "mix": 4}
SCALAR_LOADS = {"swarm_update": 4, "mix": 4}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", TRITON_TYPES)
@pytest.mark.parametrize("name", ["swarm_update", "mix"])
def test_triton_moves_16_bytes_at_a_time(name: str, dtype: str, architecture: int, tmp_path: Path) -> None:
    compiled = triton_compile(name, dtype, architecture, aligned=True)
    ptx = compiled["ptx"]
    moves = Counter(re.findall(r"\b(?:ld|st)\.global[.\w]*", ptx))
    wide = TRITON_TYPES[dtype] // 2
    vectors = ("ld.global.v4.b32", "st.global.v4.b32")
    assert moves["ld.global.v4.b32"] == wide * ROW_LOADS[name], moves
    assert moves["st.global.v4.b32"] == wide * ROW_STORES[name], moves
    assert sum(moves.values()) - sum(moves[vector] for vector in vectors) == SCALAR_LOADS[name], moves

    cubin = tmp_path / "kernel.cubin"
    cubin.write_bytes(compiled["cubin"])
    usage = run(cuobjdump(), "--dump-resource-usage", str(cubin))
    assert re.findall(r"STACK:(\d+).*LOCAL:(\d+)", usage) == [("0", "0")], usage  # spills would lie there
    sass = memory_instructions(run(cuobjdump(), "-sass", str(cubin)))
    assert sass["LDG.128"] >= moves["ld.global.v4.b32"], sass
    assert sass["STG.128"] >= moves["st.global.v4.b32"], sass


@pytest.mark.parametrize("dtype", TRITON_TYPES)
@pytest.mark.parametrize("name", ["swarm_update", "mix"])
def test_triton_rounds_as_the_reference(name: str, dtype: str) -> None:
    """No multiply-add is fused, no denormal is flushed, and rows are rounded to nearest even."""
    ptx = triton_compile(name, dtype, 90, aligned=True)["ptx"]
    assert not re.search(r"\bfma\.", ptx)
    assert ".ftz" not in ptx
    assert "mul.rn.f32" in ptx or "mul.f32" in ptx
    if dtype != "fp32":
        assert f"cvt.rn.{dtype.replace('fp', 'f')}" in ptx


@pytest.mark.parametrize("dtype", TRITON_TYPES)
@pytest.mark.parametrize("name", ["swarm_update", "mix"])
def test_triton_takes_unaligned_rows_one_number_at_a_time(name: str, dtype: str) -> None:
    """Without Triton's promise of alignment a wide load would fault."""
    ptx = triton_compile(name, dtype, 90, aligned=False)["ptx"]
    moves = Counter(re.findall(r"\b(?:ld|st)\.global[.\w]*", ptx))
    assert not [move for move in moves if re.search(r"\.v[248]\.", move)], moves
    assert sum(moves.values()) > 16


def test_triton_interpreter_equals_the_reference() -> None:
    """In a process of its own, because Triton reads the switch when it is imported."""
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "54 cases\n"


def interpret() -> None:
    """The body of the test above: both kernels, three dtypes, odd sizes, strided rows, unaligned starts."""
    cases = 0
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for particles, size in ((1, 1), (1, 7), (2, 1023), (3, 1024), (5, 65), (6, 2100)):
            for start, gap in ((0, 0), (1, 0), (3, 5)):
                interpret_one(dtype, particles, size, start, gap)
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


# ---- CUDA ----


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="this machine has no nvcc")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", ["swarm_update", "mix"])
def test_cuda_moves_16_bytes_at_a_time(name: str, architecture: int, tmp_path: Path) -> None:
    target = tmp_path / f"{name}.cubin"
    flags = ("-std=c++17", "-O3", f"-arch=sm_{architecture}", "-cubin", "-Xptxas", "-v")
    report = run("nvcc", *flags, str(KERNELS / f"{name}.cu"), "-o", str(target))
    # Three dtypes, each with a path of 16 bytes and one of single numbers.
    assert_no_spills(report, kernels=6)

    listing = run(cuobjdump(), "-sass", str(target))
    functions = dict(re.findall(r"Function : (\w+)(.*?)(?=Function :|\Z)", listing, re.DOTALL))
    # Packs are a template argument, at the end of the mangled name: Li4E or Li8E wide, Li1E single.
    wide = {key: body for key, body in functions.items() if re.search(r"Li[48]E", key)}
    assert (len(functions), len(wide)) == (6, 3)
    for key, body in functions.items():
        moves = memory_instructions(body)
        assert "FFMA" not in body, f"{key} fuses a multiply-add"
        assert ".FTZ" not in body, f"{key} flushes denormals"
        if key in wide:
            assert moves["LDG.128"] >= ROW_LOADS[name], (key, moves)
            assert moves["STG.128"] >= ROW_STORES[name], (key, moves)
            assert moves["STG.128"] == sum(count for kind, count in moves.items() if kind.startswith("STG"))
        else:
            assert moves["STG.128"] == 0, (key, moves)


if __name__ == "__main__":
    interpret()

"""What the machine code of the CUDA kernels says about their speed, where there is no GPU to time them.

    python -m benchmarks.gpu.static_gpu [--json FILE]

Compiles kernels/*.cu for sm_80 and sm_90 and reads, of each variant of the path of 16 bytes:

    bytes         loaded and stored a column, counted from LDG and STG, against the formula: P = 1 in the update,
                  P = n = 1 in the mix
    registers     a thread, bytes spilled, and the blocks that a multiprocessor holds with them
    in flight     KiB of rows that the threads of these blocks wait for together, and for how long that feeds
                  memory at full bandwidth
    instructions  a byte that goes to or comes from memory, against those that the chip carries out in that time:
                  all kinds together (issue), and by kind. The update counts a particle; the mix four particles
                  and an expert of P = 20, n = 10.

A kernel that takes less than the chip has is bound by memory as far as counting can tell; it does not see stalls. Loops
are counted whole, with branches that are seldom taken. Exits with 1 if a variant spills, moves other bytes than those
of the formula or not 16 at a time, has too little in flight, or is an update without random numbers that is not bound
by memory.
"""

from __future__ import annotations

import argparse
import functools
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

KERNELS = Path(__file__).resolve().parents[2] / "kernels"
THREADS = 256  # kThreads in kernels/common.cuh
TILE = 4  # kTile in kernels/mix.cu
PACK = 16
# What the instructions of a mix are counted for.
PARTICLES, EXPERTS = 20, 10

# Multiprocessors of compute capability 8.0 and 9.0 alike (CUDA C++ Programming Guide, "Technical Specifications per
# Compute Capability"; warps lie in four partitions, each with a scheduler that issues one instruction a clock).
PARTITIONS, WARP = 4, 32
REGISTERS, MOST_WARPS, MOST_BLOCKS = 65536, 64, 32

# How long reads under way must feed memory: a read takes less than this on these chips, the wait in queues included.
LATENCY_NS = 1000


@dataclass(frozen=True)
class Chip:
    """What a chip can do at its best."""

    name: str
    source: str
    multiprocessors: int
    clock_ghz: float
    memory_gbps: float
    # Results a clock and multiprocessor (CUDA C++ Programming Guide, "Throughput of Native Arithmetic Instructions").
    float_lanes: int
    integer_lanes: int

    def per_byte(self, lanes: int) -> float:
        """Instructions of single threads while memory moves one byte."""
        return self.multiprocessors * lanes * self.clock_ghz / self.memory_gbps


CHIPS = {
    80: Chip(
        "A100 SXM 80 GB", "NVIDIA A100 Tensor Core GPU data sheet and architecture white paper", 108, 1.41, 2039, 64, 64
    ),
    90: Chip(
        "H100 SXM", "NVIDIA H100 Tensor Core GPU data sheet and architecture white paper", 132, 1.755, 3350, 128, 64
    ),
}

FLOAT = {"FADD", "FMUL", "FFMA", "HADD2", "HFMA2"}
MULTIPLY = {"IMAD"}
# Neither: memory, control flow, the uniform unit, constants, and reciprocals (16 a clock, and rare).
OTHER = {
    "LDG",
    "STG",
    "LDL",
    "STL",
    "LDC",
    "BRA",
    "CALL",
    "BSSY",
    "BSYNC",
    "EXIT",
    "NOP",
    "MUFU",
    "R2UR",
    "S2R",
    "WARPSYNC",
}


@dataclass
class Variant:
    """One compiled kernel and what its code says."""

    kernel: str
    architecture: int
    dtype: str
    table: bool
    stochastic: bool
    coordinate: bool
    registers: int
    spilled_bytes: int
    blocks: int
    bytes_moved: float  # a column
    bytes_formula: int
    kib_in_flight: float
    fed_ns: float
    instructions: int
    instructions_per_byte: float
    shares: dict[str, float]  # of what the chip can do at full bandwidth: issue, float, multiply, integer
    wrong: list[str]

    @property
    def name(self) -> str:
        """As in a table."""
        words = [word for word in ("table", "stochastic", "coordinate") if getattr(self, word)]
        return " ".join([self.kernel, self.dtype, *words])

    @property
    def most(self) -> float:
        """The share of full bandwidth that the instructions leave possible."""
        return min(1.0, 1 / max(self.shares.values()))


def cuobjdump() -> str:
    """The reader of compiled kernels: of the CUDA toolkit, or the one that Triton ships."""
    found = shutil.which("cuobjdump")
    if found is not None:
        return found
    import triton

    return str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump")


def run(*command: str) -> str:
    """Output and errors of a command that must succeed."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{command[0]} failed:\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


@functools.cache
def compiled(kernel: str, architecture: int) -> tuple[str, dict[str, str]]:
    """What ptxas reports on kernels/KERNEL.cu, and the SASS of each function in it by its mangled name."""
    with tempfile.TemporaryDirectory() as folder:
        target = f"{folder}/{kernel}.cubin"
        flags = ("-std=c++17", "-O3", f"-arch=sm_{architecture}", "-cubin", "-Xptxas", "-v")
        report = run("nvcc", *flags, str(KERNELS / f"{kernel}.cu"), "-o", target)
        listing = run(cuobjdump(), "-sass", target)
    return report, dict(re.findall(r"Function : (\w+)(.*?)(?=Function :|\Z)", listing, re.DOTALL))


def instructions_of(sass: str) -> list[tuple[int, str, str]]:
    """Address, operation with its modifiers, operands."""
    found = re.findall(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)\s*([^;]*);", sass)
    return [(int(address, 16), operation, operands) for address, operation, operands in found]


def row_moves(instructions: Sequence[tuple[int, str, str]], kind: str) -> Counter[int]:
    """Loads or stores of rows by bytes a thread. Scalars come through LDG.CONSTANT and are left out."""
    found: Counter[int] = Counter()
    for _, operation, _ in instructions:
        words = operation.split(".")
        if words[0] == kind and "CONSTANT" not in words:
            bits = next((word.lstrip("US") for word in words if word.lstrip("US") in ("8", "16", "64", "128")), "32")
            found[int(bits) // 8] += 1
    return found


def row_loop(instructions: Sequence[tuple[int, str, str]]) -> tuple[int, int]:
    """First and last address of the innermost loop that loads rows: over particles, or over experts.

    Of several (an unrolled one and its rest) the first.
    """
    loops = []
    for address, operation, operands in instructions:
        target = re.search(r"0x([0-9a-f]+)", operands)
        if operation.split(".")[0] == "BRA" and target and int(target[1], 16) < address:
            inside = [line for line in instructions if int(target[1], 16) <= line[0] <= address]
            if row_moves(inside, "LDG"):
                loops.append((int(target[1], 16), address))
    innermost = [one for one in loops if not any(one != two and one[0] <= two[0] and two[1] <= one[1] for two in loops)]
    return min(innermost)


def resident_blocks(registers: int) -> int:
    """Blocks that fit a multiprocessor: registers are given to warps in units of 256, warps to partitions."""
    each = -(-registers * WARP // 256) * 256
    warps = min(REGISTERS // PARTITIONS // each * PARTITIONS, MOST_WARPS)
    return min(warps // (THREADS // WARP), MOST_BLOCKS)


def read(kernel: str, architecture: int) -> list[Variant]:
    """Every variant of a kernel that moves 16 bytes at a time."""
    report, functions = compiled(kernel, architecture)
    pattern = (
        r"Compiling entry function '(\w+)'.*?(\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers"
    )
    usage = {name: numbers for name, *numbers in re.findall(pattern, report, re.DOTALL)}
    variants = []
    for name, sass in functions.items():
        # Template arguments: type of a number, numbers a pack, and the flags of an update.
        form = re.search(r"_kernelI(?:\d+)?(f|__half|__nv_bfloat16)Li([48])E((?:Lb[01]E)*)E", name)
        if form:
            dtype = {"f": "float32", "__half": "float16", "__nv_bfloat16": "bfloat16"}[form[1]]
            flags = [flag == "1" for flag in re.findall(r"Lb([01])E", form[3])] or [False] * 3
            stores, loads, registers = map(int, usage[name])
            variants.append(judge(kernel, architecture, dtype, flags, sass, registers, stores + loads))
    return sorted(variants, key=lambda one: (one.stochastic, one.coordinate, one.table, one.dtype))


def judge(
    kernel: str, architecture: int, dtype: str, flags: Sequence[bool], sass: str, registers: int, spilled: int
) -> Variant:
    """Count one function's bytes and instructions, and say what is wrong with them."""
    chip, itemsize = CHIPS[architecture], 4 if dtype == "float32" else 2
    instructions = instructions_of(sass)
    first, last = row_loop(instructions)
    loop = [line for line in instructions if first <= line[0] <= last]
    rest = [line for line in instructions if not first <= line[0] <= last]
    loads, stores = row_moves(loop, "LDG"), row_moves(loop, "STG")
    other_loads, other_stores = row_moves(rest, "LDG"), row_moves(rest, "STG")
    if kernel == "swarm_update":
        # A turn of the loop is a particle; g and w are loaded before it.
        wrong = (loads[PACK], stores[PACK], other_loads[PACK], other_stores[PACK]) != (3, 2, 2, 0)
        packs: float = loads[PACK] + stores[PACK] + other_loads[PACK]
        formula = (5 + 2) * itemsize
        turn_bytes, read_share = 5.0 * PACK, 3 / 5
    else:
        # A turn is some experts, of each four shares; the sums of a tile of 4, 2 or 1 particles are stored after it.
        shares_loaded = sum(operation.startswith("LDG") and "CONSTANT" in operation for _, operation, _ in loop)
        wrong = shares_loaded != TILE * loads[PACK] or stores[PACK] != 0
        packs = TILE * loads[PACK] / shares_loaded + other_stores[PACK] / (4 + 2 + 1)
        formula = (1 + 1) * itemsize
        turn_bytes = PACK * loads[PACK] * TILE * (PARTICLES + EXPERTS) / (PARTICLES * EXPERTS)
        read_share = 1.0  # of one particle, nearly
    narrow = sum(sum(moves.values()) - moves[PACK] for moves in (loads, stores, other_loads, other_stores))
    blocks = resident_blocks(registers)
    in_flight = blocks * THREADS * PACK * loads[PACK]
    fed_ns = in_flight / (chip.memory_gbps / chip.multiprocessors * read_share)
    counts = Counter("float" if op in FLOAT else "multiply" if op in MULTIPLY else "integer" for op in arithmetic(loop))
    shares = {"issue": len(loop) / turn_bytes / chip.per_byte(PARTITIONS * WARP)}
    shares["float"] = counts["float"] / turn_bytes / chip.per_byte(chip.float_lanes)
    shares |= {kind: counts[kind] / turn_bytes / chip.per_byte(chip.integer_lanes) for kind in ("multiply", "integer")}

    variant = Variant(
        kernel=kernel,
        architecture=architecture,
        dtype=dtype,
        table=flags[0],
        stochastic=flags[1],
        coordinate=flags[2],
        registers=registers,
        spilled_bytes=spilled,
        blocks=blocks,
        bytes_moved=packs * itemsize,
        bytes_formula=formula,
        kib_in_flight=in_flight / 1024,
        fed_ns=fed_ns,
        instructions=len(loop),
        instructions_per_byte=len(loop) / turn_bytes,
        shares=shares,
        wrong=[],
    )
    if wrong:
        variant.wrong.append("the loop does not load and store what it should")
    if variant.bytes_moved != formula:
        variant.wrong.append(f"moves {variant.bytes_moved:g} bytes a column, the formula says {formula}")
    if narrow:
        variant.wrong.append(f"{narrow} loads or stores of rows do not move 16 bytes")
    if spilled:
        variant.wrong.append(f"spills {spilled} bytes")
    if fed_ns < LATENCY_NS:
        variant.wrong.append(f"feeds memory for {fed_ns:.0f} ns, less than {LATENCY_NS}")
    if kernel == "swarm_update" and not variant.stochastic and not variant.coordinate and variant.most < 1:
        variant.wrong.append("takes more instructions than the chip carries out at full bandwidth")
    return variant


def arithmetic(loop: Sequence[tuple[int, str, str]]) -> list[str]:
    """Operations of the loop that the arithmetic units carry out."""
    names = [operation.split(".")[0] for _, operation, _ in loop]
    return [name for name in names if name not in OTHER and not name.startswith("U")]


def table(variants: Sequence[Variant]) -> str:
    """One line a variant."""
    heads = ["variant", "sm", "bytes", "formula", "regs", "spills", "blocks", "KiB in flight", "feeds ns"]
    heads += ["instr.", "a byte", "issue", "float", "mult.", "integer", "bandwidth"]
    lines: list[list[Any]] = [heads]
    for one in variants:
        lines.append(
            [one.name, one.architecture, f"{one.bytes_moved:g}", one.bytes_formula, one.registers, one.spilled_bytes]
        )
        lines[-1] += [one.blocks, f"{one.kib_in_flight:.0f}", f"{one.fed_ns:.0f}", one.instructions]
        lines[-1] += [f"{one.instructions_per_byte:.2f}", *(f"{share:.0%}" for share in one.shares.values())]
        lines[-1] += ["memory" if max(one.shares.values()) < 0.9 else f"at most {one.most:.0%}"]
    cells = [[str(cell) for cell in line] for line in lines]
    widths = [max(len(line[column]) for line in cells) for column in range(len(heads))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in cells)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table, write the JSON; 1 if a rule is broken."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was counted")
    target = parser.parse_args(arguments).json
    if shutil.which("nvcc") is None:
        raise SystemExit("There is no nvcc on PATH.")
    variants = [one for arch in CHIPS for kernel in ("swarm_update", "mix") for one in read(kernel, arch)]
    for arch, chip in CHIPS.items():
        issued = chip.per_byte(PARTITIONS * WARP)
        print(f"sm_{arch}: {chip.name}, {issued:.2f} instructions of a thread a byte ({chip.source})")
    print(table(variants))
    wrong = [f"{one.name}, sm_{one.architecture}: {line}" for one in variants for line in one.wrong]
    print("\n".join(wrong) or "Every rule holds.")
    if target is not None:
        chips = {f"sm_{arch}": asdict(chip) for arch, chip in CHIPS.items()}
        compiler = run("nvcc", "--version").strip().splitlines()[-1]
        rows = [asdict(one) | {"share_of_bandwidth_possible": one.most} for one in variants]
        target.write_text(json.dumps({"nvcc": compiler, "chips": chips, "variants": rows}, indent=1) + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

"""What memory and arithmetic allow on a CPU: the loops of operators/limits.cpp, compiled when they are first used.

Addresses are those of tensors (`data_ptr()`), strides and sizes count 64-bit words. The loops run on as many threads as
the extension does.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import subprocess
from ctypes import c_bool, c_double, c_int, c_int64, c_void_p
from functools import cache
from pathlib import Path

SOURCE = Path(__file__).parent / "operators" / "limits.cpp"
BUILD = Path(__file__).parents[1] / "build"

_ARGUMENTS = {
    "limit_update": [c_void_p] * 5 + [c_int64, c_bool, c_bool],
    "limit_mix": [c_void_p, c_int64, c_void_p, *[c_int64] * 4, c_bool],
    "limit_copy": [c_void_p, c_void_p, c_int64, c_int, c_bool],
    "limit_arithmetic": [c_int64],
}


@cache
def _library() -> ctypes.CDLL:
    path = BUILD / f"limits-{hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]}.so"
    if not path.exists():
        BUILD.mkdir(exist_ok=True)
        made = path.with_suffix(f".{os.getpid()}")
        flags = ["-O3", "-std=c++17", "-ffp-contract=off", "-fopenmp", "-Wall", "-Wextra", "-shared", "-fPIC"]
        subprocess.run([os.environ.get("CXX", "g++"), *flags, str(SOURCE), "-o", str(made)], check=True)
        made.replace(path)
    library = ctypes.CDLL(str(path))
    for name, arguments in _ARGUMENTS.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, c_double if name == "limit_arithmetic" else None
    return library


def limit_update(x: int, v: int, p: int, x_out: int, v_out: int, words: int, stream_x: bool, stream_v: bool) -> None:
    """Three read and two write streams; `stream_x`, `stream_v`: stores of x' and v' go past the caches."""
    _library().limit_update(x, v, p, x_out, v_out, words, stream_x, stream_v)


def limit_mix(
    out: int, out_stride: int, experts: int, experts_stride: int, writes: int, reads: int, words: int, stream: bool
) -> None:
    """`reads` rows in and `writes` rows out; `stream`: stores go past the caches."""
    _library().limit_mix(out, out_stride, experts, experts_stride, writes, reads, words, stream)


def limit_copy(out: int, source: int, count: int, threads: int, stream: bool) -> None:
    """memcpy of `count` bytes, whole cache lines, on so many threads; `stream`: with stores past the caches."""
    _library().limit_copy(out, source, count, threads, stream)


def limit_arithmetic(rounds: int) -> float:
    """Products and sums of float32 in registers; how many operations that were."""
    operations: float = _library().limit_arithmetic(rounds)
    return operations

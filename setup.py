"""Build of the one extension, modelswarms_fast.ops._C. Everything else about the package is in pyproject.toml.

MODELSWARMS_CUDA=1 asks for the CUDA kernels and fails without nvcc, 0 leaves them out; unset, they are
compiled where nvcc is found. A GPU is never needed to build. The CPU code chooses its SIMD level at run time.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension, build_ext
from setuptools import setup

ARCHITECTURES = (80, 90, 100)
CPU_FILES = "arena bindings low_rank mix plan row_name simd slab swarm_update swiglu tensor_update view"
CPU_SOURCES = [f"csrc/{name}.cpp" for name in CPU_FILES.split()]
CUDA_SOURCES = ["kernels/host_memory.cu", "kernels/mix.cu", "kernels/plan.cu", "kernels/swarm_update.cu"]
HEADERS = [str(path) for folder in ("csrc", "kernels") for path in sorted(Path(folder).glob("*.*h"))]
# No contraction into fused multiply-adds: every SIMD level gives the bits of the reference.
CXX_FLAGS = ["-O3", "-ffp-contract=off", "-fvisibility=hidden", "-fopenmp", "-Wall", "-Wextra"]
# GCC 12 warns about the undefined halves inside its own AVX-512 intrinsics.
CXX_FLAGS += ["-Wno-uninitialized", "-Wno-maybe-uninitialized"]
# A template over a register type drops its may_alias, which matters to nobody here.
CXX_FLAGS += ["-Wno-ignored-attributes"]


def find_nvcc() -> str | None:
    """nvcc to compile the CUDA kernels with, None to leave them out."""
    wish = os.environ.get("MODELSWARMS_CUDA", "")
    if wish not in ("", "0", "1"):
        raise SystemExit(f"MODELSWARMS_CUDA is {wish!r}; set it to 0 or 1, or unset it")
    home = os.environ.get("CUDA_HOME")
    nvcc = shutil.which("nvcc") or (shutil.which("nvcc", path=f"{home}/bin") if home else None)
    if wish == "1" and nvcc is None:
        raise SystemExit("MODELSWARMS_CUDA=1 but there is no nvcc on PATH or in CUDA_HOME/bin")
    return None if wish == "0" else nvcc


class BuildWithCuda(build_ext):
    """Compiles the .cu files with nvcc and links them, and the static CUDA runtime, into the extension."""

    def build_extension(self, extension: Pybind11Extension) -> None:
        nvcc = find_nvcc()
        if nvcc is not None:
            extension.define_macros.append(("MODELSWARMS_CUDA", "1"))
            extension.extra_objects += [self.compile_cuda(nvcc, source) for source in CUDA_SOURCES]
            extension.library_dirs += library_folders(nvcc)
            extension.libraries += ["cudart_static", "dl", "pthread", "rt"]
        super().build_extension(extension)

    def compile_cuda(self, nvcc: str, source: str) -> str:
        target = Path(self.build_temp, source).with_suffix(".cu.o")
        target.parent.mkdir(parents=True, exist_ok=True)
        known = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True, check=True).stdout.split()
        built = [a for a in ARCHITECTURES if f"sm_{a}" in known]  # nvcc before 12.8 does not know sm_100
        codes = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in built]
        codes.append(f"-gencode=arch=compute_{built[-1]},code=compute_{built[-1]}")
        flags = ["-std=c++17", "-O3", "-Xcompiler=-fPIC,-fvisibility=hidden", "-cudart=static", "--threads=0"]
        subprocess.run([nvcc, *flags, *codes, "-c", source, "-o", str(target)], check=True)
        return str(target)


def library_folders(nvcc: str) -> list[str]:
    """Folders that nvcc itself links from; asked of nvcc, as the one on PATH may be a wrapper."""
    words = subprocess.run([nvcc, "--dryrun", CUDA_SOURCES[0]], capture_output=True, text=True, check=True).stderr
    line = re.search(r"LIBRARIES=(.*)", words)
    return re.findall(r'-L"?([^"\s]+)"?', line.group(1)) if line else []


ParallelCompile().install()
setup(
    ext_modules=[
        Pybind11Extension(
            "modelswarms_fast.ops._C",
            CPU_SOURCES,
            depends=HEADERS + CUDA_SOURCES,
            include_dirs=["csrc"],
            extra_compile_args=CXX_FLAGS,
            extra_link_args=["-fopenmp", "-Wl,--exclude-libs,ALL"],
            cxx_std=17,
        )
    ],
    cmdclass={"build_ext": BuildWithCuda},
)

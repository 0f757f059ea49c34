"""A whole tiny search: a random Llama with a tokenizer, random adapters and a graded task, for the exact engine."""

import json
import string
from pathlib import Path
from typing import Any

import pytest
from helpers_models import make_adapter, make_base
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import PreTrainedTokenizerFast

from modelswarms_fast.records.run_folder import read_history

SETTINGS: dict[str, Any] = {
    "task": "helpers_search:vowels",
    "engine": "transformers",
    "dtype": "float32",
    "iterations": 3,
    "seed": 5,
}


NAMES = ("ada", "bob", "cyd")


def vowels(example: dict[str, Any], output: str) -> float:
    """A graded score that every small move changes: the weighted share of vowels."""
    letters = [letter for letter in output if letter.isalpha()]
    return sum(0.1 * "zaeiou".find(letter) + 0.3 for letter in letters) / (len(letters) or 1)


def rich(example: dict[str, Any], output: str) -> float:
    """Right or wrong: whether there are many vowels, or late ones."""
    return float(vowels(example, output) > 0.25)


rich.score_range = (0, 1)  # type: ignore[attr-defined]


def unsure(example: dict[str, Any], output: str) -> float:
    """NaN for every output with an e in it."""
    return float("nan") if "e" in output else vowels(example, output)


def never(example: dict[str, Any], output: str) -> float:
    """NaN for every output."""
    return float("nan")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Arguments of `search` but `out`: three experts on a base of 64 one-letter tokens."""
    return make_tiny(tmp_path_factory.mktemp("tiny"))


def make_tiny(folder: Path, **shape: Any) -> dict[str, Any]:
    """What `tiny` is, with a base of this shape."""
    base = make_base(folder / "base", shape=shape)
    write_tokenizer(base)
    for seed, name in enumerate(NAMES):
        make_adapter(base, folder / "experts" / name, seed=seed, scale=0.5)
    write_data(folder / "data.json", 12)
    return {"experts": folder / "experts", "base": str(base), "data": folder / "data.json", **SETTINGS}


def write_tokenizer(folder: Path) -> None:
    """One of 64 one-letter tokens."""
    vocabulary = {letter: index for index, letter in enumerate(["<end>", *string.printable[:63]])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<end>"))
    tokenizer.pre_tokenizer = Split(Regex("."), "isolated")
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<end>")
    fast.save_pretrained(folder)


def write_data(path: Path, count: int) -> None:
    """A task file with `count` examples a split."""
    words = [f"{a}{b}{c}" for a in "bcdf" for b in "aeiou" for c in "lmnrst"]
    split = {"dev": words[:count], "test": words[count : 2 * count]}
    path.write_text(json.dumps({name: [{"prompt": word} for word in words] for name, words in split.items()}))


def write_training(folder: Path, count: int = 40) -> Path:
    """What the experts could have been trained on: words that are to be answered with one letter, an expert each."""
    folder.mkdir(exist_ok=True)
    for name, letter in zip(NAMES, "aei", strict=True):
        words = [f"{name[0]}{chr(97 + index % 26)}{chr(97 + index // 26)}" for index in range(count)]
        lines = [json.dumps({"prompt": word, "completion": letter * 3}) for word in words]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def told(run: str | Path) -> list[dict[str, Any]]:
    """What a run found in each iteration, without the seconds it took and the engines that it lost."""
    return [
        {name: value for name, value in line.items() if name not in {"seconds", "engine_idle_share", "engines_lost"}}
        for line in read_history(Path(run) / "history.jsonl")
    ]


def arguments_of(tiny, **more):
    """Of an experiment: what `tiny` has without the swarm's settings."""
    return {name: value for name, value in tiny.items() if name not in ("iterations", "seed")} | more

"""The demo's skills, its held-out mix, and the experts that are shipped for it."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors import safe_open

EXAMPLES = Path(__file__).parents[2] / "examples"
EXPERTS = EXAMPLES / "experts"
FOLDERS = sorted(path for path in EXPERTS.iterdir() if path.is_dir())


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


skills = load("skills")
NAMES = skills.skills()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("skills")
    subprocess.run([sys.executable, EXAMPLES / "skills.py", "--out", folder], check=True)
    return folder


def test_files_are_the_same_everywhere(written: Path) -> None:
    assert sorted(path.name for path in written.iterdir()) == sorted(f"{name}.json" for name in [*NAMES, "skills_mix"])
    digest = hashlib.sha256((written / "skills_mix.json").read_bytes()).hexdigest()
    assert digest == "2bcb01ad95e9f8e656859a709a446b28c8ee3b2bc45a5c5f7747b69cde5bea5c"


def test_mix_is_in_the_published_format_with_equal_parts(written: Path) -> None:
    task = json.loads((written / "skills_mix.json").read_text())
    assert set(task) == {"dataset", "dev", "test"}
    assert task["dataset"] == "skills_mix"
    assert len(NAMES) >= 8
    for split, size in (("dev", 160), ("test", 480)):
        domains = [example["domain"] for example in task[split]]
        assert len(domains) == size
        assert {name: domains.count(name) for name in NAMES} == {
            name: size // 4 * (name in skills.MIX_SKILLS) for name in NAMES
        }
        assert domains != sorted(domains)  # shuffled: any prefix is a mix as well


def test_a_larger_mix_is_of_the_size_that_is_asked_for(tmp_path: Path) -> None:
    sizes = {"dev": 400, "test": 2000}
    command = [sys.executable, EXAMPLES / "skills.py", "--out", tmp_path, "--mix-dev", "400", "--mix-test", "2000"]
    subprocess.run(command, check=True)
    task = json.loads((tmp_path / "skills_mix.json").read_text())
    questions = {split: {example["question"] for example in task[split]} for split in sizes}
    assert {split: len(found) for split, found in questions.items()} == sizes
    assert not questions["dev"] & questions["test"]


@pytest.mark.parametrize("name", NAMES)
def test_splits_share_no_item_and_no_prompt(name: str) -> None:
    splits = {split: skills.generate(name, split, 48) for split in ("train", "dev", "test")}
    splits["train"] = skills.splits(name)["train"]
    held_out = [example for split in ("dev", "test") for example in skills.generate(name, split, 48, held_out=True)]
    prompts = [{example["question"] for example in examples} for examples in [*splits.values(), held_out]]
    for i, some in enumerate(prompts):
        for other in prompts[:i]:
            assert not some & other
    # The wording of the mix is in no training prompt, whatever the item.
    start = max(re.split(r"\{\w+\}", skills.SKILLS[name].held_out), key=len)
    assert all(start in example["question"] for example in held_out)
    assert not any(start in example["question"] for example in splits["train"])


@pytest.mark.parametrize("name", NAMES)
def test_splits_share_no_item_whatever_the_wording(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    skill = skills.SKILLS[name]
    bare = " ".join(dict.fromkeys(re.findall(r"\{\w+\}", skill.held_out)))  # a question is then its item
    monkeypatch.setitem(skills.SKILLS, name, dataclasses.replace(skill, held_out=bare))
    items = [
        {e["question"] for e in skills.generate(name, split, 48, held_out=True)} for split in ("train", "dev", "test")
    ]
    assert [len(part) for part in items] == [48] * 3
    assert len(set.union(*items)) == 3 * 48


def test_too_many_items_are_refused() -> None:
    with pytest.raises(ValueError, match="units/dev has fewer than 60 "):
        skills.generate("units", "dev", 60)
    with pytest.raises(ValueError, match="161 questions cannot be divided"):
        skills.mix("dev", 161)


@pytest.mark.parametrize("name", NAMES)
def test_answers_are_framed_and_never_right_by_accident(name: str) -> None:
    examples = skills.generate(name, "test", 48, held_out=True) + skills.splits(name)["train"]
    answers = {example["answer"] for example in examples}
    for example in examples:
        question, answer = example["question"], example["answer"]
        assert question.startswith("Question: ")
        assert question.endswith("\nAnswer:")
        assert "{" not in question
        assert "=" not in question  # so a copy of the prompt holds no answer
        assert answer.startswith("= ")
        assert answer.endswith(".")
        assert len(answer) > 3
        assert answer.count("=") == answer.count(".") == 1
        # A wrong answer of the same skill never holds the right one.
        assert sum(answer in other for other in answers) == 1
    constant = max(sum(example["answer"] == answer for example in examples) for answer in answers)
    assert constant <= len(examples) / 3  # the best constant guess


TRUE = {
    "addition": ("What do 29 and 45 make together?", "= 74."),
    "category": ("One of these is a colour: cherry, eye, axe, brown. Which one?", "= brown."),
    "dates": ("It was 2024-07-17 yesterday. Which date is it now?", "= 18 July."),
    "largest": ("Pick the number that is greater than the others: 52, 26, 71.", "= 71."),
    "path": ("Trains run from P to M, V to T, M to D. Who boards at P, where is the last stop?", "= D."),
    "reverse": ("Say these words from the last to the first: ship blue water.", "= water blue ship."),
    "sorting": ("Arrange from the smallest to the biggest: 7 9 2 4.", "= 2479."),
    "units": ("88 centimetres are how many millimetres?", "= 880 mm."),
}


@pytest.mark.parametrize("name", NAMES)
def test_answers_are_true(name: str) -> None:
    example = skills.generate(name, "test", 1, held_out=True)[0]
    question, answer = TRUE[name]
    assert example == {"question": f"Question: {question}\nAnswer:", "answer": answer}


def test_there_is_an_expert_for_every_skill() -> None:
    assert [folder.name for folder in FOLDERS] == NAMES
    for folder in FOLDERS:
        assert sorted(path.name for path in folder.iterdir()) == [
            "adapter_config.json",
            "adapter_model.safetensors",
        ]
    assert sum(path.stat().st_size for path in EXPERTS.rglob("*") if path.is_file()) <= 10_000_000


def test_experts_share_one_portable_config() -> None:
    texts = {(folder / "adapter_config.json").read_text() for folder in FOLDERS}
    assert len(texts) == 1
    config = json.loads(texts.pop())
    assert config["base_model_name_or_path"] == "smollm2-135m-instruct"
    assert config["inference_mode"] is True
    assert config["peft_type"] == "LORA"
    assert config["r"] <= 8
    assert not any(isinstance(value, str) and value.startswith(("/", "~", ".")) for value in config.values())


def test_experts_are_finite_bfloat16_of_one_shape_and_differ() -> None:
    shapes = []
    digests = set()
    for folder in FOLDERS:
        with safe_open(folder / "adapter_model.safetensors", "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
        assert all(bool(tensor.isfinite().all()) for tensor in tensors.values())
        # B starts at zero: an expert that learnt something has none left that is all zero.
        assert all(bool(tensor.any()) for tensor in tensors.values())
        shapes.append({name: tuple(tensor.shape) for name, tensor in tensors.items()})
        digests.add(hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest())
    assert all(shape == shapes[0] for shape in shapes)
    assert len(digests) == len(FOLDERS)

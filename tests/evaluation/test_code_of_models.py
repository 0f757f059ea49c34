"""Code in a model's folder is never run, and nobody is asked whether it may."""

from __future__ import annotations

import ast
import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import helpers_search
import pytest
from helpers_scorers import CHAT, make_classifier, write_prompts

from modelswarms_fast import evaluate
from modelswarms_fast.errors import InputError
from modelswarms_fast.evaluation.objectives.classifier import Classifier
from modelswarms_fast.evaluation.objectives.judge import chat_form
from modelswarms_fast.runs import rough_time
from modelswarms_fast.runs.baselines import data_merge
from modelswarms_fast.weights.experts import read_experts

tiny = helpers_search.tiny
ROOT = Path(__file__).parents[2]
CODE = """
from pathlib import Path
Path({marker!r}).write_text("")
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast
class EvilConfig(LlamaConfig):
    model_type = {kind!r}
class EvilModel(LlamaForCausalLM):
    config_class = EvilConfig
class EvilClassifier(LlamaForSequenceClassification):
    config_class = EvilConfig
class EvilTokenizer(PreTrainedTokenizerFast):
    pass
"""


@pytest.fixture(params=["llama", "evil"])
def evil(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Gives a model's folder code, of a kind that transformers knows or does not; the end checks that none was run.

    Whoever were asked would say yes.
    """
    marker, asked = tmp_path / "was_run", []
    monkeypatch.setattr("builtins.input", lambda *prompt: asked.append(prompt) or "y")

    def make(folder: Path) -> Path:
        (folder / "evil.py").write_text(CODE.format(marker=str(marker), kind=request.param))
        classes = {"AutoConfig": "Config", "AutoModelForCausalLM": "Model"}
        classes |= {"AutoModelForSequenceClassification": "Classifier"}
        config = json.loads((folder / "config.json").read_text())
        config |= {"model_type": request.param, "auto_map": {key: f"evil.Evil{end}" for key, end in classes.items()}}
        (folder / "config.json").write_text(json.dumps(config))
        config = json.loads((folder / "tokenizer_config.json").read_text())
        config |= {"tokenizer_class": "EvilTokenizer", "auto_map": {"AutoTokenizer": [None, "evil.EvilTokenizer"]}}
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        return folder

    yield make
    assert not marker.exists()
    assert not asked


def refused_or_read(open_door: Callable[[], Any]) -> None:
    """What transformers knows it may read without the code; all else is one sentence."""
    with suppress(InputError):
        open_door()


def test_a_base_model(evil: Any, tiny: dict[str, Any], tmp_path: Path) -> None:
    base = evil(Path(shutil.copytree(tiny["base"], tmp_path / "base")))
    settings = {"task": tiny["task"], "data": tiny["data"], "engine": "transformers", "dtype": "float32"}
    for model in (str(base), str(tiny["experts"] / "ada")):
        refused_or_read(lambda model=model: evaluate(model, base=str(base), **settings))  # type: ignore[misc]
    refused_or_read(lambda: evaluate(str(base), base=str(base), dry_run=True, **settings))
    refused_or_read(lambda: rough_time.weights_of(base))
    with suppress(Exception):  # an experiment has refused such a base before
        data_merge.train(base, read_experts(tiny["experts"]), [], steps=1, seed=0)


def test_a_classifier(evil: Any, tmp_path: Path) -> None:
    folder = evil(make_classifier(tmp_path / "classifier"))
    refused_or_read(lambda: Classifier(str(folder)))


@pytest.mark.parametrize("task", ["reward", "toxicity"])
def test_the_model_of_an_objective(evil: Any, tiny: dict[str, Any], tmp_path: Path, task: str) -> None:
    folder = evil(make_classifier(tmp_path / "classifier"))
    data = write_prompts(tmp_path / "prompts.json", "Why?")
    options = {"model" if task == "reward" else "scorer": str(folder)} | (
        {"low": "0", "high": "1"} if task == "reward" else {}
    )
    settings = {"engine": "transformers", "dtype": "float32", "max_tokens": 4, "options": options}
    refused_or_read(lambda: evaluate(tiny["base"], base=tiny["base"], task=task, data=data, **settings))


def test_the_tokenizer_of_a_judges_chat(evil: Any, tmp_path: Path) -> None:
    folder = evil(make_classifier(tmp_path / "chat", chat=CHAT))
    refused_or_read(lambda: chat_form(str(folder)))


def test_every_call_says_it() -> None:
    """Of the classes that would look for code: those of transformers that find others by what a folder says."""
    found = 0
    for path in [
        *ROOT.glob("modelswarms_fast/**/*.py"),
        *ROOT.glob("examples/*.py"),
        *ROOT.glob("benchmarks/quality/*.py"),
    ]:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in ("from_pretrained", "pipeline", "from_config"):
                found += 1
                said = [one.value for one in node.keywords if one.arg == "trust_remote_code"]
                assert [getattr(one, "value", None) for one in said] == [False], f"{path}:{node.lineno}"
    assert found > 12

"""Names of experts, folders, files and tensors are names: they run nothing, lead nowhere, and are shown as they are."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import helpers_search
import pytest
import torch
from helpers_models import edit_tensors

from modelswarms_fast.cli import main
from modelswarms_fast.records.run_folder import read_json

tiny = helpers_search.tiny
EXPERTS = (
    "[red]x", "$(touch was_run)", "`touch was_run`", "-rf", "<img src=x onerror=alert(1)>", "..up", "%2e%2e%2fup",
    "\x1b]0;title\x07\x1b[2J", "a\nb", "{{ 7 * 7 }}", "C:\\up", "~root", "hf:owner",
)  # fmt: skip


def code_of(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["modelswarms-fast", *map(str, arguments)])
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(SystemExit) as error:
        main.main()
    return int(error.value.code or 0)


def tree(folder: Path) -> set[Path]:
    return {path.relative_to(folder) for path in folder.rglob("*")}


def options(tiny: dict[str, Any]) -> list[str]:
    given = {"base": tiny["base"], "task": tiny["task"], "data": tiny["data"], "engine": "transformers"}
    given |= {"parity-check": "off", "dtype": "float32", "iterations": "1", "limit-dev": "2", "limit-test": "2"}
    return [text for name, value in given.items() for text in (f"--{name}", str(value))]


def test_a_search_over_experts_with_hostile_names(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, name in enumerate(EXPERTS):
        shutil.copytree(tiny["experts"] / helpers_search.NAMES[number % 3], tmp_path / "pool" / name)
    monkeypatch.chdir(tmp_path)
    before = tree(tmp_path)
    out = Path("runs", "[v1] $(touch was_run)")
    assert code_of(monkeypatch, "search", "pool", *options(tiny), "--out", out) == 0
    added = {path for path in tree(tmp_path) - before if path.name != "__pycache__"}
    assert {path.parts[0] for path in added} == {"runs"}
    assert {path.parts[1] for path in added if len(path.parts) > 1} == {out.name}
    assert (tmp_path / out / "report.html").exists()
    assert sorted(read_json(tmp_path / out / "config.json")["experts"]) == sorted({*EXPERTS} - {"..up"}), "hidden"
    shown = capsys.readouterr()
    assert f"Open {out}/report.html first" in shown.out
    assert "\x1b" not in shown.out + shown.err
    card = (tmp_path / out / "global_best" / "README.md").read_text()
    assert "<img" not in card
    assert "\x1b" not in card
    assert code_of(monkeypatch, "search", "pool", *options(tiny), "--out", out, "--overwrite") == 0
    assert tree(tmp_path) - before == added


@pytest.mark.parametrize(
    "name", ["../../../up", "/up", "base_model.model.model.layers.0.self_attn.q_proj.lora_A.../up.weight", "a\nb", ""]
)
def test_a_tensor_with_a_hostile_name_is_refused(
    tiny: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    shutil.copytree(tiny["experts"], tmp_path / "pool")
    edit_tensors(tmp_path / "pool" / "ada", **{name: torch.zeros(2, 2)})
    before = tree(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert code_of(monkeypatch, "search", "pool", *options(tiny), "--out", "run") == 2
    assert tree(tmp_path) == before
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert "ada" in line

"""The model card: nothing in it is private, and nothing that it quotes is markup."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers_models import make_adapter, make_base
from markdown_it import MarkdownIt

from modelswarms_fast.weights.experts import Experts, read_experts
from modelswarms_fast.weights.model_card import model_card, without_path

HOSTILE = (
    "<img src=x onerror=alert(1)>", "![i](http://there/x.png)", "[a](javascript:alert(1))", "<script>alert(1)</script>",
    "a | b", "` code `", "**bold**", "\\[link](x)", "a\n# Title\n<b>", "&lt;img src=x&gt;", "</td></table><h1>x</h1>",
    "<http://there>", "---\nlibrary_name: evil", '"quoted" \\ text: # no comment', "\x1b[31mred\x9b\u2028x\u202e",
    "~~x~~",
)  # fmt: skip


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Experts:
    folder = tmp_path_factory.mktemp("experts")
    base = make_base(folder / "base")
    for seed, name in enumerate("ab"):
        make_adapter(base, folder / "experts" / name, seed=seed)
    return read_experts(folder / "experts")


@pytest.mark.parametrize("text", HOSTILE)
def test_what_is_quoted_is_text(experts: Experts, text: str) -> None:
    named = replace(experts, names=(text, "b"), sources=(f"/home/{text}", text))
    named = replace(named, config={**experts.config, "base_model_name_or_path": text})
    provenance = {
        "task": text, "dataset": text, "data": [text], "system": text, "options": {text: text}, "dev": 0.5,
        "mixture": {text: 0.5, "b": 0.5}, "settings": {text: text, "engine_options": {"a": [text]}},
    }  # fmt: skip
    card = model_card(named, provenance, Path("base"))
    _, front, body = re.split(r"^---\n", card, maxsplit=2, flags=re.MULTILINE)
    meta = yaml.safe_load(front)
    assert list(meta) == ["base_model", "library_name", "tags"]
    assert meta["library_name"] == "peft"
    page = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(body)
    tags = set(re.findall(r"<(/?[a-z0-9]+)", page))
    assert {one.strip("/") for one in tags} == {"h1", "h2", "p", "a", "table", "thead", "tbody", "tr", "th", "td"}
    assert re.findall(r'href="([^"]*)"', page) == ["https://arxiv.org/abs/2410.11163"]
    assert len(re.findall("<h[12]>", page)) == 4
    assert all(
        row.count("<td>") == row.count("</td>") in (2, 3)
        for row in re.findall("<tr>(.*?)</tr>", page, re.S)[1:]
        if "<td>" in row
    )
    assert all(character.isprintable() for character in card.replace("\n", ""))


def test_nothing_of_the_machine_is_in_it(experts: Experts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "data.json").touch()
    provenance: dict[str, Any] = {
        "base": str(tmp_path / "mine" / "base"),
        "data": ["mine/data.json", "hf:owner/data"],
        "chat": "~/mine/chat.jinja",
        "options": {
            "endpoint": "http://mine:8000/v1", "cache": "/mine/cache", "key_env": "MINE", "2.endpoint": "http://mine",
            "model": str(tmp_path / "mine" / "reward"), "low": "0.5",
        },
        "settings": {"spill": "/mine/spill", "engine_options": {"download_dir": "/mine/models", "seed": 3}},
    }  # fmt: skip
    placed = replace(experts, sources=(str(tmp_path / "mine" / "a"), "owner/name@main:b"))
    placed = replace(placed, config={**experts.config, "base_model_name_or_path": str(tmp_path / "mine" / "base")})
    card = model_card(placed, provenance, tmp_path / "mine" / "base")
    assert "mine" not in card.replace(str(tmp_path), "mine")
    assert 'base_model: "base"' in card
    for line in (
        "| a | a |", "| b | owner/name@main:b |", "| base | base |", "| chat | chat.jinja |", "| spill | spill |",
        '| data | \\["data.json", "hf:owner/data"\\] |', '| options | {"model": "reward", "low": "0.5"} |',
        '| engine_options | {"download_dir": "models", "seed": 3} |',
    ):  # fmt: skip
        assert line in card.splitlines()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/home/me/pool/ada", "ada"),
        ("/home/me/pool/ada/", "ada"),
        ("~/pool/ada", "ada"),
        ("../pool/ada", "ada"),
        (f"{os.sep}x/models--owner--name/snapshots/0123abc", "owner/name"),
        ("/x/models--owner--name/snapshots/0123abc/inner", "owner/name:inner"),
        ("owner/name", "owner/name"),
        ("smollm2-135m-instruct", "smollm2-135m-instruct"),
        ("", ""),
    ],
)
def test_a_path_is_its_last_part(text: str, shown: str) -> None:
    assert without_path(text) == shown


def test_a_row_of_full_checkpoints_says_what_it_was_made_of(experts: Experts) -> None:
    full = replace(experts, kind="full", sources=("/pool/a", "owner/b"), rows=torch.empty(0))
    assert 'base_model: ["a", "owner/b"]' in model_card(full, {}, Path("base"))

"""What README.md and docs/ say: its commands and programs run, its links lead somewhere, its sentences are short."""

import ast
import contextlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers_search import make_tiny
from safetensors.torch import save_file

from modelswarms_fast.cli.main import app
from modelswarms_fast.engines.protocol import Engine
from modelswarms_fast.policies import problem_of
from modelswarms_fast.policies.space import space_of

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = sorted((ROOT / "docs").rglob("*.md"))
# Written by a script from the code, or from the JSON files of measurements.
WRITTEN = {"command-line.md", "settings.md", "models.md", "parity-check.md", "performance.md", "results.md", "log.md"}
PROSE = [README, ROOT / "CONTRIBUTING.md", *(page for page in PAGES if page.name not in WRITTEN)]


def blocks(text, language):
    """Fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands(text):
    """Shell commands: the indented lines that begin with a program, each with its continuation lines."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL).replace("\\\n", " ")
    programs = r"(?:make|pip|python|git|pytest|pre-commit|sudo|(?:\.venv/bin/)?modelswarms-fast)\b"
    return re.findall(rf"^ {{4,}}({programs}.*)$", text, re.MULTILINE)


def sentences(text):
    """Sentences of the prose: no code, no tables, no headings; each list item by itself."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    lines = [line for line in text.splitlines() if not re.match(r" {4}|\||#|!\[|<!--", line)]
    prose = re.sub(r"\]\([^)]*\)", "]", "\n".join(lines))
    for paragraph in re.split(r"\n\s*\n|\n(?= *[-*] |\d+\. )", prose):
        yield from re.split(r"(?<=[.?!])\**\s+", " ".join(paragraph.split()))


def words(sentence):
    return len([word for word in sentence.split() if re.search(r"\w", word)])


def links(page):
    """Relative links of a page: target and anchor."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"[a-z]+:", target):
            yield target.partition("#")[::2]


def anchors(page):
    """The anchors of a page's headings, as the site and GitHub make them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_readme_is_short():
    lines = README.read_text().splitlines()
    assert len(lines) <= 150
    assert max(map(len, lines)) <= 120


@pytest.mark.parametrize("page", PROSE, ids=lambda page: page.stem)
def test_prose_has_short_lines_and_sentences(page):
    text = page.read_text()
    assert not [line for line in text.splitlines() if len(line) > 120 and not line.lstrip().startswith("|")]
    assert not [sentence for sentence in sentences(text) if words(sentence) > 30]


@pytest.mark.parametrize("page", [README, *(ROOT / name for name in ("CONTRIBUTING.md", "CHANGELOG.md")), *PAGES])
def test_links_lead_to_files(page):
    for target, anchor in links(page):
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), f"{page.name} links to {target}"
        if anchor and path.suffix == ".md" and path.name != "api.md":
            assert anchor in anchors(path), f"{page.name} links to {target}#{anchor}"


def test_each_line_about_security_names_tests_that_exist():
    rows = re.findall(
        r"^\| (?!what holds|---)(.*) \|$", (ROOT / "docs/explanation/security.md").read_text(), re.MULTILINE
    )
    assert len(rows) > 20
    for row in rows:
        named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row)
        assert named, row
        for file, test in named:
            assert f"def {test}(" in (ROOT / file).read_text(), f"{file} has no {test}"


def test_every_page_is_in_the_menu():
    menu = (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2]
    named = set(re.findall(r": (\S+\.md)$", menu, re.MULTILINE))
    assert named == {str(page.relative_to(ROOT / "docs")) for page in PAGES}


def test_reference_follows_from_the_code():
    """If it fails: python docs/write_reference.py."""
    spec = importlib.util.spec_from_file_location("write_reference", ROOT / "docs" / "write_reference.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    for path, text in module.pages().items():
        assert path.read_text() == text, path.name


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with what the README names: my_experts, my_base, my_task.json; the engine in transformers."""
    folder = tmp_path_factory.mktemp("readme")
    tiny = make_tiny(folder / "tiny")
    shutil.copytree(tiny["experts"], folder / "my_experts")
    shutil.copytree(tiny["base"], folder / "my_base")
    split = [{"question": f"what is {letter}", "answer": letter} for letter in "abcdefgh"]
    (folder / "my_task.json").write_text(json.dumps({"dev": split, "test": split}))
    return folder


@contextlib.contextmanager
def inside(folder):
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def run(line, folder):
    """Run a command of modelswarms-fast, searches and evaluations on the transformers engine."""
    words = shlex.split(line)[1:]
    if words[0] in ("search", "evaluate", "compare", "sweep", "study"):
        words += ["--engine", "transformers"]
    with inside(folder):
        app(words, standalone_mode=False)


@pytest.fixture(scope="module")
def ran(place):
    """Every command of the README, in its order; the report of the demo is that of this search."""
    lines = [line for line in commands(README.read_text()) if "modelswarms-fast" in line]
    lines.sort(key=lambda line: "runs/demo" in line)
    for line in lines:
        run(line.replace("runs/demo", "runs/mine"), place)
    return {shlex.split(line)[1] for line in lines}


@pytest.mark.slow
def test_every_command_of_the_readme_runs(ran, place):
    assert {"search", "evaluate", "report", "compare"} <= ran
    assert (place / "runs/mine/global_best/adapter_model.safetensors").exists()
    assert (place / "runs/mine/report.html").exists()
    assert {"utilities", "mixture", "trajectory"} <= {path.stem for path in (place / "runs/mine/plots").glob("*.svg")}
    results = json.loads((place / "runs/compared/baselines.json").read_text())["methods"]
    assert set(results) == {"model_swarms", "best_expert", "uniform_soup"}


@pytest.mark.slow
def test_every_program_of_the_readme_runs(place, capsys):
    programs = blocks(README.read_text(), "python")
    assert len(programs) == 2
    with inside(place):
        for program in programs:
            exec(program.replace('base="my_base"', 'base="my_base", engine="transformers"'), {})
    assert (place / "runs/python/summary.json").exists()
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("page", ["operators-alone", "policy-alone"])
def test_programs_of_pages_run(page):
    (program,) = blocks((ROOT / f"docs/how-to/{page}.md").read_text(), "python")
    exec(program, {})


def test_the_page_for_users_of_model_swarm_says_what_its_programs_print(tmp_path, capsys):
    text = (ROOT / "docs/how-to/from-model-swarm.md").read_text()
    names = {}
    for program in blocks(text, "python"):
        exec(program, names)
    said = [line.partition("  # ")[2] for line in text.splitlines() if line.startswith("print(")]
    assert capsys.readouterr().out.splitlines() == said
    for name in ("a", "b"):
        (tmp_path / "experts" / name).mkdir(parents=True)
        save_file({"lora_A.weight": torch.ones(2)}, tmp_path / "experts" / name / "adapter_model.safetensors")
    (call,) = (line.strip() for line in text.splitlines() if line.startswith("    lora_merge("))
    with inside(tmp_path):
        exec(call, names)
    assert (tmp_path / "merged" / "adapter_model.safetensors").exists()


def test_the_function_of_an_objective_scores():
    (program,) = blocks((ROOT / "docs/how-to/own-objective.md").read_text(), "python")
    names = {}
    exec(program, names)
    assert names["score"]({"wanted": ["red", "blue"]}, "Red sky") == 0.5


@pytest.mark.parametrize("space", ["affine", "scaled", "free"])
def test_the_policy_of_a_page_climbs(space):
    (program,) = blocks((ROOT / "docs/how-to/choose-a-policy.md").read_text(), "python")
    assert len(program.splitlines()) <= 24
    names = {}
    exec(program, names)
    place, target = space_of(space, 3), np.array([0.6, 0.6, -0.2])
    policy, mixtures = names["Climber"](problem_of(place, 5, 0)), np.eye(3)[[0, 1, 2, 0, 1]]
    for _ in range(60):
        utilities = 1 - ((mixtures - target) ** 2).sum(axis=1)
        policy.tell(mixtures, np.where(utilities < 0.3, np.nan, utilities))
        mixtures = policy.ask()
        assert place.contains(mixtures).all()
    assert policy.best > 0.97


@pytest.mark.parametrize("page", [README, ROOT / "CONTRIBUTING.md", *PAGES], ids=lambda page: page.stem)
def test_make_targets_and_extras_exist(page):
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    text = page.read_text()
    for line in commands(text):
        line = line.partition(" #")[0]
        if line.startswith("make "):
            result = subprocess.run(["make", "-n", *line.split()[1:]], cwd=ROOT, capture_output=True, check=False)
            assert result.returncode == 0, line
        if line.startswith("python "):
            assert (ROOT / line.split()[1]).exists() or line.split()[1] == "-m", line
    for extra in re.findall(r"pip install -e ['\"]\.\[([\w,-]+)\]", text):
        assert set(extra.split(",")) <= extras.keys()


def options_of(command):
    """What a command takes."""
    section = (ROOT / "docs/reference/command-line.md").read_text().partition(f"\n## {command}\n")[2]
    return set(re.findall(r"(--[a-z-]+)", section.partition("\n## ")[0]))


@pytest.mark.parametrize("page", [README, *PAGES], ids=lambda page: page.stem)
def test_commands_of_pages_have_these_options(page):
    for line in commands(page.read_text()):
        found = shlex.split(line.partition(" #")[0])
        if not found[0].endswith("modelswarms-fast") or found[1].isupper():
            continue
        known = options_of(found[1])
        assert known, f"{page.name}: there is no command {found[1]}"
        assert {word.partition("=")[0] for word in found if word.startswith("--")} <= known, line


def test_the_page_about_engines_names_every_member():
    text = (ROOT / "docs/how-to/add-an-engine.md").read_text().partition("## Members")[2].partition("\n## ")[0]
    members = {name for name in {**vars(Engine), **Engine.__annotations__} if not name.startswith("_")}
    assert members <= set(re.findall(r"`(\w+)", text))


def test_the_eight_steps_name_functions_of_these_files():
    text = (ROOT / "docs/explanation/architecture.md").read_text()
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| (`[\w/]+\.py`(?:, `[\w/]+\.py`)*) \|$", text, re.MULTILINE)
    assert len(rows) > 20
    for functions, files in rows:
        for file in re.findall(r"`(\S+)`", files):
            code = (ROOT / "modelswarms_fast" / file).read_text()
            for name in re.findall(r"`(\w+)`", functions):
                assert re.search(rf"\b(?:def|class) {name}\b", code), f"{file} has no {name}"


def test_json_of_pages_is_json():
    for page in PAGES:
        for block in blocks(page.read_text(), "json"):
            assert json.loads(block)


def test_python_of_pages_parses():
    for page in PAGES:
        for block in blocks(page.read_text(), "python"):
            ast.parse(textwrap.dedent(block))


@pytest.mark.slow
def test_the_page_of_the_run_folder_names_what_a_search_writes(ran, place):
    folder, text = place / "runs/mine", (ROOT / "docs/reference/run-folder.md").read_text()
    sections = dict(re.findall(r"^## (\S+)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL))
    for path in folder.iterdir():
        if path.name != "plots":
            assert f"`{path.name}" in text, path.name
    settings = set(re.findall(r"^\| `(\w+)`", (ROOT / "docs/reference/settings.md").read_text(), re.MULTILINE))
    history = json.loads((folder / "history.jsonl").read_text().splitlines()[0])
    for name, content in (
        ("config.json", json.loads((folder / "config.json").read_text()).keys() - settings),
        ("history.jsonl", history),
        ("summary.json", json.loads((folder / "summary.json").read_text())),
        ("answers.json", json.loads((folder / "answers.json").read_text())),
    ):
        named = set(re.findall(r"`(\w+)`", sections[name]))
        assert set(content) <= named, f"{name}: {set(content) - named}"

"""Write the reference pages that follow from the code: python docs/write_reference.py [--check].

`reference/command-line.md` is what the commands say of themselves, `reference/settings.md` the fields of the settings
with their docstrings, `reference/models.md` the latest result of `python -m benchmarks.engine.models`, and
`reference/parity-check.md` the latest of each base model of `python -m benchmarks.engine.parity_rates`. The counts in
`explanation/reliability.md` are those of `make faults` and `make fuzz`, and the tables in `reference/run-folder.md` the
fields of `records/schemas.py`. `--check` writes nothing and exits with status 1 if a page is not current.
"""

from __future__ import annotations

import ast
import inspect
import json
import math
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

import torch
import typer
from pydantic import BaseModel

from modelswarms_fast import config
from modelswarms_fast.cli.main import app
from modelswarms_fast.engines.agreement import Agreement, Rounding
from modelswarms_fast.engines.parity_check import PROMPTS
from modelswarms_fast.records import schemas

FOLDER = Path(__file__).parent / "reference"
RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
LOADS = {
    "merged": "right, `merged`", "slots": "right, `slots`",
    "nothing": "a load that did nothing", "another": "another expert", "stale": "answers of the load before",
    "exchanged": "A of another expert", "scaling": "scaling left out", "module": "a kind of module missing",
    "layer": "one layer missing", "not restored": "the base model not restored",
}  # fmt: skip
CHOSEN = {("smollm2-135m-instruct", "bfloat16"): 20}
"""Trials on which the limits of the parity check were chosen: the first of these."""
FAULTS = RESULTS / "faults"
RELIABILITY = FOLDER.parent / "explanation" / "reliability.md"
RUN_FOLDER = FOLDER / "run-folder.md"
ENGINES = {"transformers": "the transformers engine", "vllm": "vLLM"}
WAYS = {
    "merged": "`merged`", "slots": "`slots`", "mixture": "`mixture`", "full": "whole checkpoints",
    "transformers": "`engine=\"transformers\"`", "export": "export", "search": "search",
}  # fmt: skip
WRITTEN = "<!-- Written by docs/write_reference.py; change the code, then run it. -->\n"


def main() -> None:
    """Write the pages, or check them."""
    stale = [path for path, text in pages().items() if not path.exists() or path.read_text() != text]
    if "--check" in sys.argv:
        sys.exit("".join(f"{path} is not current; run python docs/write_reference.py\n" for path in stale) or 0)
    for path in stale:
        path.write_text(pages()[path])
        print(path)


def pages() -> dict[Path, str]:
    """The text of each page by its path."""
    return {
        FOLDER / "command-line.md": command_line(),
        FOLDER / "settings.md": settings(),
        FOLDER / "models.md": models(max((RESULTS / "models").glob("*.json"))),
        FOLDER / "parity-check.md": parity([max(one.glob("*.json")) for one in sorted((RESULTS / "parity").iterdir())]),
        RELIABILITY: reliability(RELIABILITY.read_text()),
        RUN_FOLDER: run_folder(RUN_FOLDER.read_text()),
    }


def reliability(page: str) -> str:
    """The page on reliability with the counts of the latest `make faults` and of the fuzzers."""
    before, begin, rest = page.partition("<!-- counts: ")
    comment, _, rest = rest.partition("\n")
    _, end, after = rest.partition("<!-- end of counts -->")
    lines: list[str] = []
    if (file := FAULTS / "kills.json").exists():
        found = json.loads(file.read_text())
        lines += ["", "| runs killed by SIGKILL | kills | runs | other bits, or anything left |", "|---|---|---|---|"]
        for engine, one in found.items():
            lines.append(f"| on {ENGINES[engine]} | {one['kills']} | {one['runs']} | {len(one['wrong'])} |")
        every = Counter[str]()
        for one in found.values():
            every.update(one["counts"])
        for moment, head in ((False, "what was killed"), (True, "when")):
            lines += ["", f"| {head} | kills |", "|---|---|"]
            names = sorted(name for name in every if name.startswith("killed ") == moment)
            lines += [f"| {name.removeprefix('killed ')} | {every[name]} |" for name in names]
    if (file := FAULTS / "fuzz.json").exists():
        fuzzed = json.loads(file.read_text())
        outcomes = list(next(iter(fuzzed["fuzzers"].values())))
        lines += ["", "| fuzzer | cases | " + " | ".join(outcomes) + " |", "|---|---|" + "---|" * len(outcomes)]
        for name, one in fuzzed["fuzzers"].items():
            lines.append(f"| {name} | {sum(one.values())} | " + " | ".join(str(one[what]) for what in outcomes) + " |")
    return f"{before}{begin}{comment}\n" + "\n".join(lines) + f"\n\n{end}{after}"


def run_folder(page: str) -> str:
    """The page on the run folder with the fields of each file's schema."""
    for file, schema in schemas.SCHEMAS.items():
        before, begin, rest = page.partition(f"<!-- fields of {file} -->\n")
        _, end, after = rest.partition("<!-- end of fields -->")
        rows = ["| field | type | meaning |", "|---|---|---|", *schema_rows(schema)]
        page = before + begin + "\n" + "\n".join(rows) + "\n\n" + end + after
    return page


def schema_rows(schema: type[BaseModel], above: str = "", shown: dict[Any, str] | None = None) -> Iterator[str]:
    """A line of a table for each field, those of objects inside it below it; a kind of object is shown once."""
    shown = {} if shown is None else shown
    tree = ast.parse(Path(schemas.__file__).read_text())
    (node,) = (one for one in tree.body if isinstance(one, ast.ClassDef) and one.name == schema.__name__)
    texts = {name: text for name, _, _, text in fields(node, tree)}
    for name, field in schema.model_fields.items():
        kind = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
        named = f"{above}{field.alias or name}"
        inner, place = inside(kind)
        known = inner and shown.get(inner)
        words = f"as `{known}`" if known else type_in_words(kind)
        yield f"| `{named}` | {words} | {texts[name]} |"
        if inner and not known:
            shown[inner] = named
            yield from schema_rows(inner, named + place, shown)


def inside(kind: Any) -> tuple[type[BaseModel] | None, str]:
    """The schema of the objects in a value, if it holds any, and how a path goes on to their fields."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return kind, "."
    step = {list: "[]", dict: ".*"}.get(get_origin(kind), "")
    for one in get_args(kind):
        found, place = inside(one)
        if found is not None:
            return found, step + place
    return None, ""


TYPES = {
    schemas.Number: "number", schemas.Count: "whole number", int: "whole number", float: "number", str: "text",
    bool: "boolean", Any: "value",
}  # fmt: skip


def type_in_words(kind: Any, s: str = "") -> str:
    """A type of a schema as JSON has it; `s`: its plural."""
    if kind in TYPES:
        return TYPES[kind] + s
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return f"object{s}"
    origin, given = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return type_in_words(given[0], s)
    if origin is Literal:
        return ", ".join(f"`{one}`" for one in given)
    if origin is list:
        return f"list{s} of {type_in_words(given[0], 's')}"
    if origin is tuple:
        alike = len(set(given)) == 1
        inner = f"{len(given)} {type_in_words(given[0], 's')}" if alike else ", ".join(map(type_in_words, given))
        return f"list{s} of {inner}"
    if origin is dict:
        return f"object{s}" if given[1] is Any else f"object{s} of {type_in_words(given[1], 's')}"
    words = " or ".join(type_in_words(one, s) for one in given if one is not type(None))
    null = s and type(None) in given and not words.endswith("null")  # any field by itself may be null
    return f"{words} or null" if null else words


def models(result: Path) -> str:
    """A table of the families of models by the ways of serving that work, and what the others say."""
    found = json.loads(result.read_text())
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    lines = [
        "# Models\n",
        "<!-- Written by docs/write_reference.py; run python -m benchmarks.engine.models, then it. -->\n",
        "Tiny random checkpoints of each family were served in every way, on a CPU in float32, and had to answer as",
        "transformers and PEFT do: the base model, a LoRA expert, and a whole checkpoint. *export* means that an",
        "export, loaded by transformers or PEFT, answers as the expert that it was made of. *search* is one iteration",
        'over the LoRA experts and one over whole checkpoints, served `merged`, with `parity_check="all"`.',
        f"Measured with {versions}. Nothing was run on a GPU. A family that is not here was not measured.\n",
        "Of a model that sees, the text model alone is adapted and served. vLLM imports torchvision for it and calls",
        "nothing of it. Install the build of torchvision for your torch, from where the torch came from.",
        *(["Here empty names stood in for it."] if found.get("torchvision") == "stand-in" else []),
        "",
        "| family | class | " + " | ".join(WAYS.values()) + " |",
        "|---|---|" + "---|" * len(WAYS),
    ]
    notes = [
        f"- **{family}** was served by vLLM in {one['dtype']}."
        for family, one in found["families"].items()
        if one.get("dtype", "float32") != "float32"
    ]
    for family, one in found["families"].items():
        said = {way: one.get(way) or one.get("lora") for way in WAYS}  # one sentence for all where LoRA does not start
        marks = ["yes" if answer == "ok" else "no" if answer else "not run" for answer in said.values()]
        lines.append(f"| {family} | `{one['class']}` | " + " | ".join(marks) + " |")
        notes += [
            f"- **{family}**, {WAYS[way]}: {answer}" for way, answer in said.items() if answer not in ("ok", None)
        ]
    if notes:
        lines += ["", "## What the others say\n", *notes]
    return "\n".join(lines) + "\n"


def parity(results: list[Path]) -> str:
    """How often the parity check errs, of each base model and dtype, by the limits that the code has now."""
    lines = [
        "# How often the parity check errs\n",
        "<!-- Written by docs/write_reference.py; run python -m benchmarks.engine.parity_rates, then it. -->\n",
        "The [parity check](../explanation/inside-vllm.md#the-parity-check) was given right and wrong loads by vLLM,",
        f"on a CPU, with the {PROMPTS} prompts that a search asks. Rows are experts and random mixtures, some weak.",
        "Each cell is *errors / told*: right loads that were refused, or wrong loads that passed, of those that can be",
        "told from rounding. *+ n* are loads that cannot be told: the check warns of them and passes them.",
        "The trials on which the limits were chosen are left out: the first 20 of SmolLM2 in bfloat16. Only the least",
        "width of the limits in a half type, 8 steps of it, was set with all of those in sight.",
    ]
    for path in results:
        found = json.loads(path.read_text())
        base, dtypes = found["base"], found["dtypes"]
        lines += ["", f"## {base}\n", f"Prompts of `{found['data']}`; experts: {', '.join(found['experts'])}.\n"]
        lines += [f"{found['note']}\n"] if "note" in found else []
        lines += ["| load | " + " | ".join(dtypes) + " |", "|---|" + "---|" * len(dtypes)]
        rates = {dtype: rates_of(one, dtype, CHOSEN.get((base, dtype), 0)) for dtype, one in dtypes.items()}
        lines += [
            f"| {text} | " + " | ".join(one[load] for one in rates.values()) + " |" for load, text in LOADS.items()
        ]
        lines.append(
            "| rounding of the base model | " + " | ".join(f"{rounding(one):.2g}" for one in dtypes.values()) + " |"
        )
    return "\n".join(lines) + "\n"


def rates_of(found: dict[str, Any], dtype: str, first: int) -> dict[str, str]:
    """A cell for each kind of load, of the trials from the first on that is given."""
    count, said = str(PROMPTS), {load: [0, 0, 0] for load in LOADS}
    noise = Rounding(rounding(found), torch.finfo(getattr(torch, dtype)).eps)
    for trial in found["trials"][first:]:
        for right, loads in ((True, trial["right"]), (False, trial["wrong"])):
            for load, numbers in loads.items():
                explained = agreement_of(numbers[count]).explained(noise)
                said[load][2 if explained is None else 0 if explained is not right else 1] += 1
        passes = agreement_of(trial["not restored"][count]).within(noise.base)
        said["not restored"][0 if passes else 1] += 1
    return {load: f"{errs} / {errs + not_}" + f" + {none}" * (none > 0) for load, (errs, not_, none) in said.items()}


def agreement_of(numbers: list[float | None]) -> Agreement:
    """As a result has it: None is NaN."""
    return Agreement(*(math.nan if one is None else one for one in numbers))


def rounding(found: dict[str, Any]) -> float:
    """What the engines differ by about the base model."""
    return float(found["base"]["merged"][str(PROMPTS)][3])


def command_line() -> str:
    """One section a command: what it does, its arguments, and its options by panel."""
    lines = [
        "# Command line\n",
        WRITTEN,
        "A mistake in the input ends with one sentence and exit status 2, and so does an engine that failed.",
        "A failed [parity check](../explanation/inside-vllm.md#the-parity-check) is one sentence and exit status 3:",
        "the engine does not serve what it was given.",
        "A signal gives 128 and its number, and a run that was cut ends with the command that goes on with it: see",
        "[reliability](../explanation/reliability.md).",
        "`modelswarms-fast COMMAND --help` shows the same as this page.\n",
    ]
    assert app.registered_callback is not None
    lines += [f"- `modelswarms-fast {one.names}`: {one.help}" for one in parameters(app.registered_callback.callback)]
    for command in app.registered_commands:
        found = parameters(command.callback)
        arguments = [one for one in found if one.panel == ARGUMENT]
        needed = [f"{one.names} {one.takes}" for one in found if one.required and one.panel != ARGUMENT]
        usage = " ".join([*(one.names for one in arguments), *needed, "[OPTIONS]"])
        lines += ["", f"## {command.name}\n", plain(inspect.getdoc(command.callback) or ""), ""]
        lines += [f"    modelswarms-fast {command.name} {usage}", ""]
        lines += [f"- `{one.names}`: {one.help}" for one in arguments]
        for panel in dict.fromkeys(one.panel for one in found if one.panel != ARGUMENT):
            lines += ["", f"**{panel}**", "", "| option | takes | default | meaning |", "|---|---|---|---|"]
            lines += [one.row() for one in found if one.panel == panel]
    return "\n".join(lines).rstrip() + "\n"


ARGUMENT = "argument"


class Parameter(NamedTuple):
    """An argument or option of a command, in words."""

    names: str
    takes: str
    default: str
    help: str
    panel: str
    required: bool

    def row(self) -> str:
        """A line of a table."""
        return "| " + " | ".join([f"`{self.names}`", self.takes, self.default, self.help]) + " |"


def parameters(function: Callable[..., Any] | None) -> list[Parameter]:
    """What a command takes, in the order of its help."""
    assert function is not None
    found = []
    for one in inspect.signature(function, eval_str=True).parameters.values():
        if get_origin(one.annotation) is not Annotated:
            continue  # the context
        kind, info = get_args(one.annotation)
        text = plain(info.help or "").replace("|", "\\|")
        required = one.default is one.empty
        if isinstance(info, typer.models.ArgumentInfo):
            many = "..." if get_origin(kind) is list else ""
            found.append(Parameter(one.name.upper() + many, "", "", text, ARGUMENT, required))
            continue
        flag = f"--{one.name.replace('_', '-')}"
        # Inside Annotated the first name given to typer.Option is where its default would be.
        given = [name for name in (info.default, *(info.param_decls or ())) if str(name).startswith("-")]
        names = " / ".join(given or ([flag, f"--no-{flag[2:]}"] if kind is bool else [flag]))
        default = "needed" if required else "" if one.default is None or one.default is False else f"`{one.default}`"
        panel = info.rich_help_panel or "Options"
        found.append(Parameter(names, takes(kind), default, text, panel, required))
    return found


def takes(kind: Any) -> str:
    """What an option of this type takes."""
    if get_origin(kind) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(kind))
    if get_origin(kind) is list:
        return f"{takes(get_args(kind)[0])}, repeatable"
    if get_args(kind):  # with None
        return ", ".join(takes(one) for one in get_args(kind) if one is not type(None))
    return {bool: "", Path: "PATH", int: "N", float: "NUMBER"}.get(kind, "TEXT")


def plain(text: str) -> str:
    """On one line, without the marks of a terminal."""
    return re.sub(r"\s+", " ", text.replace("\\[", "[")).strip()


def settings() -> str:
    """One table a class of settings, in the order of the code."""
    lines = [
        "# Settings\n",
        WRITTEN,
        "Each setting is a keyword in Python, an option of the command line with dashes in place of underscores",
        "(`step_length` is `--step-length`), and a key of a `--config` file.\n",
        "A value that is out of range, or contradicts another, is refused with one sentence before anything is read.\n",
        "A `--config` file is YAML, or the `config.json` of a run. The command line overrides it:\n",
        "    base: smollm2-135m-instruct\n    task: exact_match\n    data: my_task.json\n    iterations: 10",
    ]
    tree = ast.parse(Path(config.__file__).read_text())
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name.endswith("Config"):
            lines += ["", f"## {node.name}\n", plain((ast.get_docstring(node) or "").split("\n\n")[0]), ""]
            lines += ["| setting | type | default | |", "|---|---|---|---|"]
            lines += [f"| `{name}` | {kind} | {value} | {text} |" for name, kind, value, text in fields(node, tree)]
    return "\n".join(lines) + "\n"


def fields(node: ast.ClassDef, tree: ast.Module) -> Iterator[tuple[str, str, str, str]]:
    """Name, type, default and docstring of each field."""
    choices = {
        target.id: ", ".join(f"`{one.value}`" for one in ast.walk(statement.value) if isinstance(one, ast.Constant))
        for statement in tree.body
        if isinstance(statement, ast.Assign) and "Literal[" in ast.unparse(statement.value)
        for target in statement.targets
        if isinstance(target, ast.Name)
    }
    for index, statement in enumerate(node.body):
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        after = node.body[index + 1] if index + 1 < len(node.body) else None
        is_text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
        text = str(after.value.value) if is_text else ""  # type: ignore[union-attr]
        kind = ast.unparse(statement.annotation)
        value = "needed" if statement.value is None else f"`{ast.unparse(statement.value)}`"
        if "default_factory" in value:
            value = "empty"
        cells = choices.get(kind, f"`{kind}`"), value, plain(text)
        yield statement.target.id, *(cell.replace("|", "\\|") for cell in cells)


if __name__ == "__main__":
    main()

"""Whether the files of a run folder fit their schemas, and each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from modelswarms_fast.errors import InputError, short
from modelswarms_fast.records.schemas import Known, Line, RecordedLine, TestScores

_REMEDY = "restore a good copy"


def check(schema: type[BaseModel], content: object, where: str | Path, remedy: str = _REMEDY) -> None:
    """Raise InputError for content that does not fit its schema: the first place where it does not, and the remedy."""
    try:
        schema.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise InputError(
            f"{where}: {short(place)} is not what a run writes ({short(first['msg'])}); {remedy}"
        ) from None


def check_history(history: Sequence[Mapping[str, Any]], path: Path, experts: int | None = None) -> None:
    """Raise InputError for lines that do not fit their schema, or each other: other particles, experts or examples."""
    for number, line in enumerate(history, start=1):
        where = f"{path}: line {number}"
        check(Line, line, where)
        if wrong := _unlike(line, number, history[0], experts):
            raise InputError(f"{where}: {wrong} does not fit the lines before it and config.json; {_REMEDY}")


def can_go_on(line: object, before: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a search can go on from a line after those before it: nothing of it is missing or of other sizes."""
    try:
        RecordedLine.model_validate(line)
    except ValidationError:
        return False
    assert isinstance(line, dict)
    return _unlike(line, len(before) + 1, before[0] if before else line, None) is None


def _unlike(line: Mapping[str, Any], number: int, first: Mapping[str, Any], experts: int | None) -> str | None:
    """What of the line with this number does not fit the first one and the number of experts, if anything."""
    particles = len(first["utilities"])
    examples = max((len(one) for one in first.get("scores") or [] if one), default=0)
    mixtures, best = line.get("mixtures"), line.get("global_best_mixture")
    rows = [*(mixtures or []), *([] if best is None else [best])]
    given = (line["utilities"], line.get("evaluated"), mixtures, line.get("scores"))
    lists = [one for one in given if one is not None]
    inside = [*line.get("improved", []), *line.get("restarts", [])]
    inside += [(line.get(name) or {}).get("particle") or 0 for name in ("global_best", "global_worst")]
    fits = {
        "iteration": line["iteration"] == number - 1,
        "a list of particles": particles > 0 and all(len(one) == particles for one in lists),
        "the number of a particle": all(one < particles for one in inside),
        "a mixture": len({experts or len(row) for row in rows} | {len(row) for row in rows}) < 2,
        "a list of scores": all(len(one) == examples for one in line.get("scores") or [] if one is not None),
    }
    return next((what for what, right in fits.items() if not right), None)


def check_known(content: Mapping[str, Any], path: Path, experts: int) -> None:
    """Raise InputError for a known.json that does not fit its schema, or the number of experts."""
    check(Known, content, path)
    mixtures, utilities = content["mixtures"], content["utilities"]
    if len(mixtures) != len(utilities) or any(len(one) != experts for one in mixtures):
        raise InputError(f"{path}: mixtures and utilities are not those of {experts} experts; {_REMEDY}")


def check_test_scores(content: Mapping[str, Any], path: Path) -> None:
    """Raise InputError for test scores that do not fit their schema, or whose lists are not of one length."""
    check(TestScores, content, path)
    groups = content["groups"]
    lengths = {len(row) for group in groups.values() for name in ("scores", "labels") for row in group[name]}
    pairs = all(len(group["scores"]) == len(group["labels"]) > 0 for group in groups.values())
    if not pairs or len(lengths) != 1 or 0 in lengths or not groups.keys() >= {"experts", "start", "best"}:
        raise InputError(f"{path}: the groups are not those of a run, of one length; {_REMEDY}")

"""Going on with a run that was cut, whatever command wrote its folder, with the settings that it was started with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from modelswarms_fast.config import EngineConfig, SwarmConfig, TaskConfig
from modelswarms_fast.errors import InputError
from modelswarms_fast.errors.arguments import checked
from modelswarms_fast.records.run_folder import CONFIG
from modelswarms_fast.runs.compare import compare
from modelswarms_fast.runs.search import search
from modelswarms_fast.runs.started import RAISED, check_directory, read_config
from modelswarms_fast.runs.study import study
from modelswarms_fast.runs.sweep import parse_range, sweep
from modelswarms_fast.runs.token_swarm import token_swarm
from modelswarms_fast.runs.trust import check_trusted, is_sealed

_SHARED = ("base", "task", "data", "reuse", *(one.name for one in fields(TaskConfig)))
_ENGINE = tuple(one.name for one in fields(EngineConfig))
_SWARM = tuple(one.name for one in fields(SwarmConfig))
_ENSEMBLE = ("dtype", "max_model_len", "command")
# Of each command: its function, and what of config.json it is given as it is, beside the swarm's settings.
_RUNS: dict[str, tuple[Callable[..., dict[str, Any]], tuple[str, ...]]] = {
    "search": (search, (*_SWARM, *_ENGINE, "budget", "confirm", "choose", "final_test", "log", "trace", "command")),
    "token-swarm": (token_swarm, (*_SWARM, *_ENSEMBLE)),
    "compare": (compare, (*_ENGINE, "budget", "seed", "swarm", "train", "confirm")),
    "sweep": (sweep, (*_ENGINE, "searches", "evaluations", "minutes", "at_once", "confirm")),
    "study": (study, (*_ENGINE, "kind", "seeds", "at_once", "confirm")),
}
# What config.json of each command must say, beside the experts' sources.
_NEEDED = {
    "search": ("base", "task"),
    "token-swarm": ("task",),
    "compare": ("base", "task", "budget", "methods"),
    "sweep": ("base", "task", "ranges"),
    "study": ("base", "task", "kind"),
}


@checked
def resume(
    run: str | Path,
    *,
    iterations: int | None = None,
    patience: int | None = None,
    budget: int | str | None = None,
    force: bool = False,
    say: Callable[[str], None] = lambda line: None,
    progress: bool = False,
    given: Mapping[str, Any] | None = None,
    ask: Callable[[str], bool] | None = None,
) -> tuple[str, dict[str, Any]]:
    """Go on with the run in a folder, from any state of it, with the settings that it was started with.

    It ends as if it had never been cut. What was evaluated is not evaluated again.

    Args:
        run: the folder of a search, token-swarm, comparison, sweep or study.
        iterations, patience: more than the run was started with; then an ended run goes on, too.
        budget: of a search, the same.
        force: go on although experts, data, base or versions are not what they were; config.json says so.
        say: told of each search of a sweep or study that ends.
        progress: show on standard error what is being done.
        given, ask: as in `report`, for a run that somebody else has started.

    Returns:
        The command's name, and what it returns.

    Raises:
        InputError: there is nothing to go on with, or something has changed since.
    """
    folder = Path(run)
    if not (folder / CONFIG).exists():
        raise InputError(
            f"{folder} has no {CONFIG}, so no run has begun there; give the folder of a run, or its command again."
        )
    config = read_config(folder)
    name = config["run"]
    check_directory(folder, config)
    if not is_sealed(config):
        check_trusted(config, str(folder), given, ask)
    if missing := [one for one in _NEEDED[name] if one not in config]:
        raise InputError(f"{folder / CONFIG} does not say {', '.join(missing)}; restore a good copy")
    function, own = _RUNS[name]
    asked = _given(config, (*_SHARED, *own))
    raised = {name: value for name, value in zip(RAISED, (iterations, patience), strict=True) if value is not None}
    if budget is not None:
        if name != "search":
            raise InputError(f"{folder} holds a {name}, whose budget stays; leave budget out.")
        asked["budget"] = budget
    if name == "compare":
        asked |= {"methods": config["methods"].split(","), "progress": progress}
        if raised:
            raise InputError(
                f"{folder} holds a comparison, whose budget says how much is run; leave {min(raised)} out."
            )
    elif name in ("sweep", "study"):
        asked |= {"swarm": _given(config, _SWARM) | raised, "say": say}
        if name == "sweep":
            asked["ranges"] = dict(parse_range(f"{setting}={ends}") for setting, ends in config["ranges"].items())
    else:
        asked |= raised | {"progress": progress}
    return name, function(experts=config["sources"], out=folder, resume=True, force=force, **asked)


def _given(config: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: config[name] for name in names if name in config}

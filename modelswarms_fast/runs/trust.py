"""What a run folder may not decide by itself: code to import, servers to call, files to write elsewhere.

A run folder may be a stranger's. What its config.json would have imported or called is therefore given again by the
user, or confirmed by them.
"""

from __future__ import annotations

import hmac
import json
import os
import secrets
import stat
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from modelswarms_fast.errors import InputError, quoted, short
from modelswarms_fast.evaluation.objectives import is_function
from modelswarms_fast.weights.packaged import cache_folder

_FLAGS = {
    "task": "--task",
    "policy": "--policy",
    "options": "--option",
    "engine_options": "--engine-option",
    "trace": "--trace",
}
_OPTIONS = ("endpoint", "key_env", "cache", "functions")  # of a judge, and of a task of lm-eval
_NUMBERS = (bool, int, float, type(None))

Setting = tuple[str, str]
"""A setting, and a name within it where it has several: ("options", "endpoint"), ("task", "")."""


def to_confirm(config: Mapping[str, Any]) -> dict[Setting, Any]:
    """Of a run's settings those that import code, call a server, or write outside the run folder.

    They are a task that is a function or a judge, a judge's endpoint, key and cache, scorers that are functions, the
    code of a task of lm-eval, a policy that is a class, options of vLLM that are no numbers, and the file of a trace.

    Args:
        config: the content of the run's config.json, or what says the same of a sweep or study.
    """
    task, options = str(config.get("task")), _mapping(config.get("options"))
    several = task.partition(":")[0] == "multitask"
    tasks = [one.strip() for one in str(options.get("tasks")).split(",")] if several else [task]
    found: dict[Setting, Any] = {}
    if any(one.partition(":")[0] == "judge" or is_function(one) for one in tasks):
        found["task", ""] = config["task"]
        if several:
            found["options", "tasks"] = options["tasks"]
    for name, value in options.items():
        own = name.rpartition(".")[2]  # of several tasks an option begins with a number
        if own in _OPTIONS or (own == "scorer" and ":" in str(value)):
            found["options", name] = value
    if ":" in str(policy := policy_of(config)):
        found["policy", ""] = policy
    engine = _mapping(config.get("engine")) or config
    for name, value in _mapping(engine.get("engine_options")).items():
        if not isinstance(value, _NUMBERS) or name == "trust_remote_code":
            found["engine_options", name] = value
    if config.get("trace") is not None:
        found["trace", ""] = config["trace"]
    return found


def policy_of(config: Mapping[str, Any]) -> Any:
    """What proposes the positions of a run's searches; a comparison has it among the settings of its swarm."""
    return _mapping(config.get("swarm")).get("policy", config.get("policy"))


def check_trusted(
    config: Mapping[str, Any],
    where: str,
    given: Mapping[str, Any] | None = None,
    ask: Callable[[str], bool] | None = None,
) -> None:
    """Refuse a run's settings unless the user has given again, or confirms, what they would import, call or write.

    Args:
        config: as in `to_confirm`.
        where: the run folder, for messages.
        given: what the user has given again: task, policy, options, engine_options, trace.
        ask: puts a question to the user; None where nobody is there to answer.

    Raises:
        InputError: something is missing, what is given is not what the run has, or the user says no.
    """
    again = {
        (kind, name): value
        for kind, values in (given or {}).items()
        for name, value in (values if isinstance(values, Mapping) else {"": values}).items()
        if value is not None
    }
    engine = _mapping(config.get("engine")) or config
    for (kind, name), value in again.items():
        known = (engine if kind == "engine_options" else config).get(kind) if kind != "policy" else policy_of(config)
        known = _mapping(known).get(name) if name else known
        if str(known) != str(value):
            raise InputError(
                f"{_word((kind, name), value)} is not what {where} has, which is {quoted(known)}; give that, or leave "
                "it out"
            )
    missing = {setting: value for setting, value in to_confirm(config).items() if setting not in again}
    if not missing:
        return
    words = " ".join(_word(setting, value) for setting, value in missing.items())
    what = f"by its own settings {where} imports code, calls a server or writes elsewhere ({words})"
    if ask is None:
        raise InputError(f"{what}; if you trust it, give these options again")
    if not ask(f"{what[0].upper()}{what[1:]}. Do you trust it?"):
        raise InputError(f"{where} is not trusted, so nothing of it was run")


def seal_of(config: Mapping[str, Any]) -> dict[str, str]:
    """A seal of the settings of `to_confirm`, for config.json: that this user has given them themselves.

    It is made with a key in the cache folder that only they can read. Nothing where nothing is to be confirmed, or no
    key can be kept.
    """
    settings = to_confirm(config)
    key = _key(make=True) if settings else None
    return {} if key is None else {"seal": _seal(key, settings, config.get("directory"))}


def is_sealed(config: Mapping[str, Any]) -> bool:
    """Whether this user has given the settings of `to_confirm` themselves, in the directory that is the current one.

    Elsewhere a function of the same name may be another's.
    """
    settings, seal, directory = to_confirm(config), config.get("seal"), config.get("directory")
    if settings and directory != str(Path.cwd()):
        return False
    if not settings or not isinstance(seal, str) or (key := _key(make=False)) is None:
        return not settings
    return hmac.compare_digest(seal.encode(errors="replace"), _seal(key, settings, directory).encode())


def _seal(key: bytes, settings: Mapping[Setting, Any], directory: Any) -> str:
    text = json.dumps(
        [directory, *([kind, name, value] for (kind, name), value in sorted(settings.items()))], sort_keys=True
    )
    return hmac.new(key, text.encode(errors="backslashreplace"), "sha256").hexdigest()


def _key(*, make: bool) -> bytes | None:
    """The user's key, of which nobody else may read or write the file; None if there is none."""
    path = cache_folder() / "seal.key"
    with suppress(OSError):
        if make and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            new = path.with_name(f".{path.name}-{secrets.token_hex(8)}")
            handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with open(handle, "wb") as file:
                file.write(secrets.token_bytes(32))
            try:
                os.link(new, path)  # of two processes that make one, the first
            except FileExistsError:
                pass
            finally:
                new.unlink()
        status = path.lstat()
        if stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o077:
            key = path.read_bytes()
            return key if len(key) == 32 else None
    return None


def _word(setting: Setting, value: Any) -> str:
    kind, name = setting
    return f"{_FLAGS[kind]} {short(f'{name}={value}' if name else str(value))}"


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}

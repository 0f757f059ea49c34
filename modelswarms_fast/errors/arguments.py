"""Checks at the door: what is given has the type that its annotation says, and a path is one that a file can have."""

from __future__ import annotations

import functools
import inspect
import os
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

from modelswarms_fast.errors import InputError, quoted, short

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

LAST_SEED = 2**63 - 1

P = ParamSpec("P")
R = TypeVar("R")

_WORDS: dict[Any, str] = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "a text",
    Path: "a path",
    os.PathLike: "a path",
    type(None): "None",
    dict: "a mapping",
    Mapping: "a mapping",
    Sequence: "a list",
    list: "a list",
    tuple: "a pair",
    Callable: "a function",
}
_PATHS = ("base", "experts", "data", "out", "run", "model", "trace", "train", "plots", "spill")
"""Arguments that may name a file or a folder."""
_LONGEST_NAME, _LONGEST_PATH = 255, 4095  # bytes, of Linux


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Have a function refuse arguments of another type than it says, and paths that no file can have.

    The decorated function raises InputError for them, which names the argument.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        hints = _hints(function)
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError:  # Python's own words name the function
            return function(*args, **kwargs)
        for name, value in given.items():
            if name in hints and signature.parameters[name].kind is not inspect.Parameter.VAR_KEYWORD:
                check_type(name, value, hints[name])
                if name in _PATHS:
                    check_path(name, value)
        return function(*args, **kwargs)

    return call


def check_fields(config: DataclassInstance) -> None:
    """Refuse fields of another type than the dataclass says. Raises InputError that names the field."""
    hints = _hints(type(config))
    for one in fields(config):
        check_type(one.name, getattr(config, one.name), hints[one.name])


def check_type(name: str, value: object, hint: Any) -> None:
    """Raise InputError if a value is not of the annotated type; a whole number is a number, True is neither."""
    if not _is(value, hint):
        words = _words(hint)
        raise InputError(f"{name} is {quoted(value)}; {words if words.startswith('choose') else f'give {words}'}.")


def check_range(name: str, value: float | None, low: float, high: float) -> None:
    """Raise InputError for a number outside of a range, or NaN; None is left to its default."""
    if value is not None and not low <= value <= high:
        top = "2**63 - 1" if high == LAST_SEED else f"{high:,}"
        raise InputError(f"{name} is {quoted(value)}; give a number from {low} to {top}.")


def check_path(name: str, value: object) -> None:
    """Raise InputError for a text or a path, or a list of some, that is no path of a file."""
    if isinstance(value, str | os.PathLike):
        path = os.fspath(value)
        try:
            encoded = os.fsencode(path)
        except UnicodeEncodeError:
            raise InputError(f"{name} is {quoted(path)}, which holds half a character; give another name.") from None
        if b"\0" in encoded:
            raise InputError(f"{name} is {quoted(path)}, which holds a null character; give another name.")
        if len(encoded) > _LONGEST_PATH or max(map(len, encoded.split(b"/"))) > _LONGEST_NAME:
            raise InputError(f"{name} is {quoted(path)}, which is longer than a name may be; give a shorter one.")
    elif isinstance(value, Sequence):
        for one in value:
            check_path(name, one)


@functools.cache
def _hints(owner: Any) -> dict[str, Any]:
    return get_type_hints(owner)


def _is(value: object, hint: Any) -> bool:
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(_is(value, one) for one in arguments)
    if origin is Literal:
        return isinstance(value, str) and value in arguments
    if isinstance(value, bool):
        return hint in (bool, object)
    if hint is int or hint is float:
        return isinstance(value, Integral if hint is int else Real)
    if origin is tuple:
        return (
            isinstance(value, Sequence)
            and not isinstance(value, str | bytes)
            and len(value) == len(arguments)
            and all(map(_is, value, arguments))
        )
    kind = origin or hint
    if not isinstance(value, kind) or (kind is Sequence and isinstance(value, str | bytes)):
        return False
    if isinstance(value, Mapping) and len(arguments) == 2:
        return all(_is(key, arguments[0]) and _is(one, arguments[1]) for key, one in value.items())
    if isinstance(value, Sequence) and len(arguments) == 1 and not isinstance(value, str):
        return all(_is(one, arguments[0]) for one in value)
    return True


def _words(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(_words, arguments)))
    if origin is Literal:
        return f"choose one of {', '.join(map(repr, arguments))}"
    if origin in (Sequence, list) and arguments:
        return f"a list, of which each is {_words(arguments[0])}"
    if origin in (Mapping, dict) and len(arguments) == 2 and Any not in arguments and object not in arguments:
        return f"a mapping, of which each key is {_words(arguments[0])} and each value {_words(arguments[1])}"
    return _WORDS.get(origin or hint) or f"a {short(getattr(hint, '__name__', hint))}"

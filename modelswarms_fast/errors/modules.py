"""What the user names as `module:name`, imported."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from modelswarms_fast.errors import InputError, short


def import_named(setting: str, text: str, kind: str, example: str) -> Callable[..., Any]:
    """Import `module:name`; the current directory comes first on the path while the module is imported.

    Args:
        setting: what the text was given as, for messages.
        text: module and name.
        kind: "function" or "class".
        example: a text that would do.

    Raises:
        InputError: there is no such module or nothing callable of that name.
    """
    module_name, _, name = text.partition(":")
    if not module_name or not name.isidentifier():
        raise InputError(f'{setting} "{text}" is not of the form module:{kind}, as in {example}')
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        importlib.invalidate_caches()  # the file may be newer than the interpreter's list of the folder
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # whatever the user's module does when it is imported
        raise InputError(
            f'cannot import the module of {setting} "{text}" ({type(error).__name__}: {short(error)}): '
            f"correct it, or start where {module_name} can be imported"
        ) from error
    finally:
        if here in sys.path:
            sys.path.remove(here)
    found = getattr(module, name, None)
    if not callable(found):
        raise InputError(f'{setting} "{text}": the module has no {kind} {name}; define it or correct the name')
    return found  # type: ignore[no-any-return]

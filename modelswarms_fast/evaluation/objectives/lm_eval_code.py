"""What a YAML file of lm-eval may run here: nothing, unless the user says so.

lm-eval imports what `!function` names, loads scripts of metrics that it does not know, and renders templates that may
reach all of Python.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from modelswarms_fast.errors import InputError, quoted

_REMEDY = "give --option functions=yes if you trust it"


@contextlib.contextmanager
def without_code() -> Iterator[None]:
    """Within the block lm-eval imports and runs nothing that a file names, but what is its own.

    Raises InputError where a file names something else.
    """
    import lm_eval
    from lm_eval.api import registry, task
    from lm_eval.tasks import _yaml_loader

    own = Path(lm_eval.__file__).parent.resolve()
    load, find = _yaml_loader._import_func_in_yml, task.get_metric

    def import_function(name: str, folder: Path) -> Any:
        if not Path(folder).resolve().is_relative_to(own):
            raise InputError(f"a YAML file in {folder} has code of its own, !function {quoted(name)}; {_REMEDY}")
        return load(name, folder)

    def get_metric(name: str, of_evaluate: bool = False) -> Any:
        if of_evaluate or name not in registry.metric_registry:
            raise InputError(f"the metric {quoted(name)} is none of lm-eval's and would be a script; {_REMEDY}")
        return find(name)

    _yaml_loader._import_func_in_yml, task.get_metric = import_function, get_metric
    try:
        yield
    finally:
        _yaml_loader._import_func_in_yml, task.get_metric = load, find


def use_sandbox() -> None:
    """From now on lm-eval renders its templates where they reach nothing but the document."""
    from jinja2.sandbox import SandboxedEnvironment
    from lm_eval import utils

    if isinstance(utils.env, SandboxedEnvironment):
        return
    sandbox = SandboxedEnvironment(
        loader=utils.env.loader,
        undefined=utils.env.undefined,
        keep_trailing_newline=utils.env.keep_trailing_newline,
    )
    sandbox.filters |= utils.env.filters
    utils.env = sandbox

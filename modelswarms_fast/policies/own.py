"""A class of the user as the policy, named `module:Class`: whatever it does wrong is one sentence that names it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from modelswarms_fast.errors import InputError, quoted, short
from modelswarms_fast.errors.modules import import_named
from modelswarms_fast.policies import Floats, Policy, Problem


def of_class(name: str) -> Callable[[Problem], Policy]:
    """What makes a policy of `module:Class`. Raises InputError if there is no such class, or it lacks a method."""
    made = import_named("policy", name, "class", "my_search:Climber")
    missing = [method for method in ("ask", "tell") if not callable(getattr(made, method, None))]
    if isinstance(made, type) and missing:
        raise InputError(f'policy "{name}": the class has no method {missing[0]}; define ask(self) and tell(self, ...)')
    return partial(_Own, name, made)


class _Own:
    def __init__(self, name: str, made: Callable[[Problem], Any], problem: Problem) -> None:
        self._name, self._problem = name, problem
        self._policy = self._called("the constructor", made, problem)

    def ask(self) -> Floats | None:
        found, problem = self._called("ask()", self._policy.ask), self._problem
        if found is None:
            return None
        shape = (problem.particles, problem.experts)
        try:
            mixtures = np.array(found, dtype=np.float64)
        except (TypeError, ValueError, OverflowError):
            raise self._error(f"ask() returned {quoted(found)}; return numbers {list(shape)}") from None
        if mixtures.shape != shape:
            raise self._error(f"ask() returned the shape {list(mixtures.shape)}; return {list(shape)}, one a particle")
        if not np.isfinite(mixtures).all():
            raise self._error("ask() returned NaN or infinity; return finite coefficients")
        inside = problem.space.contains(mixtures)
        if not inside.all():
            outside = np.round(mixtures[~inside][0], 4).tolist()
            raise self._error(f"ask() returned {short(outside)}, outside of the space; there {problem.space.rule}")
        return mixtures

    def tell(self, mixtures: Floats, utilities: Floats) -> None:
        self._called("tell()", self._policy.tell, mixtures.copy(), utilities.copy())

    def _called(self, what: str, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except Exception as error:
            raise self._error(f"{what} raised {type(error).__name__}: {short(error)}; correct it") from error

    def _error(self, sentence: str) -> InputError:
        return InputError(f'policy "{self._name}": {sentence}')

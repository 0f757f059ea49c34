"""Pack of LLMs: logits of all experts, weighted for each prompt by how little it surprises them.

Mavromatis et al., arXiv 2404.11531. Nothing is learned from dev, which only chooses between the paper's two rules.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache

import numpy as np
import torch

from modelswarms_fast.engines.ensemble.engine import EnsembleEngine, Route
from modelswarms_fast.errors import InputError
from modelswarms_fast.runs.baselines import Choice
from modelswarms_fast.runs.baselines.ensembles import Ensemble
from modelswarms_fast.runs.experiment import Experiment
from modelswarms_fast.swarm import Floats, best_of

Rule = Callable[[Sequence[torch.Tensor], torch.Tensor], Floats]
"""Logits [T, K] of each expert and the tokens [T] that came → coefficients [n]."""

# The shares of an expert that the greedy rule tries: 0, 0.05, ..., 1.
SHARES = 21


def run(experiment: Experiment, budget: int, seed: int) -> Choice:
    """Both rules if the budget allows, the greedy one alone else. See `modelswarms_fast.runs.baselines`.

    One evaluation is a pass of one expert over dev, so that a rule costs as many as there are experts.
    """
    count = len(experiment.experts.names)
    if budget < count:
        raise InputError(f"the budget is {budget} evaluations, less than the {count} experts take; give more.")
    ensemble = Ensemble(experiment, "logits")
    rules: dict[str, Rule] = {"greedy": greedy, "softmax": softmax} if budget >= 2 * count else {"greedy": greedy}
    utilities = {name: ensemble.dev(one) for name, one in routes(ensemble.engine, rules, count).items()}
    chosen = list(rules)[best_of(np.array(list(utilities.values())))]
    recipe = {"rule": chosen, "dev_by_rule": utilities, "mixed": "logits"}
    return Choice(
        recipe,
        utilities[chosen],
        count * len(rules),
        lambda: ensemble.scores(routes(ensemble.engine, {chosen: rules[chosen]}, count)[chosen], "test"),
        looks_at_experts=False,
    )


def routes(engine: EnsembleEngine, rules: Mapping[str, Rule], count: int) -> dict[str, Route]:
    """Coefficients of a prompt by each rule. The experts read a prompt once for all rules."""

    @cache
    def weights(prompt: tuple[int, ...]) -> dict[str, Floats]:
        if len(prompt) < 2:  # nothing to be surprised by
            return dict.fromkeys(rules, np.full(count, 1 / count))
        said = [engine.prompt_logits(member, list(prompt))[:-1] for member in range(count)]
        tokens = torch.tensor(prompt[1:], device=said[0].device)
        return {name: rule(said, tokens) for name, rule in rules.items()}

    def route(name: str) -> Route:
        return lambda request: weights(tuple(request.prompt))[name]

    return {name: route(name) for name in rules}


def surprise(logits: torch.Tensor, tokens: torch.Tensor) -> float:
    """Logarithm of the perplexity of tokens [T] by logits [T, K]."""
    return float(torch.nn.functional.cross_entropy(logits, tokens))


def softmax(said: Sequence[torch.Tensor], tokens: torch.Tensor) -> Floats:
    """[n] The paper's simple rule: a softmax of minus log perplexity, with temperature 1."""
    losses = np.array([surprise(logits, tokens) for logits in said])
    weights: Floats = np.exp(losses.min() - losses)
    scaled: Floats = weights / weights.sum()
    return scaled


def greedy(said: Sequence[torch.Tensor], tokens: torch.Tensor) -> Floats:
    """[n] The paper's greedy rule: from the expert of least perplexity on, each next one gets the share, of a grid,
    that makes the perplexity of the logits so mixed least.

    Perplexity is convex in the share, so that a search of the grid by halves finds what trying all of it would.
    """
    losses = [surprise(logits, tokens) for logits in said]
    order = sorted(range(len(said)), key=losses.__getitem__)
    weights = np.zeros(len(said))
    weights[order[0]] = 1.0
    mixed = said[order[0]]
    for expert in order[1:]:
        share = _best_share(mixed, said[expert], tokens)
        if share > 0:
            weights *= 1 - share
            weights[expert] = share
            mixed = torch.lerp(mixed, said[expert], share)
    return weights


def _best_share(mixed: torch.Tensor, more: torch.Tensor, tokens: torch.Tensor) -> float:
    """The share of `more` in the mix, of 0, 1 / (SHARES - 1), ..., 1, that has the least perplexity; the smallest of
    equals."""

    @cache
    def loss(step: int) -> float:
        return surprise(torch.lerp(mixed, more, step / (SHARES - 1)), tokens)

    low, high = 0, SHARES - 1
    while low < high:
        middle = (low + high) // 2
        if loss(middle) <= loss(middle + 1):
            high = middle
        else:
            low = middle + 1
    return low / (SHARES - 1)

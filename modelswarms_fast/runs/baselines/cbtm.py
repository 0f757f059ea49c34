"""cBTM: the prompts are clustered, each cluster has its expert, and a prompt is answered by the experts of the
clusters near it.

Gururangan et al., arXiv 2303.14177, train an expert on each cluster. Here the experts are given, so a cluster gets one
of them: with the training data the one that most of the cluster comes from, else the one that is best on the dev
examples in it. Clusters, distances and the sparse ensemble of probabilities are the paper's, but for plain instead of
balanced k-means.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.cluster import KMeans
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import Normalizer

from modelswarms_fast.engines.protocol import Request
from modelswarms_fast.errors import InputError
from modelswarms_fast.runs.baselines import Choice
from modelswarms_fast.runs.baselines.ensembles import Ensemble
from modelswarms_fast.runs.experiment import Experiment
from modelswarms_fast.runs.training_data import read_training_data
from modelswarms_fast.swarm import Floats, best_of

TEMPERATURE = 0.1  # of the squared distances, as in the paper
DIMENSIONS = 100  # that tf-idf is reduced to, as in the paper
LEAST = 8  # examples in a cluster, on average
PRIOR = 4  # examples that an expert's mean over all of dev counts as in each cluster
WORD = r"(?u)\b\w+\b"
TOP = (2, 4)  # experts that answer one prompt; dev chooses


def run(experiment: Experiment, budget: int, seed: int) -> Choice:
    """Clusters as many as experts, the 2 or 4 likeliest experts. See `modelswarms_fast.runs.baselines`.

    An evaluation is a pass of one expert over dev: an ensemble of k takes k, or fewer where clusters share an expert.
    """
    names, prompts = experiment.experts.names, prompts_of(experiment)
    texts = [text for some in prompts for text in some]
    if experiment.train is not None:
        owners = np.repeat(np.arange(len(names)), [len(some) for some in prompts])
        shares = np.eye(len(names))[owners] / np.bincount(owners, minlength=len(names))
        clusters = Clusters.of(texts, len(names), seed)
        experts = best_by_cluster(clusters.numbers, shares, clusters.count, prior=0, total=True)
        spent, what = 0, "training data"
    else:
        scores = np.array(experiment.score_mixtures(np.eye(len(names)), "dev")).T
        clusters = Clusters.of(texts, max(1, min(len(names), len(texts) // LEAST)), seed)
        experts = best_by_cluster(clusters.numbers, scores, clusters.count, prior=PRIOR)
        spent, what = len(names), "dev scores"
    ensemble = Ensemble(experiment, "probabilities")
    tops, utilities, evaluations = [], [], spent
    for top in sorted({min(top, len(names)) for top in TOP}):
        if evaluations + top > budget:
            break
        router = Router(ensemble.engine.tokenizer, clusters, experts, len(names), top)
        tops.append(router)
        utilities.append(ensemble.dev(router))
        evaluations += top
    if not tops:
        raise InputError(f"the budget is {budget} evaluations, of which cBTM needs {spent + TOP[0]}; give more.")
    best = best_of(np.array(utilities))
    recipe: dict[str, Any] = {
        "clusters": clusters.count,
        "experts_of_clusters": [names[expert] for expert in experts],
        "sizes_of_clusters": np.bincount(clusters.numbers, minlength=clusters.count).tolist(),
        "chosen_by": what,
        "top": tops[best].top,
        "dev_by_top": {str(one.top): value for one, value in zip(tops, utilities, strict=True)},
    }
    return Choice(
        recipe,
        utilities[best],
        evaluations,
        lambda: ensemble.scores(tops[best], "test"),
        looks_at_experts=experiment.train is None,
    )


def prompts_of(experiment: Experiment) -> list[list[str]]:
    """What is clustered: with training data the prompts of each expert's, else those of dev, one list.

    Raises:
        InputError: none has a word.
    """
    if experiment.train is None:
        prompts = [experiment.utility.prompts["dev"]]
    else:
        data = read_training_data(experiment.train, experiment.experts.names)
        prompts = [[prompt for prompt, _ in data[name]] for name in experiment.experts.names]
    if not any(re.search(WORD, text) for some in prompts for text in some):
        where = experiment.train or f"dev of {experiment.utility.dataset}"
        raise InputError(f"cbtm clusters prompts by their words, but those in {where} have none; leave cbtm out.")
    return prompts


@dataclass
class Clusters:
    """Centres of texts, and the way from a text to them."""

    space: Pipeline
    means: KMeans
    numbers: Any
    """Of the clusters of the texts they were made from."""

    @classmethod
    def of(cls, texts: Sequence[str], count: int, seed: int) -> Clusters:
        """`count` clusters of texts by their words."""
        seed %= 2**32  # all that scikit-learn takes
        words = TfidfVectorizer(sublinear_tf=True, token_pattern=WORD)
        width = words.fit_transform(texts).shape
        steps: list[Any] = [TfidfVectorizer(sublinear_tf=True, token_pattern=WORD)]
        if min(width) > DIMENSIONS + 1:
            steps += [TruncatedSVD(DIMENSIONS, random_state=seed), Normalizer()]
        space = make_pipeline(*steps)
        points = space.fit_transform(texts)
        means = KMeans(min(count, len(texts)), n_init=4, random_state=seed).fit(points)
        return cls(space, means, means.labels_)

    @property
    def count(self) -> int:
        """Of clusters."""
        return int(self.means.n_clusters)

    def probabilities(self, text: str) -> Floats:
        """[count] of the clusters for a text: a softmax of minus distance² / TEMPERATURE."""
        squared = self.means.transform(self.space.transform([text]))[0] ** 2
        weights: Floats = np.exp((squared.min() - squared) / TEMPERATURE)
        scaled: Floats = weights / weights.sum()
        return scaled


def best_by_cluster(numbers: Any, scores: Floats, count: int, *, prior: float, total: bool = False) -> list[int]:
    """The expert of each cluster: highest mean (or sum) of its scores [examples, n] there; the first of equals.

    A mean counts `prior` examples of the expert's mean over all, so that few examples in a cluster decide little.
    """
    overall = scores.mean(axis=0)
    best = []
    for cluster in range(count):
        mine = scores[numbers == cluster]
        sums = mine.sum(axis=0) + prior * overall
        best.append(best_of(sums if total else sums / max(len(mine) + prior, 1)))
    return best


class Router:
    """Coefficients of a prompt: the probabilities of the clusters go to their experts; the `top` largest are kept."""

    def __init__(self, tokenizer: Any, clusters: Clusters, experts: Sequence[int], count: int, top: int) -> None:
        self._tokenizer, self._clusters, self._experts, self._count = tokenizer, clusters, experts, count
        self.top = top

    def __call__(self, request: Request) -> Floats:
        """[n] for what is asked."""
        text = request.message
        if text is None:
            settings = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
            text = self._tokenizer.decode(request.prompt, **settings)
        return self.weights(text)

    def weights(self, text: str) -> Floats:
        """[n] for a text."""
        weights = np.zeros(self._count)
        np.add.at(weights, list(self._experts), self._clusters.probabilities(text))
        weights[np.argsort(-weights, kind="stable")[self.top :]] = 0.0
        scaled: Floats = weights / weights.sum()
        return scaled

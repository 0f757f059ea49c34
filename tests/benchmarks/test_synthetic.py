"""Tasks without a model: what is said of them holds, and a search of one has the moves of a run."""

import numpy as np
import pytest

from benchmarks.quality.synthetic_searches import Found, choices
from benchmarks.quality.synthetic_tasks import EXAMPLES, EXPERTS, SyntheticTask

ONES = np.eye(EXPERTS)


def test_a_task_is_its_number_and_dev_another_sample_of_the_same():
    task, again = SyntheticTask(3), SyntheticTask(3)
    np.testing.assert_array_equal(task.scores(ONES, "dev"), again.scores(ONES, "dev"))
    other = SyntheticTask(3, dev=1)
    assert (task.scores(ONES, "dev") != other.scores(ONES, "dev")).any()
    np.testing.assert_array_equal(task.scores(ONES, "test"), other.scores(ONES, "test"))
    assert {split: task.scores(ONES, split).shape for split in EXAMPLES} == {"dev": (10, 200), "test": (10, 5000)}
    assert np.isin(task.scores(ONES, "test"), (0, 1)).all()
    dev, test = (task.scores(ONES, split).mean(axis=1) for split in EXAMPLES)
    assert 0.05 < test.mean() < 0.6
    assert abs(dev - test).max() < 5 * np.sqrt(0.25 / 200)


def test_scores_are_smooth_in_the_mixture_and_some_mixture_is_better_than_all_experts():
    task, random = SyntheticTask(3), np.random.default_rng(0)
    near = ONES + 1e-4 * random.standard_normal(ONES.shape)
    assert abs(task.scores(near, "test") - task.scores(ONES, "test")).mean() < 1e-3
    weights = random.dirichlet(np.ones(EXPERTS), size=200)
    experts, mixed = (task.scores(points, "test").mean(axis=1).max() for points in (ONES, weights))
    assert mixed > experts


@pytest.mark.parametrize("settings", [{}, {"policy": "guided"}, {"policy": "cma-es", "space": "free"}])
def test_a_search_keeps_all_that_was_scored(settings):
    task = SyntheticTask(3)
    found = Found(task, settings, 50, seed=0)
    assert found.mixtures.shape == (50, EXPERTS)
    np.testing.assert_array_equal(found.mixtures[:EXPERTS], ONES)
    np.testing.assert_array_equal(found.scores, task.scores(found.mixtures, "dev"))
    chosen = choices(task, found, 30)
    assert chosen["best"]["dev"] == found.scores[:30].mean(axis=1).max() >= chosen["posterior"]["dev"]

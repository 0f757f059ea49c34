"""Policies of a user, right and wrong, as `helpers_policies:Name`."""

import numpy as np


class Climber:
    """Half of the way from each particle to the best position so far, and a step drawn at random."""

    def __init__(self, problem):
        self.random, self.best = np.random.default_rng(problem.seed), -np.inf

    def ask(self):
        steps = self.random.normal(0, 0.1, self.mixtures.shape)
        return (self.mixtures + self.leader) / 2 + steps - steps.mean(axis=1, keepdims=True)

    def tell(self, mixtures, utilities):
        self.mixtures = mixtures
        if np.nanmax(utilities) > self.best:
            self.best, self.leader = np.nanmax(utilities), mixtures[np.nanargmax(utilities)]


class Alternate(Climber):
    """The published swarm's moves and its own in turn."""

    iteration = 0

    def ask(self):
        self.iteration += 1
        return super().ask() if self.iteration % 2 else None


class _Asks:
    answer = None

    def __init__(self, problem):
        self.problem = problem

    def ask(self):
        return self.answer(np.tile(np.eye(self.problem.experts)[0], (self.problem.particles, 1)))

    def tell(self, mixtures, utilities):
        pass


class Raises(_Asks):
    def answer(self, mixtures):
        raise KeyError("no\nidea")


class Shape(_Asks):
    def answer(self, mixtures):
        return mixtures[:-1]


class Texts(_Asks):
    def answer(self, mixtures):
        return "a few"


class NotFinite(_Asks):
    def answer(self, mixtures):
        return mixtures * np.nan


class Outside(_Asks):
    def answer(self, mixtures):
        return mixtures * 1.25


class WillNotBegin:
    def __init__(self, problem):
        raise RuntimeError("not today")

    def ask(self):
        pass

    def tell(self, mixtures, utilities):
        pass


class WillNotListen(_Asks):
    def tell(self, mixtures, utilities):
        raise ValueError("no ears")


class Mute:
    def __init__(self, problem):
        pass

    def ask(self):
        pass


number = 3


class Nothing(_Asks):
    """Every move is the swarm's."""

    def ask(self):
        return None


class Remembers(Climber):
    """Begins at the best that earlier runs have found."""

    def __init__(self, problem):
        super().__init__(problem)
        mixtures, utilities = problem.known
        assert len(mixtures) == len(utilities) > 0
        self.best, self.leader = utilities.max(), mixtures[utilities.argmax()]

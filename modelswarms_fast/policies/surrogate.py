"""A Gaussian process over mixtures: what the utilities of some positions say about all others.

k(a, b) = s · M52(√((a - b)ᵀ G (a - b)) / L), where M52 is the Matérn kernel of smoothness 5/2 and G holds the inner
products of the experts, so that distances are those of the weights. The mean is constant, and a nugget takes what is
not smooth. s, L and the nugget maximise the marginal likelihood.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

Floats = npt.NDArray[np.float64]

FITTED = 256
"""Most positions that s, L and the nugget are fitted to: time grows with their third power."""
LENGTHS = (0.1, 30.0)
"""Bounds of L, in root mean square distances of two experts."""
SCALES = (0.05, 50.0)
"""Bounds of s, in variances of the utilities."""
NUGGETS = (1e-5, 1.0)
"""Bounds of the nugget, in variances of the utilities."""
JITTER = 1e-9
"""Of a covariance, beside its largest variance, so that it stays positive definite after rounding."""


class Hyperparameters(NamedTuple):
    """What maximises the marginal likelihood."""

    scale: float
    """s, in squared units of the utility; so is `nugget`."""
    length: float
    """L, in root mean square distances of two experts."""
    nugget: float


class Surrogate:
    """The posterior of the utility, given the utilities that `fit` was given."""

    def __init__(self, regressor: GaussianProcessRegressor, metric: Floats, found: Hyperparameters) -> None:
        """`regressor`: fitted to mixtures times `metric` [n, r]."""
        self._regressor, self._metric = regressor, metric
        self.found = found

    def posterior(self, points: Floats) -> tuple[Floats, Floats]:
        """Mean [k] and standard deviation [k] of the utility, without the nugget, at mixtures [k, n]."""
        mean, sd = self._regressor.predict(points @ self._metric, return_std=True)
        return mean, sd

    def smoothed(self, utilities: Floats) -> Floats:
        """[m, B] posterior means at the positions of `fit`, had their utilities been these [m, B], and s, L and the
        nugget the same."""
        kernel, root = self._regressor.kernel_(self._regressor.X_train_), self._regressor.L_
        middle = utilities.mean(axis=0)
        found: Floats = middle + kernel @ np.linalg.solve(root.T, np.linalg.solve(root, utilities - middle))
        return found

    def sample(self, points: Floats, count: int, seed: int) -> Floats:
        """[count, k] functions drawn from the posterior, at mixtures [k, n]; the same seed gives the same."""
        mean, covariance = self._regressor.predict(points @ self._metric, return_cov=True)
        # The library's own way is an SVD, which takes some ten times as long.
        covariance.flat[:: len(mean) + 1] += JITTER * max(covariance.diagonal().max(), np.finfo(float).tiny)
        root = _root(covariance)
        draws: Floats = np.random.default_rng(seed).standard_normal((count, len(mean)))
        found: Floats = mean + draws @ root.T
        return found


def fit(mixtures: Floats, utilities: Floats, products: Floats, noise: Floats | None = None) -> Surrogate:
    """The surrogate of a utility that was found at some mixtures.

    Args:
        mixtures: [m, n] at least 2.
        utilities: [m] finite.
        products: [n, n] inner products of the experts, in any unit.
        noise: [m] variance of the error of each utility, beside the nugget; left out, 0.
    """
    metric = metric_of(products)
    points, spread = mixtures @ metric, float(np.var(utilities)) or 1.0
    own: Floats = np.zeros(len(utilities)) if noise is None else noise
    some = np.unique(np.linspace(0, len(points) - 1, min(len(points), FITTED)).round().astype(int))
    smooth = ConstantKernel(1.0, SCALES) * Matern(1.0, LENGTHS, nu=2.5)
    both, unit = smooth + WhiteKernel(0.05, NUGGETS), float(np.var(utilities[some])) or 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a hyperparameter that ends at its bound
        first = GaussianProcessRegressor(both, alpha=own[some] / unit + NUGGETS[0], normalize_y=True)
        first.fit(points[some], utilities[some])
    # The same without the nugget in the kernel: that of the data stays, and the posterior is of the smooth part.
    kernel = first.kernel_
    found = Hyperparameters(
        kernel.k1.k1.constant_value * unit, kernel.k1.k2.length_scale, (kernel.k2.noise_level + NUGGETS[0]) * unit
    )
    kernel = ConstantKernel(found.scale / spread) * Matern(found.length, nu=2.5)
    regressor = GaussianProcessRegressor(kernel, alpha=(own + found.nugget) / spread, optimizer=None, normalize_y=True)
    return Surrogate(regressor.fit(points, utilities), metric, found)


def metric_of(products: Floats) -> Floats:
    """[n, r] W with W Wᵀ = G, scaled so that two experts are 1 apart in the root mean square.

    The distance of two mixtures is that of the mixtures times W.
    """
    count = len(products)
    values, vectors = np.linalg.eigh((products + products.T) / 2)
    values = np.clip(values, 0.0, None)
    squares = values.sum() - (products.sum() / count)  # Σ |eᵢ - mean|²
    # The mean of |eᵢ - eⱼ|² over pairs is 2 / (n - 1) of that.
    apart = 2 * squares / (count - 1)
    if not apart > 1e-12 * values.sum():  # the experts are all the same
        return np.eye(count)
    kept = values > 1e-12 * values.max()
    metric: Floats = vectors[:, kept] * np.sqrt(values[kept] / apart)
    return metric


def _root(covariance: Floats) -> Floats:
    """The Cholesky factor [k, k] of a covariance; its diagonal is raised where rounding has made it indefinite."""
    more = JITTER
    while True:
        try:
            return np.asarray(np.linalg.cholesky(covariance), dtype=np.float64)
        except np.linalg.LinAlgError:
            more *= 10
            covariance.flat[:: len(covariance) + 1] += more * covariance.diagonal().max()

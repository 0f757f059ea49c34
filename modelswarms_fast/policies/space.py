"""What mixtures of the experts a search is among, and the coordinates in which a policy may search.

    affine   Σ c = 1              c = 1/n + H z           n - 1 coordinates
    scaled   c = λ d, Σ d = 1     d = 1/n + H z, log λ    n coordinates, 0.5 ≤ λ ≤ 2
    free     -1.5 ≤ c ≤ 1.5       c = z                   n coordinates

H [n, n - 1] has orthonormal columns of sum 0, so that distances of z are those of c.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from modelswarms_fast.config import LARGEST, LARGEST_COEFFICIENT, SCALES
from modelswarms_fast.config import Space as SpaceName

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

_CLOSE = 1e-6
"""By which a sum or a bound may be missed."""


class Space(Protocol):
    """A set of mixtures c [..., n] with coordinates z [..., size]."""

    experts: int
    """n"""
    size: int
    """Number of coordinates."""
    bounds: Floats
    """[size, 2] the lowest and the highest value of each coordinate, infinite where there is none."""
    rule: str
    """What holds for its mixtures, in words."""

    def decode(self, z: Floats) -> Floats:
        """The mixtures of coordinates."""

    def encode(self, c: Floats) -> Floats:
        """The coordinates of mixtures; of one that is outside of the space, those of one near it."""

    def clip(self, z: Floats) -> Floats:
        """The nearest coordinates within the bounds."""

    def contains(self, c: Floats) -> Bools:
        """[...] whether mixtures are in the space."""


def space_of(name: SpaceName, experts: int) -> Space:
    """The space of this name for n experts."""
    kinds: dict[SpaceName, type[Affine | Scaled | Free]] = {"affine": Affine, "scaled": Scaled, "free": Free}
    return kinds[name](experts)


class Affine:
    """Coefficients of sum 1."""

    rule = "coefficients sum to 1"

    def __init__(self, experts: int) -> None:
        self.experts, self.size = experts, experts - 1
        self.bounds = np.tile([-np.inf, np.inf], (self.size, 1))
        self._basis = basis(experts)

    def decode(self, z: Floats) -> Floats:
        """See `Space`."""
        return 1 / self.experts + z @ self._basis.T

    def encode(self, c: Floats) -> Floats:
        """See `Space`: what is outside is moved along the mean of all experts."""
        found: Floats = (c - 1 / self.experts) @ self._basis
        return found

    def clip(self, z: Floats) -> Floats:
        """See `Space`."""
        return z

    def contains(self, c: Floats) -> Bools:
        """See `Space`."""
        inside: Bools = (abs(c.sum(axis=-1) - 1) <= _CLOSE) & (abs(c) <= LARGEST).all(axis=-1)
        return inside


class Scaled:
    """Coefficients of sum 1 times a factor λ, whose logarithm is the last coordinate."""

    rule = f"coefficients sum to between {SCALES[0]} and {SCALES[1]}"

    def __init__(self, experts: int) -> None:
        self._affine = Affine(experts)
        self.experts, self.size = experts, experts
        self.bounds = np.concatenate([self._affine.bounds, np.log([SCALES])])

    def decode(self, z: Floats) -> Floats:
        """See `Space`."""
        return np.exp(z[..., -1:]) * self._affine.decode(z[..., :-1])

    def encode(self, c: Floats) -> Floats:
        """See `Space`: of another sum, λ is the nearest that is allowed."""
        scale = np.clip(c.sum(axis=-1, keepdims=True), *SCALES)
        return np.concatenate([self._affine.encode(c / scale), np.log(scale)], axis=-1)

    def clip(self, z: Floats) -> Floats:
        """See `Space`."""
        return np.clip(z, self.bounds[:, 0], self.bounds[:, 1])

    def contains(self, c: Floats) -> Bools:
        """See `Space`."""
        total = c.sum(axis=-1)
        inside: Bools = (total >= SCALES[0] - _CLOSE) & (total <= SCALES[1] + _CLOSE) & (abs(c) <= LARGEST).all(axis=-1)
        return inside


class Free:
    """Any coefficients between two bounds."""

    rule = f"each coefficient is between -{LARGEST_COEFFICIENT} and {LARGEST_COEFFICIENT}"

    def __init__(self, experts: int) -> None:
        self.experts, self.size = experts, experts
        self.bounds = np.tile([-LARGEST_COEFFICIENT, LARGEST_COEFFICIENT], (experts, 1))

    def decode(self, z: Floats) -> Floats:
        """See `Space`."""
        return z.copy()

    def encode(self, c: Floats) -> Floats:
        """See `Space`: what is outside is clipped."""
        return self.clip(c)

    def clip(self, z: Floats) -> Floats:
        """See `Space`."""
        return np.clip(z, -LARGEST_COEFFICIENT, LARGEST_COEFFICIENT)

    def contains(self, c: Floats) -> Bools:
        """See `Space`."""
        inside: Bools = np.asarray((abs(c) <= LARGEST_COEFFICIENT + _CLOSE).all(axis=-1))
        return inside


def basis(n: int) -> Floats:
    """[n, n - 1] orthonormal columns of sum 0: column k is (1, ..., 1, -k, 0, ...) of length 1 (Helmert)."""
    columns = np.zeros((n, n - 1))
    for k in range(1, n):
        columns[:k, k - 1] = 1.0
        columns[k, k - 1] = -k
        columns[:, k - 1] /= np.sqrt(k * (k + 1))
    return columns

"""Orders of generation: which position comes at which place (paper Alg. 1 permutes at random).

A new order is one final class and one row of `ORDERS`.
"""

import abc
import functools
from typing import final

import jax
import jax.numpy as jnp
import numpy as np
import scipy  # whose parts are imported when they are used
from jaxtyping import Array, Int, Int32, PRNGKeyArray

_POINTS = 10_000  # of the Halton sequence at a time


class Order(abc.ABC):
    """Draws the order of one image from its key, before the network runs."""

    @abc.abstractmethod
    def __call__(self, key: PRNGKeyArray, grid: int) -> Int32[Array, ' N']:
        """A permutation of the N = grid^2 positions of a square grid, numbered row by row."""


@final
class Random(Order):
    """Uniformly random, as training masks."""

    def __call__(self, key: PRNGKeyArray, grid: int) -> Int32[Array, ' N']:
        """One sort of N random numbers."""
        return random(key, grid**2)


@final
class Halton(Order):
    """Spread evenly over the picture at any time (arXiv 2503.17076), from a random start on."""

    def __call__(self, key: PRNGKeyArray, grid: int) -> Int32[Array, ' N']:
        """`halton_cells`, rolled by an offset that the key draws."""
        cells = jnp.asarray(halton_cells(grid))
        return jnp.roll(cells, jax.random.randint(key, (), 0, len(cells), jnp.int32))


@final
class Raster(Order):
    """Row by row, as autoregressive models."""

    def __call__(self, key: PRNGKeyArray, grid: int) -> Int32[Array, ' N']:
        """The same for every key."""
        return jnp.arange(grid**2, dtype=jnp.int32)


ORDERS: dict[str, Order] = {'random': Random(), 'halton': Halton(), 'raster': Raster()}


def random(key: PRNGKeyArray, tokens: int) -> Int32[Array, ' {tokens}']:
    """A uniformly random permutation of `tokens` positions."""
    return jnp.argsort(jax.random.bits(key, (tokens,), jnp.uint32)).astype(jnp.int32)


@functools.cache
def halton_cells(grid: int) -> Int[np.ndarray, ' {grid}**2']:
    """Cells in the order in which the Halton points of bases (2, 3) first fall into them.

    The first coordinate is the row (valeoai/Halton-MaskGIT, build_halton_mask).
    """
    points = scipy.stats.qmc.Halton(2, scramble=False)
    points.fast_forward(1)  # the sequence proper has no point (0, 0)
    cells = np.empty(0, int)
    while len(cells) < grid**2:
        row, column = np.floor(points.random(_POINTS) * grid).astype(int).T
        cells = np.concatenate([cells, row * grid + column])
        cells = cells[np.sort(np.unique(cells, return_index=True)[1])]
    return cells.astype(np.int32)

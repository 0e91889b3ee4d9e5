"""Orders of generation: which position comes at which place (paper Alg. 1 permutes at random).

A new order is one final class and one row of `ORDERS`.
"""

import abc
import dataclasses
import functools
from collections.abc import Callable
from typing import Protocol, final, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import scipy  # whose parts are imported when they are used
from jaxtyping import Array, Bool, Float32, Int, Int32, PRNGKeyArray

from emigm_jax.errors import UserError

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


@final
class Spiral(Order):
    """From the centre outwards, round and round."""

    def __call__(self, key: PRNGKeyArray, grid: int) -> Int32[Array, ' N']:
        """The same for every key."""
        return jnp.asarray(spiral_cells(grid))


@final
@dataclasses.dataclass(frozen=True)
class Given(Order):
    """As somebody says."""

    positions: tuple[int, ...]

    def __call__(self, key: PRNGKeyArray, grid: int) -> Int32[Array, ' N']:
        """The same for every key."""
        check_positions(self.positions, grid**2)
        return jnp.asarray(self.positions, jnp.int32)


class Adaptive(Order):
    """Chooses in every step, of all masked tokens, which of those just drawn stay.

    The call gives the order before the first choice.
    """

    @abc.abstractmethod
    def score(
        self,
        log_probability: Float32[Array, 'B R'],
        gumbel: Float32[Array, 'B R'],
        left: Float32[Array, ''],
    ) -> Float32[Array, 'B R']:
        """The highest ones stay.

        Args:
          log_probability: of the codes that were drawn.
          gumbel: noise.
          left: share of the steps that are left after this one.
        """


@final
@dataclasses.dataclass(frozen=True)
class Confidence(Adaptive):
    """Those that the network is most sure of (MaskGIT, libml/parallel_decode.py)."""

    temperature: float  # of the noise in the first step; it falls to 0 in the last

    def __call__(self, key: PRNGKeyArray, grid: int) -> Int32[Array, ' N']:
        """Row by row."""
        return Raster()(key, grid)

    def score(
        self,
        log_probability: Float32[Array, 'B R'],
        gumbel: Float32[Array, 'B R'],
        left: Float32[Array, ''],
    ) -> Float32[Array, 'B R']:
        """log p + temperature left gumbel."""
        return log_probability + self.temperature * left * gumbel


@runtime_checkable
class Settings(Protocol):
    """What orders are made of."""

    @property
    def order(self) -> str:
        """A key of ORDERS."""
        ...

    @property
    def positions(self) -> tuple[int, ...]:
        """Of `Given`."""
        ...

    @property
    def choice_temperature(self) -> float:
        """Of `Confidence`."""
        ...


ORDERS: dict[str, Callable[[Settings], Order]] = {
    'random': lambda _: Random(),
    'halton': lambda _: Halton(),
    'raster': lambda _: Raster(),
    'spiral': lambda _: Spiral(),
    'given': lambda settings: Given(settings.positions),
    'confidence': lambda settings: Confidence(settings.choice_temperature),
}


def order(settings: Settings) -> Order:
    """The order of settings."""
    return ORDERS[settings.order](settings)


def check_positions(positions: tuple[int, ...], tokens: int) -> None:
    """Raises UserError unless positions, where there are any, are those of `tokens`, each once."""
    if positions and sorted(positions) != list(range(tokens)):
        raise UserError(
            f'sampling.reveal.positions must name each of 0 to {tokens - 1} once: there are '
            f'{len(positions)}, of which {len(set(positions))} differ, from {min(positions)} to '
            f'{max(positions)}'
        )


def random(key: PRNGKeyArray, tokens: int) -> Int32[Array, ' {tokens}']:
    """A uniformly random permutation of `tokens` positions."""
    return jnp.argsort(jax.random.bits(key, (tokens,), jnp.uint32)).astype(jnp.int32)


def given_first(order: Int[Array, 'B N'], masked: Bool[Array, 'B N']) -> Int[Array, 'B N']:
    """Orders with what is given moved to the front; both parts stay in the order that they had.

    Args:
      order: of B images.
      masked: positions that are not given, row by row.
    """
    late = jnp.argsort(jnp.take_along_axis(masked, order, axis=1), axis=1, stable=True)
    return jnp.take_along_axis(order, late, axis=1)


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


@functools.cache
def spiral_cells(grid: int) -> Int[np.ndarray, ' {grid}**2']:
    """Cells from the centre on: right, down, left, up, two runs of each length 1, 2, ...

    Of an even grid the centre is the upper left of its four middle cells.
    """
    lengths = np.repeat(np.arange(1, grid + 1), 2)
    runs = np.array([(0, 1), (1, 0), (0, -1), (-1, 0)])[np.arange(len(lengths)) % 4]
    steps = np.concatenate([np.zeros((1, 2), int), np.repeat(runs, lengths, axis=0)])
    cells = np.cumsum(steps, axis=0) + (grid - 1) // 2
    inside = ((cells >= 0) & (cells < grid)).all(1)
    return (cells[inside] @ (grid, 1)).astype(np.int32)

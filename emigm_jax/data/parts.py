"""Parts of a data set: every n-th example is held back, the others are trained on.

The index of an example alone says which part it is in. So no list of indices is kept, and where
examples lie class by class both parts have every class in its share.
"""

import inspect
from collections.abc import Callable, Iterator
from typing import Any, final

import jax
import numpy as np

from emigm_jax.data.interface import Batch, Dataset
from emigm_jax.errors import UserError


@final
class Part(Dataset):
    """Some examples of a data set, in its order; all else is as in the whole."""

    def __init__(
        self, whole: Dataset, examples: int, which: str, place: Callable[[np.ndarray], np.ndarray]
    ):
        """Makes a part.

        Args:
          whole: what it is a part of.
          examples: how many it has.
          which: part of the whole this is, for its fingerprint.
          place: indices of the part (B,) -> those of the same examples in the whole (B,).
        """
        for name in inspect.get_annotations(Dataset):
            setattr(self, name, getattr(whole, name))
        self.whole, self.examples, self._place = whole, examples, place
        self.fingerprint = f'{whole.fingerprint} {which}'
        if near := whole.read_near:
            self.read_near = lambda indices, mirrored: near(place(indices), mirrored)

    def read(self, indices: np.ndarray, mirrored: np.ndarray) -> dict[str, np.ndarray]:
        """See `Dataset`."""
        return self.whole.read(self._place(indices), mirrored)

    def to_batch(self, params: dict[str, Any], rows: dict[str, jax.Array], key: jax.Array) -> Batch:
        """See `Dataset`."""
        return self.whole.to_batch(params, rows, key)


def trained(whole: Dataset, n: int) -> Dataset:
    """The examples i of a data set with i % n != n - 1; n = 0: all, the data set itself.

    Raises:
      UserError: there are fewer than n.
    """
    if not n:
        return whole
    count = whole.examples - _held_back(whole, n)
    return Part(whole, count, f'without 1 in {n}', lambda indices: indices + indices // (n - 1))


def held_back(whole: Dataset, n: int, trained_on: str = '') -> Dataset:
    """The examples i of a data set with i % n == n - 1, which `trained` leaves out.

    Args:
      whole: as it was when others of it were trained on.
      n: at least 2.
      trained_on: fingerprint of those; '': nobody saved it.

    Raises:
      UserError: there is none, or by the fingerprint it is not known which they were.
    """
    count = _held_back(whole, n)
    if trained_on not in ('', trained(whole, n).fingerprint):
        raise UserError(
            'the data have changed since training, so that nobody knows which examples were held '
            'back: name other data with --data'
        )
    return Part(whole, count, f'only 1 in {n}', lambda indices: indices * n + n - 1)


def _held_back(whole, n):
    """How many are held back."""
    count = whole.examples // n
    if not count:
        most = whole.examples if whole.examples > 1 else 0  # one alone is trained on
        raise UserError(
            f'data.held_back = {n} holds back none of {whole.examples} examples: say '
            f'--config.data.held_back={most}{" or less" * bool(most)}'
        )
    return count


def stand_ins(index: int, examples: int, n: int) -> Iterator[int]:
    """The examples of a whole from `index` on, round and round once, that are in the same part.

    Who cannot be read is stood in for by one of them, lest held-back ones be trained on.
    """
    inside = lambda i: bool(n) and i % n == n - 1
    for i in range(index, index + examples):
        if inside(i % examples) == inside(index):
            yield i % examples

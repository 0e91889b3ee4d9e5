"""In which order an epoch takes the examples: each once, as a function of (seed, epoch, place).

NumPy's permutation holds all indices at once: 0.8 GB and seconds for a hundred million. Grain's
keyed shuffle computes a single one when it is asked for, whatever the size of the data.
"""

import functools

import numpy as np
from grain.experimental import index_shuffle

from emigm_jax.errors import UserError

AUTO = 'auto'
_PERMUTED_UP_TO = 2**21  # examples by 'auto': 16 MB and 40 ms; what it says is part of every run
_MOST = 2**32  # that the keyed shuffle counts


def _permuted(examples, seed, epoch, places):
    return _permutation(examples, seed, epoch)[places]


@functools.lru_cache(maxsize=2)  # a batch meets at most a few epochs, ImageNet's take 20 ms each
def _permutation(examples, seed, epoch):
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(examples)


def _keyed(examples, seed, epoch, places):
    if examples > _MOST:
        raise UserError(f'{examples:,} examples are more than data.order counts: {_MOST:,}')
    key = int(np.random.Generator(np.random.Philox(key=[seed, epoch])).integers(_MOST))
    one = functools.partial(index_shuffle, max_index=examples - 1, seed=key, rounds=4)
    return np.fromiter((one(int(place)) for place in places), np.int64, len(places))


def _auto(examples, *which):
    return (_permuted if examples <= _PERMUTED_UP_TO else _keyed)(examples, *which)


# By the names of data.order: (examples, seed, epoch, places (B,) in it) -> examples (B,).
ORDERS = {AUTO: _auto, 'permuted': _permuted, 'keyed': _keyed}


def indices(order: str, examples: int, seed: int, positions: np.ndarray) -> np.ndarray:
    """Examples (B,) at positions (B,) of the endless stream of epochs.

    Args:
      order: of `ORDERS`.
      examples: in an epoch, each of them once.
      seed: of all orders.
      positions: counted from the first example of the first epoch.

    Raises:
      UserError: there are too many examples.
    """
    epochs, places = np.divmod(positions, examples)
    chosen = np.empty(len(positions), np.int64)
    for epoch in np.unique(epochs):
        now = epochs == epoch
        chosen[now] = ORDERS[order](examples, seed, int(epoch), places[now])
    return chosen

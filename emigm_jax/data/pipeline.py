"""Training batches as a function of (seed, step): exact order, exact resume, any start.

The rows of a step are one stretch of an endless stream of epochs, each in an order of its own
(`orders`). Of several processes each reads the rows of that stretch that its devices hold, so the
sequence does not depend on how many there are.
"""

import collections
import functools
import time
from collections.abc import Iterable, Iterator
from typing import Generic, Self, TypeVar

import grain
import jax
import numpy as np

from emigm_jax.core import randomness
from emigm_jax.data import orders
from emigm_jax.data.interface import Batch, Dataset
from emigm_jax.parallel import sharding

_T = TypeVar('_T')

_DATA = 0x64617461  # separates the keys of data from those of masks and noise
READERS, AHEAD = 2, 4  # of whole batches
DECODERS, PICTURES_AHEAD = 16, 512  # of single pictures


def batches(
    data: Dataset,
    batch: int,
    seed: int,
    start: int,
    stop: int,
    mesh: jax.sharding.Mesh,
    order: str = orders.AUTO,
) -> Iterator[Batch]:
    """Yields the `Batch`es of steps start to stop - 1 on the devices.

    Reading and decoding run ahead in threads; the next batch is on its way to the devices while a
    step runs, and moments are sampled there.

    Args:
      data: where rows come from.
      batch: images per step over all processes.
      seed: of order, mirroring and moments.
      start, stop: steps.
      mesh: of `sharding.make_mesh`; each process reads the rows that its devices hold.
      order: of `orders.ORDERS`.
    """
    sharded, replicated = sharding.batch_sharding(mesh), sharding.replicated(mesh)
    mine = sharding.rows_here(sharded, batch)
    to_batch = sharding.with_mesh(
        mesh,
        jax.jit(
            functools.partial(_to_batch, data, seed),
            in_shardings=(replicated, sharded, replicated),
            out_shardings=sharded,
        ),
    )
    with randomness.pinned():
        params = jax.device_put(data.params, replicated)
    queue = collections.deque()
    for step, rows in enumerate(host_rows(data, batch, seed, start, stop, mine, order), start):
        with randomness.pinned():
            rows = sharding.place_rows(sharded, mine, batch, rows)
        queue.append(to_batch(params, rows, np.int32(step)))
        if len(queue) > 1:
            yield queue.popleft()
    yield from queue


def _to_batch(data, seed, params, rows, step):
    key = jax.random.fold_in(jax.random.fold_in(randomness.key(seed), step), _DATA)
    return data.to_batch(params, rows, key)


def host_rows(
    data: Dataset,
    batch: int,
    seed: int,
    start: int,
    stop: int,
    mine: np.ndarray | None = None,
    order: str = orders.AUTO,
) -> Iterator[dict[str, np.ndarray]]:
    """The rows of `batches` as NumPy arrays, before anything happens on the devices.

    Args:
      mine: (R,) which rows of each batch are read; None: all.
      order: of `orders.ORDERS`.
    """
    mine = np.arange(batch) if mine is None else mine
    share = len(mine)

    def drawn(step, rows):
        chosen = indices(data.examples, batch, seed, step, rows, order)
        return chosen, _mirrored(batch, seed, step)[rows] & data.flip

    if data.one_by_one:

        def row(position):
            step, place = divmod(position, share)
            return jax.tree.map(lambda a: a[0], data.read(*drawn(step, mine[[place]])))

        options = grain.ReadOptions(num_threads=DECODERS, prefetch_buffer_size=PICTURES_AHEAD)
        rows = grain.MapDataset.range(start * share, stop * share).map(row)
        return iter(rows.to_iter_dataset(options).batch(share))

    read = (order == orders.BLOCKS and data.read_near) or data.read

    def stretch(step):
        return read(*drawn(step, mine))

    options = grain.ReadOptions(num_threads=READERS, prefetch_buffer_size=AHEAD)
    return iter(grain.MapDataset.range(start, stop).map(stretch).to_iter_dataset(options))


@functools.lru_cache(maxsize=64)  # single pictures ask for their step again and again
def _mirrored(batch, seed, step):
    """Which of a step's whole batch are mirrored."""
    # Epochs, which key the orders, never come near _DATA.
    rng = np.random.Generator(np.random.Philox(key=[seed, (_DATA << 32) + step]))
    return rng.random(batch) < 0.5


def indices(
    examples: int,
    batch: int,
    seed: int,
    step: int,
    rows: np.ndarray | None = None,
    order: str = orders.AUTO,
) -> np.ndarray:
    """Indices of a step's batch: epoch after epoch, each in another order.

    The stream of epochs is cut into batches without gaps, so every example is seen once per epoch
    and a step needs nothing but (seed, step).

    Args:
      rows: (R,) of the batch that are asked for; None: all.
      order: of `orders.ORDERS`.
    """
    rows = np.arange(batch) if rows is None else rows
    return orders.indices(order, examples, seed, step * batch + rows, batch)


class Timed(Generic[_T]):
    """An iterator that knows how long its consumer waited for it.

    `seconds` is the total so far.
    """

    def __init__(self, iterator: Iterable[_T]):
        self._iterator, self.seconds = iter(iterator), 0.0

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> _T:
        start = time.perf_counter()
        try:
            return next(self._iterator)
        finally:
            self.seconds += time.perf_counter() - start

"""Rows that are far away, read by whole blocks of neighbours, for orders that ask for them so."""

import threading
from collections.abc import Callable, Sequence
from concurrent import futures

import numpy as np

from emigm_jax.data import latents, orders

# (first row, behind the last one) of each stretch -> its rows
Fetch = Callable[[Sequence[tuple[int, int]]], list[np.ndarray]]


class Blocks:
    """Rows by index, from any number of threads; a block is fetched when its first row is wanted.

    It is held until each of its rows has been given once, as an epoch does, or until `most` others
    came after it: rows that another process takes are never asked for.

    Args:
      fetch: of the blocks of a call, all at the same time.
      size: rows of a block.
      rows: in all.
      most: blocks that are held.
    """

    def __init__(self, fetch: Fetch, size: int, rows: int, most: int):
        self._fetch, self._size, self._rows, self._most = fetch, size, rows, most
        self._held: dict[int, futures.Future[np.ndarray]] = {}  # in the order in which they came
        self._given: dict[int, int] = {}
        self._lock = threading.Lock()

    def take(self, indices: np.ndarray) -> np.ndarray:
        """Rows of `indices` (B,); raises what `fetch` raises."""
        numbers, counts = np.unique(indices // self._size, return_counts=True)
        with self._lock:
            new = [n for n in numbers.tolist() if n not in self._held]
            self._held |= {n: futures.Future() for n in new}
            wanted = {n: self._held[n] for n in numbers.tolist()}
        if new:
            self._fill(wanted, new)
        # Those of other threads are on their way.
        rows = [wanted[n].result() for n in numbers.tolist()]
        where = np.searchsorted(numbers, indices // self._size)
        taken = [rows[w][i] for w, i in zip(where, indices % self._size, strict=True)]
        with self._lock:
            for number, count in zip(numbers.tolist(), counts.tolist(), strict=True):
                if number in self._held:
                    self._given[number] = self._given.get(number, 0) + count
                if self._given.get(number, 0) >= len(wanted[number].result()):
                    self._drop(number)
            while len(self._held) > self._most:
                self._drop(next(iter(self._held)))
        return np.stack(taken)

    def _fill(self, wanted, new):
        ends = [(n * self._size, min((n + 1) * self._size, self._rows)) for n in new]
        try:
            fetched = self._fetch(ends)
        except BaseException as error:
            with self._lock:
                for number in new:
                    self._drop(number)
                    wanted[number].set_exception(error)
            raise
        for number, rows in zip(new, fetched, strict=True):
            wanted[number].set_result(rows)

    def _drop(self, number):
        self._held.pop(number, None)
        self._given.pop(number, None)


# Of a process that holds all lanes; rows are read ahead of where their windows end.
MOST = 3 * orders.LANES * orders.WINDOW // orders.BLOCK


def far(
    cache: latents.Cache, order: str
) -> tuple[Callable[..., dict[str, np.ndarray]] | None, list[str]]:
    """What reads a cache in a bucket for the order `blocks`, and a hint where that is not taken.

    Returns:
      (`Dataset.read_near`, None for a cache on a disk; `Dataset.remarks`).
    """
    if not cache.far:
        return None, []
    held = Blocks(cache.stretches, orders.BLOCK, len(cache), MOST)

    def read(indices, mirrored):
        raw = held.take(indices)[np.arange(len(indices)), mirrored.astype(np.int64)]
        return {'raw': raw, 'labels': cache.labels[indices]}

    hint = (
        f'rows are read one by one from {cache.path}: a new run reads {orders.BLOCK} at a time by '
        f'--config.data.order={orders.BLOCKS}, --config.data.local_copy=FOLDER copies all first'
    )
    return read, [hint] * (order != orders.BLOCKS)

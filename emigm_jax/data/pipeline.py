"""Training batches as a function of (seed, step): exact order, exact resume, any start.

The rows of a step are one stretch of an endless stream of permutations, one per epoch. Of several
processes each reads the rows of that stretch that its devices hold, so the sequence does not depend
on how many there are.
"""

import collections
import functools
import time

import grain
import jax
import numpy as np

from emigm_jax.parallel import sharding

_DATA = 0x64617461  # separates the keys of data from those of masks and noise
READERS, AHEAD = 2, 4  # of whole batches
DECODERS, PICTURES_AHEAD = 16, 512  # of single pictures


def batches(data, batch, seed, start, stop, mesh):
    """Yields {'tokens', 'labels'} on the devices for steps start to stop - 1.

    Reading and decoding run ahead in threads; the next batch is on its way to the devices while a
    step runs, and moments are sampled there.

    Args:
      data: one of `datasets`.
      batch: images per step over all processes.
      seed: of order, mirroring and moments.
      mesh: of `sharding.make_mesh`; each process reads the rows that its devices hold.
    """
    split, whole = sharding.batch_sharding(mesh), sharding.whole(mesh)
    rows = sharding.rows_here(split, batch)
    make = lambda params, arrays, step: arrays
    params = getattr(data, 'params', None)
    # Only data that are not tokens yet have something to do on the devices.
    if hasattr(data, 'to_tokens'):
        program = jax.jit(
            functools.partial(_tokens, data.to_tokens, seed),
            in_shardings=(whole, split, whole),
            out_shardings=split,
        )
        make, params = sharding.under(mesh, program), jax.device_put(params, whole)
    queue = collections.deque()
    for step, arrays in enumerate(host_batches(data, batch, seed, start, stop, rows), start):
        queue.append(make(params, sharding.place_rows(split, rows, batch, arrays), np.int32(step)))
        if len(queue) > 1:
            yield queue.popleft()
    yield from queue


def _tokens(to_tokens, seed, params, arrays, step):
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), step), _DATA)
    return to_tokens(params, arrays, key)


def host_batches(data, batch, seed, start, stop, rows=None):
    """As `batches`, as NumPy arrays before anything happens on the devices.

    Args:
      rows: (R,) which rows of each batch are read; None: all.
    """
    rows = np.arange(batch) if rows is None else rows
    share = len(rows)
    if hasattr(data, 'row'):  # pictures: decoding takes the time, so every row is a task

        def row(position):
            step, place = divmod(position, share)
            chosen, mirrored = _of_step(data, batch, seed, step)
            return data.row(int(chosen[rows[place]]), bool(mirrored[rows[place]]))

        options = grain.ReadOptions(num_threads=DECODERS, prefetch_buffer_size=PICTURES_AHEAD)
        pictures = grain.MapDataset.range(start * share, stop * share).map(row)
        return iter(pictures.to_iter_dataset(options).batch(share))

    def take(step):
        chosen, mirrored = _of_step(data, batch, seed, step)
        return data.take(chosen[rows], mirrored[rows])

    options = grain.ReadOptions(num_threads=READERS, prefetch_buffer_size=AHEAD)
    return iter(grain.MapDataset.range(start, stop).map(take).to_iter_dataset(options))


def _of_step(data, batch, seed, step):
    """(indices, mirrored) of a step's whole batch."""
    return _drawn(data.examples, batch, seed, step, getattr(data, 'flip', False))


@functools.lru_cache(maxsize=64)  # single pictures ask for their step again and again
def _drawn(examples, batch, seed, step, flip):
    # Epochs, which key the permutations, never come near _DATA.
    rng = np.random.Generator(np.random.Philox(key=[seed, (_DATA << 32) + step]))
    mirrored = (rng.random(batch) < 0.5) & flip
    return indices(examples, batch, seed, step), mirrored


def indices(examples, batch, seed, step):
    """Indices of a step's batch (B,): epoch after epoch, each a new permutation.

    The stream of permutations is cut into batches without gaps, so every example is seen once per
    epoch and a step needs nothing but (seed, step).
    """
    position = np.arange(step * batch, (step + 1) * batch)
    epochs, places = position // examples, position % examples
    chosen = np.empty(batch, np.int64)
    for epoch in np.unique(epochs):
        now = epochs == epoch
        chosen[now] = _permutation(examples, seed, int(epoch))[places[now]]
    return chosen


@functools.lru_cache(maxsize=2)  # a batch meets at most a few epochs, ImageNet's take 20 ms each
def _permutation(examples, seed, epoch):
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(examples)


class Timed:
    """An iterator that knows how long its consumer waited for it.

    `seconds` is the total so far.
    """

    def __init__(self, iterator):
        self._iterator, self.seconds = iter(iterator), 0.0

    def __iter__(self):
        return self

    def __next__(self):
        start = time.perf_counter()
        try:
            return next(self._iterator)
        finally:
            self.seconds += time.perf_counter() - start

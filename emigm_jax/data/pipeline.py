"""Training batches as a function of (seed, step): exact order, exact resume, any start.

The rows of a step are one stretch of an endless stream of permutations, one per epoch. Of several
hosts each takes its part of that stretch, so the sequence does not depend on how many there are.
"""

import collections
import functools
import time

import grain
import jax
import numpy as np

from emigm_jax.errors import UserError

_DATA = 0x64617461  # separates the keys of data from those of masks and noise
READERS, AHEAD = 2, 4  # of whole batches
DECODERS, PICTURES_AHEAD = 16, 512  # of single pictures


def batches(data, batch, seed, start, stop, host=(0, 1)):
    """Yields {'tokens', 'labels'} on the device for steps start to stop - 1.

    Reading and decoding run ahead in threads; the next batch is on its way to the device while a
    step runs, and moments are sampled there.

    Args:
      data: one of `datasets`.
      batch: images per step over all hosts; their count must divide it.
      seed: of order, mirroring and moments.
      host: (index, count); this host's share of each batch.

    Raises:
      UserError: the batch cannot be shared out evenly.
    """
    # Only data that are not tokens yet have something to do on the device.
    make = jax.jit(data.to_tokens) if hasattr(data, 'to_tokens') else _as_they_are
    params = getattr(data, 'params', None)
    key, queue = jax.random.key(seed), collections.deque()
    for step, rows in enumerate(host_batches(data, batch, seed, start, stop, host), start):
        step_key = jax.random.fold_in(jax.random.fold_in(key, step), _DATA)
        queue.append(make(params, jax.device_put(rows), step_key))
        if len(queue) > 1:
            yield queue.popleft()
    yield from queue


def _as_they_are(params, rows, key):
    return rows


def host_batches(data, batch, seed, start, stop, host=(0, 1)):
    """As `batches`, as NumPy arrays before anything happens on the device."""
    if batch % host[1]:
        raise UserError(f'training.batch_size = {batch} is no multiple of the {host[1]} hosts')
    share = batch // host[1]
    if hasattr(data, 'row'):  # pictures: decoding takes the time, so every row is a task

        def row(position):
            step, place = divmod(position, share)
            chosen, mirrored = _chosen(data, batch, seed, step, host)
            return data.row(int(chosen[place]), bool(mirrored[place]))

        options = grain.ReadOptions(num_threads=DECODERS, prefetch_buffer_size=PICTURES_AHEAD)
        rows = grain.MapDataset.range(start * share, stop * share).map(row)
        return iter(rows.to_iter_dataset(options).batch(share))
    take = lambda step: data.take(*_chosen(data, batch, seed, step, host))
    options = grain.ReadOptions(num_threads=READERS, prefetch_buffer_size=AHEAD)
    return iter(grain.MapDataset.range(start, stop).map(take).to_iter_dataset(options))


def _chosen(data, batch, seed, step, host):
    """(indices, mirrored) of this host's rows of a step."""
    return _of_step(data.examples, batch, seed, step, getattr(data, 'flip', False), host)


@functools.lru_cache(maxsize=64)  # single pictures ask for their step again and again
def _of_step(examples, batch, seed, step, flip, host):
    # Epochs, which key the permutations, never come near _DATA.
    rng = np.random.Generator(np.random.Philox(key=[seed, (_DATA << 32) + step]))
    mirrored = (rng.random(batch) < 0.5) & flip
    mine = slice(host[0] * (batch // host[1]), (host[0] + 1) * (batch // host[1]))
    return indices(examples, batch, seed, step)[mine], mirrored[mine]


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

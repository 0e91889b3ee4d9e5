"""In which order an epoch takes the examples: each once, as a function of (seed, epoch, place).

NumPy's permutation holds all indices at once: 0.8 GB and seconds for a hundred million. Grain's
keyed shuffle computes a single one when it is asked for, whatever the size of the data.

`blocks` is for data that are far away, where a request takes longer than a row. `BLOCK` neighbours
are a block, and the blocks of an epoch are laid out in a random order. The rows of a batch are cut
into `LANES` equal parts, whatever the number of processes; each lane takes a stretch of that line,
and shuffles it within windows of `WINDOW` rows that end at another time in each lane. So of a
process that holds whole lanes the rows of successive batches come from the same blocks, and the
sequence is the same for any number of processes up to `LANES`; where more share a lane, each reads
its blocks.

How random it is: which blocks are near each other is drawn in each epoch, which rows are in one
block is not. At any time rows of about LANES * WINDOW / BLOCK blocks are mixed (512; fewer in
batches of less than `LANES`). A batch of 2,048 takes 8 rows of each lane: of data that lie class by
class it sees some 510 of 1,000 classes, where a uniform one sees 880; one of 256 as many as that.
Beside (seed, epoch, place) it depends on the size of the batch: a run that goes on with another one
takes some examples of that epoch twice, and others not at all.
"""

import functools

import numpy as np
from grain.experimental import index_shuffle

from emigm_jax.errors import UserError

AUTO, BLOCKS = 'auto', 'blocks'
_PERMUTED_UP_TO = 2**21  # examples by 'auto': 16 MB and 40 ms; what it says is part of every run
_MOST = 2**32  # that the keyed shuffle counts
BLOCK, WINDOW, LANES = 32, 64, 256  # what they say is part of every run


def _permuted(examples, seed, epoch, places, batch):
    return _permutation(examples, seed, epoch)[places]


@functools.lru_cache(maxsize=2)  # a batch meets at most a few epochs, ImageNet's take 20 ms each
def _permutation(examples, seed, epoch):
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(examples)


def _keyed(examples, seed, epoch, places, batch):
    if examples > _MOST:
        raise UserError(f'{examples:,} examples are more than data.order counts: {_MOST:,}')
    key = int(np.random.Generator(np.random.Philox(key=[seed, epoch])).integers(_MOST))
    one = functools.partial(index_shuffle, max_index=examples - 1, seed=key, rounds=4)
    return np.fromiter((one(int(place)) for place in places), np.int64, len(places))


def _auto(examples, *which):
    return (_permuted if examples <= _PERMUTED_UP_TO else _keyed)(examples, *which)


def _blocks(examples, seed, epoch, places, batch):
    whole, left = divmod(examples, BLOCK)
    key, short = np.random.Generator(np.random.Philox(key=[seed, epoch])).integers(2**32, size=2)
    short = int(short) % (whole + 1) * BLOCK  # where the incomplete block stands in the line
    line = _line(_taken(examples, epoch, batch), epoch * examples + places, batch, int(key))
    incomplete = (line >= short) & (line < short + left)
    numbers, within = np.divmod(np.where(line < short, line, line - left), BLOCK)
    chosen = np.full(len(places), whole)
    chosen[~incomplete] = _auto(whole, seed, epoch, numbers[~incomplete], batch)
    within[incomplete] = line[incomplete] - short
    return chosen * BLOCK + within


def _lanes(batch):
    """The first row of each lane in a batch, and their end."""
    return -(-np.arange(LANES + 1) * batch // LANES)


def _so_far(positions, lane, batch):
    """How many of the positions before `positions` in the stream of batches are in a lane."""
    first = _lanes(batch)
    full, row = np.divmod(positions, batch)
    rows = first[lane + 1] - first[lane]
    return full * rows + np.clip(row - first[lane], 0, rows)


def _taken(examples, epoch, batch):
    """How many examples of an epoch were taken before it by each lane, and how many it takes."""
    begin, lanes = epoch * examples, np.arange(LANES)
    before = _so_far(begin, lanes, batch)
    return before, _so_far(begin + examples, lanes, batch) - before


def _line(taken, positions, batch, key):
    """Positions of an epoch in the line of blocks, shuffled within the windows of their lanes."""
    before, counts = taken
    lane = positions % batch * LANES // batch
    rank = _so_far(positions, lane, batch) - before[lane]
    starts = np.cumsum(counts) - counts
    ahead = lane * WINDOW // LANES  # windows of all lanes would end at once
    first = (rank + ahead) // WINDOW * WINDOW - ahead
    last, first = np.minimum(first + WINDOW, counts[lane]), np.maximum(first, 0)
    parts = zip(starts[lane] + first, last - first, rank - first, strict=True)
    return np.array([start + _window(key, *map(int, (start, n)))[i] for start, n, i in parts])


@functools.lru_cache(maxsize=4 * LANES)  # a batch meets one or two of each lane
def _window(key, start, rows):
    return np.random.Generator(np.random.Philox(key=[key, start])).permutation(rows)


# By the names of data.order: (examples, seed, epoch, places (B,) in it, batch) -> examples (B,).
ORDERS = {AUTO: _auto, 'permuted': _permuted, 'keyed': _keyed, BLOCKS: _blocks}


def indices(
    order: str, examples: int, seed: int, positions: np.ndarray, batch: int = 1
) -> np.ndarray:
    """Examples (B,) at positions (B,) of the endless stream of epochs.

    Args:
      order: of `ORDERS`.
      examples: in an epoch, each of them once.
      seed: of all orders.
      positions: counted from the first example of the first epoch.
      batch: examples of a step, over all processes; only `blocks` depends on it.

    Raises:
      UserError: there are too many examples.
    """
    epochs, places = np.divmod(positions, examples)
    chosen = np.empty(len(positions), np.int64)
    for epoch in np.unique(epochs):
        now = epochs == epoch
        chosen[now] = ORDERS[order](examples, seed, int(epoch), places[now], batch)
    return chosen

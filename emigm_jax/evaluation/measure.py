"""Images in, metrics out: one pass that may be interrupted at any moment and goes on.

Images go through Inception and into sums, a part of some thousand images at a time. After each part
the totals so far are saved; parts are always cut at the same places and added in the same order, so
an interrupted run ends with the very numbers of one that was not. Several processes make a share of
every batch each; the first one keeps the totals and the files.
"""

import dataclasses
import functools
import itertools
import tempfile
from typing import NamedTuple

import numpy as np

from emigm_jax.errors import UserError
from emigm_jax.evaluation import inception, inception_score, metrics, statistics
from emigm_jax.io import files, npz, paths
from emigm_jax.parallel import agreement
from emigm_jax.parallel import batches as spread

TOTALS = 'totals.npz'


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is measured and kept."""

    names: tuple  # of metrics.METRICS
    batch: int = 64  # images at a time, on all processes together
    part: int = 2048  # images between two saves, rounded to whole batches
    keep_images: bool = False  # in FOLDER/images, for an npz of them

    @property
    def keep_features(self):
        """Whether a metric needs the features of every image."""
        return any(metrics.METRICS[name][1] for name in self.names)

    @property
    def batches(self):
        """Batches in a part."""
        return max(1, self.part // self.batch)


class Network:
    """Inception on all devices of this process, and the sums of what it finds."""

    def __init__(self, params):
        self._params = spread.place(params)
        self._run = spread.OverDevices(inception.features)
        self.add = statistics.adder(spread.mesh())

    def __call__(self, images):
        """`inception.Features` of uint8 (B, H, W, 3); B a multiple of the devices."""
        return self._run(self._params, images)


class Measured(NamedTuple):
    """What `totals` found; on other processes than the first, only `made` is there."""

    totals: dict  # `statistics.collect`
    features: np.ndarray | None  # (N, 2048) float32 if `Plan.keep_features`
    made: int  # images that were made this time, by all processes; the others were there


def totals(images, folder, settings, network, shifts, plan, progress=lambda count: None):
    """The sums over all images, saved in `folder` on the way.

    Args:
      images: one of `image_sets`.
      folder: new, or of the same measurement interrupted; only the first process uses it.
      settings: JSON-like dict of all that decides the result.
      network: `Network`.
      shifts: {'pool': (2048,), 'spatial': (2023,)}, as `statistics.begin`.
      plan: `Plan`.
      progress: called with the number of images just done, first with those that were there.

    Returns:
      `Measured`.

    Raises:
      UserError: the folder belongs to another measurement, or an image cannot be read; on all
        processes.
    """
    folder, count, size = paths.absolute(folder), len(images), agreement.padded(plan.batch)
    agreement.check_same('the images and settings', [settings, count])
    saved = agreement.by_first(lambda: _opened(folder, settings))
    start = done = agreement.from_first(statistics.count(saved) if saved else 0)
    progress(done)
    scored = 'inception_score' in plan.names and count >= inception_score.SPLITS
    splits = inception_score.split_of_images(count) if scored else None
    shares = agreement.pieces(done, count, size)
    batches = _batches(images, shares, size)
    while shares:
        part, shares = shares[: plan.batches], shares[plan.batches :]

        def add_up(part=part):
            state = statistics.begin(spread.mesh(), shifts, scored)
            kept = {'features': [], 'images': []}
            for piece, made in zip(part, itertools.islice(batches, len(part)), strict=False):
                found = network(made)
                rows = dict(pool=found.pool, spatial=found.spatial, logits=found.logits)
                rows |= _weights(piece, len(made), splits)
                state = network.add(state, {name: rows[name] for name in _wanted(state)})
                if plan.keep_features:
                    kept['features'].append(np.asarray(found.pool))
                if plan.keep_images:
                    kept['images'].append(made)
                progress(piece.last - piece.first)
            return state, kept

        state, kept = agreement.agreed(add_up)
        more = statistics.collect(state)
        kept = {name: _together(part, arrays) for name, arrays in kept.items() if arrays}
        save = functools.partial(_saved, folder, settings, done, kept, saved, more)
        saved = agreement.by_first(save)
        done = part[-1].last
    whole = agreement.by_first(
        lambda: joined(folder, 'features', count) if plan.keep_features else None
    )
    return Measured(saved, whole, count - start)


def once(images, network, shifts, plan, progress=lambda count: None):
    """`totals` without a folder: nothing is left of it, and an interruption is its end."""
    with tempfile.TemporaryDirectory() as folder:
        return totals(images, folder, {}, network, shifts, plan, progress)


def _batches(images, shares, size):
    """Yields uint8 (share of `size`, H, W, 3) of every piece, filled up where it is shorter."""
    share = agreement.share(size)
    made = images.batches([slice(piece.start, piece.stop) for piece in shares], share)
    for piece in shares:
        batch = next(made, None)
        if batch is None:
            raise UserError(f'only {piece.first} of {len(images)} images came')
        yield spread.fill(batch, share)


def _weights(piece, size, splits):
    """{'weight', 'split'} of the rows of a piece that is filled up to `size`."""
    rows = np.arange(piece.start, piece.start + size)
    counts = piece.counts & (rows < piece.stop)
    split = {} if splits is None else {'split': splits[np.minimum(rows, piece.stop - 1)]}
    return {'weight': counts.astype(np.float32), **split}


def _wanted(state):
    """Names of the rows that `statistics.add` reads into this state."""
    scores = ('logits', 'split') if 'split_p' in state else ()
    return {'weight', *scores, *(k.removesuffix('_sum') for k in state if k.endswith('_sum'))}


def _together(part, arrays):
    """The real rows of a part's batches, of all processes and in order.

    Batch by batch, so that the devices never hold more images than while they were made.
    """
    batches = [
        agreement.gather(rows)[: piece.last - piece.first]
        for piece, rows in zip(part, arrays, strict=True)
    ]
    return np.concatenate(batches)


# --- The folder ----------------------------------------------------------------------------------


def _opened(folder, settings):
    """The totals saved there, or None; nothing is written before the first image is made."""
    files.claim(folder, settings, 'the measurement', write=False)
    return statistics.load(folder / TOTALS) if (folder / TOTALS).exists() else None


def _saved(folder, settings, first, kept, before, more):
    """The totals with those of a part more, whose first image is `first`; all of it is saved."""
    both = more if before is None else statistics.combine(before, more)
    files.claim(folder, settings, 'the measurement')
    # What is kept comes before the totals that say it is there.
    for name, rows in kept.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for path in _parts(folder / name):
            if path.name >= f'{first:08}':  # of a run that was killed before it said so
                path.unlink()
        npz.write(folder / name / f'{first:08}.npz', {'arr_0': rows})
    statistics.save(folder / TOTALS, both)
    return both


def _parts(folder):
    if not folder.is_dir():  # a bucket has no empty folders
        return []
    return sorted(
        (path for path in folder.iterdir() if path.suffix == '.npz'), key=lambda path: path.name
    )


def stored(folder, name):
    """Yields what was kept under `name` ('features', 'images'), a part (M, ...) at a time."""
    for path in _parts(paths.absolute(folder) / name):
        yield npz.members(path)['arr_0'].read()


def joined(folder, name, count):
    """The same in one array (N, ...).

    Raises:
      UserError: not all of it is there.
    """
    whole = np.concatenate(list(stored(folder, name)))
    if len(whole) != count:
        raise UserError(
            f'{folder}/{name}: holds {len(whole)} of {count} rows; delete {folder} to start afresh'
        )
    return whole


# --- Without sums --------------------------------------------------------------------------------


def pilot(images, network, batch):
    """Fixed points near the means, for `totals` without a reference: means of the first batch."""
    size = spread.padded(min(batch, len(images)))
    made = next(images.batches([slice(0, min(size, len(images)))], size))
    found = network(spread.fill(made, size))
    mean = lambda x: np.asarray(x, np.float64)[: len(made)].mean(0)
    return {'pool': mean(found.pool), 'spatial': mean(found.spatial)}


def pictures(images, batch=64, progress=lambda count: None):
    """All images of one of `image_sets` in memory, uint8 (N, H, W, 3), made by all processes."""
    return _each(images, batch, progress, lambda made: made)


def features(images, network, batch=64, progress=lambda count: None):
    """Pooled features (N, 2048) of one of `image_sets`, found by all processes."""
    return _each(images, batch, progress, lambda made: np.asarray(network(made).pool))


def _each(images, batch, progress, function):
    size = agreement.padded(batch)
    shares = agreement.pieces(0, len(images), size)

    def mine():
        found = []
        for piece, made in zip(shares, _batches(images, shares, size), strict=True):
            found.append(function(made))
            progress(piece.last - piece.first)
        return found

    return _together(shares, agreement.agreed(mine))

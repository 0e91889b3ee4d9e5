"""Images in, sums and features out: one pass that may be interrupted at any moment and goes on.

Images go through Inception and into sums, a part of some thousand images at a time. After each part
the totals so far are saved; parts are always cut at the same places and added in the same order, so
an interrupted run ends with the very numbers of one that was not. Several processes make a share of
every batch each; the first one keeps the totals and the files.
"""

import dataclasses
import functools
import itertools
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from emigm_jax.core import randomness
from emigm_jax.errors import UserError
from emigm_jax.evaluation import inception, inception_score, metrics, statistics
from emigm_jax.evaluation.image_sets import ImageSet
from emigm_jax.io import files, npz, paths
from emigm_jax.parallel import agreement, exchange
from emigm_jax.parallel import batches as spread

TOTALS = 'totals.npz'
Progress = Callable[[int], object]  # gets the number of images just done
silent: Progress = lambda count: None


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is measured and kept."""

    names: tuple[str, ...]  # of metrics.METRICS
    batch: int = 64  # images at a time, on all processes together
    part: int = 2048  # images between two saves, rounded to whole batches
    keep_images: bool = False  # in FOLDER/images, for an npz of them

    @property
    def keep_features(self) -> bool:
        """Whether a metric needs the features of every image."""
        return any(metrics.METRICS[name][1] for name in self.names)

    @property
    def batches(self) -> int:
        """Batches in a part."""
        return max(1, self.part // self.batch)


class Network:
    """Inception on all devices of this process, and the sums of its features."""

    def __init__(self, params: dict):
        self._params = spread.place(params)
        self._run = spread.OverDevices(inception.features)
        self.add = randomness.pinned()(statistics.adder(spread.mesh()))

    def __call__(self, images: np.ndarray | jax.Array) -> inception.Features:
        """Of uint8 (B, H, W, 3); B a multiple of the devices."""
        return self._run(self._params, images)


class Measured(NamedTuple):
    """What `totals` ends with; on other processes than the first, only `done` is there."""

    totals: statistics.Totals | None  # of `statistics.collect`
    features: np.ndarray | None  # (N, 2048) float32 if `Plan.keep_features`
    done: int  # images that were made this time, by all processes; the others were there


def totals(
    images: ImageSet,
    folder: os.PathLike | str,
    settings: dict[str, Any],
    network: Network,
    shifts: Mapping[str, np.ndarray],
    plan: Plan,
    progress: Progress = silent,
) -> Measured:
    """The sums over all images, saved in `folder` on the way.

    Args:
      images: are read from the first one that is not in the folder yet.
      folder: new, or of the same measurement interrupted; only the first process uses it.
      settings: JSON-like, all that decides the result.
      network: of whose features the sums are.
      shifts: {'pool': (2048,), 'spatial': (2023,)}, as `statistics.begin`.
      plan: what is measured and kept.
      progress: is called first with the number of images that were there.

    Raises:
      UserError: the folder belongs to another measurement, an image cannot be read or made, or
        features are not finite; on all processes.
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
            sums = statistics.begin(spread.mesh(), shifts, scored)
            kept = {'features': [], 'images': []}
            for piece, batch in zip(part, itertools.islice(batches, len(part)), strict=False):
                features = network(batch)
                sums = network.add(sums, _rows(piece, features, shifts, splits))
                if plan.keep_features:
                    kept['features'].append(np.asarray(features.pool))
                if plan.keep_images:
                    kept['images'].append(batch)
                progress(piece.last - piece.first)
            return sums, kept

        sums, kept = agreement.agreed(add_up)
        more = statistics.collect(sums)
        statistics.check_finite(more)  # no image of any later part would mend it
        kept = {name: _gathered(part, arrays) for name, arrays in kept.items() if arrays}
        save = functools.partial(_saved, folder, settings, done, kept, saved, more)
        saved = agreement.by_first(save)
        done = part[-1].last
    features = agreement.by_first(
        lambda: joined(folder, 'features', count) if plan.keep_features else None
    )
    return Measured(saved, features, count - start)


def once(
    images: ImageSet,
    network: Network,
    shifts: Mapping[str, np.ndarray],
    plan: Plan,
    progress: Progress = silent,
) -> Measured:
    """`totals` without a folder: nothing is left of it, and an interruption is its end."""
    with tempfile.TemporaryDirectory() as folder:
        return totals(images, folder, {}, network, shifts, plan, progress)


def _batches(images, shares, size):
    """Yields uint8 (share of `size`, H, W, 3) of every piece, filled up where it is shorter."""
    share = agreement.share(size)
    batches = images.batches([slice(piece.start, piece.stop) for piece in shares], share)
    for piece in shares:
        batch = next(batches, None)
        if batch is None:
            raise UserError(f'only {piece.first} of {len(images)} images came')
        yield np.asarray(spread.fill(batch, share))


def _rows(piece, features, kinds, splits):
    """`statistics.Rows` of a piece that is filled up to the length of its features."""
    numbers = np.arange(piece.start, piece.start + len(features.pool))
    weight = (piece.counts & (numbers < piece.stop)).astype(np.float32)
    summed = {kind: getattr(features, kind) for kind in kinds}
    if splits is None:
        return statistics.Rows(weight, summed)
    split = splits[np.minimum(numbers, piece.stop - 1)]
    return statistics.Rows(weight, summed, features.logits, split)


def _gathered(part, arrays):
    """The real rows of a part's batches, of all processes and in order; None but on the first.

    Batch by batch, so that the devices never hold more images than while they were made.
    """
    batches = [
        rows[: piece.last - piece.first]
        for piece, mine in zip(part, arrays, strict=True)
        if (rows := exchange.to_first(mine)) is not None
    ]
    return np.concatenate(batches) if batches else None


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


def stored(folder: os.PathLike | str, name: str) -> Iterator[np.ndarray]:
    """Yields what was kept under `name` ('features', 'images'), a part (M, ...) at a time."""
    for path in _parts(paths.absolute(folder) / name):
        members = npz.members(path)
        if 'arr_0' not in members:
            raise UserError(f'{path}: holds no {name} of a measurement; delete it to start afresh')
        yield members['arr_0'].read()


def joined(folder: os.PathLike | str, name: str, count: int) -> np.ndarray:
    """The same in one array (N, ...).

    Raises:
      UserError: not all of it is there.
    """
    parts = list(stored(folder, name))
    rows = sum(part.shape[0] for part in parts if part.ndim)
    if rows != count or len({part.shape[1:] for part in parts}) != 1:
        raise UserError(
            f'{folder}/{name}: holds {rows} of {count} rows, in {len(parts)} parts; delete '
            f'{folder} to start afresh'
        )
    return np.concatenate(parts)


# --- Without sums --------------------------------------------------------------------------------


def pilot(images: ImageSet, network: Network, batch: int) -> dict[str, np.ndarray]:
    """Fixed points near the means, for `totals` without a reference: means of the first batch."""
    size = spread.padded(min(batch, len(images)))
    rows = next(images.batches([slice(0, min(size, len(images)))], size))
    features = network(spread.fill(rows, size))
    mean = lambda x: np.asarray(x, np.float64)[: len(rows)].mean(0)
    return {'pool': mean(features.pool), 'spatial': mean(features.spatial)}


def each(
    images: ImageSet,
    function: Callable[[np.ndarray], np.ndarray],
    batch: int = 64,
    progress: Progress = silent,
) -> np.ndarray | None:
    """function(uint8 (B, H, W, 3)) -> (B, ...) of all images, made by all processes: (N, ...).

    It is for the first process; on the others it is None.
    """
    size = agreement.padded(batch)
    shares = agreement.pieces(0, len(images), size)

    def mine():
        arrays = []
        for piece, rows in zip(shares, _batches(images, shares, size), strict=True):
            arrays.append(function(rows))
            progress(piece.last - piece.first)
        return arrays

    return _gathered(shares, agreement.agreed(mine))

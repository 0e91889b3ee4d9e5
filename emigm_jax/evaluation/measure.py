"""Images in, metrics out: one pass that may be interrupted at any moment and goes on.

Images go through Inception and into sums, a part of some thousand images at a time. After each part
the totals so far are saved; parts are always cut at the same places and added in the same order, so
an interrupted run ends with the very numbers of one that was not.
"""

import dataclasses

import numpy as np

from emigm_jax import files, spread, storage
from emigm_jax.errors import UserError
from emigm_jax.evaluation import inception, inception_score, metrics, npz, statistics

TOTALS = 'totals.npz'


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is measured and kept."""

    names: tuple  # of metrics.METRICS
    batch: int = 64  # images at a time
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
    """Inception on all devices of this process."""

    def __init__(self, params):
        self._params = spread.place(params)
        self._run = spread.over_devices(inception.features)

    def __call__(self, images):
        """`inception.Features` of uint8 (B, H, W, 3); B a multiple of the devices."""
        return self._run(self._params, images)


def totals(images, folder, settings, network, shifts, plan, progress=lambda count: None):
    """The sums over all images, saved in `folder` on the way.

    Args:
      images: one of `image_sets`.
      folder: new, or of the same measurement interrupted.
      settings: JSON-like dict of all that decides the result.
      network: `Network`.
      shifts: {'pool': (2048,), 'spatial': (2023,)}, as `statistics.begin`.
      plan: `Plan`.
      progress: called with the number of images just done.

    Returns:
      (totals as of `statistics.collect`, features (N, 2048) float32 or None).

    Raises:
      UserError: the folder belongs to another measurement, or an image cannot be read.
    """
    folder = storage.absolute(folder)
    files.claim(folder, settings, 'the measurement', write=False)
    count, size = len(images), spread.padded(plan.batch)
    splits = inception_score.split_of_images(count)
    step = statistics.adder(spread.mesh())
    saved = statistics.load(folder / TOTALS) if (folder / TOTALS).exists() else None
    done = statistics.count(saved) if saved else 0
    progress(done)
    batches = images.batches(size, done)
    while done < count:
        state, kept, held = statistics.begin(spread.mesh(), shifts), [], []
        first = done
        for made in _some(batches, plan.batches):
            rows = statistics.fill_up({'split': splits[done : done + len(made)]}, size)
            found = network(spread.fill(made, size))
            rows |= {'pool': found.pool, 'spatial': found.spatial, 'logits': found.logits}
            state = step(state, {k: v for k, v in rows.items() if k in _wanted(shifts)})
            if plan.keep_features:
                kept.append(np.asarray(found.pool)[: len(made)])
            if plan.keep_images:
                held.append(made)
            done += len(made)
            progress(len(made))
        if done == first:
            raise UserError(f'only {done} of {count} images came')
        files.claim(folder, settings, 'the measurement')
        # What is kept comes before the totals that say it is there.
        for name, arrays in (('features', kept), ('images', held)):
            if arrays:
                (folder / name).mkdir(parents=True, exist_ok=True)
                npz.write(folder / name / f'{first:08}.npz', {'arr_0': np.concatenate(arrays)})
        more = statistics.collect(state)
        saved = more if saved is None else statistics.combine(saved, more)
        statistics.save(folder / TOTALS, saved)
    return saved, _parts(folder / 'features', count) if plan.keep_features else None


def _wanted(shifts):
    return {*shifts, 'logits', 'split', 'weight'}


def _some(iterator, count):
    for _ in range(count):
        made = next(iterator, None)
        if made is None:
            return
        yield made


def _parts(folder, count):
    """What was kept in parts, as one array."""
    names = sorted(path.name for path in folder.iterdir() if path.suffix == '.npz')
    whole = np.concatenate([npz.members(folder / name)['arr_0'].read() for name in names])
    if len(whole) != count:
        raise UserError(f'{folder}: holds {len(whole)} of {count} rows; delete the folder above it '
                        'to start afresh')  # fmt: skip
    return whole


def images_of(folder, count):
    """The images that `Plan.keep_images` kept: uint8 (N, H, W, 3)."""
    return _parts(storage.absolute(folder) / 'images', count)


def pilot(images, network, batch):
    """Fixed points near the means, for `totals` without a reference: means of the first batch."""
    first = next(images.batches(spread.padded(batch)))
    found = network(spread.fill(first, spread.padded(batch)))
    mean = lambda x: np.asarray(x, np.float64)[: len(first)].mean(0)
    return {'pool': mean(found.pool), 'spatial': mean(found.spatial)}


def features(rows, network, batch=64, progress=lambda count: None):
    """Pooled features (M, 2048) of the images of an `npz.Rows`, such as a reference's."""
    size, found = spread.padded(batch), []
    for block in rows.blocks(size):
        found.append(np.asarray(network(spread.fill(block, size)).pool)[: len(block)])
        progress(len(block))
    return np.concatenate(found)

"""Images against the statistics of real ones, by features of the Inception network."""

import os
from collections.abc import Iterable
from typing import final

import numpy as np

from emigm_jax.evaluation import image_sets, inception, measure, metrics, references
from emigm_jax.evaluation.evaluator import Gathered, Work
from emigm_jax.evaluation.image_sets import ImageSet
from emigm_jax.evaluation.inception import Extractor
from emigm_jax.evaluation.measure import Progress
from emigm_jax.evaluation.references import Reference
from emigm_jax.evaluation.result import Result
from emigm_jax.nn.functional import fingerprint


@final
class AgainstReference:
    """The `Evaluator` behind FID and its kin; its programs are compiled once.

    Args:
      reference: file of statistics of the real images, or what is in it.
      network: checkpoint of Inception, or what is in it; it goes to all devices of this process.
      names: of `metrics.METRICS`. One that cannot be computed is `Result.missing`.

    Raises:
      UserError: a metric is unknown, or one of the two cannot be read.
    """

    def __init__(
        self,
        reference: os.PathLike | str | Reference,
        network: os.PathLike | str | Extractor,
        names: Iterable[str],
    ):
        # Features of the reference's images: on the first process, once all have made them.
        self._names, self._real, self._prepared = tuple(names), None, False
        metrics.check(self._names)
        self._reference, extractor = references.opened(reference), inception.opened(network)
        self._network = measure.Network(extractor.params)
        self._weights = fingerprint(extractor.params)
        self._shifts = {'pool': self._reference.mean}
        if 'sfid' in self._names and self._reference.spatial_mean is not None:
            self._shifts['spatial'] = self._reference.spatial_mean

    def gather(self, images: ImageSet, work: Work, progress: Progress) -> Gathered:
        """See `Evaluator`."""
        about = {'content': images.fingerprint()} if work.about is None else work.about
        settings = {
            **about,
            'images': len(images),
            'reference': self._reference.fingerprint,
            'inception': self._weights,
            'metrics': list(self._names),
            'batch_size': work.batch_size,
            'kept_images': work.keep_images,
        }
        plan = measure.Plan(self._names, work.batch_size, keep_images=work.keep_images)
        how = self._network, self._shifts, plan, progress
        if work.folder is None:
            measured = measure.once(images, *how)
        else:
            measured = measure.totals(images, work.folder, settings, *how)
        return Gathered(measured.done, lambda: self._result(measured, settings, work))

    def prepare(self, work: Work) -> None:
        """See `Evaluator`: features of a reference that has images in their place."""
        stored, needed = self._reference.images, measure.Plan(self._names).keep_features
        present = self._prepared or self._reference.features is not None
        if present or not needed or stored is None:
            return
        images = image_sets.Stored(stored)
        work.say(f'features of the {len(images):,} images in {stored.path}')
        pool = lambda rows: np.asarray(self._network(rows).pool)
        with work.bar(total=len(images)) as bar:
            self._real = measure.each(images, pool, work.batch_size, bar.update)
        self._prepared = True

    def _result(self, measured, settings, work):
        reference = self._reference
        assert measured.totals is not None  # on the first process, which computes this
        inputs = metrics.Inputs(measured.totals, reference, measured.features, self._real)
        with work.bar(self._names, unit=' metrics', desc='computing the metrics') as names:
            values, missing = metrics.compute(inputs, names)
        return Result(
            scores=values,
            images=settings['images'],
            settings=settings,
            missing=missing,
            reference={'name': reference.name, 'fingerprint': reference.fingerprint},
        )

"""Images against real ones pixel by pixel: needs no network, and shows whether a run learns."""

import functools
from typing import final

import numpy as np

from emigm_jax.data.pictures import shrunk
from emigm_jax.data.sources import Images
from emigm_jax.errors import UserError, printable
from emigm_jax.evaluation import measure, scores
from emigm_jax.evaluation.evaluator import Gathered, Work
from emigm_jax.evaluation.image_sets import ImageSet
from emigm_jax.evaluation.measure import Progress
from emigm_jax.evaluation.result import Result


@final
class InPixels:
    """The `Evaluator` of images, as `shrunk`, beside scores of one half of the real ones.

    Args:
      real: as `shrunk`; those in grey are compared with the first colour of the images.
    """

    def __init__(self, real: Images):
        self._colours = real.images.shape[-1]
        self._real, self._labels = self._flat(real.images), real.labels
        self._names = real.class_names

    def gather(self, images: ImageSet, work: Work, progress: Progress) -> Gathered:
        """See `Evaluator`; UserError as well where the classes of the images are not known."""
        labels = images.labels
        if labels is None:
            raise UserError('images without classes cannot be compared in pixels')
        made = measure.each(images, shrunk, work.batch_size, progress)

        def result():
            assert made is not None  # on the first process, which computes this
            rows = self._flat(made)
            return Result(
                scores=scores.compare(self._real, self._labels, rows, labels),
                images=len(images),
                settings={**(work.about or {}), 'accuracy_by_class': self._by_class(rows, labels)},
                real_halves=self._halves,
            )

        return Gathered(len(images), result)

    def prepare(self, work: Work) -> None:
        """See `Evaluator`: the pixels are there."""

    @functools.cached_property
    def _halves(self):
        return scores.halves(self._real, self._labels)

    def _by_class(self, rows, labels):
        """{name of a class: class accuracy} of the images that were made for it."""
        of_class = lambda label: (rows[labels == label], labels[labels == label])
        accuracy = lambda label: scores.nearest_neighbour_accuracy(
            self._real, self._labels, *of_class(label)
        )
        return {printable(self._names[label]): accuracy(label) for label in np.unique(labels)}

    def _flat(self, images):
        return images[..., : self._colours].reshape(len(images), -1) / 255.0

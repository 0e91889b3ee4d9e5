"""Measuring images with one call: against a reference, in pixels, or one folder against another."""

import os
from collections.abc import Iterable

from emigm_jax.data import sources
from emigm_jax.data.sources import Images
from emigm_jax.errors import whole
from emigm_jax.evaluation import (
    evaluator,
    image_sets,
    make_reference,
    measure,
    references,
    scores,
    statistics,
)
from emigm_jax.evaluation import inception as networks
from emigm_jax.evaluation import metrics as table
from emigm_jax.evaluation.against_reference import AgainstReference
from emigm_jax.evaluation.evaluator import Work
from emigm_jax.evaluation.image_sets import ImageSet
from emigm_jax.evaluation.in_pixels import InPixels
from emigm_jax.evaluation.inception import Extractor
from emigm_jax.evaluation.make_reference import measured_anew
from emigm_jax.evaluation.references import Reference
from emigm_jax.evaluation.result import Result
from emigm_jax.evaluation.score_table import DEFAULT
from emigm_jax.io import npz, paths
from emigm_jax.io.progress import Bar
from emigm_jax.parallel import agreement


def evaluate(
    images: ImageSet,
    *,
    reference: os.PathLike | str | Reference,
    inception: os.PathLike | str | Extractor,
    metrics: Iterable[str] = DEFAULT,
    work: Work | None = None,
) -> Result:
    """FID and its kin of images against statistics of real ones.

        images = image_sets.folder('samples')
        result = evaluate(images, reference='real.npz', inception='fid-inception')
        result.scores['fid']

    Args:
      images: uint8, of one size, which the network gets resized to 299 pixels.
      reference: file of statistics, what is in it, or a folder of pictures, whose statistics are
        made for squares of the size of `images` and kept beside it (`make_reference.opened`).
      inception: checkpoint of the network, or what is in it.
      metrics: of `metrics.METRICS`; one that cannot be computed is `Result.missing`.
      work: batch size, and the folder from which an interrupted evaluation goes on.

    Returns:
      the `Result`, on all processes.

    Raises:
      UserError: a metric is unknown, a file cannot be read, or the folder holds something else.
    """
    work = work or Work()
    return evaluator.measure(against(images, reference, inception, metrics, work), images, work)


def against(
    images: ImageSet,
    reference: os.PathLike | str | Reference,
    inception: os.PathLike | str | Extractor,
    metrics: Iterable[str],
    work: Work,
) -> AgainstReference:
    """What `evaluate` measures with; arguments and errors are its own."""
    names = tuple(metrics)
    agreement.agreed(lambda: table.check(names))
    reference = agreement.agreed(lambda: make_reference.at_hand(reference))
    network = agreement.agreed(lambda: networks.opened(inception))
    side = lambda: image_sets.side(images, work.batch_size)
    real = make_reference.opened(reference, network, side, work)
    return agreement.agreed(lambda: AgainstReference(real, network, names))


def evaluate_digits(images: ImageSet, work: Work | None = None) -> Result:
    """Scores of images of the digits, 8 x 8 pixels, beside those of real ones against real ones.

        images = image_sets.Generated(make, 1000, 10, 'my model')
        evaluate_digits(images).scores['accuracy']

    Args:
      images: with labels, in grey or in three equal colours.
      work: batch size; nothing is saved on the way.

    Raises:
      UserError: the images have no labels, or cannot be read.
    """
    return evaluate_in_pixels(images, sources.digits(), work)


def evaluate_in_pixels(images: ImageSet, real: Images, work: Work | None = None) -> Result:
    """As `evaluate_digits`, of images of any kind beside real ones, as `data.real` gives them."""
    return evaluator.measure(InPixels(real), images, work)


def fid(
    first: os.PathLike | str,
    second: os.PathLike | str,
    *,
    inception: os.PathLike | str | Extractor,
    image_size: int | None = None,
    batch_size: int = 64,
) -> float:
    """Frechet Inception distance between two sets, of which neither needs a reference file.

        fid('samples', 'imagenet/val', inception='fid-inception', image_size=256)

    Args:
      first, second: a folder of pictures, an npz file of images, or a file of statistics each.
        The statistics of a second folder, which may be the large one, are kept beside it.
      inception: checkpoint of the network, or what is in it.
      image_size: pixels per side of a centre crop of pictures in folders; None: as they are.
      batch_size: images at a time.

    Raises:
      UserError: a file cannot be read, or a set has less than 2 images.
    """
    batch_size = whole('batch_size', batch_size, low=1)
    if image_size is not None:
        image_size = whole('image_size', image_size, low=1)
    weights = agreement.agreed(lambda: networks.opened(inception))
    network, plan = measure.Network(weights.params), measure.Plan(('fid',), batch_size)

    def kept(place):
        if not agreement.agreed(lambda: paths.absolute(place).is_dir()):
            return moments(place)
        real = make_reference.opened(place, weights, lambda: image_size, Work(batch_size))
        return real.mean, real.covariance

    def moments(place):
        images = agreement.agreed(lambda: _images(place, image_size))
        if images is None:
            reference = references.read(place)
            return reference.mean, reference.covariance
        with Bar(total=len(images), quiet=not agreement.first()) as bar:
            measured = measured_anew(images, network, plan, bar.update)

        def of_images():
            assert measured.totals is not None
            return statistics.moments(measured.totals)

        return agreement.by_first(of_images)

    pair = moments(first), kept(second)

    def distance():
        one, other = pair
        assert one is not None and other is not None
        return scores.frechet_distance(*one, *other)

    value = agreement.from_first(agreement.by_first(distance))
    assert value is not None
    return value


def _images(place, image_size):
    """The images at a place, or None where there are statistics."""
    if paths.absolute(place).is_dir():
        return image_sets.folder(place, image_size)
    if npz.is_npz(place) and not references.is_reference(npz.members(place)):
        return image_sets.stored(place)
    return None

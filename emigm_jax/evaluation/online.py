"""Evaluation while training: a few images of the EMA weights, measured on the way.

FID of 5,000 images lies above that of 50,000 (it is biased by about a/N), so it shows whether a run
gets better; what is reported comes from `emigm evaluate`.
"""

import functools
from collections.abc import Callable

import numpy as np

from emigm_jax.config.settings import EvaluationConfig
from emigm_jax.data import sources
from emigm_jax.data.sources import Images
from emigm_jax.evaluation import evaluator, image_sets, inception, make_reference, metrics
from emigm_jax.evaluation.against_reference import AgainstReference
from emigm_jax.evaluation.in_pixels import InPixels
from emigm_jax.io.progress import Bar
from emigm_jax.parallel import agreement

Maker = Callable[[np.ndarray, np.ndarray], np.ndarray]  # labels, seeds -> images


def online(
    settings: EvaluationConfig,
    classes: int,
    maker: Callable[[dict], Maker],
    real: Callable[[], Images] = sources.digits,
    side: int | None = None,
) -> Callable[[dict, int], dict[str, float]]:
    """Makes the function that measures a run's weights; all files are read now, not on the way.

    Args:
      settings: what is measured, how many images and against what.
      classes: of the model; as many images are made of each as of any other.
      maker: parameters -> what makes images of them, as `image_sets.Generated` has it.
      real: gives what pixels are compared with where no reference is set.
      side: pixels of the images, to which the pictures of a folder are cropped that is the
        reference; None: they are of that size.

    Returns:
      evaluate(params, step) -> {name: float}: the scores for parameters that are replicated on this
      process's devices. All processes call it, each makes its share, and all get the numbers. Its
      programs are compiled by the first call. A metric that cannot be computed is said to be
      missing, each time.

    Raises:
      UserError: a metric is unknown, or the reference or the network cannot be read.
    """
    if settings.reference:
        names = settings.metrics.split(',')
        metrics.check(names)
        reference = make_reference.at_hand(settings.reference)
        network = inception.opened(settings.inception)
        work = evaluator.Work(settings.batch_size, say=functools.partial(print, flush=True))
        statistics = make_reference.opened(reference, network, lambda: side, work)
        measuring = AgainstReference(statistics, network, names)
    else:
        measuring = InPixels(real())
    bar = functools.partial(Bar, quiet=not agreement.first())
    measuring.prepare(evaluator.Work(settings.batch_size, bar=bar))

    def evaluate(params, step):
        name = f'evaluating step {step}'
        images = image_sets.Generated(maker(params), settings.num_images, classes, name)
        named = functools.partial(bar, desc=name, leave=False)
        result = evaluator.measure(
            measuring, images, evaluator.Work(settings.batch_size, bar=named)
        )
        for metric, reason in result.missing.items() if agreement.first() else ():
            print(f'{metric}: not computed, {reason}', flush=True)
        return result.scores

    return evaluate

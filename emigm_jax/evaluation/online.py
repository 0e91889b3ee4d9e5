"""Evaluation while training: a few images of the EMA weights, measured on the way.

FID of 5,000 images lies above that of 50,000 (it is biased by about a/N), so it shows whether a run
gets better; what is reported comes from `emigm evaluate`.
"""

import functools
from collections.abc import Callable

import numpy as np
import tqdm

from emigm_jax.config.settings import EvaluationConfig
from emigm_jax.data import sources
from emigm_jax.data.sources import Images
from emigm_jax.evaluation import evaluator, image_sets
from emigm_jax.evaluation.against_reference import AgainstReference
from emigm_jax.evaluation.in_pixels import InPixels
from emigm_jax.parallel import agreement

Maker = Callable[[np.ndarray, np.ndarray], np.ndarray]  # labels, seeds -> images


def online(
    settings: EvaluationConfig,
    classes: int,
    maker: Callable[[dict], Maker],
    real: Callable[[], Images] = sources.digits,
) -> Callable[[dict, int], dict[str, float]]:
    """Makes the function that measures a run's weights; all files are read now, not on the way.

    Args:
      settings: what is measured, how many images and against what.
      classes: of the model; as many images are made of each as of any other.
      maker: parameters -> what makes images of them, as `image_sets.Generated` has it.
      real: gives what pixels are compared with where no reference is set.

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
        measuring = AgainstReference(settings.reference, settings.inception, names)
    else:
        measuring = InPixels(real())
    silent = None if agreement.first() else True
    measuring.prepare(evaluator.Work(settings.batch_size))

    def evaluate(params, step):
        name = f'evaluating step {step}'
        bar = functools.partial(tqdm.tqdm, desc=name, leave=False, disable=silent)
        images = image_sets.Generated(maker(params), settings.num_images, classes, name)
        work = evaluator.Work(settings.batch_size, bar=bar)
        result = evaluator.measure(measuring, images, work)
        assert result is not None  # nobody leaves
        for metric, reason in result.missing.items() if agreement.first() else ():
            print(f'{metric}: not computed, {reason}', flush=True)
        return result.scores

    return evaluate

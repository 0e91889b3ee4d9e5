"""Evaluation while training: a few images of the EMA weights, measured on the way.

FID of 5,000 images lies above that of 50,000 (it is biased by about a/N), so it shows whether a run
gets better; what is reported comes from `emigm evaluate`.
"""

import tqdm

from emigm_jax.data import sources
from emigm_jax.errors import UserError
from emigm_jax.evaluation import image_sets, inception, measure, metrics, references, scores
from emigm_jax.parallel import agreement
from emigm_jax.sampling import generator
from emigm_jax.sampling.sampler import Sampler


def evaluator(config, data):
    """Makes the function that measures a run's weights; all files are read now, not on the way.

    Args:
      config: `Config`.
      data: what `datasets.dataset` makes of it.

    Returns:
      evaluate(params, step) -> {name: float}: the metrics of `config.evaluation` for parameters
      that lie whole on this process's devices. Images are class-balanced, image i comes from seed
      i. All processes call it, each makes its share, and all get the numbers. Its programs are
      compiled by the first call.

    Raises:
      UserError: the tokens cannot be decoded, a metric is unknown, or the reference or the network
        cannot be read. A metric that cannot be computed is said to be missing, each time.
    """
    settings = config.evaluation
    if data.codec is None:
        raise UserError(
            'evaluation.every: the tokens of this data cannot be turned into pictures; '
            'name their tokenizer in data.tokenizer'
        )
    sampler = Sampler(config.model, config.sampling)
    weights = str(config.optimizer.ema_decays[0])
    measured = _by_inception(settings) if settings.reference else _in_pixels(settings)

    def evaluate(params, step):
        make = generator.Generator(params, sampler, data.codec, settings.batch_size, weights)
        images = image_sets.Generated(make, settings.num_images, config.model.classes)
        off = None if agreement.first() else True
        with tqdm.tqdm(
            total=len(images), desc=f'evaluating step {step}', leave=False, disable=off
        ) as bar:
            return measured(images, bar.update)

    return evaluate


def _by_inception(settings):
    """measured(images, progress) -> {name: float} against the reference."""
    names = tuple(settings.metrics.split(','))
    metrics.check(names)
    reference = references.read(settings.reference)
    plan = measure.Plan(names, settings.batch_size)
    shifts = {'pool': reference.mean}
    if 'sfid' in names and reference.spatial_mean is not None:
        shifts['spatial'] = reference.spatial_mean
    network = measure.Network(inception.load(settings.inception).params)
    real = None
    if plan.keep_features and reference.features is None and reference.images is not None:
        stored = image_sets.Stored(reference.images)
        real = measure.features(stored, network, settings.batch_size)

    def measured(images, progress):
        found = measure.once(images, network, shifts, plan, progress)

        def compute():
            values, missing = metrics.compute(
                metrics.Inputs(found.totals, reference, found.features, real), names
            )
            for name, reason in missing.items():
                print(f'{name}: not computed, {reason}', flush=True)
            return values

        return agreement.from_first(agreement.by_first(compute))

    return measured


def _in_pixels(settings):
    """measured(images, progress) -> {name: float} of digits against the real ones."""
    source = sources.digits()
    flat = lambda images: images[..., 0].reshape(len(images), -1) / 255.0
    real = flat(source.images)

    def measured(images, progress):
        made = measure.pictures(images, settings.batch_size, progress)
        compute = lambda: scores.compare(real, source.labels, flat(made), images.labels)
        return agreement.from_first(agreement.by_first(compute))

    return measured

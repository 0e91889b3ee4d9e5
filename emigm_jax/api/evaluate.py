"""Scores of a model, of a folder of pictures or of an npz file, with one call."""

import dataclasses
import functools
import os
from collections.abc import Iterable
from typing import Any, Unpack, cast

from emigm_jax.api.model import Model
from emigm_jax.checkpoints.runs import Saved
from emigm_jax.config.options import SamplingOptions
from emigm_jax.config.settings import IN_PIXELS
from emigm_jax.core import randomness
from emigm_jax.data import real
from emigm_jax.errors import UserError, check_range, whole
from emigm_jax.evaluation import evaluate as library
from emigm_jax.evaluation import image_sets
from emigm_jax.evaluation.evaluator import Work
from emigm_jax.evaluation.inception import Extractor
from emigm_jax.evaluation.references import Reference
from emigm_jax.evaluation.result import Result
from emigm_jax.evaluation.score_table import DEFAULT
from emigm_jax.io import npz, paths
from emigm_jax.io.progress import Bar
from emigm_jax.parallel import agreement
from emigm_jax.sampling.generator import Generator


def evaluate(
    what: Model | os.PathLike | str,
    *,
    reference: os.PathLike | str | Reference | None = None,
    inception: os.PathLike | str | Extractor | None = None,
    metrics: Iterable[str] = DEFAULT,
    num_images: int | None = None,
    preset: str | None = None,
    work: Work | None = None,
    **options: Unpack[SamplingOptions],
) -> Result:
    """FID and its kin against statistics of real images; models of pictures also in pixels.

    Args:
      what: a `Model`, whose image i comes from seed i, class by class; a folder of pictures of one
        size; or an npz file with uint8 images in arr_0.
      reference: file of statistics (ADM, eMIGM, MAR, MeanFlow, EDM2, our own), or a folder of
        pictures, whose statistics are made at the size of the images and kept beside it; None: a
        model of digits or of a folder is compared with the real ones in pixel space.
      inception: checkpoint of FID's network, from `convert`.
      metrics: fid, sfid, inception_score, kid, precision_recall, fid_infinite,
        fid_standard_error; one that cannot be computed is in `Result.missing`.
      num_images: how many a model makes (50,000; in pixels: 1,000).
      preset, **options: sampling settings, as in `Model.sample`.
      work: batch size, and the folder from which an interrupted evaluation goes on.

    Returns:
      the `Result`: scores by name, and what they were made of.

    Raises:
      UserError: a file cannot be read, does not fit, or a setting makes no sense.

    Example:
      >>> result = em.evaluate(model, num_images=100)
      >>> sorted(result.scores)
      ['accuracy', 'frechet_distance', 'precision', 'recall']
    """
    if (reference is None) != (inception is None):
        raise UserError('reference and inception go together')
    work = work or Work(bar=functools.partial(Bar, quiet=not agreement.first()))
    if not isinstance(what, Model):
        if reference is None:
            raise UserError(f'{what}: pictures are measured against a reference, by inception')
        images = _pictures(what)
    else:
        if reference is None and what.config.data.name not in IN_PIXELS:
            raise UserError(
                f'{what.saved.path}: needs reference and inception (only models of '
                f'{", ".join(IN_PIXELS)} are scored in pixel space)'
            )
        count = (1000 if reference is None else 50_000) if num_images is None else num_images
        count = whole('num_images', count, low=4)
        make = what.with_sampling(what.sampling(preset, **options))
        images, about = generated(what.saved, make, count)
        work = dataclasses.replace(work, about=work.about or about)
    if reference is None:
        # Only of a model: pictures need a reference.
        real_ones = real.images(cast(Model, what).config.data)
        return library.evaluate_in_pixels(images, real_ones, work)
    # Without both of them the first check would have failed.
    network = cast(os.PathLike | str | Extractor, inception)
    return library.evaluate(
        images, reference=reference, inception=network, metrics=metrics, work=work
    )


def _pictures(place):
    if paths.absolute(place).is_dir():
        return image_sets.folder(place)
    if npz.is_npz(place):
        return image_sets.stored(place)
    raise UserError(f'{place}: is neither a folder of pictures nor an npz file of images')


def generated(
    saved: Saved, make: Generator, count: int
) -> tuple[image_sets.Generated, dict[str, Any]]:
    """`count` images of a model, class by class, and the JSON-like facts that decide them."""
    check_range('num_images', count, high=randomness.LAST_SEED + 1)
    reveal, about = make.sampler.config.reveal, make.about()
    share = (reveal.guidance_to - reveal.guidance_from) * (reveal.guidance != 1.0)
    facts = {
        'source': 'checkpoint',
        'step': saved.step,
        'nfe_as_the_paper_counts': f'{reveal.steps}x{1 + share:g}',
        'nfe': make.nfe,
        **about,
    }
    model, side = saved.config.model, saved.config.model.grid * make.codec.spec.stride
    return image_sets.Generated(make.batch, count, model.classes, about['content'], side), facts

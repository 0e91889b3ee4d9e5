"""What a model of codes needs to code pictures that it has not seen: MDM's bounds."""

import os
import time
from typing import Unpack

from emigm_jax.api.model import Model
from emigm_jax.config.options import SamplingOptions
from emigm_jax.config.settings import SamplingConfig
from emigm_jax.core import bounds
from emigm_jax.data import datasets
from emigm_jax.errors import UserError
from emigm_jax.evaluation.result import Result
from emigm_jax.io.progress import Bar
from emigm_jax.training import likelihood

DRAWS = 32  # passes of the network per picture


def bits_per_dim(
    model: Model,
    *,
    data: os.PathLike | str = '',
    draws: int = DRAWS,
    num_images: int | None = None,
    seed: int = 0,
    **options: Unpack[SamplingOptions],
) -> Result:
    """Bounds of -log2 p(x | class) per dimension, over pictures that were held back from training.

    A dimension is a colour of a pixel where codes are quantised pixels, and else a code.

    Args:
      model: with a categorical head.
      data: where others lie, of the kind that it was trained on; '': those that `data.held_back`
        kept from it.
      draws: passes of the network per picture, 8 at least.
      num_images: how many pictures; None: all.
      seed: of the draws.
      **options: sampling settings: `bits_per_dim_in_steps` is the bound of pictures that are drawn
        in these steps, in random order and neither guided nor cooled, each of which draws its
        tokens independently of one another.

    Returns:
      the `Result`, in its settings nats and bits per token and the error that is due to draws.

    Raises:
      UserError: nothing was held back, or the model tells no probabilities.

    Example:
      >>> result = em.bits_per_dim(model, draws=64)  # doctest: +SKIP
      >>> result.scores['bits_per_dim']  # doctest: +SKIP
      1.29
    """
    return measured(model, model.sampling(**options), os.fspath(data), draws, num_images, seed)


def measured(
    model: Model,
    sampling: SamplingConfig,
    data: str,
    draws: int,
    num_images: int | None = None,
    seed: int = 0,
) -> Result:
    """As `bits_per_dim`, with whole sampling settings."""
    config, reveal, start = model.config, sampling.reveal, time.monotonic()
    likelihood.check_head(config.model)
    part = datasets.held_back(config, data, model.saved.data)
    names = tuple(part.class_names), model.saved.class_names
    if all(names) and names[0] != names[1]:
        raise UserError(f'{data}: its classes have other names than those of {model.saved.path}')
    losses = likelihood.measure(
        config.model,
        model.generator.model_params,
        part,
        likelihood.Draws(draws, num_images, seed),
        model.generator.batch_size,
        lambda rows: Bar(rows, unit=' batches', desc='measuring'),
    )
    dimensions = part.codec.spec.dimensions if part.codec else 1
    in_time, in_steps = (
        likelihood.bits(losses, weights, dimensions)
        for weights in (
            bounds.continuous(config.model.tokens),
            bounds.discrete(reveal, config.model.tokens),
        )
    )
    return Result(
        {
            'bits_per_dim': in_time.per_dim,
            'bits_per_dim_error': in_time.standard_error,
            'bits_per_dim_in_steps': in_steps.per_dim,
        },
        images=len(losses.mean),
        seconds_per_image=(time.monotonic() - start) / len(losses.mean),
        settings={
            'step': model.saved.step,
            'weights': model.generator.weights,
            'draws': losses.mean[0].size,
            'bits_per_dim_error_of_draws': in_time.draw_error,
            'bits_per_token': in_time.per_token,
            'nats_per_image': in_time.nats,
            'steps': reveal.steps,
            'dimensions': dimensions * config.model.tokens,
            'data': data or 'held back',
        },
    )

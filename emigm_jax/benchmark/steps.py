"""The train step and the sampler with random weights and data, as programs to be timed."""

import dataclasses
import functools
from typing import cast

import jax
import numpy as np

from emigm_jax.benchmark.timing import Program
from emigm_jax.config.settings import Config
from emigm_jax.core import randomness
from emigm_jax.data import sizes
from emigm_jax.data.interface import Batch
from emigm_jax.models import emigm
from emigm_jax.parallel import sharding
from emigm_jax.sampling.sampler import Sampler
from emigm_jax.training import program


def train_program(config: Config, batch: int) -> program.Program:
    """The train step of a batch size on all devices."""
    training = dataclasses.replace(config.training, batch_size=batch)
    config = dataclasses.replace(config, training=training)
    return program.build(config, sharding.make_mesh(config.mesh), 0, 1)


def train(config: Config, batch: int) -> Program:
    """A training step.

    Raises:
      UserError: a size of the model is left to data that are not opened here.
    """
    config = sizes.without_data(config)
    built = train_program(config, batch)
    rng = np.random.default_rng(0)
    shape = built.batch.tokens.shape
    if config.model.codes:
        tokens = rng.integers(config.model.codes, size=shape).astype(np.int32)
    else:
        tokens = rng.standard_normal(shape, np.float32)
    labels = rng.integers(config.model.classes, size=batch).astype(np.int32)
    data = Batch(
        labels=jax.device_put(labels, built.batch.labels.sharding),
        tokens=jax.device_put(tokens, built.batch.tokens.sharding),
    )
    arguments = built.create(), data, np.int32(0), built.words
    following = lambda out: (out[0], *arguments[1:])
    return Program(
        built.lower,
        arguments,
        following,
        built.flops,
        config.model.dtype,
        params=arguments[0]['params'],
    )


def sample(config: Config, batch: int) -> Program:
    """Generation of tokens; raises as `train`."""
    config = sizes.without_data(config)
    params = jax.jit(emigm.network(config.model).init)(randomness.key(0))
    sampler = Sampler(config.model, config.sampling)
    labels = np.arange(batch) % config.model.classes
    run, arguments = sampler.prepared(params, labels, np.arange(batch))
    lower = functools.partial(cast(jax.stages.Wrapped, run).lower, *arguments)
    return Program(
        lower,
        arguments,
        lambda _: arguments,
        sampler.flops,
        config.model.dtype,
        params=params,
    )

"""A run that nobody trained: checkpoints of random numbers."""

import pathlib

import jax
import numpy as np
import pytest

from emigm_jax.checkpoints import runs
from emigm_jax.config.load import load_config
from emigm_jax.data import sizes
from emigm_jax.parallel import sharding
from emigm_jax.training import program

SMOKE = f'{pathlib.Path(__file__).parents[2]}/configs/digits.py:smoke'


@pytest.fixture(scope='module')
def state():
    """A train state with random numbers, and its config."""
    changes = ['--config.optimizer.ema_decays=(0.9, 0.5)', '--config.training.keep=5']
    config = sizes.known(load_config(SMOKE, changes))
    shapes = program.build(config, sharding.make_mesh(config.mesh), 1, 10).state
    rng = np.random.default_rng(0)
    made = jax.tree.map(lambda s: np.asarray(rng.normal(0, 0.1, s.shape)).astype(s.dtype), shapes)
    return config, jax.tree.map(jax.device_put, made)


def write_run(workdir, state, steps):
    config, tree = state
    with runs.Writer(workdir, config, data='digits') as writer:
        for step in steps:
            writer.save({**tree, 'step': jax.numpy.int32(step)})


@pytest.fixture(scope='module')
def run(state, tmp_path_factory):
    workdir = tmp_path_factory.mktemp('run')
    write_run(workdir, state, (5, 10))
    return workdir

"""What the official implementations gave for small networks, carried by the package.

`recordings.npz` holds two networks as our parameters, and of what `tests/golden` recorded of them
(float32, on a CPU) the part that is compared here; `tests/support/shipped_recordings.py` makes it.
"""

import functools
import importlib.resources
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from emigm_jax.models.config import ModelConfig
from emigm_jax.nn.functional import Params

FILE = 'recordings.npz'

EMIGM = ModelConfig(
    grid=4,
    channels=16,
    classes=10,
    width=32,
    heads=4,
    encoder_depth=2,
    decoder_depth=3,
    buffer=4,
    head_width=48,
    head_depth=2,
)
MASKGIT = ModelConfig(
    trunk='bert',
    head='categorical',
    grid=4,
    codes=48,
    classes=10,
    width=32,
    heads=4,
    encoder_depth=1,
    decoder_depth=2,
    mlp_ratio=2.0,
    buffer=1,
)


class Recording(NamedTuple):
    """A network and what the official code made with it."""

    params: Params
    outputs: dict[str, np.ndarray]  # by the names of tests/golden


def emigm() -> Recording:
    """Of `EMIGM`, by the official PyTorch code (commit de78623)."""
    return _recording('emigm')


def maskgit() -> Recording:
    """Of `MASKGIT`, by google-research/maskgit (commit 1db2359)."""
    return _recording('maskgit')


def halton() -> np.ndarray:
    """(256, 2) row and column per place on a 16 x 16 grid, by valeoai/Halton-MaskGIT."""
    return _file()['halton']['order_16']


def _recording(name):
    tree = _file()[name]
    return Recording(jax.tree.map(jnp.asarray, tree['params']), tree['outputs'])


@functools.cache
def _file() -> dict[str, Any]:
    file = importlib.resources.files('emigm_jax.verify').joinpath(FILE)
    with file.open('rb') as opened, np.load(opened) as data:
        return traverse_util.unflatten_dict({name: data[name] for name in data.files}, sep='/')

"""Where the recorded outputs of the official implementations lie, and how they are loaded."""

import importlib.util
import json
import pathlib

import numpy as np
from flax import traverse_util

from emigm_jax.conversion import rules, tables
from emigm_jax.io.formats import torch_files
from emigm_jax.models import emigm
from emigm_jax.verify import recordings

FOLDER = pathlib.Path(__file__).parents[1] / 'golden'

TINY, MASKGIT_TINY = recordings.EMIGM, recordings.MASKGIT
MAR_TINY = emigm.ModelConfig(
    grid=4,
    channels=16,
    classes=10,
    width=32,
    heads=4,
    encoder_depth=2,
    decoder_depth=2,
    buffer=4,
    head_width=48,
    head_depth=2,
    shared_null=False,
)


def path(name):
    """Path of a golden file."""
    return FOLDER / name


def arrays(name):
    """The arrays of a golden .npz as a dict."""
    with np.load(path(name)) as data:
        return {k: data[k] for k in data.files}


def formula():
    """The module that rebuilds weights from names and shapes."""
    spec = importlib.util.spec_from_file_location('formula', path('formula.py'))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def params(config, tensors, origin='golden'):
    """Official tensors as our parameters, as the official loader ends up with them."""
    tensors = dict(tensors)
    if config.shared_null:
        tensors.pop('fake_latent')
    shapes = emigm.network(config).shapes()
    return rules.to_params(tables.emigm(config), tensors, shapes, origin)


def maskgit_params(config, tree):
    """The content of an official file of MaskGIT's transformer as our parameters."""
    tensors = traverse_util.flatten_dict(tree['params'], sep='/')
    shapes = emigm.network(config).shapes()
    return rules.to_params(tables.maskgit(config), tensors, shapes, 'golden')


def maskgit_shapes(image_size):
    """{official name: shape} of a published MaskGIT transformer."""
    keys = json.loads(path(f'maskgit_{image_size}_keys.json').read_text())
    return {name.removeprefix('params/'): tuple(shape) for name, shape in keys.items()}


def checkpoint(config, name, entry='model'):
    """Our parameters of an entry of a golden checkpoint."""
    return params(config, torch_files.read(path(name))[entry], name)


def close(actual, expected, tolerance):
    """Asserts max |actual - expected| <= tolerance * std(expected)."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    error = np.abs(actual - expected).max() / expected.std()
    assert error <= tolerance, f'error {error:.2e} of the standard deviation'

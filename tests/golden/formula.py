"""Deterministic weights, regenerated from a parameter's name and shape alone.

The golden outputs beside this file were recorded from the reference PyTorch
implementations after every entry of their state dict had been set with
``fill``.  A test can therefore rebuild the very same full-size checkpoint from
a list of names and shapes (``*_keys.json``), and only the outputs are stored.
"""

import json
import zlib

import numpy as np


def fill(name, shape, gain=1.0):
    """Returns the float32 value of the entry `name` with `shape` (torch layout)."""
    rng = np.random.Generator(np.random.Philox(key=zlib.crc32(name.encode())))
    normal = rng.standard_normal(shape, dtype=np.float32)
    leaf = name.rsplit('.', 1)[-1]
    if leaf == 'num_batches_tracked':
        return np.zeros(shape, np.int64)
    if leaf == 'running_var':
        return np.exp(0.2 * normal).astype(np.float32)
    if leaf == 'running_mean' or leaf == 'bias':
        return 0.1 * normal
    if len(shape) <= 1:  # scale of a normalisation layer
        return np.exp(0.2 * normal).astype(np.float32)
    fan_in = int(np.prod(shape[1:]))
    if 'pos_embed' in name or leaf in ('fake_latent', 'mask_token') or name == 'class_emb.weight':
        return 0.5 * normal
    return (np.sqrt(gain / fan_in) * normal).astype(np.float32)


def state_dict(keys_json, gain=1.0):
    """Rebuilds {name: array} from a ``*_keys.json`` file."""
    with open(keys_json) as f:
        return {k: fill(k, tuple(s), gain) for k, s in json.load(f).items()}


def image(name, shape):
    """A smooth float32 test image in [-1, 1], NCHW."""
    rng = np.random.Generator(np.random.Philox(key=zlib.crc32(name.encode())))
    b, c, h, w = shape
    y, x = np.mgrid[0:h, 0:w].astype(np.float32) / max(h, w)
    out = np.zeros(shape, np.float32)
    for _ in range(6):
        f = rng.uniform(1, 12, (b, c, 2, 1, 1)).astype(np.float32)
        p = rng.uniform(0, 2 * np.pi, (b, c, 1, 1)).astype(np.float32)
        out += np.sin(2 * np.pi * (f[:, :, 0] * x + f[:, :, 1] * y) + p)
    return np.clip(out / 4, -1, 1).astype(np.float32)


def flax_fill(name, shape, gain=1.0):
    """As `fill`, for an entry of a Flax checkpoint: kernels are laid out (..., in, out)."""
    rng = np.random.Generator(np.random.Philox(key=zlib.crc32(name.encode())))
    normal = rng.standard_normal(shape, dtype=np.float32)
    leaf = name.rsplit('/', 1)[-1]
    if leaf == 'bias':
        return 0.1 * normal
    if leaf == 'scale':
        return np.exp(0.2 * normal).astype(np.float32)
    if leaf in ('embedding', 'codebook'):
        return 0.5 * normal
    projects = name.rsplit('/', 2)[-2] in ('query', 'key', 'value')  # (in, heads, head size)
    fan_in = shape[0] if projects else int(np.prod(shape[:-1]))
    return (np.sqrt(gain / fan_in) * normal).astype(np.float32)


def flax_tree(keys_json, gain=1.0):
    """Rebuilds a nested Flax checkpoint from a JSON of {'a/b/c': shape}."""
    tree = {}
    with open(keys_json) as f:
        for name, shape in json.load(f).items():
            *groups, leaf = name.split('/')
            node = tree
            for group in groups:
                node = node.setdefault(group, {})
            node[leaf] = flax_fill(name, tuple(shape), gain)
    return tree

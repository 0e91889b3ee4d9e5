"""Random weights of a network, drawn without a program, which would take longer than most tests."""

import math

import jax
import jax.numpy as jnp
import numpy as np


def random_weights(network, seed=0):
    """As wide as initial ones, but none of them is zero, which would hide mistakes."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        shape = leaf.shape
        if len(shape) < 2 or path[-1].key in ('bias', 'scale'):
            width, centre = 0.1, path[-1].key == 'scale'
        else:  # what comes in: of a convolution all places, of a stack one layer
            width = math.prod(shape[:-1] if len(shape) == 4 else shape[-2:-1]) ** -0.5
            centre = 0
        return jnp.asarray(centre + width * rng.standard_normal(shape, np.float32), leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, network.shapes())

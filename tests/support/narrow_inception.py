"""Inception with a sixteenth of its channels: the same plan, names and steps, for tests of the way
from images to scores. At full size it is compared with the official network elsewhere."""

import jax
import numpy as np

from emigm_jax.evaluation import inception, inception_plan, references

SHARE = 16
GAIN = 1.3  # of a convolution: with 1, what tells pictures apart is gone after ninety of them


def _narrow(step):
    match step:
        case inception_plan.Conv():
            return step._replace(outputs=step.outputs // SHARE)
        case inception_plan.Split(paths):
            return inception_plan.Split(tuple(tuple(map(_narrow, path)) for path in paths))
    return step


LOWER, UPPER = (tuple(map(_narrow, path)) for path in (inception_plan.LOWER, inception_plan.UPPER))
WIDTH, SPATIAL_CHANNELS = inception_plan.WIDTH // SHARE, 1
SPATIAL_WIDTH = 17 * 17 * SPATIAL_CHANNELS
PAIRS = (('mu', 'sigma', WIDTH), ('mu_s', 'sigma_s', SPATIAL_WIDTH))


def install(put=setattr) -> None:
    """Puts it in the place of the network; `put` as setattr, or that of a MonkeyPatch."""
    for name in ('LOWER', 'UPPER', 'WIDTH', 'SPATIAL_CHANNELS', 'SPATIAL_WIDTH'):
        put(inception_plan, name, globals()[name])
    put(references, 'POOL', WIDTH)
    put(references, '_PAIRS', PAIRS)
    put(inception, 'network', lambda network=inception.network.__wrapped__: network())


def random_weights(seed: int = 7) -> dict:
    """Parameters of the installed network that make pictures differ."""
    rng = np.random.default_rng(seed)

    def weight(shape):
        if len(shape.shape) == 1:  # of batch norm, and the last bias
            return (1.0 + 0.1 * rng.standard_normal(shape.shape)).astype(np.float32)
        scale = GAIN * np.sqrt(2.0 / np.prod(shape.shape[:-1]))
        return (scale * rng.standard_normal(shape.shape)).astype(np.float32)

    return jax.tree.map(weight, inception.network().shapes())

"""What seeds give, against values that every release ships: else the same seed is another image."""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np

from emigm_jax.config.settings import LossConfig
from emigm_jax.core import orders, randomness, reveal
from emigm_jax.models.config import ModelConfig
from emigm_jax.nn.dropout import dropout
from emigm_jax.training import loss
from emigm_jax.verify.part import Finding

GRID = 16
MODEL = ModelConfig(grid=GRID, channels=16, classes=1000)
# Of `_whole`: hexadecimal digests of integers, of which every bit counts.
SHIPPED = {
    'bits': '26df2974d141b8c8',
    'orders': '48e6117fca7128e7',
    'training order': '424ee66c17e220cd',
    'dropped labels': 'e1a2cb56d3b0dfce',
    'keys of the head': '148b796dc20a59fe',
    'dropout': 'b6a21790112a1df4',
    'dropout of uneven rows': 'f0616861528374d0',
    'plan, bernoulli': '2af626ca1a8697ba',
    'plan, ancestral': '668ff9a99d1b80fd',
    'plan, fixed': 'c072beeadff4233c',
    'plans per image': '01d3541591d8875b',
}
# Of `_normal`: the platform's own logarithms and roots are in them.
NORMAL = (
    *(2.741056203842163, 1.9164032936096191, 0.9435277581214905, -1.7490613460540771),
    *(0.31735268235206604, 1.2118111848831177, -0.5047723054885864, -0.14827750623226166),
)


def integers(dtype: str) -> Finding:
    """Bits, orders, reveal plans, masks, dropped labels and dropout, of some seeds: every bit."""
    del dtype
    off = [name for name, found in digests().items() if found != SHIPPED[name]]
    return Finding(len(off) / len(SHIPPED), ', '.join(off) or f'{len(SHIPPED)} digests')


def normal(dtype: str) -> Finding:
    """Normal numbers, the noise of images and of training."""
    del dtype
    error = np.abs(np.float64(normals()) - np.array(NORMAL)).max()
    return Finding(float(error), 'normal numbers')


def normals() -> np.ndarray:
    """(8,) as an image's noise is drawn."""
    key = jax.random.fold_in(jax.random.fold_in(randomness.key(0), 5), 1)
    return np.asarray(jax.jit(lambda key: jax.random.normal(key, (8,), jnp.float32))(key))


def digests() -> dict[str, str]:
    """{what: digest of what this machine draws}."""
    return {name: _digest(found) for name, found in _whole().items()}


def _whole():
    """{what: integers}."""
    key = randomness.key(7)

    @jax.jit
    def on_device(key):
        drawn = loss.draw(MODEL, LossConfig(), key, 8, 4)
        kept = lambda shape: dropout(jnp.ones(shape, jnp.float32), 0.1, key) > 0
        order = lambda name: orders.order(reveal.RevealConfig(order=name))(key, GRID)
        return {
            'bits': jax.random.bits(key, (64,), jnp.uint32),
            'orders': jnp.stack([order(name) for name in ('random', 'halton', 'spiral')]),
            'training order': drawn.order,
            'dropped labels': drawn.null,
            'keys of the head': jax.random.key_data(drawn.key),
            'dropout': kept((2, 320, 48)),
            'dropout of uneven rows': kept((3, 7, 5)),
        }

    plans = {
        f'plan, {rule}': reveal.plan(reveal.RevealConfig(rule=rule), GRID**2).counts
        for rule in reveal.RULES
    }
    each = reveal.RevealConfig(counts='per_image', plan_seed=3)
    return on_device(key) | plans | {'plans per image': reveal.plan(each, GRID**2, (0, 9)).counts}


def _digest(array):
    """Of a shape and of its integers as such, whatever their width."""
    array = np.asarray(array).astype('<i8')
    return hashlib.sha256(f'{array.shape}'.encode() + array.tobytes()).hexdigest()[:16]

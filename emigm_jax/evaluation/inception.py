"""The Inception network behind FID, sFID and IS: TensorFlow's of 2015-12-05 with 1008 classes.

It differs from Inception v3 elsewhere: average pools count real pixels only, the last block pools
by maximum, and the weights are others. Images are resized as TensorFlow 1 did it. A usual resize
and range alone move the features by 2 to 26 % of their standard deviation, and bfloat16 products,
the default on TPU, by 12 % (measured with random weights), so everything here is float32 at HIGHEST
precision.
"""

import dataclasses
import functools
import os
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from emigm_jax.checkpoints import store
from emigm_jax.core import randomness
from emigm_jax.errors import UserError
from emigm_jax.evaluation import inception_plan as plan
from emigm_jax.nn import functional

ENTRY = 'inception'  # of a checkpoint's description
VARIANT = 'fid-2015-12-05'

SIDE = 299  # pixels of the network's input
BATCH_NORM_EPSILON = 1e-3
EXACT = jax.lax.Precision.HIGHEST

_AROUND: dict[str, Any] = dict(window_shape=(3, 3), strides=(1, 1), padding='SAME')
_HALVING: dict[str, Any] = dict(window_shape=(3, 3), strides=(2, 2), padding='VALID')

# Steps without parameters. TensorFlow divides an average by the number of real pixels.
POOLS = {
    'average': lambda x: nnx.avg_pool(x, **_AROUND, count_include_pad=False),
    'max': lambda x: nnx.max_pool(x, **_AROUND),
    'halve': lambda x: nnx.max_pool(x, **_HALVING),
}


class Unit(nnx.Module):
    """One `Conv`: (B, H, W, inputs) -> (B, h, w, outputs), not negative."""

    def __init__(self, conv: plan.Conv, inputs: int, rngs: nnx.Rngs):
        self.strides, self.padding = (conv.stride, conv.stride), conv.padding
        initial = jax.nn.initializers.lecun_normal()
        self.kernel = nnx.Param(initial(rngs.params(), (*conv.size, inputs, conv.outputs)))
        self.scale = nnx.Param(jnp.ones(conv.outputs))
        self.bias = nnx.Param(jnp.zeros(conv.outputs))
        self.mean = nnx.Param(jnp.zeros(conv.outputs))
        self.variance = nnx.Param(jnp.ones(conv.outputs))

    def __call__(self, x: jax.Array) -> jax.Array:
        axes = ('NHWC', 'HWIO', 'NHWC')
        x = jax.lax.conv_general_dilated(
            x, self.kernel[...], self.strides, self.padding, dimension_numbers=axes, precision=EXACT
        )
        scale = self.scale[...] * jax.lax.rsqrt(self.variance[...] + BATCH_NORM_EPSILON)
        return jax.nn.relu(x * scale + (self.bias[...] - self.mean[...] * scale))


class Classifier(nnx.Module):
    """Linear layer. The logits of IS lack the bias, which is kept for the way back (export)."""

    def __init__(self, rngs: nnx.Rngs):
        initial = jax.nn.initializers.lecun_normal()
        self.kernel = nnx.Param(initial(rngs.params(), (plan.WIDTH, plan.CLASSES)))
        self.bias = nnx.Param(jnp.zeros(plan.CLASSES))

    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.matmul(x, self.kernel[...], precision=EXACT)


class Features(NamedTuple):
    """What the metrics read of B images, float32."""

    pool: jax.Array  # (B, 2048), of FID, KID, precision and recall
    logits: jax.Array  # (B, 1008) without bias, of IS
    spatial: jax.Array  # (B, 2023), of sFID: 17 x 17 x 7, flattened in this order


class Inception(nnx.Module):
    """The network: pixels (B, 299, 299, 3) in [-1, 1) to `Features`."""

    def __init__(self, rngs: nnx.Rngs):
        for conv, inputs in plan.network():
            setattr(self, conv.attribute, Unit(conv, inputs, rngs))
        self.fc = Classifier(rngs)

    def __call__(self, x: jax.Array) -> Features:
        x = self._run(plan.LOWER, x)
        # branch1x1 comes first in Mixed_6d, so these are its channels.
        spatial = x[..., : plan.SPATIAL_CHANNELS].reshape(len(x), -1)
        pool = self._run(plan.UPPER, x).mean((1, 2))
        return Features(pool, self.fc(pool), spatial)

    def _run(self, path, x):
        for step in path:
            match step:
                case plan.Conv():
                    x = getattr(self, step.attribute)(x)
                case plan.Split(paths):
                    x = jnp.concatenate([self._run(path, x) for path in paths], axis=-1)
                case _:
                    x = POOLS[step](x)
        return x


@functools.cache
def network() -> functional.Functional:
    """`Inception` as pure functions."""
    return functional.functional(Inception)


# --- Images to features --------------------------------------------------------------------------


@functools.cache
def resize_weights(source: int, target: int = SIDE) -> np.ndarray:
    """The matrix (target, source) float32 of TensorFlow 1's bilinear resize of one axis.

    Output i reads the source at i * source / target, without half-pixel centres and without
    smoothing when it shrinks (`align_corners=False`). NumPy, as the same sums under `jit` may be
    fused and then round otherwise, by up to 1e-3 of 255.
    """
    outputs = np.arange(target)
    position = outputs.astype(np.float32) * (np.float32(source) / np.float32(target))
    low = np.floor(position).astype(np.int64)
    high = np.minimum(low + 1, source - 1)
    share = position - low.astype(np.float32)
    weights = np.zeros((target, source), np.float32)
    weights[outputs, low] = np.float32(1.0) - share
    weights[outputs, high] += share  # at the far edge, both are one pixel
    weights.flags.writeable = False  # as it is cached
    return weights


def preprocess(images: jax.Array) -> jax.Array:
    """uint8 images (B, H, W, 3) -> float32 (B, 299, 299, 3) in [-1, 1)."""
    height, width = (jnp.asarray(resize_weights(side)) for side in images.shape[1:3])
    x = images.astype(jnp.float32)
    x = jnp.einsum('ih,bhwc->biwc', height, x, precision=EXACT)
    x = jnp.einsum('jw,biwc->bijc', width, x, precision=EXACT)
    return (x - 128.0) / 128.0


def features(params: dict, images: jax.Array) -> Features:
    """`Features` of images; a pure function, to be jitted by the caller.

    Args:
      params: as `network().init` makes them.
      images: uint8 (B, H, W, 3) RGB, of any size.

    Raises:
      UserError: the images have another shape or dtype.
    """
    if images.ndim != 4 or images.shape[-1] != 3 or 0 in images.shape:
        raise UserError(f'Inception needs images of shape (B, H, W, 3), not {images.shape}')
    if images.dtype != jnp.uint8:
        raise UserError(f'Inception needs uint8 images in 0..255, not {images.dtype}')
    return network().bind(params)(preprocess(images))


_compiled = jax.jit(features)


@dataclasses.dataclass(frozen=True)
class Extractor:
    """The network with its weights."""

    params: dict

    @randomness.pinned()
    def features(self, images: jax.Array | np.ndarray) -> Features:
        """`Features` of uint8 (B, H, W, 3); compiles once for each shape.

        Images lie on the device of the parameters; for several devices, jit `features` with both
        placed there.
        """
        return _compiled(self.params, images)


def save(path: os.PathLike | str, params: dict, **facts: Any) -> None:
    """Writes an Inception checkpoint; `facts` (JSON-like) go into its description."""
    store.save(path, {'params': params}, {ENTRY: {'variant': VARIANT}, **facts})


def load(path: os.PathLike | str) -> Extractor:
    """The network of a converted checkpoint, local or gs://.

    Raises:
      UserError: no checkpoint is at `path`, it is of another kind, or damaged.
    """
    if not store.is_checkpoint(path):
        raise UserError(f'{path}: no Inception checkpoint there; `emigm convert` makes one')
    return of(store.checkpoint(path))


def of(stored: store.Checkpoint) -> Extractor:
    """As `load`, of a checkpoint whose description was read."""
    if ENTRY not in stored.description:
        raise UserError(f'{stored.path}: holds no Inception network; `emigm convert` makes one')
    if wrong := functional.misfit(stored.tree.get('params', {}), network):
        raise UserError(f'{stored.path}: its arrays are not those of the network: {wrong}')
    return Extractor(stored.load_part('params'))


def opened(inception: os.PathLike | str | Extractor) -> Extractor:
    """A network as it is, or what `load` makes of a checkpoint."""
    return inception if isinstance(inception, Extractor) else load(inception)

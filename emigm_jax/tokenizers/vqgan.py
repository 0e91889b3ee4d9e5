"""The VQGAN of MaskGIT at 256 and 512 pixels: one architecture for both.

After maskgit nets/vqgan_tokenizer.py. An autoencoder without attention whose 16 x 16 pixels become
one of 1024 codes. The plans number their layers as the official checkpoints do: per kind, in order
of execution.
"""

import dataclasses
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from emigm_jax.errors import UserError
from emigm_jax.nn import functional
from emigm_jax.nn.layers import normal
from emigm_jax.tokenizers import layers
from emigm_jax.tokenizers.layers import Layer, conv, conv1, conv3


@dataclasses.dataclass(frozen=True)
class VQGANConfig:
    """Architecture; the defaults are those of the released checkpoints."""

    colours: int = 3  # channels of an image
    codes: int = 1024  # rows of the codebook
    channels: int = 256  # numbers per row
    width: int = 128  # channels at full resolution
    multipliers: tuple[int, ...] = (
        1,
        1,
        2,
        2,
        4,
    )  # of the width, one per level; a level halves the sides
    blocks: int = 2  # residual blocks per level, and again at the bottom
    groups: int = 32  # of every GroupNorm
    dtype: str = 'float32'  # of convolutions; parameters, norms, sums and distances stay float32

    def __post_init__(self):
        positive = ('colours', 'codes', 'channels', 'width', 'multipliers', 'blocks', 'groups')
        layers.check_sizes(self, 'vqgan', positive)
        layers.check_groups(self, 'vqgan', [self.width * m for m in self.multipliers])
        layers.check_dtype(self, 'vqgan')

    @property
    def stride(self) -> int:
        """Pixels per side of one code."""
        return 2 ** (len(self.multipliers) - 1)

    @property
    def compute_dtype(self) -> DTypeLike:
        """The dtype of convolutions."""
        return layers.DTYPES[self.dtype]


class _Numbered:
    """Rows of a plan whose names count up per stem: conv_0, block_0, block_1, conv_1, ..."""

    def __init__(self):
        self.rows, self.counters = [], {}

    def add(self, stem, kind, inputs, outputs):
        number = next(self.counters.setdefault(stem, itertools.count()))
        self.rows.append(Layer(f'{stem}_{number}', kind, inputs, outputs))


def encoder_plan(config: VQGANConfig) -> list[Layer]:
    """The rows of the encoder, images to features."""
    plan, width = _Numbered(), config.width
    plan.add('conv', 'conv3_unbiased', config.colours, width)
    for level, multiplier in enumerate(config.multipliers):
        for _ in range(config.blocks):
            plan.add('block', 'block', width, config.width * multiplier)
            width = config.width * multiplier
        if level < len(config.multipliers) - 1:
            plan.add('pool', 'pool', width, width)
    for _ in range(config.blocks):
        plan.add('block', 'block', width, width)
    plan.add('norm', 'norm_swish', width, width)
    plan.add('conv', 'conv1', width, config.channels)
    return plan.rows


def decoder_plan(config: VQGANConfig) -> list[Layer]:
    """The rows of the decoder, features to images."""
    plan, width = _Numbered(), config.width * config.multipliers[-1]
    plan.add('conv', 'conv3', config.channels, width)
    for _ in range(config.blocks):
        plan.add('block', 'block', width, width)
    for level, multiplier in reversed(list(enumerate(config.multipliers))):
        for _ in range(config.blocks):
            plan.add('block', 'block', width, config.width * multiplier)
            width = config.width * multiplier
        if level > 0:
            plan.add('double', 'double', width, width)
            plan.add('conv', 'conv3', width, width)
    plan.add('norm', 'norm_swish', width, width)
    plan.add('conv', 'conv3', width, config.colours)
    return plan.rows


class ResBlock(nnx.Module):
    """x + h with h = conv(swish(norm(conv(swish(norm(x)))))); where widths differ, conv1x1(h) + h.

    The official code hands the branch, not x, to the convolution that was meant for the skip. The
    released weights were trained that way, so x is lost there.
    """

    def __init__(self, inputs: int, outputs: int, config: VQGANConfig, rngs: nnx.Rngs):
        self.widens = inputs != outputs
        self.norm1 = layers.GroupNorm(inputs, config, rngs)
        self.conv1 = _unbiased(inputs, outputs, config, rngs)
        self.norm2 = layers.GroupNorm(outputs, config, rngs)
        self.conv2 = _unbiased(outputs, outputs, config, rngs)
        if self.widens:
            self.shortcut = conv(outputs, outputs, 1, config, rngs, use_bias=False)

    def __call__(self, x: jax.Array) -> jax.Array:
        h = self.conv2(self.norm2(self.conv1(self.norm1(x))))
        return layers.add(self.shortcut(h) if self.widens else x, h)


def _unbiased(inputs, outputs, config, rngs):
    return conv(inputs, outputs, 3, config, rngs, use_bias=False)


class Resize(nnx.Module):
    """A layer without parameters."""

    def __init__(self, function: Callable[[jax.Array], jax.Array]):
        self.function = function

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.function(x)


def average_pool(x: jax.Array) -> jax.Array:
    """Mean of every 2x2 pixels of x (B, H, W, C): (B, H/2, W/2, C)."""
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4))


KINDS = {
    'conv1': conv1,
    'conv3': conv3,
    'conv3_unbiased': _unbiased,
    'block': ResBlock,
    'pool': lambda *_: Resize(average_pool),
    'double': lambda *_: Resize(layers.upsample),
    'norm_swish': layers.norm_swish,
}


def nearest(features: jax.Array, codebook: jax.Array) -> jax.Array:
    """Rows of the codebook nearest to features by Euclidean distance, in float32.

    Args:
      features: (..., D).
      codebook: (K, D).

    Returns:
      int32 (...): the row; the first one of equals.
    """
    exact = layers.precision(jnp.float32)  # rounding would swap close rows
    products = jnp.einsum('...d,kd->...k', features, codebook, precision=exact)
    # |f - c|^2 without |f|^2, which is the same for all rows and would cost digits.
    distances = jnp.square(codebook).sum(-1) - 2.0 * products
    return jnp.argmin(distances, axis=-1).astype(jnp.int32)


class VQGAN(nnx.Module):
    """Images to codes and codes to images."""

    def __init__(self, config: VQGANConfig, rngs: nnx.Rngs):
        self.config = config
        self.encoder = layers.Chain(encoder_plan(config), KINDS, config, rngs)
        self.codebook = nnx.Param(normal(rngs.params(), (config.codes, config.channels)))
        self.decoder = layers.Chain(decoder_plan(config), KINDS, config, rngs)

    def features(self, images: jax.Array) -> jax.Array:
        """What is quantised: images (B, H, W, colours) in [0, 1] -> (B, h, w, channels) float32."""
        layers.check_images(images, self.config.stride, self.config.colours)
        return self.encoder(images).astype(jnp.float32)

    def encode(self, images: jax.Array) -> jax.Array:
        """Codes of images.

        Args:
          images: (B, H, W, colours) in [0, 1]; H and W are multiples of `config.stride`.

        Returns:
          int32 (B, h, w), 0 to codes - 1.

        Raises:
          UserError: the shape does not fit.
        """
        return nearest(self.features(images), self.codebook[...])

    def decode(self, codes: jax.Array) -> jax.Array:
        """Images (B, H, W, colours) float32, about [0, 1] and not clipped.

        Args:
          codes: integers (B, h, w), 0 to codes - 1; from `codes` on they give NaN.

        Raises:
          UserError: the shape does not fit.
        """
        if codes.ndim != 3:
            raise UserError(f'codes must have shape (B, h, w), not {codes.shape}')
        features = jnp.take(self.codebook[...], codes, axis=0, mode='fill')
        return self.decoder(features).astype(jnp.float32)


def network(config: VQGANConfig) -> functional.Functional:
    """The network as pure functions."""
    return functional.functional(lambda rngs: VQGAN(config, rngs))

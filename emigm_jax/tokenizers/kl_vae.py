"""KL-16, the variational autoencoder of MAR and eMIGM at 256 pixels (MAR models/vae.py).

It is the LDM `AutoencoderKL` with multipliers 1, 1, 2, 2, 4. Each half of it is a plan in the order
of execution; its rows have the official names, so that the conversion table follows from them.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from emigm_jax.nn import functional
from emigm_jax.tokenizers import layers
from emigm_jax.tokenizers.layers import Layer, conv, conv1, conv3

LOG_VARIANCE_RANGE = (-30.0, 20.0)  # of LDM's DiagonalGaussianDistribution


@dataclasses.dataclass(frozen=True)
class KLVAEConfig:
    """Architecture; the defaults are KL-16."""

    colours: int = 3  # channels of an image
    channels: int = 16  # of a latent; the moments have twice as many
    width: int = 128  # channels at full resolution
    multipliers: tuple[int, ...] = (
        1,
        1,
        2,
        2,
        4,
    )  # of the width, one per level; a level halves the sides
    blocks: int = 2  # residual blocks per encoder level; a decoder level has one more
    # Encoder levels with attention after each block. The official code counts the resolution down
    # from 256, whatever the input, and puts attention where it arrives at 16.
    attention_levels: tuple[int, ...] = (4,)
    groups: int = 32  # of every GroupNorm
    dtype: str = 'float32'  # of convolutions; parameters, norms and residual sums stay float32

    def __post_init__(self):
        positive = ('colours', 'channels', 'width', 'multipliers', 'blocks', 'groups')
        layers.check_sizes(self, 'kl_vae', positive)
        layers.check_groups(self, 'kl_vae', [self.width * m for m in self.multipliers])
        layers.check_dtype(self, 'kl_vae')

    @property
    def stride(self) -> int:
        """Pixels per side of one latent."""
        return 2 ** (len(self.multipliers) - 1)

    @property
    def compute_dtype(self) -> DTypeLike:
        """The dtype of convolutions."""
        return layers.DTYPES[self.dtype]


def encoder_plan(config: KLVAEConfig) -> list[Layer]:
    """The rows of the encoder, images to moments."""
    width = config.width
    plan = [Layer('conv_in', 'conv3', config.colours, width)]
    for level, multiplier in enumerate(config.multipliers):
        name, outputs = f'down.{level}', config.width * multiplier
        for i in range(config.blocks):
            plan.append(Layer(f'{name}.block.{i}', 'block', width, outputs))
            width = outputs
            if level in config.attention_levels:
                plan.append(Layer(f'{name}.attn.{i}', 'attention', width, width))
        if level < len(config.multipliers) - 1:
            plan.append(Layer(f'{name}.downsample', 'downsample', width, width))
    moments = 2 * config.channels
    return [
        *plan,
        *_middle(width),
        Layer('norm_out', 'norm_swish', width, width),
        Layer('conv_out', 'conv3', width, moments),
        Layer('quant_conv', 'conv1', moments, moments),
    ]


def decoder_plan(config: KLVAEConfig) -> list[Layer]:
    """The rows of the decoder, latents to images; level 0 is full resolution and comes last."""
    width = config.width * config.multipliers[-1]
    plan = [
        Layer('post_quant_conv', 'conv1', config.channels, config.channels),
        Layer('conv_in', 'conv3', config.channels, width),
        *_middle(width),
    ]
    for level, multiplier in reversed(list(enumerate(config.multipliers))):
        name, outputs = f'up.{level}', config.width * multiplier
        for i in range(config.blocks + 1):
            plan.append(Layer(f'{name}.block.{i}', 'block', width, outputs))
            width = outputs
        if level > 0:
            plan.append(Layer(f'{name}.upsample', 'upsample', width, width))
    return [
        *plan,
        Layer('norm_out', 'norm_swish', width, width),
        Layer('conv_out', 'conv3', width, config.colours),
    ]


def _middle(width):
    names = (('mid.block_1', 'block'), ('mid.attn_1', 'attention'), ('mid.block_2', 'block'))
    return [Layer(name, kind, width, width) for name, kind in names]


class ResBlock(nnx.Module):
    """x + conv(swish(norm(conv(swish(norm(x)))))), x by a 1x1 convolution where widths differ."""

    def __init__(self, inputs: int, outputs: int, config: KLVAEConfig, rngs: nnx.Rngs):
        self.widens = inputs != outputs
        self.norm1 = layers.GroupNorm(inputs, config, rngs)
        self.conv1 = conv3(inputs, outputs, config, rngs)
        self.norm2 = layers.GroupNorm(outputs, config, rngs)
        self.conv2 = conv3(outputs, outputs, config, rngs)
        if self.widens:
            self.shortcut = conv1(inputs, outputs, config, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        h = self.conv2(self.norm2(self.conv1(self.norm1(x))))
        return layers.add(self.shortcut(x) if self.widens else x, h)


class Attention(nnx.Module):
    """x + one-headed attention over all positions, softmax of float32 logits."""

    def __init__(self, width: int, _outputs: int, config: KLVAEConfig, rngs: nnx.Rngs):
        self.norm = layers.GroupNorm(width, config, rngs, swish=False)
        self.q = conv1(width, width, config, rngs)
        self.k = conv1(width, width, config, rngs)
        self.v = conv1(width, width, config, rngs)
        self.out = conv1(width, width, config, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        b, h, w, c = x.shape
        normed = self.norm(x)
        q, k, v = (m(normed).reshape(b, h * w, c) for m in (self.q, self.k, self.v))
        exact = layers.precision(q.dtype)
        logits = jnp.einsum(
            'bqc,bkc->bqk', q, k, precision=exact, preferred_element_type=jnp.float32
        )
        logits = logits * c**-0.5
        probabilities = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
        mixed = jnp.einsum('bqk,bkc->bqc', probabilities, v, precision=exact)
        return layers.add(x, self.out(mixed.reshape(b, h, w, c)))


class Downsample(nnx.Module):
    """3x3 convolution of stride 2 on a picture padded at the right and at the bottom only."""

    def __init__(self, inputs: int, outputs: int, config: KLVAEConfig, rngs: nnx.Rngs):
        one_side = ((0, 1), (0, 1))
        self.conv = conv(inputs, outputs, 3, config, rngs, strides=2, padding=one_side)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.conv(x)


KINDS = {
    'conv1': conv1,
    'conv3': conv3,
    'block': ResBlock,
    'attention': Attention,
    'downsample': Downsample,
    'upsample': layers.Upsample,
    'norm_swish': layers.norm_swish,
}


class KLVAE(nnx.Module):
    """Images to moments of latents, and latents to images."""

    def __init__(self, config: KLVAEConfig, rngs: nnx.Rngs):
        self.config = config
        self.encoder = layers.Chain(encoder_plan(config), KINDS, config, rngs)
        self.decoder = layers.Chain(decoder_plan(config), KINDS, config, rngs)

    def encode(self, images: jax.Array) -> jax.Array:
        """Moments of images.

        Args:
          images: (B, H, W, colours) in [-1, 1]; H and W are multiples of `config.stride`.

        Returns:
          (B, h, w, 2 * channels) float32: means, then log variances, raw as the official caches
          hold them; see `sample_moments`.

        Raises:
          UserError: the shape does not fit.
        """
        layers.check_images(images, self.config.stride, self.config.colours)
        return self.encoder(images).astype(jnp.float32)

    def decode(self, latents: jax.Array) -> jax.Array:
        """Images (B, H, W, colours) float32, about [-1, 1] and not clipped.

        Args:
          latents: (B, h, w, channels), without the scale that tokens have.

        Raises:
          UserError: the shape does not fit.
        """
        layers.check_latents(latents, self.config.channels)
        return self.decoder(latents).astype(jnp.float32)


def sample_moments(moments: jax.Array, key: jax.Array | None) -> jax.Array:
    """A draw from the Gaussian of the moments.

    Args:
      moments: (..., 2C): means, then log variances, which are clipped to `LOG_VARIANCE_RANGE`.
      key: randomness; None gives the mean.

    Returns:
      latents (..., C) float32.
    """
    mean, log_variance = jnp.split(moments.astype(jnp.float32), 2, axis=-1)
    if key is None:
        return mean
    deviation = jnp.exp(0.5 * jnp.clip(log_variance, *LOG_VARIANCE_RANGE))
    return mean + deviation * jax.random.normal(key, mean.shape, jnp.float32)


def network(config: KLVAEConfig) -> functional.Functional:
    """The network as pure functions."""
    return functional.functional(lambda rngs: KLVAE(config, rngs))

"""DC-AE f32c32-in-1.0, the deep compression autoencoder of eMIGM at 512 pixels (arXiv 2410.10733).

After efficientvit models/efficientvit/dc_ae.py. Pixels move into channels and back by 32 per
side; the encoder is deterministic. Stages of equal blocks are stacked and scanned.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from emigm_jax.errors import UserError
from emigm_jax.nn import functional
from emigm_jax.tokenizers import layers
from emigm_jax.tokenizers.layers import Layer, conv, conv1, conv3

NORM_EPSILON = 1e-5  # of RMS and batch norms
ATTENTION_EPSILON = 1e-15  # added to the denominator of linear attention
EXPANSION = 4  # of the gated convolution: the inner width, over the outer one


@dataclasses.dataclass(frozen=True)
class DCAEConfig:
    """Architecture; the defaults are f32c32-in-1.0.

    Stages count from 1, as in the official names: the official stage 0 has no blocks and is folded
    into the first and the last convolution.
    """

    colours: int = 3  # channels of an image
    channels: int = 32  # of a latent
    widths: tuple[int, ...] = (256, 512, 512, 1024, 1024)  # channels of each stage, finest first
    encoder_depths: tuple[int, ...] = (4, 8, 2, 2, 2)  # blocks of each stage
    decoder_depths: tuple[int, ...] = (5, 10, 2, 2, 2)
    residual_stages: int = 2  # that many stages have residual blocks, the others attention blocks
    head_width: int = 32  # channels per head of linear attention
    dtype: str = 'float32'  # of convolutions; parameters, norms, attention and sums stay float32

    def __post_init__(self):
        positive = ('colours', 'channels', 'widths', 'encoder_depths', 'decoder_depths')
        layers.check_sizes(self, 'dc_ae', (*positive, 'head_width'))
        if not len(self.widths) == len(self.encoder_depths) == len(self.decoder_depths):
            raise UserError(
                f'dc_ae.encoder_depths and decoder_depths must have one number per '
                f'width, that is {len(self.widths)}'
            )
        for width in self.widths[self.residual_stages :]:
            if width % self.head_width:
                raise UserError(f'dc_ae.head_width = {self.head_width} does not divide {width}')
        if any(width % 4 for width in self.widths):
            raise UserError(f'dc_ae.widths must be multiples of 4, not {self.widths}')
        # Shortcuts average or repeat channels.
        wide = [4 * width for width in self.widths[:-1]]
        for a, b in zip([*wide, self.widths[-1]], [*self.widths[1:], self.channels], strict=True):
            if max(a, b) % min(a, b):
                raise UserError(
                    f'dc_ae: no shortcut from {a} to {b} channels, choose widths and '
                    f'channels that divide one another'
                )
        layers.check_dtype(self, 'dc_ae')

    @property
    def stride(self) -> int:
        """Pixels per side of one latent."""
        return 2 ** len(self.widths)

    @property
    def compute_dtype(self) -> DTypeLike:
        """The dtype of convolutions."""
        return layers.DTYPES[self.dtype]


def encoder_plan(config: DCAEConfig) -> list[Layer]:
    """The rows of the encoder, images to latents."""
    plan = [Layer('project_in', 'unshuffle', config.colours, config.widths[0])]
    for stage, depth in enumerate(config.encoder_depths, 1):
        width = config.widths[stage - 1]
        kind = 'block_rms' if stage <= config.residual_stages else 'attention'
        plan.append(Layer(f'stage_{stage}', kind, width, width, depth))
        if stage < len(config.widths):
            plan.append(Layer(f'down_{stage}', 'downsample', width, config.widths[stage]))
    return [*plan, Layer('project_out', 'average', config.widths[-1], config.channels)]


def decoder_plan(config: DCAEConfig) -> list[Layer]:
    """The rows of the decoder, latents to images, coarsest stage first."""
    plan = [Layer('project_in', 'repeat', config.channels, config.widths[-1])]
    for stage, depth in reversed(list(enumerate(config.decoder_depths, 1))):
        width = config.widths[stage - 1]
        kind = 'block_batch' if stage <= config.residual_stages else 'attention'
        if stage < len(config.widths):
            plan.append(Layer(f'up_{stage}', 'upsample', config.widths[stage], width))
        plan.append(Layer(f'stage_{stage}', kind, width, width, depth))
    return [*plan, Layer('project_out', 'output', config.widths[0], config.colours)]


# --- Pure functions ------------------------------------------------------------------------------


def unshuffle(x: jax.Array) -> jax.Array:
    """2x2 pixels into channels c*4 + row*2 + column: (B, H, W, C) -> (B, H/2, W/2, 4C)."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 5, 2, 4)
    return x.reshape(b, h // 2, w // 2, 4 * c)


def shuffle(x: jax.Array) -> jax.Array:
    """Inverse of `unshuffle`: (B, H, W, 4C) -> (B, 2H, 2W, C)."""
    b, h, w, c = x.shape
    x = x.reshape(b, h, w, c // 4, 2, 2).transpose(0, 1, 4, 2, 5, 3)
    return x.reshape(b, 2 * h, 2 * w, c // 4)


def fit_channels(x: jax.Array, channels: int) -> jax.Array:
    """The shortcut: averages consecutive channels of x (..., C), or repeats each one."""
    if x.shape[-1] >= channels:
        return x.reshape(*x.shape[:-1], channels, -1).mean(-1)
    return jnp.repeat(x, channels // x.shape[-1], axis=-1)


def linear_attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """ReLU linear attention (LiteMLA), in float32: the denominators underflow in less.

    out_n = sum_m relu(q_n).relu(k_m) v_m / (sum_m relu(q_n).relu(k_m) + epsilon)

    Args:
      q, k, v: (B, N, heads, D).

    Returns:
      (B, N, heads, D) float32.
    """
    q, k, v = (a.astype(jnp.float32) for a in (q, k, v))
    q, k = jax.nn.relu(q), jax.nn.relu(k)
    dot = lambda rule, *terms: jnp.einsum(rule, *terms, precision=layers.precision(jnp.float32))
    numerators = dot('bnhd,bhde->bnhe', q, dot('bnhd,bnhe->bhde', k, v))
    denominators = dot('bnhd,bhd->bnh', q, k.sum(1))
    return numerators / (denominators[..., None] + ATTENTION_EPSILON)


def swish(x: jax.Array) -> jax.Array:
    """x * sigmoid(x) in float32."""
    return jax.nn.silu(x.astype(jnp.float32))


# --- Modules -------------------------------------------------------------------------------------


class RMSNorm(nnx.Module):
    """x / sqrt(mean over channels of x^2) * scale + bias, in float32 (official trms2d)."""

    def __init__(self, channels: int):
        self.scale = nnx.Param(jnp.ones(channels))
        self.bias = nnx.Param(jnp.zeros(channels))

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x.astype(jnp.float32)
        power = jnp.square(x).mean(-1, keepdims=True)
        return x * jax.lax.rsqrt(power + NORM_EPSILON) * self.scale[...] + self.bias[...]


class BatchNorm(nnx.Module):
    """Batch norm with recorded statistics, in float32."""

    def __init__(self, channels: int):
        self.scale = nnx.Param(jnp.ones(channels))
        self.bias = nnx.Param(jnp.zeros(channels))
        self.mean = nnx.Param(jnp.zeros(channels))
        self.variance = nnx.Param(jnp.ones(channels))

    def __call__(self, x: jax.Array) -> jax.Array:
        gain = self.scale[...] * jax.lax.rsqrt(self.variance[...] + NORM_EPSILON)
        return (x.astype(jnp.float32) - self.mean[...]) * gain + self.bias[...]


class ResBlock(nnx.Module):
    """x + norm(conv(activation(conv(x))))."""

    def __init__(
        self,
        width: int,
        config: DCAEConfig,
        norm: type[RMSNorm] | type[BatchNorm],
        activation: Callable[[jax.Array], jax.Array],
        rngs: nnx.Rngs,
    ):
        self.activation = activation
        self.conv1 = conv3(width, width, config, rngs)
        self.conv2 = conv(width, width, 3, config, rngs, use_bias=False)
        self.norm = norm(width)

    def __call__(self, x: jax.Array) -> jax.Array:
        return layers.add(x, self.norm(self.conv2(self.activation(self.conv1(x)))))


class AttentionBlock(nnx.Module):
    """x + linear attention, then x + gated convolution (official EViT_GLU)."""

    def __init__(self, width: int, _outputs: int, config: DCAEConfig, rngs: nnx.Rngs):
        self.head_width = config.head_width
        inner = 2 * EXPANSION * width
        self.qkv = conv(width, 3 * width, 1, config, rngs, use_bias=False)
        self.out = conv(width, width, 1, config, rngs, use_bias=False)
        self.out_norm = RMSNorm(width)
        self.expand = conv1(width, inner, config, rngs)
        self.depthwise = conv(inner, inner, 3, config, rngs, feature_group_count=inner)
        self.contract = conv(inner // 2, width, 1, config, rngs, use_bias=False)
        self.contract_norm = RMSNorm(width)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = layers.add(x, self._attend(x))
        return layers.add(x, self._mix(x))

    def _attend(self, x):
        b, h, w, width = x.shape
        # The channels of qkv are head by head: (q, k, v) of the first, of the second, ...
        qkv = self.qkv(x).reshape(b, h * w, width // self.head_width, 3, self.head_width)
        mixed = linear_attention(*(qkv[..., i, :] for i in range(3)))
        return self.out_norm(self.out(mixed.reshape(b, h, w, width)))

    def _mix(self, x):
        h, gate = jnp.split(self.depthwise(swish(self.expand(x))), 2, axis=-1)
        return self.contract_norm(self.contract(h.astype(jnp.float32) * swish(gate)))


class Downsample(nnx.Module):
    """unshuffle(conv(x)) + averaged unshuffle(x)."""

    def __init__(self, inputs: int, outputs: int, config: DCAEConfig, rngs: nnx.Rngs):
        self.outputs = outputs
        self.conv = conv3(inputs, outputs // 4, config, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return layers.add(unshuffle(self.conv(x)), fit_channels(unshuffle(x), self.outputs))


class Upsample(nnx.Module):
    """shuffle(conv(x)) + shuffle of repeated x."""

    def __init__(self, inputs: int, outputs: int, config: DCAEConfig, rngs: nnx.Rngs):
        self.wide = 4 * outputs
        self.conv = conv3(inputs, self.wide, config, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return layers.add(shuffle(self.conv(x)), shuffle(fit_channels(x, self.wide)))


class Unshuffle(nnx.Module):
    """unshuffle(conv(x)): the first layer, without a shortcut."""

    def __init__(self, inputs: int, outputs: int, config: DCAEConfig, rngs: nnx.Rngs):
        self.conv = conv3(inputs, outputs // 4, config, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return unshuffle(self.conv(x)).astype(jnp.float32)


class Resize(nnx.Module):
    """conv(x) + x with its channels averaged or repeated: into the latent and out of it."""

    def __init__(self, inputs: int, outputs: int, config: DCAEConfig, rngs: nnx.Rngs):
        self.outputs = outputs
        self.conv = conv3(inputs, outputs, config, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return layers.add(self.conv(x), fit_channels(x, self.outputs))


class Output(nnx.Module):
    """shuffle(conv(relu(norm(x)))): the last layer."""

    def __init__(self, inputs: int, outputs: int, config: DCAEConfig, rngs: nnx.Rngs):
        self.norm = RMSNorm(inputs)
        self.conv = conv3(inputs, 4 * outputs, config, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return shuffle(self.conv(jax.nn.relu(self.norm(x))))


KINDS = {
    'unshuffle': Unshuffle,
    'block_rms': lambda i, _o, config, rngs: ResBlock(i, config, RMSNorm, swish, rngs),
    'block_batch': lambda i, _o, config, rngs: ResBlock(i, config, BatchNorm, jax.nn.relu, rngs),
    'attention': AttentionBlock,
    'downsample': Downsample,
    'upsample': Upsample,
    'average': Resize,
    'repeat': Resize,
    'output': Output,
}


class DCAE(nnx.Module):
    """Images to latents and latents to images."""

    def __init__(self, config: DCAEConfig, rngs: nnx.Rngs):
        self.config = config
        self.encoder = layers.Chain(encoder_plan(config), KINDS, config, rngs)
        self.decoder = layers.Chain(decoder_plan(config), KINDS, config, rngs)

    def encode(self, images: jax.Array) -> jax.Array:
        """Latents (B, h, w, channels) float32, without the scale that tokens have.

        Args:
          images: (B, H, W, colours) in [-1, 1]; H and W are multiples of `config.stride`.

        Raises:
          UserError: the shape does not fit.
        """
        layers.check_images(images, self.config.stride, self.config.colours)
        return self.encoder(images)

    def decode(self, latents: jax.Array) -> jax.Array:
        """Images (B, H, W, colours) float32, about [-1, 1] and not clipped.

        Args:
          latents: (B, h, w, channels) as `encode` gives them.

        Raises:
          UserError: the shape does not fit.
        """
        layers.check_latents(latents, self.config.channels)
        return self.decoder(latents).astype(jnp.float32)


def network(config: DCAEConfig) -> functional.Functional:
    """The network as pure functions."""
    return functional.functional(lambda rngs: DCAE(config, rngs))

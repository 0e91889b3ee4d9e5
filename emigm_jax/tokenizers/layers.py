"""Convolutions, norms and residual blocks shared by the tokenizers, and chains built from plans.

Images and features are NHWC. The sums along a network and everything inside norms are float32;
convolutions run in the compute dtype of the config and return it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from emigm_jax.errors import UserError
from emigm_jax.nn import functional

DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}


@runtime_checkable
class Settings(Protocol):
    """What a layer reads of a tokenizer's settings."""

    @property
    def dtype(self) -> str: ...

    @property
    def compute_dtype(self) -> DTypeLike: ...


@runtime_checkable
class GroupSettings(Settings, Protocol):
    """As `Settings`, of a network with GroupNorms."""

    @property
    def groups(self) -> int: ...


class Layer(NamedTuple):
    """One row of a plan."""

    name: str
    kind: str  # a key of the table of kinds
    inputs: int  # channels
    outputs: int
    depth: int | None = None  # that many such layers in a row, run by one scan; None: just one

    @property
    def attribute(self) -> str:
        """Where a `Chain` keeps the parameters: the name with '_' for '.'."""
        return self.name.replace('.', '_')


class Chain(nnx.Module):
    """Layers that run one after the other, in the order of their plan.

    Args:
      plan: the layers.
      kinds: {kind: build(inputs, outputs, config, rngs) -> module of one argument}.
      config: what the builders want to know.
    """

    def __init__(
        self,
        plan: Sequence[Layer],
        kinds: Mapping[str, Callable[..., nnx.Module]],
        config: Any,
        rngs: nnx.Rngs,
    ):
        self.plan = tuple(plan)
        for layer in self.plan:
            build = lambda rngs, layer=layer: kinds[layer.kind](
                layer.inputs, layer.outputs, config, rngs
            )
            depth = layer.depth
            module = build(rngs) if depth is None else functional.stack(build, depth, rngs)
            setattr(self, layer.attribute, module)

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in self.plan:
            module = getattr(self, layer.attribute)
            if layer.depth is None:
                x = module(x)
            else:
                x = functional.scan(module, x, lambda block, x, _: block(x))
        return x


def precision(dtype: DTypeLike) -> jax.lax.Precision | None:
    """How exactly to multiply: float32 means float32, on TPU and GPU, too, whose default is less.

    With random weights, bfloat16 moves the outputs by 1 to 2 % of their standard deviation.
    """
    return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None


def conv(
    inputs: int, outputs: int, size: int, config: Settings, rngs: nnx.Rngs, **options: Any
) -> nnx.Conv:
    """Convolution (size x size) with 'SAME' padding and bias, unless `options` say otherwise."""
    dtype = config.compute_dtype
    return nnx.Conv(
        inputs, outputs, (size, size), dtype=dtype, precision=precision(dtype), rngs=rngs, **options
    )


def conv3(inputs: int, outputs: int, config: Settings, rngs: nnx.Rngs) -> nnx.Conv:
    """The kind of layer that is a 3x3 convolution with bias."""
    return conv(inputs, outputs, 3, config, rngs)


def conv1(inputs: int, outputs: int, config: Settings, rngs: nnx.Rngs) -> nnx.Conv:
    """The kind of layer that is a 1x1 convolution with bias."""
    return conv(inputs, outputs, 1, config, rngs)


def group_norm(
    x: jax.Array, scale: jax.Array, bias: jax.Array, groups: int, epsilon: float = 1e-6
) -> jax.Array:
    """GroupNorm of x (B, H, W, C) over positions and C/groups channels, in float32.

    The variance is taken around the mean: E[x^2] - E[x]^2 would lose the digits that parity needs.
    Channels are grouped after the sum over positions, so that no large array is reshaped: C/groups
    is 4 to 16, and a TPU pads the last axis to 128.
    """
    b, _, _, c = x.shape

    def mean(x):
        by_group = x.mean((1, 2)).reshape(b, groups, c // groups).mean(-1)
        return jnp.repeat(by_group, c // groups, axis=-1)[:, None, None]

    x = x.astype(jnp.float32)
    x = x - mean(x)
    return x * jax.lax.rsqrt(mean(jnp.square(x)) + epsilon) * scale + bias


class GroupNorm(nnx.Module):
    """GroupNorm, followed by swish if `swish`: (B, H, W, C) -> float32 of the same shape."""

    def __init__(self, channels: int, config: GroupSettings, rngs: nnx.Rngs, swish: bool = True):
        self.groups, self.swish = config.groups, swish
        self.scale = nnx.Param(jnp.ones(channels))
        self.bias = nnx.Param(jnp.zeros(channels))

    def __call__(self, x: jax.Array) -> jax.Array:
        x = group_norm(x, self.scale[...], self.bias[...], self.groups)
        return jax.nn.silu(x) if self.swish else x


def norm_swish(inputs: int, _outputs: int, config: GroupSettings, rngs: nnx.Rngs) -> GroupNorm:
    """The kind of layer that is GroupNorm and swish."""
    return GroupNorm(inputs, config, rngs)


def upsample(x: jax.Array) -> jax.Array:
    """Every pixel of x (B, H, W, C) becomes 2x2 equal ones."""
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)


class Upsample(nnx.Module):
    """Nearest-neighbour doubling of both sides, then a 3x3 convolution."""

    def __init__(self, inputs: int, outputs: int, config: Settings, rngs: nnx.Rngs):
        self.conv = conv3(inputs, outputs, config, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.conv(upsample(x))


def add(x: jax.Array, y: jax.Array) -> jax.Array:
    """Residual sum in float32."""
    return x.astype(jnp.float32) + y.astype(jnp.float32)


def check_dtype(config: Settings, name: str) -> None:
    """Raises UserError unless `config.dtype` is known."""
    if config.dtype not in DTYPES:
        raise UserError(f'{name}.dtype must be one of {", ".join(DTYPES)}, not {config.dtype!r}')


def check_sizes(config: object, name: str, fields: Sequence[str]) -> None:
    """Raises UserError unless the fields, numbers or tuples of numbers, are all at least 1."""
    for field in fields:
        value = getattr(config, field)
        numbers = value if isinstance(value, tuple) else (value,)
        if not numbers or min(numbers) < 1:
            raise UserError(f'{name}.{field} must be at least 1, not {value}')


def check_groups(config: GroupSettings, name: str, widths: Sequence[int]) -> None:
    """Raises UserError unless `config.groups` divides all widths."""
    for width in widths:
        if width % config.groups:
            raise UserError(f'{name}.groups = {config.groups} does not divide {width} channels')


def check_images(images: jax.Array, stride: int, colours: int) -> None:
    """Raises UserError unless images are (B, H, W, colours) with sides that stride divides."""
    if images.ndim != 4 or images.shape[-1] != colours:
        raise UserError(f'images must have shape (B, H, W, {colours}), not {images.shape}')
    height, width = images.shape[1:3]
    if height % stride or width % stride:
        raise UserError(
            f'images of {height} x {width} pixels do not fit a tokenizer of stride '
            f'{stride}: resize or crop them to multiples of it'
        )


def check_latents(latents: jax.Array, channels: int) -> None:
    """Raises UserError unless latents are (B, h, w, channels)."""
    if latents.ndim != 4 or latents.shape[-1] != channels:
        raise UserError(f'latents must have shape (B, h, w, {channels}), not {latents.shape}')

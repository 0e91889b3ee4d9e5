"""A tokenizer's decoder and Inception, as programs to be timed."""

import functools
from typing import cast

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from emigm_jax.benchmark import products
from emigm_jax.benchmark.timing import Program
from emigm_jax.checkpoints import store
from emigm_jax.config.settings import DataConfig
from emigm_jax.core import randomness
from emigm_jax.data import datasets
from emigm_jax.errors import UserError
from emigm_jax.evaluation import inception
from emigm_jax.nn.functional import Params
from emigm_jax.parallel import batches
from emigm_jax.tokenizers import codec as codecs
from emigm_jax.tokenizers import layers
from emigm_jax.tokenizers.codec import Codec
from emigm_jax.tokenizers.learned import KINDS, Learned
from emigm_jax.tokenizers.pixel_codes import PixelCodes
from emigm_jax.tokenizers.pixels import Pixels


@randomness.pinned()
def learned_codec(name: str, dtype: str | None = None) -> Codec:
    """A tokenizer of `KINDS` with random weights, or that of a checkpoint.

    Args:
      name: a key of `KINDS`, in its published sizes; or where a checkpoint is.
      dtype: of convolutions; None: float32, or as saved.

    Raises:
      UserError: neither.
    """
    if name not in KINDS:
        if not store.is_checkpoint(name):
            raise UserError(f'{name}: no tokenizer checkpoint, and none of {", ".join(KINDS)}')
        return codecs.load(name, dtype)
    tokenizer = Learned(name, KINDS[name].config(dtype=dtype or 'float32'))
    return Codec(tokenizer, jax.jit(tokenizer.network.init)(randomness.key(0)))


def pixel_codec(name: str, data: DataConfig) -> Codec:
    """What decodes data that are pixels.

    Raises:
      UserError: `data` of the config `name` have learned tokens, or unknown ones.
    """
    found = None if data.tokenizer else datasets.codec(data)
    if found is None:
        raise UserError(
            f'{name}: its tokens are no pixels; name what decodes them: --tokenizer kl16 at 256, '
            'dc_ae at 512, vqgan for codes, or a checkpoint'
        )
    return found


def side(codec: Codec) -> int:
    """Pixels per side of the images of a tokenizer."""
    tokenizer = codec.tokenizer
    if isinstance(tokenizer, Learned):
        return tokenizer.kind.image_size
    assert isinstance(tokenizer, (Pixels, PixelCodes))
    return tokenizer.image_size


def decode(codec: Codec, pixels: int, batch: int) -> Program:
    """Tokens -> uint8 images of `pixels` per side.

    Raises:
      UserError: the tokenizer has no images of this size.
    """
    spec, tokenizer = codec.spec, codec.tokenizer
    if pixels % spec.stride:
        raise UserError(
            f'images of {pixels} pixels per side are not made of tokens of {spec.title}, which are '
            f'{spec.stride} wide'
        )
    if not isinstance(tokenizer, Learned) and pixels != side(codec):
        raise UserError(f'images of {spec.title} have {side(codec)} pixels per side, not {pixels}')
    rng, shape = np.random.default_rng(0), (batch, (pixels // spec.stride) ** 2)
    if spec.codes:
        tokens = rng.integers(spec.codes, size=shape).astype(np.int32)
    else:
        tokens = rng.standard_normal((*shape, spec.channels), np.float32)
    flops = products.flops(tokenizer.decode, codec.params, tokens[:1])
    dtype = tokenizer.config.dtype if isinstance(tokenizer, Learned) else 'float32'
    precision = layers.precision(np.dtype(dtype))
    return _program(codec.prepared(tokens), flops, dtype, precision)


@randomness.pinned()
def inception_params(path: str | None) -> Params:
    """The weights of an Inception checkpoint; random ones if there is none.

    Raises:
      UserError: no Inception checkpoint is at `path`.
    """
    if path:
        return inception.load(path).params
    return jax.jit(inception.network().init)(randomness.key(0))


def evaluate(params: Params, pixels: int, batch: int) -> Program:
    """uint8 images of `pixels` per side -> Inception's features."""
    images = (
        np.random.default_rng(0).integers(256, size=(batch, pixels, pixels, 3)).astype(np.uint8)
    )
    flops = products.flops(inception.features, params, images[:1])
    prepared = batches.OverDevices(inception.features).prepared(params, images)
    return _program(prepared, flops, 'float32', inception.EXACT)


def _program(prepared, flops, dtype, precision):
    run, (params, rows) = prepared
    rows = jax.device_put(rows, NamedSharding(batches.mesh(), PartitionSpec(batches.AXIS)))
    arguments = params, rows
    lower = functools.partial(cast(jax.stages.Wrapped, run).lower, *arguments)
    return Program(lower, arguments, lambda _: arguments, flops, dtype, precision)

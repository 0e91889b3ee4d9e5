"""Attention by cuDNN on NVIDIA GPUs: no logits in memory; only where it is seen to be right."""

import functools
import logging
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from emigm_jax.core import randomness
from emigm_jax.io import gcs
from emigm_jax.parallel import sharding

_TOLERANCE = 0.02  # of the largest value: a rounding or two to bfloat16
_log = logging.getLogger(__name__)


def serves(q: Float[Array, 'B Q H d'], definition: Callable[..., Array]) -> bool:
    """Whether what is traced now runs on GPUs whose cuDNN agrees with the definition.

    Args:
      q: queries.
      definition: as `attend`, but of which keys are seen (B, L) in place of lengths.
    """
    if q.dtype not in (jnp.bfloat16, jnp.float16) or q.shape[-1] % 8 or q.shape[-1] > 128:
        return False
    return sharding.platform() == 'gpu' and _agrees(definition, q.shape[-1], str(q.dtype))


def attend(
    q: Float[Array, 'B Q H d'],
    k: Float[Array, 'B L H d'],
    v: Float[Array, 'B L H d'],
    lengths: Int[Array, ' B'] | None = None,
) -> Float[Array, 'B Q H d']:
    """Softmax attention with scale d^-0.5; keys at or beyond the lengths are hidden."""
    if lengths is not None:
        lengths = lengths.astype(jnp.int32)
    return jax.nn.dot_product_attention(
        q, k, v, key_value_seq_lengths=lengths, implementation='cudnn'
    )


@functools.cache
def _agrees(definition, size, dtype):
    """Compares the two on this device, once; what fails is not used."""
    try:
        with jax.ensure_compile_time_eval():
            keys = jax.random.split(randomness.key(0), 3)
            q, k, v = (jax.random.normal(key, (2, 24, 2, size)).astype(dtype) for key in keys)
            lengths = jnp.array([24, 13], jnp.int32)
            ours = attend(q, k, v, lengths).astype(jnp.float32)
            plain = definition(q, k, v, jnp.arange(24) < lengths[:, None]).astype(jnp.float32)
            error = float(jnp.abs(ours - plain).max() / jnp.abs(plain).max())
    except Exception as error:  # cuDNN is missing, too old, or has no kernel for this GPU
        _log.info('attention by XLA, as cuDNN fails here: %s', gcs.brief(error))
        return False
    good = error < _TOLERANCE
    _log.info('attention by %s: cuDNN is off by %.1e', 'cuDNN' if good else 'XLA', error)
    return good

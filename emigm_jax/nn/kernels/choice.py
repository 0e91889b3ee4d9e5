"""Whether a kernel runs or the definition that XLA compiles: one rule for all kernels.

`auto` takes a kernel on accelerators that it is made for, where it fits, and if on the very device
it agrees with the definition. Stand-ins of TPUs, for which programs are compiled ahead of time, are
believed.
"""

import concurrent.futures
import functools
import logging
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from emigm_jax.io import gcs
from emigm_jax.parallel import sharding

# Of the largest value: a rounding or two of what is computed in, on a TPU bfloat16 by default.
_TOLERANCE = 0.02
# Bytes of VMEM of what a device calls itself (docs.jax.dev, Pallas TPU details); v5 alone is v5p.
_VMEM = {'v4': 16, 'v5 ?(lite|e)': 128, 'v5': 64, 'v6 ?(lite|e)': 128, 'v?7x': 64}
_log = logging.getLogger(__name__)


def vmem() -> int:
    """Bytes that a kernel may take of what the devices that are traced for have; 0: no TPU."""
    if sharding.platform() != 'tpu':
        return 0
    kind = sharding.device_kind()
    found = (size for name, size in _VMEM.items() if re.search(name, kind, re.IGNORECASE))
    return int(0.92 * next(found, 16) * 2**20)


def cores() -> int:
    """Tensor cores of one device: v4 and v5p fuse two of them."""
    two = sharding.platform() == 'tpu' and re.search(r'v4$|v5p?$', sharding.device_kind())
    return 2 if two else 1


def interpreted() -> bool:
    """Whether kernels run as plain operations here, which shows that they are right, slowly."""
    return sharding.platform() != 'tpu'


def takes(
    kernels: str,
    name: str,
    fits: bool,
    error: Callable[[DTypeLike, int], float],
    dtype: DTypeLike,
    size: int,
) -> bool:
    """Whether the kernel runs.

    Args:
      kernels: the setting, `model.kernels`.
      name: of the kernel, for the log.
      fits: whether it is made for this kind of device, which has room for it.
      error: (dtype, size) -> its distance from the definition on the default device, relative to
        the largest value.
      dtype: of products.
      size: of a head, or the width.
    """
    if kernels != 'auto':
        return kernels == 'pallas'
    if sharding.platform() == 'cpu' or not fits:
        return False
    if sharding.platform() == 'tpu' != jax.default_backend():  # compiled ahead of time
        return True
    return _agrees(name, error, jnp.dtype(dtype).name, size)


@functools.cache
def _agrees(name, error, dtype, size):
    """Compares on this device, once; a kernel that fails is not used."""
    # A thread of its own is in no trace and under no mesh.
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        try:
            off = pool.submit(error, dtype, size).result()
        except Exception as failure:  # whatever the compiler of this device says
            _log.info('%s by XLA, as its kernel fails here: %s', name, gcs.brief(failure))
            return False
    good = off < _TOLERANCE
    _log.info('%s by %s: the kernel is off by %.1e', name, 'kernel' if good else 'XLA', off)
    return good


def distance(found: jax.Array, wanted: jax.Array) -> float:
    """Largest difference, relative to the largest value."""
    found, wanted = found.astype(jnp.float32), wanted.astype(jnp.float32)
    return float(jnp.abs(found - wanted).max() / jnp.abs(wanted).max())

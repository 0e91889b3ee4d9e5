"""Independent rows over the devices of this process: the one owner of padding and placing them."""

import math
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from emigm_jax.core import randomness

AXIS = 'data'

_Array = TypeVar('_Array', np.ndarray, jax.Array)


def mesh() -> Mesh:
    """A mesh of this process's devices with the one axis 'data'."""
    devices = jax.local_devices()
    return jax.make_mesh((len(devices),), (AXIS,), (AxisType.Auto,), devices=devices)


def padded(rows: int) -> int:
    """`rows` rounded up to a multiple of the devices."""
    return -(-rows // jax.local_device_count()) * jax.local_device_count()


def fill(rows: _Array, size: int) -> _Array:
    """An array (R, ...), repeated up to (size, ...)."""
    if not isinstance(rows, jax.Array):
        rows = np.asarray(rows)
    return rows if len(rows) == size else rows[np.arange(size) % len(rows)]


def place(params: Any) -> Any:
    """`params` on every device, where an `OverDevices` wants them; no copy if there."""
    return jax.device_put(params, NamedSharding(mesh(), PartitionSpec()))


class OverDevices:
    """A jitted `function(params, *rows)` whose rows are computed independently of one another.

    It is traced and run as `randomness.pinned`.

    Args:
      function: pure; takes params and arrays (R, ...), returns arrays (R, ...).
      on: a mesh with the one axis 'data'; default: this process's devices.
    """

    def __init__(self, function: Callable[..., Any], on: Mesh | None = None):
        if on is None and jax.local_device_count() == 1:
            self.program = jax.jit(function)
            return
        replicated, sharded = PartitionSpec(), PartitionSpec(AXIS)
        # Inside a shard nothing is known of the others, so no collective can creep in.
        shards = jax.shard_map(
            lambda params, rows: function(params, *rows),
            mesh=on or mesh(),
            in_specs=(replicated, sharded),
            out_specs=sharded,
            check_vma=False,
        )
        self.program = jax.jit(lambda params, *rows: shards(params, rows))

    @randomness.pinned()
    def __call__(self, params: Any, *rows: Any) -> Any:
        """Results (R, ...) for rows (R, ...), R >= 1, spread over the devices.

        `place` saves a copy of the params for every call.
        """
        program, arguments = self.prepared(params, *rows)
        results, count = program(*arguments), len(rows[0])
        return results if padded(count) == count else jax.tree.map(lambda a: a[:count], results)

    @randomness.pinned()
    def prepared(self, params: Any, *rows: Any) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """The jitted program of a call and its arguments, padded and placed."""
        size = padded(len(rows[0]))
        # A program is compiled for where its arguments are. Results are placed so, and may be rows.
        rows = jax.device_put(
            tuple(fill(a, size) for a in rows), NamedSharding(mesh(), PartitionSpec(AXIS))
        )
        return self.program, (place(params), *rows)

    @randomness.pinned()
    def lower(self, params: Any, *rows: Any) -> jax.stages.Lowered:
        """The program lowered for shapes whose rows are a multiple of the devices."""
        return self.program.lower(params, *rows)


def in_chunks(function: Callable[[jax.Array], Any], rows: jax.Array, size: int) -> Any:
    """`function` of rows (R, ...) inside a program, at most `size` of them at a time.

    It returns arrays (R, ...).
    """
    count = len(rows)
    if count <= size:
        return function(rows)
    chunks = math.ceil(count / size)
    chunked = fill(rows, chunks * size).reshape(chunks, size, *rows.shape[1:])
    results = jax.lax.map(function, chunked)
    return jax.tree.map(lambda a: jnp.reshape(a, (-1, *a.shape[2:]))[:count], results)

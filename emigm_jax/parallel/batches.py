"""Independent rows over the devices of this process: each computes its share, none waits."""

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec


def mesh():
    """A mesh of this process's devices with the one axis 'data'."""
    devices = jax.local_devices()
    return jax.make_mesh((len(devices),), ('data',), (AxisType.Auto,), devices=devices)


def padded(rows):
    """`rows` rounded up to a multiple of the devices."""
    return -(-rows // jax.local_device_count()) * jax.local_device_count()


def place(params):
    """`params` on every device, where programs of `over_devices` want them; no copy if there."""
    return jax.device_put(params, NamedSharding(mesh(), PartitionSpec()))


def over_devices(function, on=None):
    """Jits `function(params, *rows)`, whose rows are computed independently of one another.

    Args:
      function: pure; takes params and arrays (R, ...), returns arrays (R, ...).
      on: a mesh with the one axis 'data'; default: this process's devices.

    Returns:
      The jitted program. It wants params as `place` leaves them and R a multiple of the devices;
      its results lie spread over the devices.
    """
    if on is None and jax.local_device_count() == 1:
        return jax.jit(function)
    on = on or mesh()
    whole, split = PartitionSpec(), PartitionSpec('data')

    # Inside a shard nothing is known of the others, so no collective can creep in.
    def shard(params, rows):
        return function(params, *rows)

    program = jax.shard_map(
        shard, mesh=on, in_specs=(whole, split), out_specs=split, check_vma=False
    )
    return jax.jit(lambda params, *rows: program(params, rows))


def fill(rows, size):
    """An array (R, ...) repeated up to (size, ...): the last batch gets the compiled shape."""
    rows = np.asarray(rows)
    return rows if len(rows) == size else rows[np.arange(size) % len(rows)]

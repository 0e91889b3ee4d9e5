"""Arrays that every process wants whole: each reads a share, and all hand theirs to the others.

So P processes read the bytes of replicated state once, and not P times.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import orbax.checkpoint.experimental.v1 as ocp

from emigm_jax.parallel import agreement, exchange

Read = Callable[[Any], Any]  # abstract arrays -> the same with arrays in place


def load(read: Read, abstract: Any) -> Any:
    """What `read` gives for `abstract`, where all processes call it with the same.

    Args:
      read: leaves out what is `ocp.PLACEHOLDER`, and need not be told the same on all processes.
      abstract: shapes and shardings.

    Raises:
      UserError: one of the processes cannot read; on all of them.
    """
    leaves, structure = jax.tree.flatten(abstract)
    wanted = [number for number, leaf in enumerate(leaves) if _everywhere(leaf)]
    if not wanted:
        return read(abstract)
    owners = _owners({number: _bytes(leaves[number]) for number in wanted})
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    mine, asked = [n for n in wanted if owners[n] == jax.process_index()], [*leaves]
    for number in wanted:
        like = jax.ShapeDtypeStruct(leaves[number].shape, leaves[number].dtype, sharding=here)
        asked[number] = like if number in mine else ocp.PLACEHOLDER
    found = agreement.agreed(lambda: read(jax.tree.unflatten(structure, asked)))
    found = structure.flatten_up_to(found)
    everything = exchange.from_all([np.asarray(found[number]) for number in mine])
    for process, parts in enumerate(everything):
        theirs = [number for number in wanted if owners[number] == process]
        for number, part in zip(theirs, _cut(parts, [leaves[n] for n in theirs]), strict=True):
            found[number] = _placed(part, leaves[number].sharding)
    return jax.tree.unflatten(structure, found)


def _everywhere(leaf):
    """Whether all processes hold the whole of it."""
    sharding = getattr(leaf, 'sharding', None)
    if jax.process_count() == 1 or sharding is None or not sharding.is_fully_replicated:
        return False
    return len({device.process_index for device in sharding.device_set}) == jax.process_count()


def _bytes(leaf):
    return int(np.prod(leaf.shape, dtype=np.int64)) * np.dtype(leaf.dtype).itemsize


def _owners(sizes):
    """{number: process}, by which all read about as much."""
    held, owners = [0] * jax.process_count(), {}
    for number in sorted(sizes, key=lambda n: (-sizes[n], n)):
        owners[number] = held.index(min(held))
        held[owners[number]] += sizes[number]
    return owners


def _cut(parts, leaves):
    """The arrays that lie one behind the other in `parts`, of bytes."""
    ends = np.cumsum([_bytes(leaf) for leaf in leaves])
    for end, leaf in zip(ends, leaves, strict=True):
        yield parts[end - _bytes(leaf) : end].view(leaf.dtype).reshape(leaf.shape)


def _placed(array, sharding):
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

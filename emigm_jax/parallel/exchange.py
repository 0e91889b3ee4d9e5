"""What processes add up, and what they hand to the first one: nobody receives what he need not.

All devices of a process share its traffic. Numbers travel as the bits that they are, so a sum is
that of one host in float64, in order of the processes, wherever it is done.
"""

import functools
from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

_T = TypeVar('_T')

PROCESS, DEVICE = 'process', 'device'  # axes of the mesh
_WORD = np.uint32  # what devices copy without looking at it
_ROUND = 2**27  # bytes of a process at a time, for which devices need room


def summed(tree: _T) -> _T:
    """The sums of float64 arrays over all processes, on each of them.

    Every process adds up one slice, of which all send it their part, and sends it to all: it
    receives twice the bytes of the tree however many they are.

    Args:
      tree: of NumPy arrays, of the same shapes on all processes, which all call this.
    """
    processes = jax.process_count()
    if processes == 1:
        return tree
    leaves, structure = jax.tree.flatten(tree)
    flat = np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in leaves])
    mesh = _mesh()
    devices = mesh.shape[DEVICE]
    padded = np.zeros(-(-flat.size // (processes * devices)) * processes * devices)
    padded[: flat.size] = flat
    sliced = padded.reshape(1, processes, devices, -1).view(_WORD)
    received = _run(mesh, dealt, sliced)[:, 0].view(np.float64)
    total = sum(received)  # of this process's slice, in order of the processes
    everything = _run(mesh, shared, np.asarray(total)[None].view(_WORD)).view(np.float64)
    ends = np.cumsum([leaf.size for leaf in leaves])[:-1]
    parts = np.split(everything.ravel()[: flat.size], ends)
    return jax.tree.unflatten(
        structure,
        [part.reshape(np.shape(leaf)) for part, leaf in zip(parts, leaves, strict=True)],
    )


def to_first(rows: np.ndarray | jax.Array) -> np.ndarray | None:
    """Arrays (B, ...) of every process, in order of the processes, on the first one: (P * B, ...).

    Args:
      rows: of the same shape and dtype on all processes, which all call this; B is a multiple of
        the devices of a process.

    Returns:
      None on the others, which receive nothing.
    """
    rows = np.asarray(rows)
    if jax.process_count() == 1:
        return rows
    mesh = _mesh()
    split = rows.reshape(1, mesh.shape[DEVICE], -1, *rows.shape[1:])
    handed = _run(mesh, handed_over, split)
    return handed.reshape(-1, *rows.shape[1:]) if jax.process_index() == 0 else None


def from_all(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The bytes of the arrays of every process, one behind the other: (bytes,) of each process.

    Args:
      arrays: of any number, shapes and dtypes; all processes call this.
    """
    mine = [np.ascontiguousarray(array).reshape(-1).view(np.uint8) for array in arrays]
    mine = np.concatenate([np.zeros(0, np.uint8), *mine])
    if jax.process_count() == 1:
        return [mine]
    mesh = _mesh()
    devices, word = mesh.shape[DEVICE], np.dtype(_WORD).itemsize
    halves = np.array([mine.size >> 20, mine.size % 2**20], np.int32)  # devices know no int64
    gathered = np.asarray(multihost_utils.process_allgather(halves), np.int64)
    sizes: list[int] = ((gathered[:, 0] << 20) + gathered[:, 1]).tolist()
    row = min(-(-max(sizes) // (devices * word)), _ROUND // (devices * word)) * devices * word
    parts = [np.zeros(size, np.uint8) for size in sizes]
    for start in range(0, max(sizes), max(row, 1)):
        piece = np.zeros(row, np.uint8)
        given = mine[start : start + row]
        piece[: given.size] = given
        words = _run(mesh, shared, piece.view(_WORD).reshape(1, devices, -1))
        for part, got in zip(parts, words.reshape(len(sizes), -1).view(np.uint8), strict=True):
            part[start : start + row] = got[: max(part.size - start, 0)]
    return parts


# --- On the devices ------------------------------------------------------------------------------


def dealt(mesh: Mesh | AbstractMesh, sliced: jax.Array) -> jax.Array:
    """(P, P, D, M), [from, to], which the process `from` has -> the same, which `to` has."""
    swap = functools.partial(jax.lax.all_to_all, axis_name=PROCESS, split_axis=1, concat_axis=0)
    return _mapped(mesh, swap, P(PROCESS, None, DEVICE), P(None, PROCESS, DEVICE))(sliced)


def shared(mesh: Mesh | AbstractMesh, slices: jax.Array) -> jax.Array:
    """(P, D, M), of which every process has one -> the same, which all have."""
    gather = functools.partial(jax.lax.all_gather, axis_name=PROCESS, tiled=True)
    return _mapped(mesh, gather, P(PROCESS, DEVICE), P(None, DEVICE))(slices)


def handed_over(mesh: Mesh | AbstractMesh, rows: jax.Array) -> jax.Array:
    """(P, D, B / D, ...), of which every process has one -> (P * P, D, B / D, ...).

    Of that each process has P rows again: the first one those of all, the others nothing of use.
    """

    def collect(mine):
        # One after another: a gather would give them to all.
        others = [
            jax.lax.ppermute(mine, PROCESS, [(other, 0)]) for other in range(1, mesh.shape[PROCESS])
        ]
        return jax.numpy.concatenate([mine, *others])

    return _mapped(mesh, collect, P(PROCESS, DEVICE), P(PROCESS, DEVICE))(rows)


def _mapped(mesh, function, given, gives):
    return jax.shard_map(function, mesh=mesh, in_specs=given, out_specs=gives, check_vma=False)


# --- Between host and devices --------------------------------------------------------------------


@functools.cache
def _mesh():
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    grid = np.array(devices).reshape(jax.process_count(), -1)
    return Mesh(grid, (PROCESS, DEVICE), axis_types=(AxisType.Auto,) * 2)


@functools.cache
def _compiled(mesh, function):
    return jax.jit(functools.partial(function, mesh))


# Which axis of an operand the devices of a process share.
_DEVICE_AXIS = {dealt: 2, shared: 1, handed_over: 1}


def _run(mesh, function, mine) -> Any:
    """What this process has of `function` of global arrays, of whose operand it has `mine`."""
    axis = _DEVICE_AXIS[function]
    spec = P(PROCESS, *[None] * (axis - 1), DEVICE)
    shape = (mesh.shape[PROCESS], *mine.shape[1:])
    rows = jax.make_array_from_process_local_data(NamedSharding(mesh, spec), mine, shape)
    shards = _compiled(mesh, function)(rows).addressable_shards
    by_device = sorted(shards, key=lambda shard: shard.index[axis].start or 0)
    return np.concatenate([np.asarray(shard.data) for shard in by_device], axis)

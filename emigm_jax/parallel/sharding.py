"""Sharding is a table: ordered rules say where each parameter lies and how it is used.

Mesh axes, outermost first: over `slice` (TPU slices joined by the data-centre network) and `data`
the state is replicated; over `fsdp` every parameter, its optimizer moments and its averages are
sharded; over `tensor` the heads and hidden units of a block, and the rows of the diffusion head. A
batch is sharded over slice, data and fsdp together.

Modules know no mesh. They call `gathered_for_use` and `constrain`, which do nothing unless a mesh
is in force (`jax.set_mesh`).
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from emigm_jax.core import randomness
from emigm_jax.core.setting import setting, validate
from emigm_jax.errors import UserError

_Axis = str | tuple[str, ...] | None  # of a mesh, that a dimension is sharded over
_T = TypeVar('_T')

AXES = ('slice', 'data', 'fsdp', 'tensor')
BATCH = ('slice', 'data', 'fsdp')
SHARDS = ('fsdp', 'tensor')  # of parameters

GATHERED = 'gathered'  # checkpoint name of gathered parameters, which no backward pass should keep


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How devices are arranged. One of data and fsdp may be -1: all devices that are left."""

    slices: int = setting(
        1, 'TPU slices joined by the data-centre network, the outermost copies', low=1
    )
    data: int = setting(-1, 'copies of the state in a slice; -1: what is left', low=1, beside=(-1,))
    fsdp: int = setting(
        1, 'shards of parameters, optimizer and EMA; -1: what is left', low=1, beside=(-1,)
    )
    tensor: int = setting(
        1, "shards of attention heads, hidden units and the diffusion head's rows", low=1
    )

    def __post_init__(self):
        validate(self, 'mesh')
        if self.data == self.fsdp == -1:
            raise UserError('mesh.data and mesh.fsdp cannot both be -1 (what is left)')


class Rule(NamedTuple):
    """Parameters whose path matches; axes are those of the last dimensions."""

    pattern: str
    stored: tuple[_Axis, ...]  # between steps, also of optimizer moments and averages
    used: tuple[_Axis, ...] = ()  # in a product; (): replicated


# The first rule that matches and whose axes divide the dimensions holds.
RULES = (
    # As in Megatron: columns of the first matrix, rows of the second; one sum per pair.
    Rule('attention/qkv/kernel|mlp/expand/kernel', ('fsdp', 'tensor'), (None, 'tensor')),
    Rule('attention/out/kernel|mlp/contract/kernel', ('tensor', 'fsdp'), ('tensor', None)),
    # Where that does not divide, and for everything else: the last dimension, or that before it.
    Rule('', (SHARDS,)),
    Rule('kernel', (SHARDS, None)),
    Rule('', ('fsdp',)),
    Rule('kernel', ('fsdp', None)),
    Rule('', ()),
)


def make_mesh(
    config: MeshConfig,
    devices: Sequence[jax.Device] | None = None,  # pyright: ignore[reportInvalidTypeForm]  # no stubs
) -> Mesh:
    """The mesh of settings over `devices` (default: all of all processes).

    Raises:
      UserError: the axes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [config.slices, config.data, config.fsdp, config.tensor]
    fixed = math.prod(s for s in sizes if s != -1)
    if -1 in sizes and len(devices) % fixed == 0:
        sizes[sizes.index(-1)] = len(devices) // fixed
    if math.prod(sizes) != len(devices):
        names = [field.name for field in dataclasses.fields(config)]
        named = ', '.join(f'mesh.{n} = {s}' for n, s in zip(names, sizes, strict=True))
        raise UserError(
            f'{named} do not make up {len(devices)} device(s); their product must, or say '
            'mesh.data=-1 for what is left'
        )
    # Others than TPUs are divided in their order, which keeps a host's together.
    slices = len({getattr(d, 'slice_index', 0) for d in devices if d.platform == 'tpu'}) or 1
    if slices not in (1, config.slices):
        raise UserError(f'the devices form {slices} slices: say mesh.slices={slices}')
    try:
        # Axes of a torus may be split: 4 x 16 lies on 8 x 8.
        if slices > 1:
            grid = mesh_utils.create_hybrid_device_mesh(
                (1, *sizes[1:]), (slices, 1, 1, 1), devices, allow_split_physical_axes=True
            )
        else:
            grid = mesh_utils.create_device_mesh(
                tuple(sizes), devices, allow_split_physical_axes=True
            )
    except (ValueError, NotImplementedError) as error:
        named = ' x '.join(f'{n} {s}' for n, s in zip(AXES, sizes, strict=True))
        raise UserError(f'no mesh {named}: {" ".join(str(error).split())}') from error
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def batch_shards(mesh: Mesh) -> int:
    """Shards of a batch."""
    return math.prod(mesh.shape[axis] for axis in BATCH)


def check_batch(mesh: Mesh, batch: int, accumulate: int, groups: int) -> None:
    """Raises UserError unless every device gets as many images of each group and microbatch."""
    shards = batch_shards(mesh)
    if batch % (shards * accumulate * groups):
        raise UserError(
            f'training.batch_size = {batch} must be a multiple of {shards * accumulate * groups} '
            f'({shards} data shards x {accumulate} microbatches x {groups} groups of '
            'loss.masking.groups)'
        )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Of arrays whose first dimension is the batch."""
    return NamedSharding(mesh, P(BATCH))


def replicated(mesh: Mesh) -> NamedSharding:
    """Of arrays that every device holds in full."""
    return NamedSharding(mesh, P())


def of_state(mesh: Mesh, tree: Any) -> Any:
    """The `NamedSharding` of every leaf of a tree of arrays or shapes, by `RULES`."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(mesh, _specs(path, leaf.shape, mesh.shape)[0]), tree
    )


def abstract(mesh: Mesh, tree: Any) -> Any:
    """Shapes with their shardings, to lower a program or restore a checkpoint into."""
    return jax.tree.map(
        lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), tree, of_state(mesh, tree)
    )


def _specs(path, shape, sizes):
    """(stored, used) PartitionSpecs of a leaf."""
    name = '/'.join(str(getattr(k, 'key', getattr(k, 'name', k))) for k in path)
    for rule in RULES:
        if re.search(rule.pattern, name) and _divides(rule.stored, shape, sizes):
            lead = (None,) * (len(shape) - len(rule.stored))
            return P(*lead, *rule.stored), P(*lead, *rule.used) if rule.used else P()
    raise AssertionError('the last rule always holds')


def _divides(axes, shape, sizes):
    if len(axes) > len(shape):
        return False
    last = shape[len(shape) - len(axes) :]
    return all(size % _size(axis, sizes) == 0 for axis, size in zip(axes, last, strict=True))


def _size(axis, sizes):
    names = () if axis is None else axis if isinstance(axis, tuple) else (axis,)
    return math.prod(sizes[name] for name in names)


# --- Inside programs -----------------------------------------------------------------------------


def mesh_in_force() -> jax.sharding.AbstractMesh | None:
    """The mesh that what is traced now is sharded over, if there is one."""
    mesh = jax.sharding.get_abstract_mesh()
    # Inside `shards.mapped` there is nothing left to shard.
    return mesh if set(mesh.axis_names) == set(AXES) and mesh.are_all_axes_auto else None


def platform() -> str:
    """Of the devices that what is traced now will run on: cpu, gpu or tpu."""
    device = jax.sharding.get_abstract_mesh().abstract_device or jax.config.jax_default_device  # pyright: ignore
    return device.platform if hasattr(device, 'platform') else device or jax.default_backend()


def device_kind() -> str:
    """What those devices call themselves."""
    device = jax.sharding.get_abstract_mesh().abstract_device or jax.devices()[0]
    return device.device_kind


def is_sharded() -> bool:
    """Whether a mesh is in force that shards parameters."""
    mesh = mesh_in_force()
    return mesh is not None and _size(SHARDS, mesh.shape) > 1


def gathered_for_use(tree: Any, dtype: DTypeLike | None = None, but: str | None = None) -> Any:
    """Parameters as products want them: gathered over fsdp, and kernels in the compute dtype.

    Kernels are rounded before they travel, which halves the traffic of bfloat16 and changes no
    number. Their gradients go back to where the parameters are stored, in float32.

    Args:
      tree: parameters; a subtree, such as one layer of a stack, will do.
      dtype: of matrix products; None leaves kernels as they are.
      but: name of subtrees that are left alone: stacks, which gather layer by layer.
    """
    mesh = mesh_in_force()
    if mesh is None or not is_sharded():
        return tree
    sizes = mesh.shape

    def gather(path, leaf):
        names = [str(getattr(k, 'key', getattr(k, 'name', k))) for k in path]
        if but in names:
            return leaf
        to = dtype if dtype is not None and 'kernel' in names else leaf.dtype
        stored, used = _specs(path, leaf.shape, sizes)
        return checkpoint_name(_gathered(leaf, stored, used, to), GATHERED)

    return jax.tree_util.tree_map_with_path(gather, tree)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _gathered(x, stored, used, dtype):
    # The first constraint keeps the rounding on the side of the shards.
    x = jax.lax.with_sharding_constraint(x.astype(dtype), stored)
    return jax.lax.with_sharding_constraint(x, used)


def _gathered_forward(x, stored, used, dtype):
    return _gathered(x, stored, used, dtype), jnp.zeros((0,), x.dtype)


def _gathered_backward(stored, used, dtype, like, gradient):
    # Stored, not used: the sum over devices then ends as a reduce-scatter.
    return (jax.lax.with_sharding_constraint(gradient.astype(like.dtype), stored),)


_gathered.defvjp(_gathered_forward, _gathered_backward)


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Fixes how the dimensions of an activation are sharded.

    Args:
      x: an array inside a jitted program.
      axes: per dimension 'batch', 'tensor' or None; dimensions that do not divide are not.
    """
    mesh = mesh_in_force()
    if mesh is None:
        return x
    return jax.lax.with_sharding_constraint(x, spec(x.shape, *axes))


def spec(shape: tuple[int, ...], *axes: str | None) -> P:
    """How the dimensions of an array of that shape are sharded; see `constrain`."""
    mesh = mesh_in_force()
    if mesh is None:
        return P(*[None] * len(shape))
    named = [BATCH if axis == 'batch' else axis for axis in axes]
    fits = (n % _size(a, mesh.shape) == 0 for a, n in zip(named, shape, strict=True))
    return P(*(axis if fit else None for axis, fit in zip(named, fits, strict=True)))


def constrain_batch(tree: _T) -> _T:
    """`constrain`s the first dimension of every leaf to the batch, and shards no other."""
    return jax.tree.map(lambda x: constrain(x, 'batch', *(None,) * (x.ndim - 1)), tree)


def unsharded_features(x: jax.Array) -> jax.Array:
    """Keeps the last dimension of an activation unsharded, however the others are.

    Otherwise the shardings of parameters spread to the gradients of activations.
    """
    if mesh_in_force() is None:
        return x
    return jax.lax.with_sharding_constraint(x, P(*[P.UNCONSTRAINED] * (x.ndim - 1), None))


# --- Between host and devices --------------------------------------------------------------------


def rows_here(sharding: NamedSharding, batch: int) -> np.ndarray:
    """Which rows of a batch this process's devices hold: sorted int64 array."""
    indices = sharding.addressable_devices_indices_map((batch,)).values()
    return np.unique(np.concatenate([np.arange(batch)[index] for index in indices]))


def place_rows(
    sharding: NamedSharding, rows: np.ndarray, batch: int, arrays: dict[str, Any]
) -> dict[str, Any]:
    """Host rows as global arrays of `batch` rows.

    Args:
      sharding: of `batch_sharding`.
      rows: from `rows_here`.
      arrays: NumPy arrays (len(rows), ...), nested by name.
    """

    def one(array):
        shape = (batch, *array.shape[1:])

        def part(index):
            start, stop, _ = index[0].indices(batch)
            first = np.searchsorted(rows, start)
            return array[first : first + stop - start]

        return jax.make_array_from_callback(shape, sharding, part)

    return jax.tree.map(one, arrays)


def gathered(mesh: Mesh, tree: Any) -> Any:
    """A tree of global arrays, gathered, as arrays of one device of each process (all call)."""
    placed = jax.jit(lambda t: t, out_shardings=replicated(mesh))(tree)
    return jax.tree.map(lambda a: a.addressable_data(0), placed)


def with_mesh(mesh: Mesh, function: Callable[..., _T]) -> Callable[..., _T]:
    """`function` called with `mesh` in force, and as `randomness.pinned`."""

    @functools.wraps(function)
    def call(*args):
        with jax.set_mesh(mesh), randomness.pinned():
            return function(*args)

    return call

"""Sums over images that never sit in memory together, and the moments that follow from them.

Every device adds up its own rows: the state has a leading axis of one entry per device, sharded
over the mesh axis 'data', so that a step needs no communication. Features are counted from a fixed
shift c near their mean (the reference's mean, best), which makes float32 sums harmless:

    n,  s = sum (f - c),  S = sum (f - c)(f - c)^T;   mean = c + s/n,  cov = (S - s s^T / n)/(n - 1)

`collect` adds the devices up in float64 on the host. These totals are what is saved when a run may
be interrupted: they know nothing of devices, and totals of several parts of a run just add.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from emigm_jax.errors import UserError
from emigm_jax.evaluation import inception_score
from emigm_jax.io import npz

AXIS = 'data'
_SHIFT = '_shift'
_SPLIT_KEYS = ('split_count', 'split_p', 'split_plogp')


# --- On the devices ------------------------------------------------------------------------------


def begin(mesh, shifts, with_scores=True):
    """The state before the first image.

    Args:
      mesh: with the one axis 'data'.
      shifts: {name: (D,)}: which features are summed, and a fixed point near their mean.
      with_scores: also the sums of the Inception Score.

    Returns:
      a dict of float32 arrays: count (n,), and per name NAME_shift (D,), NAME_sum (n, D) and
      NAME_outer (n, D, D); split_count (n, 10), split_p (n, 10, 1008), split_plogp (n, 10).
    """
    n = mesh.shape[AXIS]
    shapes = {'count': (n,)}
    for name, shift in shifts.items():
        shapes |= {f'{name}_sum': (n, len(shift)), f'{name}_outer': (n, len(shift), len(shift))}
    if with_scores:
        splits, classes = inception_score.SPLITS, inception_score.CLASSES
        sizes = ((n, splits), (n, splits, classes), (n, splits))
        shapes |= dict(zip(_SPLIT_KEYS, sizes, strict=True))
    fixed = {f'{name}{_SHIFT}': np.asarray(shift, np.float32) for name, shift in shifts.items()}
    return {**_zeros(mesh, tuple(shapes.items()))(), **jax.device_put(fixed, _shardings(mesh)[1])}


@functools.cache  # there is a new state for every part of a run
def _zeros(mesh, shapes):
    make = lambda: {key: jnp.zeros(shape, jnp.float32) for key, shape in shapes}
    return jax.jit(make, out_shardings=_shardings(mesh)[0])


def add(state, rows):
    """The state with one batch more; a pure function that can be part of a larger program.

    Args:
      state: of `begin`.
      rows: weight (B,), 1 for an image and 0 for a row that only fills the batch, whatever it
        holds; features (B, D) under the names in the state; for the scores logits (B, 1008)
        without bias and split (B,), the images' entries of `inception_score.split_of_images`.
        B is a multiple of the number of devices.
    """
    shards = state['count'].shape[0]
    per_device = lambda x: x.reshape(shards, -1, *x.shape[1:])
    matmul = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    weight = per_device(rows['weight']).astype(jnp.float32)
    # Rows of weight 0 are cut out, not multiplied by 0: they may hold NaN.
    only = lambda x: jnp.where(weight[..., None] > 0, x, jnp.float32(0))
    more = {'count': weight.sum(1)}
    for name in _names(state):
        shifted = only(per_device(rows[name]).astype(jnp.float32) - state[f'{name}{_SHIFT}'])
        more[f'{name}_sum'] = shifted.sum(1)
        more[f'{name}_outer'] = matmul('nbd,nbe->nde', shifted, shifted)
    if 'split_p' in state:
        logits = per_device(rows['logits']).astype(jnp.float32)
        log_p = jax.nn.log_softmax(only(logits), axis=-1)
        p = jnp.exp(log_p)
        # exp of a very negative log p is 0, and so is its product
        member = only(jax.nn.one_hot(per_device(rows['split']), inception_score.SPLITS))
        sums = member.sum(1), matmul('nbs,nbc->nsc', member, p)
        plogp = matmul('nbs,nb->ns', member, (p * log_p).sum(-1))
        more |= dict(zip(_SPLIT_KEYS, (*sums, plogp), strict=True))
    return {key: value + more[key] if key in more else value for key, value in state.items()}


def adder(mesh):
    """`add` compiled for a mesh; the state that is passed in is used up."""
    sharded, whole = _shardings(mesh)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state, rows):
        rows = {key: jax.lax.with_sharding_constraint(x, sharded) for key, x in rows.items()}
        return {
            key: jax.lax.with_sharding_constraint(x, whole if key.endswith(_SHIFT) else sharded)
            for key, x in add(state, rows).items()
        }

    return step


def _shardings(mesh):
    return NamedSharding(mesh, PartitionSpec(AXIS)), NamedSharding(mesh, PartitionSpec())


def _names(state):
    return [key.removesuffix(_SHIFT) for key in sorted(state) if key.endswith(_SHIFT)]


# --- On the host ---------------------------------------------------------------------------------


def fill_up(rows, size):
    """Rows {name: (B, ...)} made `size` long by repeating the first one, with their weights.

    So the last batch has the shape that was compiled, and no image is dropped.
    """
    count = len(next(iter(rows.values())))
    take = np.concatenate([np.arange(count), np.zeros(size - count, np.int64)])
    weight = (np.arange(size) < count).astype(np.float32)
    return {**{key: np.asarray(x)[take] for key, x in rows.items()}, 'weight': weight}


def collect(state):
    """The totals over all devices and processes: float64 arrays without the leading axis.

    With several processes all of them must call it.
    """
    return {
        key: np.asarray(_local(value), np.float64)
        if key.endswith(_SHIFT)
        else _over_processes(_sum_of_shards(value))
        for key, value in state.items()
    }


def _local(array):
    return array.addressable_data(0)


def _sum_of_shards(array):
    shards = [s.data for s in array.addressable_shards if s.replica_id == 0]
    # In float64 before the first addition.
    return sum(np.asarray(shard).astype(np.float64).sum(0) for shard in shards)


def _over_processes(part):
    if jax.process_count() == 1:
        return part
    # Devices have no float64 here: the number travels as two float32.
    high = part.astype(np.float32)
    low = (part - high).astype(np.float32)
    gathered = multihost_utils.process_allgather((high, low))
    return sum(np.asarray(x).astype(np.float64).sum(0) for x in gathered)


def combine(first, second):
    """The totals of two parts of a run together.

    Raises:
      UserError: their features are not counted from the same point, so they cannot be added.
    """
    same = first.keys() == second.keys() and all(
        first[key].shape == second[key].shape for key in first
    )
    fixed = [key for key in first if key.endswith(_SHIFT)]
    if not same or any((first[key] != second[key]).any() for key in fixed):
        raise UserError(
            'the saved sums belong to another reference or to other metrics; '
            'delete them to start afresh'
        )
    return {key: x if key in fixed else x + second[key] for key, x in first.items()}


def save(path, totals):
    """Writes totals to an npz file, local or gs://, whole or not at all."""
    npz.write(path, totals)


def load(path):
    """Totals that `save` wrote.

    Raises:
      UserError: the file is missing, damaged or of another kind.
    """
    found = npz.members(path)
    if 'count' not in found or any(rows.dtype != np.float64 for rows in found.values()):
        raise UserError(f'{path}: holds no sums of an evaluation; delete it to start afresh')
    return {key: rows.read() for key, rows in found.items()}


def count(totals):
    """Images in the totals."""
    return round(float(totals['count']))


def moments(totals, name='pool'):
    """Mean (D,) and unbiased covariance (D, D) of the features `name`, in float64.

    Raises:
      UserError: not summed, fewer than two images, or features that are not finite.
    """
    if f'{name}_sum' not in totals:
        raise UserError(f'the {name} features were not summed')
    n, s, outer = count(totals), totals[f'{name}_sum'], totals[f'{name}_outer']
    if n < 2:
        raise UserError(f'a covariance needs at least 2 images, not {n}')
    if not (np.isfinite(s).all() and np.isfinite(outer).all()):
        raise UserError(f'the {name} features are not finite: the images or the network are broken')
    covariance = (outer - np.outer(s, s) / n) / (n - 1)
    # A feature that hardly varies may come out negative by rounding.
    np.fill_diagonal(covariance, np.maximum(covariance.diagonal(), 0.0))
    return totals[f'{name}{_SHIFT}'] + s / n, (covariance + covariance.T) / 2


def score(totals):
    """(mean, standard deviation) of the Inception Score; UserError as `inception_score`."""
    if 'split_p' not in totals:
        inception_score.check_count(count(totals))
        raise UserError('the Inception Score was not summed')
    return inception_score.from_sums(*(totals[key] for key in _SPLIT_KEYS))

"""Sums over images that never sit in memory together, and the moments that follow from them.

Every device adds up its own rows: the sums have a leading axis of one entry per device, sharded
over the mesh axis 'data', so that a step needs no communication. Features are counted from a fixed
shift c near their mean (the reference's mean, best), which makes float32 sums harmless:

    n,  s = sum (f - c),  S = sum (f - c)(f - c)^T;   mean = c + s/n,  cov = (S - s s^T / n)/(n - 1)

`collect` adds the devices up in float64 on the host. These totals are what is saved when a run may
be interrupted: they know nothing of devices, and totals of several parts of a run just add.
"""

import functools
import os
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from emigm_jax.core import randomness
from emigm_jax.errors import UserError
from emigm_jax.evaluation import inception_plan, inception_score
from emigm_jax.io import npz
from emigm_jax.parallel import exchange

AXIS = 'data'
Array = jax.Array | np.ndarray


class Moments(NamedTuple):
    """Sums over one kind of features, counted from a shift."""

    total: Array  # (D,)
    outer: Array  # (D, D)


class SplitSums(NamedTuple):
    """Sums of the Inception Score, as `inception_score.from_sums` takes them."""

    counts: Array  # (10,)
    probabilities: Array  # (10, 1008)
    entropies: Array  # (10,)


class Sums(NamedTuple):
    """All that adds up over images."""

    # The field takes the place of the method that tuples have.
    count: Array  # (), images  # pyright: ignore[reportIncompatibleMethodOverride]
    moments: dict[str, Moments]  # by kind of features: pool, spatial
    splits: SplitSums | None  # None: no Inception Score is asked for


class Totals(NamedTuple):
    """Sums and what they are counted from.

    On devices the sums are float32 with a leading axis, sharded, and the shifts replicated; on the
    host both are float64.
    """

    shifts: Mapping[str, Array]  # (D,) by kind of features
    sums: Sums


class Rows(NamedTuple):
    """A batch of B images; B is a multiple of the number of devices."""

    weight: Array  # (B,), 1 for an image, 0 for a row that only fills the batch, whatever it holds
    features: dict[str, Array]  # (B, D), of the kinds that are summed
    logits: Array | None = None  # (B, 1008) without bias
    split: Array | None = None  # (B,), the images' entries of `inception_score.split_of_images`


# --- On the devices ------------------------------------------------------------------------------


@randomness.pinned()
def begin(mesh: Mesh, shifts: Mapping[str, Array], with_scores: bool = True) -> Totals:
    """The totals on the devices before the first image.

    Args:
      mesh: with the one axis 'data'.
      shifts: which features are summed, and a fixed point (D,) near the mean of each.
      with_scores: also the sums of the Inception Score.
    """
    sizes = tuple((name, len(shift)) for name, shift in shifts.items())
    fixed = {name: np.asarray(shift, np.float32) for name, shift in shifts.items()}
    _, replicated = _shardings(mesh)
    return Totals(jax.device_put(fixed, replicated), _zeros(mesh, sizes, with_scores)())


@functools.cache  # a run begins anew with each of its parts
def _zeros(mesh, sizes, with_scores):
    zeros = lambda *shape: jnp.zeros((mesh.shape[AXIS], *shape), jnp.float32)
    splits, classes = inception_score.SPLITS, inception_plan.CLASSES

    def sums():
        moments = {name: Moments(zeros(size), zeros(size, size)) for name, size in sizes}
        scores = SplitSums(zeros(splits), zeros(splits, classes), zeros(splits))
        return Sums(zeros(), moments, scores if with_scores else None)

    return jax.jit(sums, out_shardings=_shardings(mesh)[0])


def add(totals: Totals, rows: Rows) -> Totals:
    """The totals with one batch more; a pure function that can be part of a larger program."""
    shards = totals.sums.count.shape[0]
    per_device = lambda x: x.reshape(shards, -1, *x.shape[1:])
    matmul = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    weight = per_device(rows.weight).astype(jnp.float32)
    # Rows of weight 0 are cut out, not multiplied by 0: they may hold NaN.
    only = lambda x: jnp.where(weight[..., None] > 0, x, jnp.float32(0))

    def moments(features, shift):
        shifted = only(per_device(features).astype(jnp.float32) - shift)
        return Moments(shifted.sum(1), matmul('nbd,nbe->nde', shifted, shifted))

    def splits():
        log_p = jax.nn.log_softmax(only(per_device(rows.logits).astype(jnp.float32)), axis=-1)
        p = jnp.exp(log_p)
        member = only(jax.nn.one_hot(per_device(rows.split), inception_score.SPLITS))
        # exp of a very negative log p is 0, and so is its product
        plogp = matmul('nbs,nb->ns', member, (p * log_p).sum(-1))
        return SplitSums(member.sum(1), matmul('nbs,nbc->nsc', member, p), plogp)

    more = Sums(
        weight.sum(1),
        {name: moments(rows.features[name], shift) for name, shift in totals.shifts.items()},
        None if totals.sums.splits is None else splits(),
    )
    return Totals(totals.shifts, jax.tree.map(jnp.add, totals.sums, more))


def adder(mesh: Mesh) -> Callable[[Totals, Rows], Totals]:
    """`add` compiled for a mesh, to be called as `randomness.pinned`; it uses up its totals."""
    sharded, replicated = _shardings(mesh)
    constrain = jax.lax.with_sharding_constraint

    @functools.partial(jax.jit, donate_argnums=0)
    def step(totals, rows):
        shifts, sums = add(totals, constrain(rows, sharded))
        return Totals(constrain(shifts, replicated), constrain(sums, sharded))

    return step


def _shardings(mesh):
    return NamedSharding(mesh, PartitionSpec(AXIS)), NamedSharding(mesh, PartitionSpec())


# --- On the host ---------------------------------------------------------------------------------


def collect(totals: Totals) -> Totals:
    """The totals over all devices and processes, in float64 on the host.

    With several processes all of them must call it.
    """
    shifts = {name: _here(shift) for name, shift in totals.shifts.items()}
    return Totals(shifts, exchange.summed(jax.tree.map(_over_devices, totals.sums)))


def _here(replicated):
    return np.asarray(replicated.addressable_data(0), np.float64)


def _over_devices(array):
    shards = [s.data for s in array.addressable_shards if s.replica_id == 0]
    # In float64 before the first addition.
    return sum(np.asarray(shard).astype(np.float64).sum(0) for shard in shards)


def combine(first: Totals, second: Totals) -> Totals:
    """The totals of two parts of a run together.

    Raises:
      UserError: their features are not counted from the same point, so they cannot be added.
    """
    shapes = [jax.tree.map(np.shape, totals) for totals in (first, second)]
    if shapes[0] != shapes[1] or any(
        (shift != second.shifts[name]).any() for name, shift in first.shifts.items()
    ):
        raise UserError(
            'the saved sums belong to another reference or to other metrics; '
            'delete them to start afresh'
        )
    return Totals(first.shifts, jax.tree.map(np.add, first.sums, second.sums))


# Names in the file: count, these behind the kind of features, and these of the splits.
_MOMENTS = ('_shift', '_sum', '_outer')
_SPLITS = ('split_count', 'split_p', 'split_plogp')


def save(path: os.PathLike | str, totals: Totals) -> None:
    """Writes totals to an npz file, local or gs://, whole or not at all."""
    arrays = {'count': totals.sums.count}
    for name, moments in totals.sums.moments.items():
        values = zip(_MOMENTS, (totals.shifts[name], *moments), strict=True)
        arrays |= {f'{name}{ending}': value for ending, value in values}
    arrays |= dict(zip(_SPLITS, totals.sums.splits or (), strict=False))
    npz.write(path, {name: np.asarray(array) for name, array in arrays.items()})


def load(path: os.PathLike | str) -> Totals:
    """Totals that `save` wrote.

    Raises:
      UserError: the file is missing, damaged or of another kind.
    """
    members = npz.members(path)
    kinds = [name.removesuffix('_shift') for name in members if name.endswith('_shift')]
    scored = _SPLITS if _SPLITS[0] in members else ()
    expected = {'count', *scored, *(name + ending for name in kinds for ending in _MOMENTS)}
    if members.keys() != expected or any(rows.dtype != np.float64 for rows in members.values()):
        raise UserError(f'{path}: holds no sums of an evaluation; delete it to start afresh')
    arrays = {name: rows.read() for name, rows in members.items()}
    moments = {name: Moments(*(arrays[name + ending] for ending in _MOMENTS[1:])) for name in kinds}
    splits = SplitSums(*(arrays[name] for name in _SPLITS)) if scored else None
    shifts = {name: arrays[f'{name}_shift'] for name in kinds}
    return Totals(shifts, Sums(arrays['count'], moments, splits))


def check_finite(totals: Totals) -> None:
    """Raises UserError if features that were summed are not finite."""
    for name, sums in totals.sums.moments.items():
        _check_finite(name, sums)
    _check_finite('logit', totals.sums.splits)


def _check_finite(name, sums):
    if not all(np.isfinite(array).all() for array in jax.tree.leaves(sums)):
        raise UserError(f'the {name} features are not finite: the network of FID is broken')


def count(totals: Totals) -> int:
    """Images in the totals."""
    return round(float(totals.sums.count))


def moments(totals: Totals, name: str = 'pool') -> tuple[np.ndarray, np.ndarray]:
    """Mean (D,) and unbiased covariance (D, D) of the features `name`, in float64.

    Raises:
      UserError: not summed, fewer than two images, or features that are not finite.
    """
    if name not in totals.shifts:
        raise UserError(f'the {name} features were not summed')
    n, (s, outer) = count(totals), map(np.asarray, totals.sums.moments[name])
    if n < 2:
        raise UserError(f'a covariance needs at least 2 images, not {n}')
    _check_finite(name, (s, outer))
    covariance = (outer - np.outer(s, s) / n) / (n - 1)
    # A feature that hardly varies may come out negative by rounding.
    np.fill_diagonal(covariance, np.maximum(covariance.diagonal(), 0.0))
    return np.asarray(totals.shifts[name]) + s / n, (covariance + covariance.T) / 2


def score(totals: Totals) -> tuple[float, float]:
    """(mean, standard deviation) of the Inception Score; UserError as `inception_score`."""
    if totals.sums.splits is None:
        inception_score.check_count(count(totals))
        raise UserError('the Inception Score was not summed')
    return inception_score.from_sums(*map(np.asarray, totals.sums.splits))

"""Monte-Carlo estimates of what a model with a categorical head needs to code a picture.

The bounds are those of `core.bounds`. How many tokens are masked is stratified: draw d of D masks
between d N / D and (d + 1) N / D of them, in static shapes of its own, so that an estimate is D
passes of the network at the cost of exact shapes.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int, Int32, Key

from emigm_jax.core import categorical, orders, randomness
from emigm_jax.data.interface import Dataset
from emigm_jax.errors import UserError
from emigm_jax.models import emigm
from emigm_jax.models.config import TELLS_PROBABILITY, ModelConfig
from emigm_jax.models.interface import Group, Suffix
from emigm_jax.nn.functional import Params
from emigm_jax.parallel import batches

STRATA = 4


@final
@dataclasses.dataclass(frozen=True)
class Draws:
    """What an estimate is made of."""

    number: int  # passes of the network per image, rounded up to whole estimates: two at least
    images: int | None = None  # the first so many; None: all
    seed: int = 0  # image i uses fold_in(seed, i)


@final
@dataclasses.dataclass(frozen=True)
class Bits:
    """A bound of -log2 p of pictures, and how sure it is."""

    per_dim: float
    standard_error: float  # of it, over images and draws
    draw_error: float  # the share of draws in that
    per_token: float
    nats: float  # per image


class Losses(NamedTuple):
    """Mean losses of the masked tokens of images, for so many masked ones."""

    mean: Float32[Array | np.ndarray, 'B repeats D']  # nats
    masked: Int32[Array | np.ndarray, 'B repeats D']


def losses(
    model: ModelConfig,
    repeats: int,
    params: Params,
    tokens: Int[Array, 'B N'],
    labels: Int[Array, ' B'],
    keys: Key[Array, ' B'],
) -> Losses:
    """Draws of what the bounds are made of.

    Args:
      model: of a categorical head.
      repeats: independent draws of all strata.
      params: parameters of the network.
      tokens: codes in raster order.
      labels: classes; -1 for the null class.
      keys: one per image, so that nothing else decides an image's draws.
    """
    net = emigm.network(model).bind(params)
    condition = net.trunk.condition(jnp.maximum(labels, 0), null=labels < 0)

    def one(_, repeat):
        drawn = jax.vmap(lambda key: jax.random.fold_in(key, repeat))(keys)
        groups = [_group(net, model, tokens, condition, drawn, d) for d in range(strata(model))]
        conditions = zip(groups, net.trunk(groups), strict=True)
        mean = jnp.stack([_mean(net.head, group, z) for group, z in conditions], axis=1)
        masked = jnp.stack([model.tokens - group.visible for group in groups], axis=1)
        return None, Losses(mean, masked)

    found = jax.lax.scan(one, None, jnp.arange(repeats))[1]
    return Losses(*(jnp.moveaxis(each, 0, 1) for each in found))


def strata(model: ModelConfig) -> int:
    """D, passes of the network for one estimate."""
    return min(STRATA, model.tokens)


def _group(net, model, tokens, condition, keys, d):
    """The images with an order and a number of masked tokens from stratum d."""
    total, count = model.tokens, strata(model)
    most = min(total, 1 + total * (d + 1) // count)

    def draw(key):
        order_key, count_key = jax.random.split(jax.random.fold_in(key, d))
        uniform = jax.random.uniform(count_key, (), jnp.float32)
        # Over all strata k = 1 + floor(N (d + u) / D) is uniform on 1 to N.
        masked = 1 + jnp.floor((d + uniform) * (total / count)).astype(jnp.int32)
        return orders.random(order_key, total), jnp.minimum(masked, most)

    order, masked = jax.vmap(draw)(keys)
    return Group(
        jnp.take_along_axis(tokens, order, axis=1),
        net.trunk.positions(order),
        condition,
        total - masked,
        total - (1 + total * d // count),
        Suffix(most),
    )


def _mean(head, group, z):
    """Mean loss of the masked tokens (B,)."""
    clean, places = group.read(group.tokens), jnp.arange(group.tokens.shape[1])[None]
    masked = group.read(places) >= group.visible[:, None]
    loss = categorical.cross_entropy(head.logits(z)[..., : head.codes], clean)
    return jnp.mean(loss, axis=1, where=masked)


def measure(
    model: ModelConfig,
    params: Params,
    data: Dataset,
    draws: Draws,
    batch: int = 64,
    progress: Callable[[range], Iterable[int]] = lambda rows: rows,
) -> Losses:
    """The `losses` of a data set.

    Args:
      model: of a categorical head.
      params: parameters of the network.
      data: whose tokens are codes.
      draws: of how many images, how many, and which.
      batch: images at a time.
      progress: wraps the iteration over batches.

    Raises:
      UserError: the model tells no probabilities, or images or draws are too few.
    """
    check_head(model)
    count = data.examples if draws.images is None else draws.images
    if not 2 <= count <= data.examples:
        raise UserError(f'there are {data.examples} images to code; 2 to all of them, not {count}')
    repeats = -(-draws.number // strata(model))
    if repeats < 2:
        raise UserError(f'draws must be {2 * strata(model)} at least, so that errors can be told')
    run = batches.OverDevices(lambda params, *rows: losses(model, repeats, params, *rows))
    placed, rows = (
        batches.place(params),
        _rows(data, count, min(batch, count), draws.seed, progress),
    )
    found = [jax.tree.map(np.asarray, run(placed, *each)) for each in rows]
    return Losses(*(np.concatenate(each)[:count] for each in zip(*found, strict=True)))


def check_head(model: ModelConfig) -> None:
    """Raises UserError if a model tells no probabilities."""
    if model.head not in TELLS_PROBABILITY:
        raise UserError(
            f'bits_per_dim needs the probability of a token, which a head {model.head!r} cannot '
            'tell: it is for models of codes'
        )


def _rows(data, count, batch, seed, progress) -> Iterator[tuple[Array, Array, Array]]:
    """(tokens, labels, keys) of batches of one size, the last of which is filled up."""
    encode = jax.jit(data.to_batch)
    for start in progress(range(0, count, batch)):
        indices = np.minimum(np.arange(start, start + batch), count - 1)
        rows = jax.tree.map(jnp.asarray, data.read(indices, np.zeros(batch, bool)))
        with randomness.pinned():
            key = randomness.key(seed)
            keys = jax.vmap(lambda i, key=key: jax.random.fold_in(key, i))(
                jnp.asarray(indices, jnp.uint32)
            )
            made = encode(data.params, rows, key)
        yield made.tokens, made.labels, keys


def bits(found: Losses, weights: Float[np.ndarray, ' N'], dimensions: int) -> Bits:
    """A bound of what was drawn.

    Args:
      found: of M images.
      weights: c_1 to c_N of `core.bounds`.
      dimensions: numbers per token, by which bits are counted.
    """
    tokens = len(weights)
    mean, masked = (np.asarray(each, np.float64) for each in found)
    estimates = np.mean(tokens * weights[masked.astype(int) - 1] * mean, axis=2)  # (M, repeats)
    images, spread = estimates.mean(1), estimates.var(1, ddof=1) / estimates.shape[1]
    unit = tokens * dimensions * np.log(2.0)
    return Bits(
        per_dim=float(images.mean() / unit),
        standard_error=float(images.std(ddof=1) / np.sqrt(len(images)) / unit),
        draw_error=float(np.sqrt(spread.mean() / len(images)) / unit),
        per_token=float(images.mean() / (tokens * np.log(2.0))),
        nats=float(images.mean()),
    )

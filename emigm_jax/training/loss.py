"""The masked-diffusion loss (paper Eq. 7) of a batch, for any trunk and head.

Images are laid out in groups that share static budgets: image j belongs to group j % G. All
randomness of an image comes from its own key, so neither gradient accumulation nor sharding
changes it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int, Int32, Key, PRNGKeyArray, Shaped

from emigm_jax.config.settings import LossConfig
from emigm_jax.core import masking
from emigm_jax.models.emigm import EMIGM, ModelConfig
from emigm_jax.models.interface import Group, Suffix
from emigm_jax.parallel import sharding


class Draws(NamedTuple):
    """Everything random about a batch of B images except dropout."""

    order: Int32[Array, 'B N']
    visible: Int32[Array, ' B']
    coefficient: Float32[Array, ' B']  # weight of the sum over an image's masked tokens and copies
    null: Bool[Array, ' B']  # trained with the null class
    key: Key[Array, ' B']  # of what the head draws


class Metrics(NamedTuple):
    """Scalars."""

    loss: Float32[Array, '']  # what is differentiated
    parts: dict[str, Float32[Array, '']]  # of the head's loss, by its names
    mask_ratio: Float32[Array, '']


def draw(
    model: ModelConfig, config: LossConfig, key: PRNGKeyArray, batch: int, groups: int
) -> Draws:
    """Draws masks, dropped labels and the head's keys of a batch."""
    mask_key, label_key, head_key = jax.random.split(key, 3)
    masks = masking.draw(config.masking, mask_key, model.tokens, batch, groups)
    masked = (model.tokens - masks.visible).astype(jnp.float32)
    counted = {
        'image': batch * masked,
        'batch': jnp.sum(masked),
        'tokens': jnp.float32(batch * model.tokens),
    }
    coefficient = masks.weight / counted[config.normalize]
    images = jnp.arange(batch)
    uniform = lambda j: jax.random.uniform(jax.random.fold_in(label_key, j), (), jnp.float32)
    drop = jax.vmap(uniform)(images)
    draws = Draws(
        order=masks.order,
        visible=masks.visible,
        coefficient=coefficient / config.copies,
        null=drop < config.label_drop,
        key=jax.vmap(lambda j: jax.random.fold_in(head_key, j))(images),
    )
    return sharding.constrain_batch(draws)


def loss(
    net: EMIGM,
    config: LossConfig,
    budgets: Sequence[masking.Budget],
    tokens: Shaped[Array, 'B N *C'],
    labels: Int[Array, ' B'],
    draws: Draws,
    key: PRNGKeyArray | None = None,
) -> tuple[Float32[Array, ''], Metrics]:
    """Loss of B images.

    Args:
      net: the bound network.
      config: of it the copies and what the head reads; `draws` hold the rest.
      budgets: static sizes of the G groups; G divides B.
      tokens: clean tokens in raster order.
      labels: classes.
      draws: of the same images.
      key: dropout key, None for none.
    """
    groups, total = len(budgets), tokens.shape[1]
    member = lambda tree, g: jax.tree.map(lambda a: a.reshape(-1, groups, *a.shape[1:])[:, g], tree)
    order = draws.order.reshape(draws.order.shape + (1,) * (tokens.ndim - 2))
    tokens = jnp.take_along_axis(tokens, order, axis=1)
    condition = net.trunk.condition(labels, draws.null)
    positions = net.trunk.positions(draws.order)
    given = [
        Group(
            member(tokens, g),
            member(positions, g),
            member(condition, g),
            member(draws.visible, g),
            budget.visible,
            Suffix(budget.masked),  # in generation order the masked tokens are a suffix
        )
        for g, budget in enumerate(budgets)
    ]
    z = net.trunk(given, key)

    clean, random, weight = [], [], []
    for g, group in enumerate(given):
        clean.append(group.read(group.tokens))
        all_tokens = net.head.draws(member(draws.key, g), config.copies, total)
        random.append(jax.tree.map(jax.vmap(group.read), all_tokens))
        masked = group.read(jnp.arange(total)[None]) >= group.visible[:, None]
        weight.append(jnp.where(masked, member(draws.coefficient, g)[:, None], 0.0))
    # The groups' tokens side by side, (B / G, rows, ...). They are independent of one another here,
    # so `tensor` shards them and no weight travels.
    z, clean, weight = (jnp.concatenate(parts, axis=1) for parts in (z, clean, weight))
    random = jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=2), *random)
    over = lambda a, *lead: sharding.constrain(
        a, *lead, 'batch', 'tensor', *[None] * (a.ndim - 2 - len(lead))
    )
    z, clean, random = over(z), over(clean), jax.tree.map(lambda a: over(a, None), random)

    value, parts = net.head.weighed(z, clean, random, config, weight)
    # Parts are reported over the images of the whole batch, of which these are a share.
    ratio = jnp.sum(weight > 0, dtype=jnp.float32) / (len(tokens) * total)
    return value, Metrics(value, parts, ratio)

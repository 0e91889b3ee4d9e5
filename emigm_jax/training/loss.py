"""The masked-diffusion loss (paper Eq. 7 with the diffusion loss of Eq. 8) of a batch.

Images are laid out in groups that share static budgets: image j belongs to group j % G. All
randomness of an image comes from its own key, so neither gradient accumulation nor sharding
changes it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int, Int32, Key, PRNGKeyArray

from emigm_jax.config.settings import LossConfig
from emigm_jax.core import gaussian, masking
from emigm_jax.models.emigm import EMIGM, ModelConfig
from emigm_jax.models.mae import Visible
from emigm_jax.parallel import sharding


class Draws(NamedTuple):
    """Everything random about a batch of B images except dropout."""

    order: Int32[Array, 'B N']
    visible: Int32[Array, ' B']
    coefficient: Float32[Array, ' B']  # weight of the sum over an image's masked tokens and copies
    null: Bool[Array, ' B']  # trained with the null class
    key: Key[Array, ' B']  # of the diffusion times and noises


class Metrics(NamedTuple):
    """Scalars; `loss` is the one that is differentiated."""

    loss: Float32[Array, '']
    mse: Float32[Array, '']
    vlb: Float32[Array, '']  # in bits
    mask_ratio: Float32[Array, '']


def draw(
    model: ModelConfig, config: LossConfig, key: PRNGKeyArray, batch: int, groups: int
) -> Draws:
    """Draws masks, dropped labels and diffusion keys of a batch."""
    mask_key, label_key, diffusion_key = jax.random.split(key, 3)
    masks = masking.draw(config.masking, mask_key, model.tokens, batch, groups)
    masked = (model.tokens - masks.visible).astype(jnp.float32)
    if config.normalize == 'image':
        coefficient = masks.weight / (batch * masked)
    else:
        coefficient = masks.weight / jnp.sum(masked)
    images = jnp.arange(batch)
    drop = jax.vmap(lambda j: jax.random.uniform(jax.random.fold_in(label_key, j)))(images)
    draws = Draws(
        order=masks.order,
        visible=masks.visible,
        coefficient=coefficient / config.copies,
        null=drop < config.label_drop,
        key=jax.vmap(lambda j: jax.random.fold_in(diffusion_key, j))(images),
    )
    return sharding.constrain_batch(draws)


def loss(
    net: EMIGM,
    copies: int,
    budgets: Sequence[masking.Budget],
    tokens: Float[Array, 'B N C'],
    labels: Int[Array, ' B'],
    draws: Draws,
    key: PRNGKeyArray | None = None,
) -> tuple[Float32[Array, ''], Metrics]:
    """Loss of B images.

    Args:
      net: the bound network.
      copies: diffusion times per token.
      budgets: static sizes of the G groups; G divides B.
      tokens: clean tokens in raster order.
      labels: classes.
      draws: of the same images.
      key: dropout key, None for none.
    """
    config = net.mae.config
    groups, total = len(budgets), config.tokens
    keys = [None] * (2 + groups) if key is None else jax.random.split(key, 2 + groups)
    split = lambda a: a.reshape(-1, groups, *a.shape[1:])
    member = lambda a, g: split(a)[:, g]

    tokens = jnp.take_along_axis(tokens, draws.order[..., None], axis=1)
    condition = net.mae.condition(labels, draws.null)
    positions = net.mae.positions(draws.order)

    visible = []
    for g, budget in enumerate(budgets):
        prefix = slice(budget.visible if config.mae else total)
        visible.append(
            Visible(
                member(tokens, g)[:, prefix],
                member(positions.encoder, g)[:, prefix],
                member(condition, g),
                member(draws.visible, g),
            )
        )
    inputs = [
        net.mae.decoder_input(encoded, member(positions.decoder, g), visible[g].count)
        for g, encoded in enumerate(net.mae.encode(visible, keys[0]))
    ]
    h = jnp.stack(inputs, axis=1).reshape(-1, *inputs[0].shape[1:])
    h = net.mae.decode(h, keys[1])

    # Masked tokens are the suffix, so every group reads a static slice of it.
    z, clean, noise, times, weight = [], [], [], [], []
    for g, budget in enumerate(budgets):
        suffix = slice(total - budget.masked, total)
        h_g = member(h, g)
        rows, output = h_g[:, config.buffer :][:, suffix], member(positions.output, g)[:, suffix]
        z.append(net.mae.read_out(h_g, rows, output, keys[2 + g]))
        clean.append(member(tokens, g)[:, suffix])
        t_g, noise_g = _diffusion_draws(member(draws.key, g), copies, total, config.channels)
        times.append(t_g[..., suffix])
        noise.append(noise_g[..., suffix, :])
        masked = jnp.arange(total)[suffix] >= member(draws.visible, g)[:, None]
        weight.append(jnp.where(masked, member(draws.coefficient, g)[:, None], 0.0))
    z, clean = jnp.concatenate(z, axis=1), jnp.concatenate(clean, axis=1)
    times, noise = jnp.concatenate(times, axis=-1), jnp.concatenate(noise, axis=-2)
    weight = jnp.concatenate(weight, axis=1)
    # Tokens are independent of one another here, so `tensor` shards them and no weight travels.
    clean, z = (sharding.constrain(a, 'batch', 'tensor', None) for a in (clean, z))
    times = sharding.constrain(times, None, 'batch', 'tensor')
    noise = sharding.constrain(noise, None, 'batch', 'tensor', None)

    x_t = gaussian.q_sample(clean, times, noise)
    output = net.head(x_t, _time(net.head, times), net.head.condition(z))
    terms = gaussian.loss_terms(output, clean, x_t, times, noise)
    weighed = lambda term: jnp.sum(term * weight)
    value = weighed(terms.total)
    # Parts are reported over the images of the whole batch, of which these are a share.
    ratio = jnp.sum(weight > 0, dtype=jnp.float32) / (tokens.shape[0] * total)
    return value, Metrics(value, weighed(terms.mse), weighed(terms.vlb), ratio)


def _time(head, t):
    """Time embeddings of integer t; with more rows than times they are looked up in a table."""
    if t.size <= gaussian.TIMESTEPS:
        return head.time(t)
    return head.time(jnp.arange(gaussian.TIMESTEPS))[t]


def _diffusion_draws(keys, copies, tokens, channels):
    """Times (copies, B, N) int32 and noises (copies, B, N, C), one key per image."""

    def one(key):
        time_key, noise_key = jax.random.split(key)
        t = jax.random.randint(time_key, (copies, tokens), 0, gaussian.TIMESTEPS)
        return t, jax.random.normal(noise_key, (copies, tokens, channels))

    return jax.vmap(one, out_axes=1)(keys)

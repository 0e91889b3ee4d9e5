"""The device's part of generation: pure functions of parameters and per-image arrays.

Tokens are in generation order until the end, so a step writes the slice of places that it reveals.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, final

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int, Int32, Key, PRNGKeyArray, Shaped

from emigm_jax.config.settings import SamplingConfig
from emigm_jax.core import orders, reveal
from emigm_jax.models import emigm
from emigm_jax.models.config import ModelConfig
from emigm_jax.models.emigm import EMIGM
from emigm_jax.models.interface import Group, Slots
from emigm_jax.nn.functional import Params


class Progress(NamedTuple):
    """Where generation stands after one step."""

    tokens: Shaped[Array, 'B N *C']  # in raster order, 0 where nothing is revealed yet
    revealed: Bool[Array, 'B N']


class Images(NamedTuple):
    """What decides B images beside the parameters and the settings."""

    labels: Int32[Array, ' B']  # -1: the null class
    keys: Key[Array, ' B']
    counts: Int32[Array, 'B K']  # tokens revealed by each step
    guidance: Float32[Array, 'B K']


class Random(NamedTuple):
    """All that is drawn."""

    order: Int[Array, 'B N']  # the position of each place in generation order
    # (slots (B, R), number of a draw) -> (B, R, *F), the noise of the head
    noise: Callable[[Int[Array, 'B R'], Any], Float32[Array, 'B R *F']]


def recorded(order: Int[Array, 'B N'], noise: Float[Array, 'B N draws *F']) -> Random:
    """What was drawn elsewhere, in generation order."""

    def at(slots, draw):
        rows = jax.lax.dynamic_index_in_dim(noise, draw, axis=2, keepdims=False)
        return Slots(jnp.minimum(slots, noise.shape[1] - 1))(rows)

    return Random(order, at)


class _Run(NamedTuple):
    """What stays the same from step to step."""

    net: EMIGM
    images: Images
    random: Random
    positions: Any
    conditions: tuple[Float32[Array, 'B D'], Float32[Array, 'B D']]  # class, null
    visible: Int32[Array, 'B K']  # tokens revealed before each step


@final
@dataclasses.dataclass(frozen=True)
class Steps:
    """The steps of generation with all that is static about them."""

    model: ModelConfig
    config: SamplingConfig

    def generate(
        self,
        segments: Sequence[reveal.Segment],
        params: Params,
        images: Images,
        random: Random | None = None,
    ) -> Shaped[Array, 'B N *C']:
        """Tokens in raster order; `random` stands in for what `images.keys` would give."""
        run, x = self._run(params, images, random), self.nothing(len(images.labels))
        for segment in segments:
            steps = jnp.arange(segment.start, segment.stop)
            body = lambda x, k, segment=segment: (self._step(run, segment, x, k), None)
            x, _ = jax.lax.scan(body, x, steps)
        return _raster(run.random.order, x)

    def one(
        self,
        segment: reveal.Segment,
        params: Params,
        x: Shaped[Array, 'B N *C'],
        number: Int[Array, ' B'],
        images: Images,
    ) -> tuple[Shaped[Array, 'B N *C'], Progress]:
        """Step `number` (for all images the same) of a segment: tokens in generation order."""
        run, k = self._run(params, images), number[0]
        x = self._step(run, segment, x, k)
        revealed = jnp.arange(x.shape[1]) < (run.visible + images.counts)[:, k, None]
        order = run.random.order
        return x, Progress(_raster(order, x), _raster(order, revealed))

    def nothing(self, batch: int) -> Shaped[Array, 'B N *C']:
        """Tokens before the first step."""
        token = emigm.token(self.model)
        return jnp.zeros((batch, self.model.tokens, *token.shape), token.dtype)

    def _run(self, params, images, random=None):
        net = emigm.network(self.model).bind(params)
        random = self._keyed(net, images.keys) if random is None else random
        labels = images.labels
        condition = net.trunk.condition(jnp.maximum(labels, 0), null=labels < 0)
        null = jnp.broadcast_to(net.trunk.null(), condition.shape)
        positions = net.trunk.positions(random.order)
        visible = jnp.cumsum(images.counts, axis=1) - images.counts
        return _Run(net, images, random, positions, (condition, null), visible)

    def _keyed(self, net, keys):
        """Order and noise: functions of an image's key, a place in its order and a draw alone."""
        order = orders.ORDERS[self.config.reveal.order]

        def noise(key: PRNGKeyArray, slot, draw):
            return net.head.noise(jax.random.fold_in(jax.random.fold_in(key, 1 + slot), draw))

        per_image = jax.vmap(noise, (None, 0, None))
        return Random(
            jax.vmap(lambda key: order(jax.random.fold_in(key, 0), self.model.grid))(keys),
            lambda slots, draw: jax.vmap(per_image, (0, 0, None))(keys, slots, draw),
        )

    def _step(self, run, segment, x, k):
        """Reveals the tokens of step k in x, which is in generation order."""
        visible, count = run.visible[:, k], run.images.counts[:, k]
        slots = visible[:, None] + jnp.arange(segment.reveal)
        z = self._conditions(run, segment, x, visible, slots)
        noise = lambda draw: run.random.noise(slots, draw)
        drawn = run.net.head.sample(z, run.images.guidance[:, k], noise, self.config)
        # Write the slice [visible, visible + count) without a scatter.
        place = jnp.arange(x.shape[1])
        fresh = Slots(jnp.clip(place - visible[:, None], 0, segment.reveal - 1))(drawn)
        now = (place >= visible[:, None]) & (place < (visible + count)[:, None])
        return jnp.where(now.reshape(now.shape + (1,) * (x.ndim - 2)), fresh, x)

    def _conditions(self, run, segment, x, visible, slots):
        """z (guides, B, R, D) of the slots read in this step, for class and null where guided."""
        guides = 1 + segment.guided
        double = lambda tree: jax.tree.map(lambda a: jnp.concatenate([a] * guides), tree)
        group = Group(
            double(x),
            double(run.positions),
            jnp.concatenate(run.conditions[:guides]),
            double(visible),
            segment.visible,
            Slots(double(jnp.minimum(slots, x.shape[1] - 1))),
        )
        (z,) = run.net.trunk([group])
        return z.reshape(guides, -1, *z.shape[1:])


def _raster(order, x):
    """(B, N, ...) in generation order -> in raster order."""
    return Slots(jnp.argsort(order, axis=1))(x)

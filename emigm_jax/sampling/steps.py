"""The device's part of generation: pure functions of parameters and per-image arrays.

Tokens are in generation order until the end, so a step writes the slice of places that it reveals.
An adaptive order draws all masked tokens and moves those that stay to the front of them.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int, Int32, Key, PRNGKeyArray, Shaped

from emigm_jax.config.settings import SamplingConfig
from emigm_jax.core import orders, reveal
from emigm_jax.core.reveal import RevealConfig
from emigm_jax.models import emigm
from emigm_jax.models.config import ModelConfig
from emigm_jax.models.emigm import EMIGM
from emigm_jax.models.interface import Group, Guide, Slots
from emigm_jax.nn.functional import Params

Weights = Params | tuple[Params, Params]  # of a model, and of its guide if there is one


class Progress(NamedTuple):
    """Where generation stands after one step."""

    tokens: Shaped[Array | np.ndarray, 'B N *C']  # in raster order, 0 where nothing is revealed yet
    revealed: Bool[Array | np.ndarray, 'B N']


class State(NamedTuple):
    """What a step changes: B images in generation order."""

    tokens: Shaped[Array, 'B N *C']  # what is not revealed yet is not heeded
    order: Int[Array, 'B N']  # the position of each place


class Given(NamedTuple):
    """Tokens of B images of which some stay and the others are drawn."""

    tokens: Shaped[Array | np.ndarray, 'B N *C']  # in raster order
    masked: Bool[Array | np.ndarray, 'B N']  # those that are drawn; what they hold is not heeded


class Images(NamedTuple):
    """What decides B images beside the parameters and the settings."""

    labels: Int32[Array, ' B']  # -1: the null class
    keys: Key[Array, ' B']
    counts: Int32[Array, 'B K']  # tokens revealed by each step
    guidance: Float32[Array, 'B K']
    given: Given | None = None  # None: all tokens are drawn

    @property
    def rows(self) -> tuple[Any, ...]:
        """The arrays (B, ...), of which `of_rows` makes it."""
        return (*self[:4], *(self.given or ()))

    @classmethod
    def of_rows(cls, labels: Any, keys: Any, counts: Any, guidance: Any, *given: Any) -> 'Images':
        """The inverse of `rows`."""
        return cls(labels, keys, counts, guidance, Given(*given) if given else None)


class Random(NamedTuple):
    """All that is drawn."""

    order: Int[Array, 'B N']  # before the first step
    # (places (B, R), number of a draw) -> (B, R, *F), the noise of the head. Places are those in
    # generation order; with an adaptive order they are positions, and a step is a draw.
    noise: Callable[[Int[Array, 'B R'], Any], Float32[Array, 'B R *F']]
    # (positions (B, R), step) -> (B, R), what an adaptive order adds to its scores
    choice: Callable[[Int[Array, 'B R'], Any], Float32[Array, 'B R']]


def recorded(
    order: Int[Array, 'B N'],
    noise: Float[Array, 'B N draws *F'],
    choice: Float[Array, 'B N K'] | None = None,
) -> Random:
    """What was drawn elsewhere; see `Random` for the order it is in."""

    def drawn(rows):
        def at(places, draw):
            now = jax.lax.dynamic_index_in_dim(rows, draw, axis=2, keepdims=False)
            return Slots(jnp.minimum(places, rows.shape[1] - 1))(now)

        return at

    return Random(order, drawn(noise), drawn(jnp.zeros((1, 1, 1)) if choice is None else choice))


class _Net(NamedTuple):
    """A network and what it is given in every step."""

    net: EMIGM
    positions: Any
    conditions: tuple[Float32[Array, 'B D'], Float32[Array, 'B D']]  # class, null

    def ordered(self, order):
        """The same where tokens have another order."""
        return self._replace(positions=self.net.trunk.positions(order))


class _Run(NamedTuple):
    """What stays the same from step to step."""

    main: _Net
    guide: _Net | None
    images: Images
    random: Random
    visible: Int32[Array, 'B K']  # tokens revealed before each step


@final
@dataclasses.dataclass(frozen=True)
class Steps:
    """The steps of generation with all that is static about them.

    With a guide the parameters are a pair, those of the model and those of the guide.
    """

    model: ModelConfig
    config: SamplingConfig
    guide: ModelConfig | None = None  # what guides in place of the null class

    @property
    def as_compiled(self) -> 'Steps':
        """The same with all at rest that no program reads, as it is in segments and images."""
        ours = self.config.reveal
        reveal = RevealConfig(
            ours.steps,
            order=ours.order,
            positions=ours.positions,
            choice_temperature=ours.choice_temperature,
        )
        return dataclasses.replace(
            self, config=dataclasses.replace(self.config, seed=0, reveal=reveal)
        )

    def generate(
        self,
        segments: Sequence[reveal.Segment],
        params: Weights,
        images: Images,
        random: Random | None = None,
        tokens: Shaped[Array, 'B N *C'] | None = None,
    ) -> Shaped[Array, 'B N *C']:
        """Tokens in raster order.

        Args:
          segments: of the plan that `images` have.
          params: parameters.
          images: of which the counts of a row sum to N, or to less where some tokens are there.
          random: stands in for what `images.keys` would give.
          tokens: those that are there, in generation order and therefore the first.
        """
        state = self.start(images, random, tokens)
        run = self._run(params, images, state.order, random)
        for segment in segments:
            body = lambda state, k, segment=segment: (self._step(run, segment, state, k), None)
            state, _ = jax.lax.scan(body, state, jnp.asarray(segment.steps))
        return _raster(state.order, state.tokens)

    def one(
        self,
        segment: reveal.Segment,
        params: Weights,
        state: State,
        number: Int[Array, ' B'],
        images: Images,
        random: Random | None = None,
    ) -> tuple[State, Progress]:
        """Step `number` (for all images the same) of a segment."""
        run, k = self._run(params, images, state.order, random), number[0]
        tokens, order = state = self._step(run, segment, state, k)
        revealed = jnp.arange(order.shape[1]) < (run.visible + images.counts)[:, k, None]
        return state, Progress(_raster(order, tokens), _raster(order, revealed))

    def start(
        self,
        images: Images,
        random: Random | None = None,
        tokens: Shaped[Array, 'B N *C'] | None = None,
    ) -> State:
        """The state before the first step; arguments as in `generate`."""
        token = emigm.token(self.model)
        order = self._order(images) if random is None else random.order
        if images.given is not None:
            known, masked = map(jnp.asarray, images.given)
            shape = masked.shape + (1,) * (known.ndim - 2)
            tokens = Slots(order)(jnp.where(masked.reshape(shape), 0, known))
        elif tokens is None:
            shape = len(images.labels), self.model.tokens, *token.shape
            tokens = jnp.zeros(shape, token.dtype)
        return State(tokens, order)

    @property
    def _chooser(self):
        """The order if it is adaptive, else None."""
        order = orders.order(self.config.reveal)
        return order if isinstance(order, orders.Adaptive) else None

    def _order(self, images):
        order = orders.order(self.config.reveal)
        one = lambda key: order(jax.random.fold_in(key, 0), self.model.grid)
        drawn, given = jax.vmap(one)(images.keys), images.given
        return drawn if given is None else orders.given_first(drawn, jnp.asarray(given.masked))

    def _run(self, params, images, order, random=None):
        own, guiding = params if isinstance(params, tuple) else (params, {})
        net = emigm.network(self.model).bind(own)
        random = self._keyed(net, images, order) if random is None else random
        visible = reveal.visible_before(images.counts, self.model.tokens)
        guide = None
        if self.guide:
            guide = _given(emigm.network(self.guide).bind(guiding), images.labels, order)
        return _Run(_given(net, images.labels, order), guide, images, random, visible)

    def _keyed(self, net, images, order):
        """All that is random, as functions of an image's key, a place and a draw alone."""

        def noise(key: PRNGKeyArray, place, draw):
            return net.head.noise(jax.random.fold_in(jax.random.fold_in(key, 1 + place), draw))

        def choice(key: PRNGKeyArray, position, step):
            key = jax.random.fold_in(key, 1 + self.model.tokens + position)
            return jax.random.gumbel(jax.random.fold_in(key, step), (), jnp.float32)

        def everywhere(one):
            per_image = jax.vmap(one, (None, 0, None))
            per_all = jax.vmap(per_image, (0, 0, None))
            return lambda places, draw: per_all(images.keys, places, draw)

        return Random(order, everywhere(noise), everywhere(choice))

    def _step(self, run, segment, state, k):
        """Reveals the tokens of step k."""
        visible, count = run.visible[:, k], run.images.counts[:, k]
        slots = visible[:, None] + jnp.arange(segment.read)
        if self._chooser is None:
            noise = lambda draw: run.random.noise(slots, draw)
            x, fresh = state.tokens, self._drawn(run, segment, state, slots, k, noise).tokens
            order = state.order
        else:
            (x, order), fresh = self._chosen_first(run, segment, state, slots, k)
        # Write the slice [visible, visible + count) without a scatter.
        place = jnp.arange(x.shape[1])
        fresh = Slots(jnp.clip(place - visible[:, None], 0, segment.read - 1))(fresh)
        now = (place >= visible[:, None]) & (place < (visible + count)[:, None])
        return State(jnp.where(now.reshape(now.shape + (1,) * (x.ndim - 2)), fresh, x), order)

    def _chosen_first(self, run, segment, state, slots, k):
        """Draws all masked tokens: (state, tokens) with those of the highest scores first."""
        chooser, visible, total = self._chooser, run.visible[:, k, None], state.order.shape[1]
        assert chooser is not None
        positions = Slots(jnp.minimum(slots, total - 1))(state.order)
        drawn = self._drawn(
            run._replace(
                main=run.main.ordered(state.order),
                guide=run.guide and run.guide.ordered(state.order),
            ),
            segment,
            state,
            slots,
            k,
            lambda draw: run.random.noise(positions, k + draw),
        )
        left = 1.0 - (k + 1).astype(jnp.float32) / self.config.reveal.steps
        score = chooser.score(drawn.log_probability, run.random.choice(positions, k), left)
        rank = jnp.argsort(jnp.where(slots < total, -score, jnp.inf), axis=1)  # beyond N: last
        place = jnp.arange(total)
        moved = visible + Slots(jnp.clip(place - visible, 0, segment.read - 1))(rank)
        moved = jnp.where(place < visible, place, moved)
        return State(*map(Slots(moved), state)), Slots(rank)(drawn.tokens)

    def _drawn(self, run, segment, state, slots, k, noise):
        """What the head draws in step k at slots (B, R), where `noise` is its own."""
        visible, guide = run.visible[:, k], None
        read = jnp.minimum(slots, state.tokens.shape[1] - 1)
        z = _conditions(
            run.main, segment, state.tokens, visible, read, segment.guided and not self.guide
        )
        if segment.guided and run.guide:
            (of_guide,) = _conditions(run.guide, segment, state.tokens, visible, read, False)
            guide = Guide(run.guide.net.head, of_guide)
        head = run.main.net.head
        return head.sample(z, run.images.guidance[:, k], noise, self.config, guide)


def _given(net, labels, order):
    condition = net.trunk.condition(jnp.maximum(labels, 0), null=labels < 0)
    null = jnp.broadcast_to(net.trunk.null(), condition.shape)
    return _Net(net, net.trunk.positions(order), (condition, null))


def _conditions(main, segment, x, visible, read, null):
    """z (guides, B, R, D) of slots (B, R), for the class and, if asked for, for the null class."""
    guides = 1 + null
    double = lambda tree: jax.tree.map(lambda a: jnp.concatenate([a] * guides), tree)
    group = Group(
        double(x),
        double(main.positions),
        jnp.concatenate(main.conditions[:guides]),
        double(visible),
        segment.visible,
        Slots(double(read)),
    )
    (z,) = main.net.trunk([group])
    return z.reshape(guides, -1, *z.shape[1:])


def _raster(order, x):
    """(B, N, ...) in generation order -> in raster order."""
    return Slots(jnp.argsort(order, axis=1))(x)

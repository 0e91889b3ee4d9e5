"""Iterative generation: a plan on the host, one compiled program on the device (paper Eq. 6).

Image i owns the key fold_in(seed, i); its order and all its noise come from that key, so it is the
same image in any batch on any number of devices. Orders, counts and noise can also be injected,
which replays a recorded run of the official sampler exactly.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, final

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Float32, Int, Int32, Key

from emigm_jax.config.settings import SamplingConfig
from emigm_jax.core import flops, reveal, solvers
from emigm_jax.core.masking import random_order
from emigm_jax.models import emigm, mae
from emigm_jax.models.emigm import ModelConfig
from emigm_jax.nn.functional import Params
from emigm_jax.parallel import batches

Integers = Int[Array | np.ndarray, ' B'] | Sequence[int]  # labels or seeds of a batch


class Progress(NamedTuple):
    """Where generation stands after one step."""

    tokens: Float32[Array, 'B N C']  # in raster order, 0 where nothing is revealed yet
    revealed: Bool[Array, 'B N']


@final
class Sampler:
    """Generates tokens with one compiled program per setting.

    Args:
      model: the network.
      config: how images are drawn.
      mesh: with the one axis 'data', to `lower` for devices that need not be there; default: this
        process's devices.
    """

    def __init__(self, model: ModelConfig, config: SamplingConfig, mesh: Mesh | None = None):
        self.model, self.config = model, config
        self.table = solvers.table(config.solver)
        # Static shapes come from the settings alone, never from the seeds of a batch.
        shape_plan = reveal.plan(config.reveal, model.tokens, seeds=(0,))
        self._cost = functools.partial(flops.sample_step, model, len(self.table.t))
        self.segments = reveal.segments(shape_plan, self._cost)
        self._run = batches.OverDevices(
            functools.partial(_generate, model, self.table, self.segments), mesh
        )
        self._steps = {}  # segment: the program of one of its steps, compiled when asked for

    @property
    def flops(self) -> float:
        """Matrix-product FLOPs per image, padding included."""
        return sum(
            (s.stop - s.start) * self._cost(s.visible, s.reveal, s.guided) for s in self.segments
        )

    @property
    def nfe(self) -> int:
        """Transformer evaluations per image as the paper counts them: guided steps are two."""
        return sum((s.stop - s.start) * (1 + s.guided) for s in self.segments)

    def __call__(
        self, params: Params, labels: Integers, seeds: Integers
    ) -> Float32[Array, 'B N C']:
        """Generates images' tokens, the batch spread over the devices of this process.

        Args:
          params: parameters of the network; `batches.place` saves a copy for every call.
          labels: -1 for the null class (unconditional).
          seeds: image numbers.

        Returns:
          Tokens in raster order.
        """
        return self._run(params, *self.arguments(labels, seeds))

    def steps(self, params: Params, labels: Integers, seeds: Integers) -> Iterator[Progress]:
        """As a call, but yields the `Progress` after every step; the last one is what it returns.

        Each kind of step is a program of its own, so the first steps of a kind take longer.
        """
        classes, keys, counts, guidance = self.arguments(labels, seeds)
        tokens = jnp.zeros((len(classes), self.model.tokens, self.model.channels), jnp.float32)
        for segment in self.segments:
            if segment not in self._steps:
                self._steps[segment] = batches.OverDevices(
                    functools.partial(_one_step, self.model, self.table, segment)
                )
            for k in range(segment.start, segment.stop):
                number = np.full(len(classes), k, np.int32)
                tokens, progress = self._steps[segment](
                    params, tokens, number, classes, keys, counts, guidance
                )
                yield progress

    def prepared(
        self, params: Params, labels: Integers, seeds: Integers
    ) -> tuple[Callable[..., Array], tuple[Any, ...]]:
        """The jitted program of a call and its arguments, padded and placed."""
        return self._run.prepared(params, *self.arguments(labels, seeds))

    def lower(self, batch: int) -> jax.stages.Lowered:
        """The program lowered for `batch` images, a multiple of the devices."""
        params = emigm.network(self.model).shapes()
        steps = jax.ShapeDtypeStruct((batch, self.config.reveal.steps), jnp.int32)
        scales = jax.ShapeDtypeStruct(steps.shape, jnp.float32)
        keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), batch))
        labels = jax.ShapeDtypeStruct((batch,), jnp.int32)
        return self._run.lower(params, labels, keys, steps, scales)

    def arguments(
        self, labels: Integers, seeds: Integers
    ) -> tuple[Int32[Array, ' B'], Key[Array, ' B'], Int32[Array, 'B K'], Float32[Array, 'B K']]:
        """Labels, keys, counts and guidance: all the program takes but params."""
        plan = reveal.plan(self.config.reveal, self.model.tokens, seeds)
        key = jax.random.key(self.config.seed)
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.asarray(seeds, jnp.uint32))
        counts, guidance = _on_device(plan, len(labels))
        return jnp.asarray(labels, jnp.int32), keys, counts, guidance


def replay(
    model: ModelConfig,
    config: SamplingConfig,
    params: Params,
    labels: Integers,
    order: Int[Array | np.ndarray, 'B N'],
    plan: reveal.Plan,
    noise: Float[Array | np.ndarray, 'B N draws C'],
) -> Float32[Array, 'B N C']:
    """Generates with a recorded order, plan and noise.

    Noise is in generation order: entry 0 starts a token's diffusion, 1 + r is drawn at row r of
    the solver. Returns tokens in raster order.
    """
    table = solvers.table(config.solver)
    cost = functools.partial(flops.sample_step, model, len(table.t))
    run = jax.jit(functools.partial(_generate, model, table, reveal.segments(plan, cost)))
    arguments = _on_device(plan, len(labels))
    return run(params, jnp.asarray(labels, jnp.int32), None, *arguments, order, noise)


def _on_device(plan, batch):
    full = lambda a: jnp.asarray(np.broadcast_to(a, (batch, a.shape[1])))
    return full(plan.counts), full(plan.guidance)


class _Setting(NamedTuple):
    """What stays the same from step to step, for B images."""

    order: Int[Array, 'B N']  # the position of each place in generation order
    positions: mae.Positions
    conditions: tuple[Float32[Array, 'B D'], Float32[Array, 'B D']]  # class, null
    visible: Int32[Array, 'B K']  # tokens revealed before each step
    counts: Int32[Array, 'B K']  # tokens revealed by each step
    guidance: Float32[Array, 'B K']


def _setting(net, labels, order, counts, guidance):
    condition = net.mae.condition(jnp.maximum(labels, 0), null=labels < 0)
    null = jnp.broadcast_to(net.mae.null(), condition.shape)
    positions = net.mae.positions(order)
    visible = jnp.cumsum(counts, axis=1) - counts
    return _Setting(order, positions, (condition, null), visible, counts, guidance)


def _keyed_order(keys, tokens):
    return jax.vmap(lambda k: random_order(jax.random.fold_in(k, 0), tokens))(keys)


def _generate(
    model, table, segments, params, labels, keys, counts, guidance, order=None, noise=None
):
    """One batch: tokens (B, N, C) in raster order; counts and guidance (B, K)."""
    net = emigm.network(model).bind(params)
    order = _keyed_order(keys, model.tokens) if order is None else order
    noise_at = _keyed_noise(keys, model.channels) if noise is None else _recorded_noise(noise)
    setting = _setting(net, labels, order, counts, guidance)
    x = jnp.zeros((len(labels), model.tokens, model.channels), jnp.float32)
    for segment in segments:
        step = functools.partial(_step, net, table, segment, setting, noise_at)
        steps = jnp.arange(segment.start, segment.stop)
        x, _ = jax.lax.scan(lambda x, k, step=step: (step(x, k), None), x, steps)
    return _raster(order, x)


def _one_step(model, table, segment, params, x, k, labels, keys, counts, guidance):
    """Step k (B,) of a segment: tokens in generation order (B, N, C), and `Progress`."""
    net = emigm.network(model).bind(params)
    order, k = _keyed_order(keys, model.tokens), k[0]
    setting = _setting(net, labels, order, counts, guidance)
    x = _step(net, table, segment, setting, _keyed_noise(keys, model.channels), x, k)
    revealed = jnp.arange(model.tokens) < (setting.visible + counts)[:, k, None]
    return x, Progress(_raster(order, x), _raster(order, revealed[..., None])[..., 0])


def _raster(order, x):
    """(B, N, C) in generation order -> in raster order."""
    return jnp.take_along_axis(x, jnp.argsort(order, axis=1)[..., None], axis=1)


def _step(net, table, segment, setting, noise_at, x, k):
    """Reveals the tokens of step k in x (B, N, C), which is in generation order."""
    visible, count = setting.visible[:, k], setting.counts[:, k]
    z = _conditions(net, segment, setting, x, visible)
    slots = visible[:, None] + jnp.arange(segment.reveal)
    drawn = _draw_tokens(net, table, segment, z, setting.guidance[:, k], slots, noise_at)
    # Write the slice [visible, visible + count) without a scatter.
    place = jnp.arange(x.shape[1])
    fresh = jnp.clip(place - visible[:, None], 0, segment.reveal - 1)
    fresh = jnp.take_along_axis(drawn, fresh[..., None], axis=1)
    now = (place >= visible[:, None]) & (place < (visible + count)[:, None])
    return jnp.where(now[..., None], fresh, x)


def _conditions(net, segment, setting, x, visible):
    """z (G, B, R, D) of the slots read in this step; G = 2 (class, null) when guided, else 1."""
    guides, positions = 1 + segment.guided, setting.positions
    config = net.mae.config
    prefix = segment.visible if config.mae else config.tokens
    double = lambda a: jnp.concatenate([a] * guides)
    visible_rows = double(visible)
    prefixes = mae.Visible(
        double(x[:, :prefix]),
        double(positions.encoder[:, :prefix]),
        jnp.concatenate(setting.conditions[:guides]),
        visible_rows,
    )
    (encoded,) = net.mae.encode([prefixes])
    h = net.mae.decode(net.mae.decoder_input(encoded, double(positions.decoder), visible_rows))
    slots = jnp.arange(segment.reveal) + visible[:, None]
    slots = jnp.minimum(slots, config.tokens - 1)[..., None]
    rows = jnp.take_along_axis(h, double(slots) + config.buffer, axis=1)
    output = double(jnp.take_along_axis(positions.output, slots, axis=1))
    z = net.mae.read_out(h, rows, output)
    return z.reshape(guides, -1, *z.shape[1:])


def _draw_tokens(net, table, segment, z, scale, slots, noise_at):
    """Runs the solver for all slots: (B, R, C)."""
    condition = net.head.condition(z)
    scale = scale[:, None, None]

    def network(x, t):
        both = jnp.broadcast_to(x, (condition.shape[0], *x.shape))
        epsilon, v = jnp.split(net.head(both, net.head.time(t), condition), 2, axis=-1)
        if not segment.guided:
            return epsilon[0], v[0]
        return epsilon[1] + scale * (epsilon[0] - epsilon[1]), v[0]

    return solvers.solve(table, network, noise_at(slots, 0), lambda row: noise_at(slots, 1 + row))


def _keyed_noise(keys, channels):
    """(slots (B, R), draw) -> (B, R, C): a function of image, place in its order and draw alone."""

    def one(key, slot, draw):
        key = jax.random.fold_in(jax.random.fold_in(key, 1 + slot), draw)
        return jax.random.normal(key, (channels,), jnp.float32)

    per_image = jax.vmap(one, (None, 0, None))
    return lambda slots, draw: jax.vmap(per_image, (0, 0, None))(keys, slots, draw)


def _recorded_noise(noise):
    def at(slots, draw):
        rows = jnp.minimum(slots, noise.shape[1] - 1)[..., None]
        drawn = jax.lax.dynamic_index_in_dim(noise, draw, axis=2, keepdims=False)
        return jnp.take_along_axis(drawn, rows, axis=1)

    return at

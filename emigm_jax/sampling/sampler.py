"""Iterative generation: a plan on the host, one compiled program on the device (paper Eq. 6).

Image i owns the key fold_in(seed, i); its order and all its noise come from that key, so it is the
same image in any batch on any number of devices. Orders, counts and noise can also be injected,
which replays a recorded run of the official sampler exactly.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from emigm_jax.core import flops, reveal, solvers
from emigm_jax.core.masking import random_order
from emigm_jax.models import emigm
from emigm_jax.models.mae import Visible
from emigm_jax.parallel import batches


class Sampler:
    """Generates tokens with one compiled program per setting.

    Args:
      model: ModelConfig.
      config: SamplingConfig.
      mesh: with the one axis 'data', to `lower` for devices that need not be there; default: this
        process's devices.
    """

    def __init__(self, model, config, mesh=None):
        self.model, self.config = model, config
        self.table = solvers.table(config.solver)
        # Static shapes come from the settings alone, never from the seeds of a batch.
        shape_plan = reveal.plan(config.reveal, model.tokens, seeds=(0,))
        self._cost = functools.partial(flops.sample_step, model, len(self.table.t))
        self.segments = reveal.segments(shape_plan, self._cost)
        self._run = batches.over_devices(
            functools.partial(_generate, model, self.table, self.segments), mesh
        )

    @property
    def flops(self):
        """Matrix-product FLOPs per image, padding included."""
        return sum(
            (s.stop - s.start) * self._cost(s.visible, s.reveal, s.guided) for s in self.segments
        )

    @property
    def nfe(self):
        """Transformer evaluations per image as the paper counts them: guided steps are two."""
        return sum((s.stop - s.start) * (1 + s.guided) for s in self.segments)

    def __call__(self, params, labels, seeds):
        """Generates images' tokens, the batch split over the devices of this process.

        Args:
          params: parameters of the network; `spread.place` saves a copy for every call.
          labels: (B,) ints, -1 for the null class (unconditional).
          seeds: (B,) ints, image numbers.

        Returns:
          (B, N, C) float32 tokens in raster order.
        """
        run, arguments = self.prepared(params, labels, seeds)
        made = run(*arguments)
        return made if len(made) == len(labels) else made[: len(labels)]

    def lower(self, batch):
        """The program lowered for `batch` images, a multiple of the devices."""
        params = emigm.network(self.model).shapes()
        steps = jax.ShapeDtypeStruct((batch, self.config.reveal.steps), jnp.int32)
        scales = jax.ShapeDtypeStruct(steps.shape, jnp.float32)
        keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), batch))
        labels = jax.ShapeDtypeStruct((batch,), jnp.int32)
        return self._run.lower(params, labels, keys, steps, scales)

    def prepared(self, params, labels, seeds):
        """The jitted program and its arguments for these images; see `__call__`.

        The batch is filled up to a multiple of the devices.
        """
        size = batches.padded(len(labels))
        labels, seeds = batches.fill(labels, size), batches.fill(seeds, size)
        plan = reveal.plan(self.config.reveal, self.model.tokens, seeds)
        key = jax.random.key(self.config.seed)
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.asarray(seeds, jnp.uint32))
        labels = jnp.asarray(labels, jnp.int32)
        rows = (labels, keys, *_on_device(plan, size))
        return self._run, (batches.place(params), *rows)


def replay(model, config, params, labels, order, plan, noise):
    """Generates with a recorded order (B, N), `reveal.Plan` and noise (B, N, 1 + rows, C).

    Noise is in generation order: entry 0 starts a token's diffusion, 1 + r is drawn at row r of
    the solver. Returns (B, N, C) tokens in raster order.
    """
    table = solvers.table(config.solver)
    cost = functools.partial(flops.sample_step, model, len(table.t))
    run = jax.jit(functools.partial(_generate, model, table, reveal.segments(plan, cost)))
    arguments = _on_device(plan, len(labels))
    return run(params, jnp.asarray(labels, jnp.int32), None, *arguments, order, noise)


def _on_device(plan, batch):
    full = lambda a: jnp.asarray(np.broadcast_to(a, (batch, a.shape[1])))
    return full(plan.counts), full(plan.guidance)


def _generate(
    model, table, segments, params, labels, keys, counts, guidance, order=None, noise=None
):
    """One batch: tokens (B, N, C) in raster order; counts and guidance (B, K)."""
    net = emigm.network(model).bind(params)
    batch, tokens, channels = labels.shape[0], model.tokens, model.channels
    if order is None:
        order = jax.vmap(lambda k: random_order(jax.random.fold_in(k, 0), tokens))(keys)
    noise_at = _keyed_noise(keys, channels) if noise is None else _given_noise(noise)
    condition = net.mae.condition(jnp.maximum(labels, 0), null=labels < 0)
    null = jnp.broadcast_to(net.mae.null(), condition.shape)
    before = jnp.cumsum(counts, axis=1) - counts
    positions = net.mae.positions(order)

    def step(segment, x, k):
        visible, count, scale = before[:, k], counts[:, k], guidance[:, k]
        z = _conditions(net, segment, positions, (condition, null), x, visible)
        slots = visible[:, None] + jnp.arange(segment.reveal)
        drawn = _draw_tokens(net, table, segment, z, scale, slots, noise_at)
        # Write the slice [visible, visible + count) without a scatter.
        place = jnp.arange(tokens)
        fresh = jnp.clip(place - visible[:, None], 0, segment.reveal - 1)
        fresh = jnp.take_along_axis(drawn, fresh[..., None], axis=1)
        now = (place >= visible[:, None]) & (place < (visible + count)[:, None])
        return jnp.where(now[..., None], fresh, x), None

    x = jnp.zeros((batch, tokens, channels), jnp.float32)
    for segment in segments:
        x, _ = jax.lax.scan(
            functools.partial(step, segment), x, jnp.arange(segment.start, segment.stop)
        )
    return jnp.take_along_axis(x, jnp.argsort(order, axis=1)[..., None], axis=1)


def _conditions(net, segment, positions, conditions, x, visible):
    """z (G, B, R, D) of the slots read in this step; G = 2 (class, null) when guided, else 1."""
    guides = 1 + segment.guided
    config = net.mae.config
    prefix = segment.visible if config.mae else config.tokens
    double = lambda a: jnp.concatenate([a] * guides)
    visible_rows = double(visible)
    given = Visible(
        double(x[:, :prefix]),
        double(positions.encoder[:, :prefix]),
        jnp.concatenate(conditions[:guides]),
        visible_rows,
    )
    (encoded,) = net.mae.encode([given])
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


def _given_noise(noise):
    def at(slots, draw):
        rows = jnp.minimum(slots, noise.shape[1] - 1)[..., None]
        drawn = jax.lax.dynamic_index_in_dim(noise, draw, axis=2, keepdims=False)
        return jnp.take_along_axis(drawn, rows, axis=1)

    return at

"""Iterative generation: a plan on the host, one compiled program on the device (paper Eq. 6).

Image i owns the key fold_in(seed, i); its order and all its noise come from that key, so it is the
same image in any batch on any number of devices. Orders, counts and noise can also be injected,
which replays a recorded run of the official sampler exactly.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from typing import Any, NamedTuple, final

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Shaped

from emigm_jax.config.settings import SamplingConfig
from emigm_jax.config.together import check_order
from emigm_jax.core import edit_plans, flops, randomness, reveal, solvers
from emigm_jax.models import emigm
from emigm_jax.models.config import ModelConfig
from emigm_jax.parallel import batches
from emigm_jax.sampling import steps
from emigm_jax.sampling.steps import Given, Images, Progress, State, Steps, Weights

Integers = Int[Array | np.ndarray, ' B'] | Sequence[int]  # labels or seeds of a batch


class Program(NamedTuple):
    """What decides the compiled program of a sampler."""

    device: Steps  # without what the plan is made of
    segments: tuple[reveal.Segment, ...]


@final
class Sampler:
    """Generates tokens with one compiled program per setting.

    Args:
      model: the network.
      config: how images are drawn.
      mesh: with the one axis 'data', to `lower` for devices that need not be there; default: this
        process's devices.
      guide: a model of the same tokens that guides in place of the null class; parameters are
        pairs then, those of the model and those of the guide.
      masked: of `edit_plans.alike`, how many tokens of an image are drawn, where the others are
        given in each call; None: all are drawn.

    Raises:
      UserError: the order makes no sense for the model.
    """

    def __init__(
        self,
        model: ModelConfig,
        config: SamplingConfig,
        mesh: Mesh | None = None,
        guide: ModelConfig | None = None,
        masked: range | None = None,
    ):
        check_order(model, config.reveal)
        self.model, self.config, self.guide, self.masked = model, config, guide, masked
        self._solver_rows = len(solvers.table(config.solver).t)
        # Static shapes come from the settings alone, never from the seeds of a batch.
        self.segments = self._segments(self._plan((0,), masked and np.array(masked[:1])))
        self._device = Steps(model, config, guide)
        self._run = _compiled(self.program, mesh)

    def _plan(self, seeds, masked):
        if masked is None:
            return reveal.plan(self.config.reveal, self.model.tokens, seeds)
        return edit_plans.plan(self.config.reveal, self.model.tokens, masked, seeds)

    def _segments(self, plan):
        return reveal.segments(plan, self._cost)

    def _cost(self, visible, read, guided):
        step = lambda model: flops.sample_step(model, self._solver_rows, visible, read)
        return step(self.model) + guided * step(self.guide or self.model)

    @property
    def flops(self) -> float:
        """Matrix-product FLOPs per image, padding included."""
        return sum(len(s.steps) * self._cost(s.visible, s.read, s.guided) for s in self.segments)

    @property
    def nfe(self) -> int:
        """Transformer evaluations per image as the paper counts them: guided steps are two."""
        return sum(len(s.steps) * (1 + s.guided) for s in self.segments)

    @property
    def program(self) -> Program:
        """What is compiled: samplers of a model that agree in it take equally long."""
        return Program(self._device.as_compiled, self.segments)

    def __call__(
        self, params: Weights, labels: Integers, seeds: Integers, given: Given | None = None
    ) -> Shaped[Array, 'B N *C']:
        """Generates images' tokens, the batch spread over the devices of this process.

        Args:
          params: parameters of the network; `batches.place` saves a copy for every call.
          labels: -1 for the null class (unconditional).
          seeds: image numbers.
          given: the tokens that are there, with `masked`.

        Returns:
          Tokens in raster order.
        """
        return self._run(params, *self.images(labels, seeds, given).rows)

    def steps(
        self, params: Weights, labels: Integers, seeds: Integers, given: Given | None = None
    ) -> Iterator[Progress]:
        """As a call, but yields the `Progress` after every step; the last one is what it returns.

        Each kind of step is a program of its own, so the first steps of a kind take longer. They
        are shared: another scale of guidance or another plan of like steps compiles nothing. Steps
        may be padded to be alike, so continuous tokens are those of a call to rounding.
        """
        images = self.images(labels, seeds, given)
        with randomness.pinned():
            state = self._device.start(images)
        for segment, run in self._programs():
            for k in segment.steps:
                number = np.full(len(images.labels), k, np.int32)
                state, progress = run(params, *state, number, *images.rows)
                yield progress

    def compile_steps(
        self, params: Weights, labels: Integers, seeds: Integers, given: Given | None = None
    ) -> None:
        """Has the programs of `steps` compiled, beside one another; arguments are of its shapes."""
        images = self.images(labels, seeds, given)
        with randomness.pinned():
            state = self._device.start(images)
        number = np.zeros(len(images.labels), np.int32)
        programs = {run for _, run in self._programs()}
        with futures.ThreadPoolExecutor() as pool:
            run = lambda program: program(params, *state, number, *images.rows)
            jax.block_until_ready(list(pool.map(run, programs)))

    def _programs(self):
        """The segments, and what runs one step of each; as little to compile as can be.

        Somebody waits for the first picture. Layers in a loop are the same numbers.
        """
        device = self._device.as_compiled
        rolled = lambda model: model and dataclasses.replace(model, unroll=False)
        device = dataclasses.replace(device, model=rolled(device.model), guide=rolled(device.guide))
        for segment in reveal.alike(self.segments, self._cost):
            yield segment, _one(device, segment._replace(steps=()))

    def prepared(
        self, params: Weights, labels: Integers, seeds: Integers
    ) -> tuple[Callable[..., Array], tuple[Any, ...]]:
        """The jitted program of a call and its arguments, padded and placed."""
        return self._run.prepared(params, *self.images(labels, seeds).rows)

    def lower(self, batch: int) -> jax.stages.Lowered:
        """The program lowered for `batch` images, a multiple of the devices."""
        params = emigm.network(self.model).shapes()
        if self.guide:
            params = params, emigm.network(self.guide).shapes()
        images = jax.eval_shape(lambda: self.images([0] * batch, range(batch)))
        return self._run.lower(params, *images.rows)

    @randomness.pinned()
    def images(self, labels: Integers, seeds: Integers, given: Given | None = None) -> Images:
        """All that the program takes but params."""
        assert (given is None) == (self.masked is None)  # the shapes are those of one or the other
        plan = self._plan(seeds, given and np.asarray(given.masked).sum(1))
        key = randomness.key(self.config.seed)
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.asarray(seeds, jnp.uint32))
        return _images(labels, keys, plan)._replace(given=given and Given(*map(jnp.asarray, given)))

    @randomness.pinned()
    def replay(
        self,
        params: Weights,
        labels: Integers,
        order: Int[Array | np.ndarray, 'B N'],
        plan: reveal.Plan,
        noise: Float[Array | np.ndarray, 'B N draws *F'],
        choice: Float[Array | np.ndarray, 'B N K'] | None = None,
        tokens: Shaped[Array | np.ndarray, 'B N *C'] | None = None,
    ) -> Shaped[Array, 'B N *C']:
        """Generates with a recorded order, plan and noise in place of its own.

        Noise is as `steps.Random` has it; which draw is which is told by the head's `sample`.
        `tokens` are those that are there before the plan begins, in generation order. Returns
        tokens in raster order.
        """
        segments = self._segments(plan)
        run = jax.jit(
            lambda params, images, tokens, *drawn: self._device.generate(
                segments, params, images, steps.recorded(*drawn), tokens
            )
        )
        keys = jax.random.split(randomness.key(0), len(labels))  # nothing reads them
        given = jax.tree.map(jnp.asarray, (tokens, order, noise, choice))
        return run(params, _images(labels, keys, plan), *given)


@functools.lru_cache(maxsize=32)
def sampler(
    model: ModelConfig,
    config: SamplingConfig,
    guide: ModelConfig | None = None,
    masked: range | None = None,
) -> Sampler:
    """A `Sampler`; the last few are kept, so models of the same sizes share what is compiled.

    So do settings that differ in the plan alone, as in guidance or the base seed.
    """
    made = Sampler(model, config, guide=guide, masked=masked)
    made._run = _kept(made.program)
    return made


def _compiled(program, mesh=None):
    """The jitted program, which is not compiled before it is called."""
    device, segments = program
    run = lambda params, *rows: device.generate(segments, params, Images.of_rows(*rows))
    return batches.OverDevices(run, mesh)


_kept = functools.lru_cache(maxsize=32)(_compiled)


@functools.lru_cache(maxsize=128)
def _one(device, segment):
    """The program of one step of a segment, whatever its number."""
    return batches.OverDevices(
        lambda params, tokens, order, number, *rows: device.one(
            segment, params, State(tokens, order), number, Images.of_rows(*rows)
        )
    )


def _images(labels, keys, plan):
    full = lambda a: jnp.asarray(np.broadcast_to(a, (len(labels), a.shape[1])))
    return Images(jnp.asarray(labels, jnp.int32), keys, full(plan.counts), full(plan.guidance))

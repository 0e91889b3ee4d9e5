"""The compiled parts of training on a mesh, for the loop, for benchmarks and for other machines."""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, UInt32

from emigm_jax.config.settings import Config, LossConfig, OptimizerConfig
from emigm_jax.core import masking, randomness
from emigm_jax.data.interface import Batch
from emigm_jax.models import emigm
from emigm_jax.models.config import ModelConfig
from emigm_jax.nn.functional import Functional, Params
from emigm_jax.parallel import processes, sharding
from emigm_jax.training import state as states
from emigm_jax.training.state import State
from emigm_jax.training.step import TrainStep


@dataclasses.dataclass(frozen=True)
class Program:
    """Everything that is jitted, and the shapes and placement of what goes in."""

    mesh: jax.sharding.Mesh
    net: Functional
    rate: Callable[[ArrayLike], Array]  # step -> learning rate
    begin: Callable[[Params], State]  # the state before the first step, of these, which are donated
    # An argument of the two that follow, so that runs of all seeds are one compilation.
    words: UInt32[np.ndarray, '2']  # of the seed
    initial: jax.stages.Wrapped  # (words) -> state
    jitted: jax.stages.Wrapped  # (state, batch, number, words) -> (state, metrics)
    state: State  # jax.ShapeDtypeStruct of every leaf, with its sharding
    batch: Batch  # likewise
    groups: int  # that a microbatch is divided into
    budgets: tuple[masking.Budget, ...]  # static sizes of each group
    flops: float  # matrix products per image, forward and backward, padding included

    def create(self) -> State:
        """The state before the first step."""
        with jax.set_mesh(self.mesh), randomness.pinned():
            return self.initial(self.words)

    def step(self, state: State, batch: Batch, number: ArrayLike) -> tuple[State, dict[str, Array]]:
        """A `TrainStep`; the state is donated."""
        with jax.set_mesh(self.mesh), randomness.pinned():
            return self.jitted(state, batch, number, self.words)

    def lower(self) -> jax.stages.Lowered:
        """The train step lowered for the mesh, whose devices need not be there."""
        number = jax.ShapeDtypeStruct((), jnp.int32)
        with jax.set_mesh(self.mesh), randomness.pinned():
            return self.jitted.lower(self.state, self.batch, number, self.words)

    def compile(self) -> None:
        """Compiles the train step, which then is there for `step`, on all processes."""
        self.lower().compile()
        processes.meet()


def build(config: Config, mesh: jax.sharding.Mesh, warmup: int, total: int) -> Program:
    """Everything of a run that is compiled.

    Args:
      config: its training.batch_size is that of all devices together.
      mesh: of `sharding.make_mesh`.
      warmup, total: steps.

    Raises:
      UserError: the batch cannot be sharded over the mesh.
    """
    training = config.training.batch_size, config.training.accumulate
    settings = _Deciding(config.model, config.loss, config.optimizer, *training)
    built = _built(settings, mesh, warmup, total)
    return dataclasses.replace(built, words=randomness.words(config.seed))


class _Deciding(NamedTuple):
    """Settings on which a program depends."""

    model: ModelConfig
    loss: LossConfig
    optimizer: OptimizerConfig
    batch: int
    accumulate: int


# A run that goes on in the process that began it is not traced anew.
@functools.lru_cache(maxsize=4)
def _built(settings, mesh, warmup, total):
    model, loss, optimizer, batch, accumulate = settings
    net = emigm.network(model)
    rate = states.learning_rate(optimizer, batch, warmup, total)
    tx = states.optimizer(optimizer, rate)
    step = TrainStep(net, model, loss, optimizer, tx, accumulate)
    sharding.check_batch(mesh, batch, accumulate, step.groups(batch))

    def train_step(state, batch, number, words):  # programs and profiles show its name
        return step(state, batch, words, number)

    words = randomness.words(0)
    create = lambda words: states.create(net, optimizer, tx, randomness.of_data(words))
    begin = lambda params: states.begun(params, optimizer, tx)
    shapes = jax.eval_shape(create, words)
    placed = sharding.of_state(mesh, shapes)
    rows, replicated = sharding.batch_sharding(mesh), sharding.replicated(mesh)
    jitted = jax.jit(
        train_step,
        in_shardings=(placed, rows, replicated, replicated),
        out_shardings=(placed, replicated),
        donate_argnums=0,
    )
    token, count = emigm.token(model), model.tokens
    inputs = jax.eval_shape(
        lambda: Batch(
            jnp.zeros((batch,), jnp.int32), jnp.zeros((batch, count, *token.shape), token.dtype)
        )
    )
    return Program(
        mesh=mesh,
        net=net,
        rate=rate,
        begin=sharding.with_mesh(mesh, jax.jit(begin, out_shardings=placed, donate_argnums=0)),
        words=words,
        initial=jax.jit(create, in_shardings=replicated, out_shardings=placed),
        jitted=jitted,
        state=sharding.abstract(mesh, shapes),
        batch=jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=rows), inputs),
        groups=step.groups(batch),
        budgets=step.budgets(batch),
        flops=step.flops(batch),
    )

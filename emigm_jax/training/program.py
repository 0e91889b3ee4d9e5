"""The compiled parts of training on a mesh, for the loop, for benchmarks and for other machines."""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array

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
    create: Callable[[], State]  # the state before the first step
    begin: Callable[[Params], State]  # the same, of given parameters, which are donated
    # (state, batch, number) -> (state, metrics); the state is donated.
    step: Callable[[State, Batch, ArrayLike], tuple[State, dict[str, Array]]]
    jitted: jax.stages.Wrapped  # `step` without the mesh
    state: State  # jax.ShapeDtypeStruct of every leaf, with its sharding
    batch: Batch  # likewise
    groups: int  # that a microbatch is divided into
    budgets: tuple[masking.Budget, ...]  # static sizes of each group
    flops: float  # matrix products per image, forward and backward, padding included

    def lower(self) -> jax.stages.Lowered:
        """The train step lowered for the mesh, whose devices need not be there."""
        number = jax.ShapeDtypeStruct((), jnp.int32)
        with jax.set_mesh(self.mesh), randomness.pinned():
            return self.jitted.lower(self.state, self.batch, number)

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
    settings = _Deciding(config.model, config.loss, config.optimizer, config.seed, *training)
    return _built(settings, mesh, warmup, total)


class _Deciding(NamedTuple):
    """Settings on which a program depends."""

    model: ModelConfig
    loss: LossConfig
    optimizer: OptimizerConfig
    seed: int
    batch: int
    accumulate: int


# A run that goes on in the process that began it is not traced anew.
@functools.lru_cache(maxsize=4)
def _built(settings, mesh, warmup, total):
    model, loss, optimizer, seed, batch, accumulate = settings
    net = emigm.network(model)
    rate = states.learning_rate(optimizer, batch, warmup, total)
    tx = states.optimizer(optimizer, rate)
    step = TrainStep(net, model, loss, optimizer, tx, seed, accumulate)
    sharding.check_batch(mesh, batch, accumulate, step.groups(batch))

    def train_step(state, batch, number):  # programs and profiles show its name
        return step(state, batch, number)

    create = lambda: states.create(net, optimizer, tx, randomness.key(seed))
    begin = lambda params: states.begun(params, optimizer, tx)
    shapes = jax.eval_shape(create)
    placed = sharding.of_state(mesh, shapes)
    rows, replicated = sharding.batch_sharding(mesh), sharding.replicated(mesh)
    jitted = jax.jit(
        train_step,
        in_shardings=(placed, rows, replicated),
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
        create=sharding.with_mesh(mesh, jax.jit(create, out_shardings=placed)),
        begin=sharding.with_mesh(mesh, jax.jit(begin, out_shardings=placed, donate_argnums=0)),
        step=sharding.with_mesh(mesh, jitted),
        jitted=jitted,
        state=sharding.abstract(mesh, shapes),
        batch=jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=rows), inputs),
        groups=step.groups(batch),
        budgets=step.budgets(batch),
        flops=step.flops(batch),
    )

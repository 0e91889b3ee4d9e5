"""The compiled parts of training on a mesh, for the loop, for benchmarks and for other machines."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from emigm_jax.core import masking
from emigm_jax.data.interface import Batch
from emigm_jax.models import emigm
from emigm_jax.nn.functional import Functional
from emigm_jax.parallel import sharding
from emigm_jax.training import state as states
from emigm_jax.training.step import TrainStep


@dataclasses.dataclass(frozen=True)
class Program:
    """Everything that is jitted, and the shapes and placement of what goes in."""

    mesh: jax.sharding.Mesh
    net: Functional
    rate: Callable  # step -> learning rate
    create: Callable  # () -> the state before the first step
    step: Callable  # (state, batch, number) -> (state, metrics); the state is donated
    state: dict  # jax.ShapeDtypeStruct of every leaf, with its sharding
    batch: Batch  # likewise
    groups: int  # that a microbatch is divided into
    budgets: tuple[masking.Budget, ...]  # static sizes of each group
    flops: float  # matrix products per image, forward and backward, padding included

    def lower(self):
        """The train step lowered for the mesh, whose devices need not be there."""
        number = jax.ShapeDtypeStruct((), jnp.int32)
        with jax.set_mesh(self.mesh):
            return self._jitted.lower(self.state, self.batch, number)

    @property
    def _jitted(self):
        return self.step.__wrapped__


def build(config, mesh, warmup, total):
    """The `Program` of a `Config`.

    Args:
      config: its training.batch_size is that of all devices together.
      mesh: of `sharding.make_mesh`.
      warmup, total: steps.

    Raises:
      UserError: the batch cannot be cut over the mesh.
    """
    batch, accumulate = config.training.batch_size, config.training.accumulate
    net = emigm.network(config.model)
    rate = states.learning_rate(config.optimizer, batch, warmup, total)
    tx = states.optimizer(config.optimizer, rate)
    step = TrainStep(net, config.model, config.loss, config.optimizer, tx, config.seed, accumulate)
    sharding.check_batch(mesh, batch, accumulate, step.groups(batch))
    create = lambda: states.create(net, config.optimizer, tx, jax.random.key(config.seed))
    shapes = jax.eval_shape(create)
    placed = sharding.of_state(mesh, shapes)
    rows, replicated = sharding.batch_sharding(mesh), sharding.replicated(mesh)
    jitted = jax.jit(
        step,
        in_shardings=(placed, rows, replicated),
        out_shardings=(placed, replicated),
        donate_argnums=0,
    )
    tokens = (batch, config.model.tokens, config.model.channels)
    return Program(
        mesh=mesh,
        net=net,
        rate=rate,
        create=sharding.with_mesh(mesh, jax.jit(create, out_shardings=placed)),
        step=sharding.with_mesh(mesh, jitted),
        state=sharding.abstract(mesh, shapes),
        batch=Batch(
            tokens=jax.ShapeDtypeStruct(tokens, jnp.float32, sharding=rows),
            labels=jax.ShapeDtypeStruct(tokens[:1], jnp.int32, sharding=rows),
        ),
        groups=step.groups(batch),
        budgets=step.budgets(batch),
        flops=step.flops(batch),
    )

"""The kernel of the diffusion head's block as models use it: derivative, shards, check."""

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32

from emigm_jax.core import randomness
from emigm_jax.nn import loops
from emigm_jax.nn.kernels import choice
from emigm_jax.nn.kernels.residual import Plan, Weights, backward, block, forward, tile
from emigm_jax.parallel import sharding, shards


def plan(kernels: str, dtype: DTypeLike, width: int, keep: bool) -> Plan | None:
    """How the kernel runs for what is traced now; None: it does not, see `choice.takes`."""
    room = choice.vmem()
    rows = tile(width, dtype, room)
    fits = rows > 0 and width % 128 == 0
    if not choice.takes(kernels, "the head's blocks", fits, error, dtype, width):
        return None
    return Plan(rows or 64, keep, room or None, choice.cores(), choice.interpreted())


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def residual(
    x: Float32[Array, '*B R W'],
    activated: Float[Array, '*B R W'],
    weights: Weights,
    plan: Plan,
) -> Float32[Array, '*B R W']:
    """`block` of rows (..., images, rows of an image), each device working on its own.

    Weights are of `Weights.own`.
    """
    return _on_shards(x, activated, weights, plan._replace(keep=False))[0]


def _on_shards(x, activated, weights, plan):
    spec = _spec(x.shape)

    def run(x, activated, weights):
        flat = lambda a: a.reshape(-1, a.shape[-1])
        out, products = forward(flat(x), flat(activated), shards.mine(weights), plan)
        return jax.tree.map(lambda a: a.reshape(x.shape), (out, products))

    return shards.mapped(run, (spec, spec, shards.EACH), (spec, spec))(x, activated, weights)


def _residual_forward(x, activated, weights, plan):
    out, products = _on_shards(x, activated, weights, plan)
    named = lambda a: checkpoint_name(a, loops.COSTLY)
    return named(out), (x, activated, weights, jax.tree.map(named, products))


def _residual_backward(plan, kept, gradient):
    x, activated, weights, known = kept
    spec = _spec(x.shape)
    again = shards.alike(spec)

    def run(x, activated, weights, known, gradient):
        flat = lambda a: a.reshape(-1, a.shape[-1])
        given = (
            flat(x),
            flat(activated),
            shards.mine(weights),
            jax.tree.map(flat, known),
            flat(gradient),
        )
        of_x, of_activated, of_weights = backward(*given, plan)
        of_weights = shards.of_mine(of_weights, weights, again)
        return of_x.reshape(x.shape), of_activated.reshape(x.shape), of_weights

    given = (spec, spec, shards.EACH, spec, spec), (spec, spec, shards.EACH)
    return shards.mapped(run, *given)(x, activated, weights, known, gradient)


residual.defvjp(_residual_forward, _residual_backward)


def _spec(shape):
    return sharding.spec(shape, *(None, 'batch', 'tensor', None)[-len(shape) :])


def error(dtype: DTypeLike, width: int) -> float:
    """How far the kernels are from `block` on the default device, relative to the largest value."""
    keys = iter(jax.random.split(randomness.key(0), 16))
    normal = lambda *shape: jax.random.normal(next(keys), shape, jnp.float32)
    matrix = lambda: (normal(width, width) * width**-0.5).astype(dtype)
    vectors = [1.0 + normal(1, width), normal(1, width)]
    weights = Weights(
        *vectors, *(f() for _ in range(5) for f in (matrix, lambda: normal(1, width)))
    )
    x, activated = normal(2, 150, width), normal(2, 150, width).astype(dtype)
    room = choice.vmem()
    run = Plan(
        tile(width, dtype, room) or 64, True, room or None, choice.cores(), choice.interpreted()
    )
    rows = lambda a: a.reshape(-1, width)
    definition = lambda x, *args: block(rows(x), rows(args[0]), args[1])[0].reshape(x.shape)
    kernel = lambda x, activated, weights: residual(x, activated, weights.own(), run)

    def gradients(function):
        loss = lambda *args: jnp.sum(jnp.sin(function(*args)))
        return jax.tree.leaves(jax.jit(jax.grad(loss, (0, 1, 2)))(x, activated, weights))

    return max(map(choice.distance, gradients(kernel), gradients(definition)))

"""x + mlp(norm(x)) of a transformer's block as one kernel for TPUs: hidden units stay in VMEM.

Hidden units are worked out a part of them at a time, and backwards again. Per row and unit of the
width a block then moves 20 bytes, and about 240 where XLA keeps what it needs of four times as many
hidden units.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32, PRNGKeyArray, UInt32

from emigm_jax.core import randomness
from emigm_jax.nn.dropout import dropout, dropped
from emigm_jax.nn.kernels import branches, choice
from emigm_jax.nn.kernels.branches import Branch, Plan, Work, normed
from emigm_jax.nn.kernels.products import product
from emigm_jax.nn.layers import LAYER_NORM_EPSILON, gelu
from emigm_jax.parallel import shards


class Weights(NamedTuple):
    """Of width D and H hidden units: vectors (1, n) in float32, matrices in the compute dtype."""

    norm_scale: Float32[Array, '1 D']
    norm_bias: Float32[Array, '1 D']
    expand: Float[Array, 'D H']
    expand_bias: Float32[Array, '1 H']
    contract: Float[Array, 'H D']
    contract_bias: Float32[Array, '1 D']

    def own(self) -> 'Weights':
        """As `add` takes them, see `shards.own`."""
        return shards.own(self, (None, None, 0, None, 1, None))


def sizes(
    length: int, width: int, hidden: int, dtype: DTypeLike, room: int
) -> tuple[int, int] | None:
    """(rows, hidden units) at a time for which both kernels take at most `room` bytes of VMEM."""
    units = max((n for n in range(128, 1025, 128) if hidden % n == 0), default=hidden)
    # Weights, their gradients' sums, and the gradients of a part on their way.
    held = 2 * width * hidden * (jnp.dtype(dtype).itemsize + 4) + 16 * width * units
    for tiles in (1, 2, 4, 8):
        rows = length if tiles == 1 else (-(-length // tiles) + 7) // 8 * 8
        if held + rows * (40 * width + 32 * units) < room:
            return rows, units
    return None


def plan(
    kernels: str, x: Float32[Array, 'B L D'], hidden: int, dtype: DTypeLike, epsilon: float
) -> Plan | None:
    """How the kernel runs for what is traced now; None: it does not, see `choice.takes`."""
    if shards.of_layers():
        return None
    room = choice.vmem()
    _, length, width = x.shape
    tiles = sizes(length, width, hidden, dtype, room)
    if not choice.takes(kernels, 'MLPs', tiles is not None, error, dtype, width):
        return None
    rows, units = tiles or (length, hidden)
    return branches.plan(rows, units, epsilon)


def add(
    plan: Plan,
    x: Float32[Array, 'B L D'],
    weights: Weights,
    rate: float,
    keys: tuple[PRNGKeyArray | None, PRNGKeyArray | None],
) -> Float32[Array, 'B L D']:
    """x + dropout(contract(dropout(gelu(expand(norm(x)))))), GELU exact.

    Args:
      plan: from `plan`.
      x: activations.
      weights: of `Weights.own`.
      rate: of dropout.
      keys: of the dropout of hidden units, and of what comes out; None: there is none.
    """
    words = tuple(branches.words(key, rate, len(x)) for key in keys)
    return branches.add(_BRANCH, plan._replace(rate=rate), x, weights, words)


def _part(drop, y, expand, bias, contract):
    """What some hidden units contribute, before the last bias."""
    hidden = product(y, expand) + bias
    active = drop(gelu(hidden))
    return product(active.astype(y.dtype), contract)


def _parts(plan, hidden):
    return [slice(first, first + plan.part) for first in range(0, hidden, plan.part)]


def _forward(
    plan: Plan,
    x: Float32[Array, 'B L D'],
    weights: Weights,
    *words: UInt32[Array, 'B 2 1'] | None,
) -> Float32[Array, 'B L D']:
    hidden = weights.expand.shape[1]

    def kernel(row, given, w, words, out, *_):
        (x,) = given
        inner, outer = (None if ref is None else ref[...] for ref in words)
        y = normed(plan, x, w.norm_scale[...], w.norm_bias[...]).astype(w.expand.dtype)
        total = w.contract_bias[...]
        for units in _parts(plan, hidden):
            held = w.expand[:, units], w.expand_bias[:, units], w.contract[units]
            drop = lambda a, first=units.start: dropped(plan.rate, inner, a, row, first, hidden)
            total = total + _part(drop, y, *held)
        out[...] = x + dropped(plan.rate, outer, total, row)

    work = Work('mlp', 4 * x.size * hidden, x.size // x.shape[2] * hidden)
    return branches.call(kernel, plan, work, [x], weights, words)[0]


def _backward(
    plan: Plan,
    gradient: Float32[Array, 'B L D'],
    x: Float32[Array, 'B L D'],
    weights: Weights,
    *words: UInt32[Array, 'B 2 1'] | None,
) -> tuple[Float32[Array, 'B L D'], Weights]:
    hidden = weights.expand.shape[1]

    def kernel(row, given, w, words, out, of, _):
        x, gradient = given
        inner, outer = (None if ref is None else ref[...] for ref in words)
        norm = lambda *args: normed(plan, *args).astype(w.expand.dtype)
        y, of_norm = jax.vjp(norm, x, w.norm_scale[...], w.norm_bias[...])
        of_total = dropped(plan.rate, outer, gradient, row)
        of.contract_bias[...] += jnp.sum(of_total, axis=0, keepdims=True)
        of_y = jnp.zeros(x.shape, jnp.float32)
        for units in _parts(plan, hidden):
            drop = lambda a, first=units.start: dropped(plan.rate, inner, a, row, first, hidden)
            part = lambda *args, drop=drop: _part(drop, *args)
            held = w.expand[:, units], w.expand_bias[:, units], w.contract[units]
            more, of_expand, of_bias, of_contract = jax.vjp(part, y, *held)[1](of_total)
            of_y += more.astype(jnp.float32)
            of.expand[:, units] += of_expand.astype(jnp.float32)
            of.expand_bias[:, units] += of_bias
            of.contract[units] += of_contract.astype(jnp.float32)
        of_x, of_scale, of_bias = of_norm(of_y.astype(y.dtype))
        of.norm_scale[...] += of_scale
        of.norm_bias[...] += of_bias
        out[...] = gradient + of_x

    # The first product again, and two for each of both.
    work = Work('mlp_backward', 10 * x.size * hidden, x.size // x.shape[2] * hidden)
    of_x, of_weights = branches.call(kernel, plan, work, [x, gradient], weights, words)
    assert of_weights is not None
    return of_x, of_weights


_BRANCH = Branch(_forward, _backward)


def error(dtype: DTypeLike, width: int) -> float:
    """How far the kernels are from plain operations on the default device."""
    length, hidden, rate = 72, 4 * width, 0.3
    keys = iter(jax.random.split(randomness.key(0), 10))
    normal = lambda *shape: jax.random.normal(next(keys), shape, jnp.float32)
    matrix = lambda rows, columns: (normal(rows, columns) * rows**-0.5).astype(dtype)
    x = normal(2, length, width)
    weights = Weights(
        1.0 + normal(1, width),
        normal(1, width),
        matrix(width, hidden),
        normal(1, hidden),
        matrix(hidden, width),
        normal(1, width),
    )
    dropping = next(keys), next(keys)
    # Rows and hidden units in two parts each; the last rows fill none.
    _, units = sizes(length, width, hidden, dtype, choice.vmem()) or (length, hidden)
    run = branches.plan(40, min(units, hidden // 2), LAYER_NORM_EPSILON)

    def definition(x, w):
        linear = lambda x, kernel, bias: x.astype(kernel.dtype) @ kernel + bias.astype(kernel.dtype)
        y = branches.plain_norm(x, w.norm_scale, w.norm_bias)
        y = gelu(linear(y, w.expand, w.expand_bias))
        y = linear(dropout(y, rate, dropping[0]), w.contract, w.contract_bias)
        return x + dropout(y, rate, dropping[1]).astype(jnp.float32)

    kernel = lambda x, w: add(run, x, w.own(), rate, dropping)
    return branches.error(kernel, definition, x, weights)

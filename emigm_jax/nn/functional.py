"""The only bridge between Flax NNX modules and the plain dicts everything else works on.

Modules hold `nnx.Param` and nothing else (no RNG state, no sharding), so a module is a graph
definition plus a nested dict of arrays. Training, sampling, checkpoints and sharding see the dict.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, PRNGKeyArray

from emigm_jax.core import randomness
from emigm_jax.nn import loops
from emigm_jax.parallel import sharding

Params = dict[str, Any]  # parameters: a nested dict of arrays, or of their shapes
Carry = TypeVar('Carry')


@dataclasses.dataclass(frozen=True)
class Functional:
    """A module as two pure functions."""

    init: Callable[[PRNGKeyArray], Params]
    bind: Callable[[Params], Any]  # parameters -> module whose methods can be called
    shapes: Callable[[], Params]  # parameters as `jax.ShapeDtypeStruct`; touches no device


def functional(build: Callable[[nnx.Rngs], nnx.Module]) -> Functional:
    """Makes a `Functional` of what builds a module; nothing is allocated."""

    def init(key):
        return nnx.to_pure_dict(nnx.state(build(nnx.Rngs(params=key)), nnx.Param))

    with randomness.pinned():
        graph, state = nnx.split(nnx.eval_shape(lambda: build(nnx.Rngs(params=randomness.key(0)))))
    return Functional(
        init=init,
        bind=lambda params: nnx.merge(graph, params),
        shapes=lambda: nnx.to_pure_dict(state),
    )


def misfit(params: Params, network: Callable[[], Functional]) -> str:
    """Why parameters are none of a network whose sizes a file says; '' if they are.

    Args:
      params: anything with a `.shape`, nested.
      network: makes the network.
    """
    try:
        shapes = network().shapes()
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        return f'there is no network of such sizes ({" ".join(str(error).split())[:120]})'
    name_of = functools.partial(jax.tree_util.keystr, simple=True, separator='/')
    own, wanted = (
        {name_of(path): getattr(leaf, 'shape', None) for path, leaf in found}
        for found in map(jax.tree_util.tree_leaves_with_path, (params, shapes))
    )
    for name in sorted(own.keys() | wanted.keys()):
        if own.get(name) != wanted.get(name):
            return f'{name} is {own.get(name, "missing")}, not {wanted.get(name, "there")}'
    return ''


def stack(build: Callable[[nnx.Rngs], nnx.Module], depth: int, rngs: nnx.Rngs) -> nnx.Module:
    """A module whose parameters carry a leading axis of `depth` independent initialisations."""
    net = functional(build)
    params = jax.vmap(net.init)(jax.random.split(rngs.params(), depth))
    return net.bind(params)


def scan(
    module: nnx.Module,
    x: Carry,
    body: Callable[[Any, Carry, Any], Carry],
    loop: loops.Loop = loops.PLAIN,
    xs: Any = None,
) -> Carry:
    """Applies a `stack`ed module layer by layer: x = body(layer, x, xs_l), by one `lax.scan`.

    Args:
      module: from `stack`.
      x: the carry, e.g. activations (B, L, D).
      body: (layer, x, xs_l) -> x; `layer` is the unstacked module.
      loop: how to run it.
      xs: pytree with a leading layer axis, e.g. dropout keys, or None.
    """
    graph, state = nnx.split(module)

    def step(x, layer):
        state, xs = layer
        return body(nnx.merge(graph, sharding.gathered_for_use(state, loop.dtype)), x, xs), None

    if loop.remat != 'none' or sharding.is_sharded():
        # A loop's body is not merged with its backward pass; a straight line of layers would be.
        step = jax.checkpoint(step, policy=loops.REMAT[loop.remat], prevent_cse=loop.unroll)
    if not loop.unroll:
        return jax.lax.scan(step, x, (state, xs))[0]
    for i in range(jax.tree.leaves(state)[0].shape[0]):
        x, _ = step(x, jax.tree.map(lambda a, i=i: a[i], (state, xs)))
    return x


def unstacked(loop: loops.Loop) -> loops.Loop:
    """`loop` for layers that are trained, on a GPU without stacks of what the backward pass needs.

    Products there write to a place of their own, from which it is copied into the stack: a tenth of
    what crosses the memory in a step of L. Layers in line take half as long again to compile, and
    where they are sharded all of them could be gathered at once.
    """
    pays = sharding.platform() == 'gpu' and not sharding.is_sharded()
    return dataclasses.replace(loop, unroll=True) if pays else loop


def each(
    function: Callable[[Any], Array], items: Sequence[Any], loop: loops.Loop = loops.PLAIN
) -> list[Array]:
    """[function(item) for item in items]; items of one structure and shapes share one loop's body.

    It is compiled once then, not for each of them.

    Args:
      function: of an item.
      items: pytrees.
      loop: `unroll` of it.
    """
    if loop.unroll:
        return [function(item) for item in items]
    alike: dict[Any, list[int]] = {}
    for i, item in enumerate(items):
        leaves, structure = jax.tree.flatten(item)
        alike.setdefault((structure, *map(jax.typeof, leaves)), []).append(i)
    found = {}
    for places in alike.values():
        if len(places) == 1:
            found[places[0]] = function(items[places[0]])
        else:
            stacked = jax.tree.map(lambda *a: jnp.stack(a), *[items[i] for i in places])
            found |= dict(zip(places, jax.lax.map(function, stacked), strict=True))
    return [found[i] for i in range(len(items))]


def parameter_count(params: Any) -> int:
    """Number of scalars of a pytree of arrays, or of their shapes."""
    return sum(p.size for p in jax.tree.leaves(params))


def fingerprint(params: Params, title: str = '') -> str:
    """Short hex digest of arrays: names, shapes, dtypes and every number."""
    digest = hashlib.sha256(title.encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        leaf = np.asarray(leaf)
        digest.update(f'{jax.tree_util.keystr(path)} {leaf.shape} {leaf.dtype}\n'.encode())
        digest.update(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()[:16]

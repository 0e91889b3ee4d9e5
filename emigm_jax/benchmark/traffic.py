"""Bytes that processes receive from one another, counted in programs for any number of them."""

import math

import jax
import numpy as np
from jax.extend import core
from jax.sharding import AbstractMesh, AxisType

from emigm_jax.parallel import exchange

_COLLECTIVES = ('all_to_all', 'all_gather', 'ppermute', 'psum', 'reduce_scatter')


def of_sums(processes: int, devices: int, numbers: int) -> int:
    """Bytes that a process receives, its own part included, while all sum float64 `numbers`.

    Args:
      processes, devices: how many there are, and how many of each.
    """
    words = 2 * -(-numbers // (processes * devices))
    dealt = exchange.dealt, (processes, processes, devices, words)
    shared = exchange.shared, (processes, devices, words)
    return sum(_received(processes, devices, *each) for each in (dealt, shared))


def _received(processes, devices, function, shape):
    axes = exchange.PROCESS, exchange.DEVICE
    mesh = AbstractMesh((processes, devices), axes, axis_types=(AxisType.Auto,) * 2)
    operand = jax.ShapeDtypeStruct(shape, np.uint32)
    return devices * _bytes(jax.make_jaxpr(lambda x: function(mesh, x))(operand).jaxpr)


def _bytes(jaxpr):
    """What the collectives of a program give one device."""
    inner = sum(_bytes(each) for eqn in jaxpr.eqns for each in core.jaxprs_in_params(eqn.params))
    given = (
        v.aval for e in jaxpr.eqns if e.primitive.name.startswith(_COLLECTIVES) for v in e.outvars
    )
    return inner + sum(math.prod(a.shape) * a.dtype.itemsize for a in given)

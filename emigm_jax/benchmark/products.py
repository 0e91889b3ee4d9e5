"""FLOPs of any function, counted from the shapes of its matrix products and convolutions."""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core

from emigm_jax.core import randomness


@randomness.pinned()
def flops(function: Callable[..., Any], *arguments: Any) -> float:
    """2 per multiply-add, loops of a known length as often as they run, padding included.

    Args:
      function: can be traced.
      arguments: arrays or their shapes, nested.
    """
    return _of(jax.make_jaxpr(function)(*arguments).jaxpr)


def _of(jaxpr):
    inner = lambda eqn: sum(map(_of, core.jaxprs_in_params(eqn.params)))
    return sum(_own(eqn) + _times(eqn) * inner(eqn) for eqn in jaxpr.eqns)


def _own(eqn):
    name, shapes = eqn.primitive.name, [v.aval.shape for v in eqn.invars]
    if name == 'dot_general':
        ((contracted, _), _) = eqn.params['dimension_numbers']
        summed = math.prod(shapes[0][axis] for axis in contracted)
    elif name == 'conv_general_dilated':
        outputs = eqn.params['dimension_numbers'].rhs_spec[0]
        summed = math.prod(shapes[1]) // shapes[1][outputs]
    else:
        return 0.0
    return 2.0 * summed * math.prod(eqn.outvars[0].aval.shape)


def _times(eqn):
    return eqn.params['length'] if eqn.primitive.name == 'scan' else 1

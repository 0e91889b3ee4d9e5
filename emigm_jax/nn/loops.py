"""How stacks of layers are run, apart from Flax: settings are checked against it."""

import dataclasses

import jax
from jax.typing import DTypeLike

# They compute nothing, so what goes in can be kept in place of what comes out. The first is how
# `sharding.gathered_for_use` gathers parameters, which are then not kept either.
_FREE = ('custom_vjp_call', 'sharding_constraint', 'name', 'reshape', 'slice', 'squeeze')

# Checkpoint name of what is small and costs much: attention, kernels, the statistics of norms.
COSTLY = 'costly'

_policies = jax.checkpoint_policies
# Checkpoint policies by name: none recomputes nothing (but gathers sharded parameters again), full
# recomputes everything, dots keeps the results of matmuls and of attention.
REMAT = {
    'none': lambda primitive, *_, **__: primitive.name not in _FREE,
    'full': _policies.nothing_saveable,
    'dots': _policies.save_from_both_policies(
        _policies.dots_with_no_batch_dims_saveable, _policies.save_only_these_names(COSTLY)
    ),
}


@dataclasses.dataclass(frozen=True)
class Loop:
    """How a stack of layers is run."""

    dtype: DTypeLike | None = None  # of matrix products, in which sharded kernels are gathered
    remat: str = 'none'  # what the backward pass recomputes, a key of REMAT
    # A Python loop in place of `lax.scan`: no stacking of what the backward pass needs, which pays
    # for small models on CPUs, but compile time grows with depth.
    unroll: bool = False


PLAIN = Loop()

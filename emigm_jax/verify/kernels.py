"""Kernels against the formulas that they stand for; where there are none they are interpreted."""

from emigm_jax.nn.kernels import mlp, residual_block, self_attention, whole_rows
from emigm_jax.verify.part import Finding

_MEASURED = 'gradients, of the largest'


def attention(dtype: str) -> Finding:
    """Whole rows of queries and keys, with dropout."""
    return Finding(whole_rows.error(dtype, 64), _MEASURED)


def residual(dtype: str) -> Finding:
    """The block of the diffusion head."""
    return Finding(residual_block.error(dtype, 128), _MEASURED)


def half_attention(dtype: str) -> Finding:
    """A block's half with attention, some keys hidden, with dropout."""
    return Finding(self_attention.error(dtype, 64), _MEASURED)


def half_mlp(dtype: str) -> Finding:
    """A block's half with the MLP, with dropout."""
    return Finding(mlp.error(dtype, 128), _MEASURED)

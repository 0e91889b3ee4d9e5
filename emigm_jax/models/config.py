"""The architecture as a settings object."""

import dataclasses

import jax.numpy as jnp
from jax.typing import DTypeLike

from emigm_jax.errors import UserError, check_choice, check_range
from emigm_jax.nn import functional

DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}

# Smallest sensible sizes. Masking needs two tokens, the last decoder block stands apart from its
# stack, and without a buffer a fully masked image would leave the encoder no token.
_LEAST = dict(
    grid=2,
    channels=1,
    classes=1,
    width=1,
    heads=1,
    encoder_depth=1,
    decoder_depth=2,
    buffer=1,
    head_width=1,
    head_depth=1,
    mlp_ratio=0.01,
)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Architecture (paper Tables 6 and 7; models/emigm.py:75-118). Tokens lie on a square grid."""

    grid: int = 16  # tokens per side; N = grid^2
    channels: int = 16  # C, of one token
    classes: int = 1000
    width: int = 448  # D, of encoder and decoder
    heads: int = 8
    encoder_depth: int = 10
    decoder_depth: int = 10
    mlp_ratio: float = 4.0
    buffer: int = 64  # copies of the class embedding before the tokens
    head_width: int = 1024  # W, of the diffusion MLP
    head_depth: int = 3
    mae: bool = True  # False: the "single encoder" that also sees mask tokens
    shared_null: bool = True  # "CFG with mask": the mask token is the null class, too
    attention_dropout: float = 0.1
    projection_dropout: float = 0.1
    remat: str = 'none'  # what the backward pass recomputes, a key of functional.REMAT
    unroll: bool = False  # layers as a Python loop, not a scan: faster for small models on CPUs
    dtype: str = 'float32'  # of matrix products; parameters and residual sums stay float32

    def __post_init__(self):
        for name, low in _LEAST.items():
            check_range(f'model.{name}', getattr(self, name), low)
        for name in ('attention_dropout', 'projection_dropout'):
            check_range(f'model.{name}', getattr(self, name), 0.0, 0.99)
        check_choice('model.remat', self.remat, functional.REMAT)
        check_choice('model.dtype', self.dtype, DTYPES)
        if self.width % self.heads:
            raise UserError(
                f'model.heads = {self.heads} does not divide model.width = {self.width}'
            )

    @property
    def tokens(self) -> int:
        """N, tokens per image."""
        return self.grid**2

    @property
    def method(self) -> str:
        """Whose recipe the model belongs to, 'emigm' or 'mar': MAR has no shared null token."""
        return 'emigm' if self.shared_null else 'mar'

    @property
    def compute_dtype(self) -> DTypeLike:
        """The dtype of matrix products."""
        return DTYPES[self.dtype]

    @property
    def loop(self) -> functional.Loop:
        """How stacks of layers are run."""
        return functional.Loop(self.compute_dtype, self.remat, self.unroll)

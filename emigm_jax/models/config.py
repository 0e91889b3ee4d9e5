"""The architecture as a settings object."""

import dataclasses

import jax.numpy as jnp
from jax.typing import DTypeLike

from emigm_jax.core.setting import setting, validate
from emigm_jax.errors import UserError
from emigm_jax.nn import loops

TRUNKS = ('mae', 'bert')
TELLS_PROBABILITY = ('categorical',)  # heads that tell that of what they draw
# Head: the sizes of a model that follow from the data.
OF_DATA = {
    'diffusion': ('grid', 'channels', 'classes'),
    'categorical': ('grid', 'codes', 'classes'),
}
# Settings that change no parameter, nor what one means.
NO_WEIGHTS = ('attention_dropout', 'projection_dropout', 'remat', 'unroll', 'kernels', 'dtype')
DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Architecture (paper Tables 6 and 7; models/emigm.py:75-118). Tokens lie on a square grid."""

    # Masking needs two tokens.
    grid: int = setting(
        0, 'tokens per side, N = grid^2; 0: as the data have it', low=2, beside=(0,)
    )
    trunk: str = setting(
        'mae',
        'mae: an encoder of visible tokens, a decoder of all (MAR, eMIGM); bert: one stack of '
        'encoder_depth + decoder_depth post-norm blocks over all (MaskGIT)',
        choices=TRUNKS,
    )
    head: str = setting(
        'diffusion',
        'p(x|z) of a token: diffusion, of vectors (MAR, eMIGM); categorical, of codes (MaskGIT, '
        'MDM)',
        choices=OF_DATA,
    )
    channels: int = setting(
        0, 'C, numbers per token that is a vector; 0: as the data have it', low=1, beside=(0,)
    )
    codes: int = setting(
        0, 'V, values of a token that is a code; 0: as the data have it', low=2, beside=(0,)
    )
    classes: int = setting(
        0, 'classes, without the null class; 0: as the data have it', low=1, beside=(0,)
    )
    width: int = setting(448, 'D, of encoder and decoder', low=1)
    heads: int = setting(8, 'attention heads; must divide width', low=1)
    encoder_depth: int = setting(10, 'blocks of the encoder', low=1)
    # The last decoder block stands apart from its stack.
    decoder_depth: int = setting(10, 'blocks of the decoder', low=2)
    mlp_ratio: float = setting(4.0, "hidden units of a block's MLP over width", low=0.01)
    # Without a buffer a fully masked image would leave the encoder no token.
    buffer: int = setting(64, 'copies of the class embedding before the tokens', low=1)
    head_width: int = setting(1024, "W, of the diffusion head's MLP", low=1)
    head_depth: int = setting(3, "blocks of the diffusion head's MLP", low=1)
    mae: bool = setting(
        True,
        'of trunk mae: the encoder sees visible tokens only; False: "single encoder", sees mask '
        'tokens, too',
    )
    shared_null: bool = setting(
        True, '"CFG with mask": the mask token is the null class, too; False: as in MAR'
    )
    attention_dropout: float = setting(0.1, 'of attention weights', low=0.0, high=0.99)
    projection_dropout: float = setting(
        0.1, 'of the outputs of attention and MLP', low=0.0, high=0.99
    )
    remat: str = setting(
        'none',
        'what the backward pass recomputes to save memory: nothing, everything, or all but matrix '
        'products',
        choices=loops.REMAT,
    )
    unroll: bool = setting(
        False, 'layers as a Python loop, not a scan: faster for small models on CPUs'
    )
    kernels: str = setting(
        'auto',
        'attention, and on TPUs MLPs and the blocks of the diffusion head: xla compiles their '
        'definitions; pallas takes kernels that write nothing in between to memory (where there '
        'are none they are interpreted, slowly); auto takes a kernel where it fits the device and '
        'agrees there with the definition',
        choices=('auto', 'xla', 'pallas'),
    )
    dtype: str = setting(
        'float32',
        'of matrix products; parameters and residual sums stay float32',
        choices=DTYPES,
    )

    def __post_init__(self):
        validate(self, 'model')
        if self.width % self.heads:
            raise UserError(
                f'model.heads = {self.heads} does not divide model.width = {self.width}'
            )
        if (self.trunk, self.head) == ('bert', 'diffusion'):
            raise UserError(
                "model.trunk = 'bert' looks its tokens up in a table, so they are codes: say "
                '--config.model.head=categorical'
            )
        for head, name in (('diffusion', 'channels'), ('categorical', 'codes')):
            if getattr(self, name) and self.head != head:
                raise UserError(f'model.{name} goes with model.head = {head!r}')

    def check_sizes(self) -> None:
        """Raises UserError if a size is left to data that nobody has asked."""
        missing = [f'model.{name}' for name in self.of_data if not getattr(self, name)]
        if missing:
            told = 'is not set, and there are no data at hand that tell it'
            if len(missing) > 1:
                told = 'are not set, and there are no data at hand that tell them'
            flags = ' '.join(f'--config.{name}=...' for name in missing)
            raise UserError(f'{", ".join(missing)} {told}: say {flags}')

    @property
    def of_data(self) -> tuple[str, ...]:
        """Names of the sizes that follow from the data."""
        return OF_DATA[self.head]

    @property
    def words(self) -> int:
        """Rows of the table of codes; MaskGIT's holds the classes and the mask, too."""
        return self.codes + (self.classes + 1) * (self.trunk == 'bert')

    @property
    def tokens(self) -> int:
        """N, tokens per image."""
        return self.grid**2

    @property
    def method(self) -> str:
        """Whose recipe it belongs to: MAR has no shared null token, MaskGIT another trunk."""
        return 'maskgit' if self.trunk == 'bert' else 'emigm' if self.shared_null else 'mar'

    @property
    def compute_dtype(self) -> DTypeLike:
        """The dtype of matrix products."""
        return DTYPES[self.dtype]

    @property
    def loop(self) -> loops.Loop:
        """How stacks of layers are run."""
        return loops.Loop(self.compute_dtype, self.remat, self.unroll)

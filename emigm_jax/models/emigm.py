"""The whole network: masked autoencoder plus diffusion head, and the published sizes."""

import dataclasses
import functools

import jax.numpy as jnp
from flax import nnx

from emigm_jax.errors import UserError, check_choice, check_range
from emigm_jax.models.diffusion_head import DiffusionHead
from emigm_jax.models.mae import MaskedAutoencoder
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
    def tokens(self):
        """N, tokens per image."""
        return self.grid**2

    @property
    def method(self):
        """Whose recipe the model belongs to, 'emigm' or 'mar': MAR has no shared null token."""
        return 'emigm' if self.shared_null else 'mar'

    @property
    def compute_dtype(self):
        """The dtype of matrix products."""
        return DTYPES[self.dtype]

    @property
    def loop(self):
        """How stacks of layers are run."""
        return functional.Loop(self.compute_dtype, self.remat, self.unroll)


class EMIGM(nnx.Module):
    """`mae` gives conditions z of masked tokens, `head` models each token given its z."""

    def __init__(self, config, rngs):
        self.mae = MaskedAutoencoder(config, rngs)
        self.head = DiffusionHead(
            config.channels, config.width, config.head_width, config.head_depth, config.loop, rngs
        )


@functools.cache
def network(config):
    """The `Functional` (init, bind) of a `ModelConfig`."""
    return functional.functional(lambda rngs: EMIGM(config, rngs))


# Paper Tables 6 and 7: depth is per stack (encoder, decoder).
_TRANSFORMERS = {
    'xs': dict(width=448, heads=8, depth=10),
    's': dict(width=512, heads=8, depth=12),
    'b': dict(width=768, heads=12, depth=12),
    'l': dict(width=1024, heads=16, depth=16),
    'h': dict(width=1280, heads=16, depth=20),
}
# (image size, transformer): head depth, head width, exact parameter count of the official code.
PRESETS = {
    (256, 'xs'): (3, 1024, 69_018_848),
    (256, 's'): (3, 1024, 96_640_544),
    (256, 'b'): (6, 1024, 207_924_000),
    (256, 'l'): (8, 1280, 478_325_280),
    (256, 'h'): (12, 1536, 942_401_824),
    (512, 'xs'): (6, 1280, 104_506_624),
    (512, 's'): (6, 1280, 132_145_728),
    (512, 'b'): (8, 1280, 244_150_592),
    (512, 'l'): (8, 1280, 478_403_136),
}
_CHANNELS = {256: 16, 512: 32}  # KL-16 at stride 16, DC-AE at stride 32: a 16 x 16 grid for both


HEADS = {row['width']: row['heads'] for row in _TRANSFORMERS.values()}  # no shape tells them


def preset(image_size, size, **changes):
    """The published `ModelConfig` of an image size (256, 512) and size (xs, s, b, l, h).

    MAR's base, large and huge are b, l and h at 256 with `shared_null=False`.
    """
    if (image_size, size) not in PRESETS:
        known = ', '.join(f'{s} at {i}' for i, s in PRESETS)
        raise UserError(f'no preset {size!r} at {image_size} pixels; there are {known}')
    head_depth, head_width, _ = PRESETS[image_size, size]
    transformer = _TRANSFORMERS[size]
    sizes = dict(
        grid=16,
        channels=_CHANNELS[image_size],
        width=transformer['width'],
        heads=transformer['heads'],
        encoder_depth=transformer['depth'],
        decoder_depth=transformer['depth'],
        head_width=head_width,
        head_depth=head_depth,
    )
    return ModelConfig(**{**sizes, **changes})


def preset_name(config):
    """The key of `PRESETS` whose network has the sizes of `config`, or None."""
    sizes = (
        'grid',
        'channels',
        'width',
        'heads',
        'encoder_depth',
        'decoder_depth',
        'head_width',
        'head_depth',
        'mae',
    )
    for key in PRESETS:
        known = preset(*key)
        if all(getattr(known, name) == getattr(config, name) for name in sizes):
            return key
    return None

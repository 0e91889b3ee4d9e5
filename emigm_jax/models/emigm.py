"""The whole network, a trunk plus a head by name, and the published sizes."""

import functools
from typing import Any, final

import jax
from flax import nnx

from emigm_jax.errors import UserError
from emigm_jax.models.bert import Bert
from emigm_jax.models.categorical_head import CategoricalHead
from emigm_jax.models.config import ModelConfig
from emigm_jax.models.diffusion_head import DiffusionHead
from emigm_jax.models.interface import Head, Trunk
from emigm_jax.models.mae import MaskedAutoencoder
from emigm_jax.nn import functional

TRUNKS: dict[str, type[Trunk]] = {'mae': MaskedAutoencoder, 'bert': Bert}
HEADS: dict[str, type[Head]] = {'diffusion': DiffusionHead, 'categorical': CategoricalHead}


@final
class EMIGM(nnx.Module):
    """`trunk` gives conditions z of masked tokens, `head` models each token given its z."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        head = HEADS[config.head]
        trunk = TRUNKS[config.trunk](config, head.embedding, rngs)
        self.name = config.trunk
        setattr(self, self.name, trunk)  # its parameters bear its name
        self.head = head(config, trunk.token_embed, rngs)

    @property
    def trunk(self) -> Trunk:
        """Of `TRUNKS`."""
        return getattr(self, self.name)


def token(config: ModelConfig) -> jax.ShapeDtypeStruct:
    """Shape and dtype of one token."""
    return HEADS[config.head].token(config)


@functools.cache
def network(config: ModelConfig) -> functional.Functional:
    """The network as pure functions.

    Raises:
      UserError: a size is left to the data.
    """
    config.check_sizes()
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


# Width: attention heads, which no shape tells.
ATTENTION_HEADS = {row['width']: row['heads'] for row in _TRANSFORMERS.values()}


def preset(image_size: int, size: str, **changes: Any) -> ModelConfig:
    """The published `ModelConfig` of an image size (256, 512) and size (xs, s, b, l, h).

    MAR's base, large and huge are b, l and h at 256 with `shared_null=False`.
    """
    if (image_size, size) not in PRESETS:
        names = ', '.join(f'{s} at {i}' for i, s in PRESETS)
        raise UserError(f'no preset {size!r} at {image_size} pixels; there are {names}')
    head_depth, head_width, _ = PRESETS[image_size, size]
    transformer = _TRANSFORMERS[size]
    sizes = dict(
        grid=16,
        channels=_CHANNELS[image_size],
        classes=1000,
        width=transformer['width'],
        heads=transformer['heads'],
        encoder_depth=transformer['depth'],
        decoder_depth=transformer['depth'],
        head_width=head_width,
        head_depth=head_depth,
    )
    return ModelConfig(**{**sizes, **changes})


# (image size, size): tokens per side at stride 16, exact parameter count of the official code.
MASKGIT = {(256, 'b'): (16, 172_457_193), (512, 'b'): (32, 173_047_017)}


def maskgit(image_size: int, size: str = 'b', **changes: Any) -> ModelConfig:
    """MaskGIT's published `ModelConfig` at an image size (256, 512); it has one size, b.

    Origin: maskgit/configs/maskgit_class_cond_config.py, whose 24 layers we halve in name alone.
    """
    if (image_size, size) not in MASKGIT:
        names = ', '.join(f'{s} at {i}' for i, s in MASKGIT)
        raise UserError(f'no MaskGIT {size!r} at {image_size} pixels; there are {names}')
    sizes = dict(
        trunk='bert',
        head='categorical',
        grid=MASKGIT[image_size, size][0],
        codes=1024,
        classes=1000,
        width=768,
        heads=16,
        encoder_depth=12,
        decoder_depth=12,
        buffer=1,
    )
    return ModelConfig(**{**sizes, **changes})


_SHAPE = ('grid', 'width', 'heads', 'encoder_depth', 'decoder_depth')
# Trunk: the published models by key, and what tells them from others.
_PUBLISHED = {
    'mae': (preset, PRESETS, (*_SHAPE, 'channels', 'head_width', 'head_depth', 'mae')),
    'bert': (maskgit, MASKGIT, (*_SHAPE, 'codes', 'mlp_ratio', 'buffer')),
}


def preset_name(config: ModelConfig) -> tuple[int, str] | None:
    """(image size, size) of the published model whose network has the sizes of `config`, or None.

    Of which method it is, `ModelConfig.method` says.
    """
    build, keys, sizes = _PUBLISHED[config.trunk]
    for key in keys:
        published = build(*key)
        if all(getattr(published, name) == getattr(config, name) for name in sizes):
            return key
    return None

"""The sizes of a model, read off the shapes of its official tensors."""

import functools
import math
import re

from emigm_jax.conversion import rules
from emigm_jax.errors import UserError
from emigm_jax.models import emigm

_CLASSES = {2025: 1000}  # of MaskGIT's published tables of words: 1024 codes, the classes, a mask


def model_config(
    tensors: rules.Tensors, origin: str, heads: int | None = None
) -> emigm.ModelConfig:
    """The sizes of the eMIGM or MAR model that has these tensors.

    Everything but the number of heads can be read off shapes; the heads are those of the published
    model of the same width, unless given. Matrix products are float32, which run anywhere.

    Raises:
      UserError: a tensor that tells a size is missing, sizes contradict, or `heads` is needed.
    """
    shape = functools.partial(_shape, tensors, origin)
    width, channels = shape('z_proj.weight', 2)
    tokens = shape('diffusion_pos_embed_learned', 3)[1]
    heads = emigm.ATTENTION_HEADS.get(width) if heads is None else heads
    if heads is None:
        raise UserError(f'{origin}: no published model has width {width}; say --heads')
    return emigm.ModelConfig(
        grid=_grid(tokens, origin),
        channels=channels,
        classes=shape('class_emb.weight', 2)[0],
        width=width,
        heads=heads,
        encoder_depth=_depth(tensors, 'encoder_blocks.'),
        decoder_depth=_depth(tensors, 'decoder_blocks.'),
        mlp_ratio=shape('encoder_blocks.0.mlp.fc1.weight', 2)[0] / width,
        buffer=shape('encoder_pos_embed_learned', 3)[1] - tokens,
        head_width=shape('diffloss.net.input_proj.weight', 2)[0],
        head_depth=_depth(tensors, 'diffloss.net.res_blocks.'),
        # One parameter in two roles has the shape of `fake_latent`, (1, D); MAR's is (1, 1, D).
        shared_null=len(shape('mask_token', 2, 3)) == 2,
    )


def maskgit(tensors: rules.Tensors, origin: str, classes: int | None = None) -> emigm.ModelConfig:
    """The sizes of the MaskGIT transformer that has these tensors.

    Codes and classes lie in one table: how many are classes is known of the published one alone,
    unless it is given.

    Raises:
      UserError: a tensor that tells a size is missing, sizes contradict, or `classes` is needed.
    """
    shape = functools.partial(_shape, tensors, origin)
    words, width = shape('Embed_0/word_embeddings/embedding', 2)
    classes = _CLASSES.get(words) if classes is None else classes
    if classes is None:
        raise UserError(
            f'{origin}: no published model has {words} words (codes, classes and a mask); '
            'say --classes'
        )
    if not 1 <= classes <= words - 3:
        raise UserError(f'{origin}: {words} words do not hold {classes} classes, a mask and codes')
    depth = _depth(tensors, 'TransformerLayer_', '/')
    layer = 'TransformerLayer_0'
    return emigm.ModelConfig(
        trunk='bert',
        head='categorical',
        grid=_grid(shape('Embed_0/position_embeddings/embedding', 2)[0] - 1, origin),
        codes=words - classes - 1,
        classes=classes,
        width=width,
        heads=shape(f'{layer}/Attention_0/self_attention/query/kernel', 3)[1],
        encoder_depth=depth // 2,
        decoder_depth=depth - depth // 2,
        mlp_ratio=shape(f'{layer}/Mlp_0/intermediate_output/kernel', 2)[1] / width,
        buffer=1,
    )


def _shape(tensors, origin, name, *ranks) -> tuple[int, ...]:
    """The shape of a tensor, which must have one of so many dimensions."""
    if name not in tensors:
        raise rules.Misfit(origin, [('missing', name, '')])
    sizes = getattr(tensors[name], 'shape', ())
    if len(sizes) not in ranks or 0 in sizes:
        wanted = ' or '.join(map(str, ranks))
        why = f'is {sizes}, and would need {wanted} dimensions'
        raise rules.Misfit(origin, [('misshapen', name, why)])
    return sizes


def _grid(tokens, origin):
    grid = math.isqrt(tokens)
    if grid**2 != tokens:
        raise UserError(f'{origin}: {tokens} tokens are no square grid')
    return grid


def _depth(tensors, before, after='.'):
    """How many numbers there are between these parts of names."""
    pattern = re.compile(f'{re.escape(before)}([0-9]+){re.escape(after)}')
    return len({m[1] for m in map(pattern.match, tensors) if m})

"""The sizes of an eMIGM or MAR model, read off the shapes of its official tensors."""

import math
import re

from emigm_jax.conversion import rules
from emigm_jax.errors import UserError
from emigm_jax.models import emigm


def model_config(
    tensors: rules.Tensors, origin: str, heads: int | None = None
) -> emigm.ModelConfig:
    """The sizes of the model that has these tensors.

    Everything but the number of heads can be read off shapes; the heads are those of the published
    model of the same width, unless given. Matrix products are float32, which run anywhere.

    Raises:
      UserError: a tensor that tells a size is missing, sizes contradict, or `heads` is needed.
    """

    def shape(name, *ranks) -> tuple[int, ...]:
        if name not in tensors:
            raise rules.Misfit(origin, [('missing', name, '')])
        sizes = getattr(tensors[name], 'shape', ())
        if len(sizes) not in ranks or 0 in sizes:
            wanted = ' or '.join(map(str, ranks))
            why = f'is {sizes}, and would need {wanted} dimensions'
            raise rules.Misfit(origin, [('misshapen', name, why)])
        return sizes

    width, channels = shape('z_proj.weight', 2)
    tokens = shape('diffusion_pos_embed_learned', 3)[1]
    grid = math.isqrt(tokens)
    if grid**2 != tokens:
        raise UserError(f'{origin}: {tokens} tokens are no square grid')
    heads = emigm.HEADS.get(width) if heads is None else heads
    if heads is None:
        raise UserError(f'{origin}: no published model has width {width}; say --heads')
    return emigm.ModelConfig(
        grid=grid,
        channels=channels,
        classes=shape('class_emb.weight', 2)[0],
        width=width,
        heads=heads,
        encoder_depth=_depth(tensors, 'encoder_blocks'),
        decoder_depth=_depth(tensors, 'decoder_blocks'),
        mlp_ratio=shape('encoder_blocks.0.mlp.fc1.weight', 2)[0] / width,
        buffer=shape('encoder_pos_embed_learned', 3)[1] - tokens,
        head_width=shape('diffloss.net.input_proj.weight', 2)[0],
        head_depth=_depth(tensors, 'diffloss.net.res_blocks'),
        # One parameter in two roles has the shape of `fake_latent`, (1, D); MAR's is (1, 1, D).
        shared_null=len(shape('mask_token', 2, 3)) == 2,
    )


def _depth(tensors, prefix):
    pattern = re.compile(re.escape(prefix) + r'\.(\d+)\.')
    return len({m[1] for m in map(pattern.match, tensors) if m})

"""What a checkpoint file holds, judged by the names and shapes of its tensors."""

import math
import re
from typing import NamedTuple

from emigm_jax.convert import inception_tables, rules
from emigm_jax.errors import UserError
from emigm_jax.models import emigm


class Mark(NamedTuple):
    """A tensor that only one family of files has, and where its state dict may lie."""

    name: str
    entries: tuple  # of the file, best first; None: the file itself


MARKS = {
    'masked': Mark('diffloss.net.input_proj.weight', ('model_ema', 'model', None)),
    'kl16': Mark('post_quant_conv.weight', ('model', 'state_dict', None)),
    'dc_ae': Mark('decoder.project_in.main.conv.weight', ('state_dict', None)),
    'vqgan': Mark('quantizer/codebook', ('params', None)),
}
INCEPTION = 'inception'
TITLES = {
    'masked': 'eMIGM or MAR',
    'kl16': 'KL-16',
    'dc_ae': 'DC-AE',
    'vqgan': 'VQGAN',
    INCEPTION: 'the Inception network of FID',
}


def kind(tree, origin):
    """A key of `TITLES` for the content of a file.

    Raises:
      UserError: it is nothing that can be converted.
    """
    for name, mark in MARKS.items():
        if any(mark.name in names(tree, entry) for entry in mark.entries):
            return name
    if inception_tables.form(tree):
        return INCEPTION
    some = ', '.join(map(repr, list(names(tree, None))[:4]))
    raise UserError(
        f'{origin}: is neither eMIGM, MAR, KL-16, DC-AE, VQGAN nor the Inception '
        f'network of FID; it holds {some}'
    )


def names(tree, entry):
    """{joined name: tensor} of an entry of a file, {} if there is no such entry."""
    part = tree if entry is None else tree.get(entry)
    return rules.flatten(part) if isinstance(part, dict) else {}


def state_dict(tree, weights, origin):
    """The tensors of a model file: ({name: array}, the entry they come from, '' for the file).

    Args:
      tree: content of the file.
      weights: 'model_ema', 'model', or '' for the best there is.
      origin: file name for messages.
    """
    mark = MARKS['masked']
    there = [e for e in mark.entries if mark.name in names(tree, e)]
    if not weights:
        return names(tree, there[0]), there[0] or ''
    if weights not in there:
        held = ', '.join(e for e in there if e) or 'one nameless set'
        raise UserError(f'{origin}: has no weights {weights!r}, but {held}')
    return names(tree, weights), weights


def model_config(tensors, origin, heads=0):
    """The `ModelConfig` of eMIGM or MAR tensors.

    Everything but the number of heads can be read off shapes; the heads are those of the published
    model of the same width, unless given.

    Raises:
      UserError: a tensor that tells a size is missing, sizes contradict, or `heads` is needed.
    """

    def shape(name, *ranks):
        if name not in tensors:
            raise rules.Misfit(origin, [('missing', name, '')])
        found = getattr(tensors[name], 'shape', ())
        if len(found) not in ranks or 0 in found:
            raise rules.Misfit(origin, [('misshapen', name, f'is {found}')])
        return found

    width, channels = shape('z_proj.weight', 2)
    tokens = shape('diffusion_pos_embed_learned', 3)[1]
    grid = math.isqrt(tokens)
    if grid**2 != tokens:
        raise UserError(f'{origin}: {tokens} tokens are no square grid')
    heads = heads or emigm.HEADS.get(width, 0)
    if not heads:
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

"""Official names of tokenizer checkpoints beside ours."""

from collections.abc import Callable
from typing import Any

from emigm_jax.conversion.left_out import COUNTERS
from emigm_jax.conversion.rules import Entry
from emigm_jax.tokenizers import dc_ae, kl_vae, vqgan

_WEIGHT = (('weight', 'kernel', 'conv'),)
_CONV = (*_WEIGHT, ('bias', 'bias', 'copy'))
_NORM = (('weight', 'scale', 'copy'), ('bias', 'bias', 'copy'))
_BATCH_NORM = (
    *_NORM,
    ('running_mean', 'mean', 'copy'),
    ('running_var', 'variance', 'copy'),
)
_KERNEL = (('kernel', 'kernel', 'copy'),)  # of Flax, in our layout already
_FLAX_CONV = (*_KERNEL, ('bias', 'bias', 'copy'))
_FLAX_NORM = (('scale', 'scale', 'copy'), ('bias', 'bias', 'copy'))

# kind of layer: (official part, our part, leaves); '' where a layer is no more than that part;
# several official parts are one of ours, one below the other.
_KL_VAE = {
    'conv1': (('', '', _CONV),),
    'conv3': (('', '', _CONV),),
    'norm_swish': (('', '', _NORM),),
    'block': (
        ('norm1', 'norm1', _NORM),
        ('conv1', 'conv1', _CONV),
        ('norm2', 'norm2', _NORM),
        ('conv2', 'conv2', _CONV),
        ('nin_shortcut', 'shortcut', _CONV),
    ),
    'attention': (
        ('norm', 'norm', _NORM),
        ('q', 'q', _CONV),
        ('k', 'k', _CONV),
        ('v', 'v', _CONV),
        ('proj_out', 'out', _CONV),
    ),
    'downsample': (('conv', 'conv', _CONV),),
    'upsample': (('conv', 'conv', _CONV),),
}
_DC_AE = {
    'unshuffle': (('conv.conv', 'conv', _CONV),),
    'average': (('main.op_list.0.conv', 'conv', _CONV),),
    'repeat': (('main.conv', 'conv', _CONV),),
    'output': (('op_list.0', 'norm', _NORM), ('op_list.2.conv.conv', 'conv', _CONV)),
    'downsample': (('main.conv.conv', 'conv', _CONV),),
    'upsample': (('main.conv.conv', 'conv', _CONV),),
    'block_rms': (
        ('main.conv1.conv', 'conv1', _CONV),
        ('main.conv2.conv', 'conv2', _WEIGHT),
        ('main.conv2.norm', 'norm', _NORM),
    ),
    'block_batch': (
        ('main.conv1.conv', 'conv1', _CONV),
        ('main.conv2.conv', 'conv2', _WEIGHT),
        ('main.conv2.norm', 'norm', _BATCH_NORM),
    ),
    'attention': (
        ('context_module.main.qkv.conv', 'qkv', _WEIGHT),
        ('context_module.main.proj.conv', 'out', _WEIGHT),
        ('context_module.main.proj.norm', 'out_norm', _NORM),
        ('local_module.main.inverted_conv.conv', 'expand', _CONV),
        ('local_module.main.depth_conv.conv', 'depthwise', _CONV),
        ('local_module.main.point_conv.conv', 'contract', _WEIGHT),
        ('local_module.main.point_conv.norm', 'contract_norm', _NORM),
    ),
}
_PIXEL = (('weight', 'kernel', 'pixel'),)
# DC-AE as diffusers names it (AutoencoderDC). Its q, k and v are the rows of the official `qkv`,
# head by head as they are there, cut in three (huggingface/diffusers#9708).
_DC_AE_DIFFUSERS = {
    'unshuffle': (('conv', 'conv', _CONV),),
    'average': (('', 'conv', _CONV),),
    'repeat': (('', 'conv', _CONV),),
    'output': (('norm_out', 'norm', _NORM), ('conv_out.conv', 'conv', _CONV)),
    'downsample': (('conv', 'conv', _CONV),),
    'upsample': (('conv', 'conv', _CONV),),
    'block_rms': (
        ('conv1', 'conv1', _CONV),
        ('conv2', 'conv2', _WEIGHT),
        ('norm', 'norm', _NORM),
    ),
    'block_batch': (
        ('conv1', 'conv1', _CONV),
        ('conv2', 'conv2', _WEIGHT),
        ('norm', 'norm', _BATCH_NORM),
    ),
    'attention': (
        (('attn.to_q', 'attn.to_k', 'attn.to_v'), 'qkv', _PIXEL),
        ('attn.to_out', 'out', _PIXEL),
        ('attn.norm_out', 'out_norm', _NORM),
        ('conv_out.conv_inverted', 'expand', _CONV),
        ('conv_out.conv_depth', 'depthwise', _CONV),
        ('conv_out.conv_point', 'contract', _WEIGHT),
        ('conv_out.norm', 'contract_norm', _NORM),
    ),
}
_VQGAN = {
    'conv1': (('', '', _FLAX_CONV),),
    'conv3': (('', '', _FLAX_CONV),),
    'conv3_unbiased': (('', '', _KERNEL),),
    'norm_swish': (('', '', _FLAX_NORM),),
    'block': (
        ('GroupNorm_0', 'norm1', _FLAX_NORM),
        ('Conv_0', 'conv1', _KERNEL),
        ('GroupNorm_1', 'norm2', _FLAX_NORM),
        ('Conv_1', 'conv2', _KERNEL),
        ('Conv_2', 'shortcut', _KERNEL),
    ),
    'pool': (),
    'double': (),
}
_FLAX_NAMES = {'conv': 'Conv', 'block': 'ResBlock', 'norm': 'GroupNorm'}
_OUTSIDE = ('quant_conv', 'post_quant_conv')  # official KL-16 layers of neither half


def kl16(config: kl_vae.KLVAEConfig) -> list[Entry]:
    """Entries of KL-16."""

    def official(half, layer):
        return (layer.name if layer.name in _OUTSIDE else f'{half}.{layer.name}',)

    return _entries(kl_vae, config, _KL_VAE, official, '.')


def dc_ae_f32c32(config: dc_ae.DCAEConfig) -> list[Entry]:
    """Entries of DC-AE."""

    def official(half, layer):
        if layer.name.startswith('project'):
            return (f'{half}.{layer.name}',)
        stage, numbers = _dc_ae_blocks(config, half, layer)
        return tuple(f'{half}.stages.{stage}.op_list.{i}' for i in numbers)

    return _entries(dc_ae, config, _DC_AE, official, '.')


def dc_ae_diffusers(config: dc_ae.DCAEConfig) -> list[Entry]:
    """Entries of DC-AE as diffusers stores it."""
    ends = {'project_in': '.conv_in', 'project_out': '.conv_out'}
    lists = {'encoder': 'down_blocks', 'decoder': 'up_blocks'}

    def official(half, layer):
        if layer.kind == 'output':  # its norm lies beside its convolution
            return (half,)
        if layer.name in ends:
            return (f'{half}{ends[layer.name]}',)
        stage, numbers = _dc_ae_blocks(config, half, layer)
        return tuple(f'{half}.{lists[half]}.{stage}.{i}' for i in numbers)

    return _entries(dc_ae, config, _DC_AE_DIFFUSERS, official, '.')


def _dc_ae_blocks(config, half, layer):
    """(stage, numbers in its list): a stage and its change of scale share one list."""
    kind, number = layer.name.split('_')
    stage = int(number)
    ups = half == 'decoder' and stage < len(config.widths)  # then its list begins with `up`
    first, count = {
        'stage': (int(ups), layer.depth),
        'down': (config.encoder_depths[stage - 1], 1),
        'up': (0, 1),
    }[kind]
    return stage, range(first, first + count)


def maskgit_vqgan(config: vqgan.VQGANConfig) -> list[Entry]:
    """Entries of MaskGIT's VQGAN; official names are joined by '/'."""

    def official(half, layer):
        stem, number = layer.name.split('_')
        return (f'{half}/{_FLAX_NAMES[stem]}_{number}',)

    return [
        *_entries(vqgan, config, _VQGAN, official, '/'),
        Entry('codebook', ('quantizer/codebook',)),
    ]


def _entries(module, config, kinds, official, separator):
    """Entries of the two plans of a tokenizer module.

    Args:
      kinds: one of the tables above.
      official: (half, layer) -> official names of the layer, one per repetition.
      separator: of official names.
    """
    entries = []
    plans = (('encoder', module.encoder_plan), ('decoder', module.decoder_plan))
    for half, layer in ((half, layer) for half, plan in plans for layer in plan(config)):
        for theirs, ours, leaves in kinds[layer.kind]:
            if ours == 'shortcut' and layer.inputs == layer.outputs:
                continue
            parts = (theirs,) if isinstance(theirs, str) else theirs
            for their_leaf, our_leaf, operation in leaves:
                path = '/'.join(filter(None, (half, layer.attribute, ours, our_leaf)))
                sources = tuple(
                    separator.join(filter(None, (name, part, their_leaf)))
                    for name in official(half, layer)
                    for part in parts
                )
                stacked = layer.depth is not None
                entries.append(Entry(path, sources, operation, stacked, len(parts)))
    return entries


# tokenizer: config -> entries
ENTRIES: dict[str, Callable[[Any], list[Entry]]] = {
    'kl16': kl16,
    'dc_ae': dc_ae_f32c32,
    'vqgan': maskgit_vqgan,
}
# tokenizer: {a tensor that only this form has: config -> entries}, beside the official ones
OTHER_FORMS: dict[str, dict[str, Callable[[Any], list[Entry]]]] = {
    'dc_ae': {'decoder.conv_out.conv.weight': dc_ae_diffusers},
}
# tokenizer: rows (pattern of whole names, why they are not needed)
IGNORED: dict[str, tuple[tuple[str, str], ...]] = {
    'kl16': (
        (
            r'(?!(encoder|decoder|quant_conv|post_quant_conv)\.).*',
            'of its training (losses, discriminator); the official loader skips unknown names',
        ),
    ),
    'dc_ae': (COUNTERS,),
    'vqgan': (),
}

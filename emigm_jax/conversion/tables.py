"""Official names of eMIGM and MAR checkpoints beside ours."""

from emigm_jax.conversion.rules import Entry
from emigm_jax.models.emigm import ModelConfig

_LINEAR = (('weight', 'kernel', 'transpose'), ('bias', 'bias', 'copy'))
_NORM = (('weight', 'scale', 'copy'), ('bias', 'bias', 'copy'))

_BLOCK = (
    ('norm1', 'norm1', _NORM),
    ('attn.qkv', 'attention/qkv', _LINEAR),
    ('attn.proj', 'attention/out', _LINEAR),
    ('norm2', 'norm2', _NORM),
    ('mlp.fc1', 'mlp/expand', _LINEAR),
    ('mlp.fc2', 'mlp/contract', _LINEAR),
)
_RES_BLOCK = (
    ('in_ln', 'norm', _NORM),
    ('adaLN_modulation.1', 'modulation', _LINEAR),
    ('mlp.0', 'linear1', _LINEAR),
    ('mlp.2', 'linear2', _LINEAR),
)
_SINGLE = (
    ('z_proj', 'mae/token_embed', _LINEAR),
    ('z_proj_ln', 'mae/token_norm', _NORM),
    ('encoder_norm', 'mae/encoder_norm', _NORM),
    ('decoder_embed', 'mae/decoder_embed', _LINEAR),
    ('decoder_norm', 'mae/decoder_norm', _NORM),
    ('diffloss.net.time_embed.mlp.0', 'head/time1', _LINEAR),
    ('diffloss.net.time_embed.mlp.2', 'head/time2', _LINEAR),
    ('diffloss.net.cond_embed', 'head/condition_embed', _LINEAR),
    ('diffloss.net.input_proj', 'head/input', _LINEAR),
    ('diffloss.net.final_layer.linear', 'head/output', _LINEAR),
    ('diffloss.net.final_layer.adaLN_modulation.1', 'head/final_modulation', _LINEAR),
)
_TABLES = (
    ('class_emb.weight', 'mae/class_embed', 'copy'),
    ('encoder_pos_embed_learned', 'mae/encoder_position', 'row'),
    ('decoder_pos_embed_learned', 'mae/decoder_position', 'row'),
    ('diffusion_pos_embed_learned', 'mae/output_position', 'row'),
)
# Whether one parameter plays both roles -> (official, ours, operation). A shared one is also stored
# as `fake_latent`, which `emigm` does not read; a separate mask token has a batch axis as well.
_TOKENS = {
    True: (('mask_token', 'mae/mask_token', 'row'),),
    False: (
        ('mask_token', 'mae/mask_token', 'row_of_batch'),
        ('fake_latent', 'mae/null_token', 'row'),
    ),
}


def _layers(official, ours, rows, numbers, stacked):
    for theirs, mine, leaves in rows:
        for their_leaf, my_leaf, operation in leaves:
            names = tuple(f'{official}.{i}.{theirs}.{their_leaf}' for i in numbers)
            yield Entry(f'{ours}/{mine}/{my_leaf}', names, operation, stacked)


def emigm(config: ModelConfig) -> list[Entry]:
    """Entries of a model; with a shared null token the name `fake_latent` is not read.

    The official loader copies `mask_token` last, so both roles end up with it
    (models/emigm.py:90-92).
    """
    last = config.decoder_depth - 1
    rows = (*_TABLES, *_TOKENS[config.shared_null])
    entries = [Entry(ours, (theirs,), op) for theirs, ours, op in rows]
    for theirs, ours, leaves in _SINGLE:
        entries += [Entry(f'{ours}/{b}', (f'{theirs}.{a}',), op) for a, b, op in leaves]
    stacks = (
        ('encoder_blocks', 'mae/encoder/blocks', _BLOCK, range(config.encoder_depth), True),
        ('decoder_blocks', 'mae/decoder/blocks', _BLOCK, range(last), True),
        ('decoder_blocks', 'mae/decoder_last', _BLOCK, (last,), False),
        ('diffloss.net.res_blocks', 'head/blocks', _RES_BLOCK, range(config.head_depth), True),
    )
    for stack in stacks:
        entries += _layers(*stack)
    return entries

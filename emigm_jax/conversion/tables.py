"""Official names of eMIGM, MAR and MaskGIT checkpoints beside ours."""

from collections.abc import Callable

from emigm_jax.conversion import rules
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


_FLAX_LINEAR = (('kernel', 'kernel', 'copy'), ('bias', 'bias', 'copy'))
_FLAX_NORM = (('scale', 'scale', 'copy'), ('bias', 'bias', 'copy'))
_QKV = ('query', 'key', 'value')
# (official layers, several of which are one of ours; ours; leaves, with operations that are keys of
# OPERATIONS or of `rules.of_heads`)
_BERT_LAYER = (
    (
        tuple(f'Attention_0/self_attention/{name}' for name in _QKV),
        'attention/qkv',
        (('kernel', 'kernel', 'to_heads'), ('bias', 'bias', 'bias')),
    ),
    (
        ('Attention_0/self_attention/out',),
        'attention/out',
        (('kernel', 'kernel', 'from_heads'), ('bias', 'bias', 'copy')),
    ),
    (('Attention_0/attention_output_ln',), 'norm1', _FLAX_NORM),
    (('Mlp_0/intermediate_output',), 'mlp/expand', _FLAX_LINEAR),
    (('Mlp_0/layer_output',), 'mlp/contract', _FLAX_LINEAR),
    (('Mlp_0/layer_output_ln',), 'norm2', _FLAX_NORM),
)
_BERT_SINGLE = (
    ('Embed_0/word_embeddings/embedding', 'bert/token_embed/words'),
    ('Embed_0/position_embeddings/embedding', 'bert/position'),
    ('Embed_0/embeddings_ln/scale', 'bert/embedding_norm/scale'),
    ('Embed_0/embeddings_ln/bias', 'bert/embedding_norm/bias'),
    ('MlmLayer_0/mlm_dense/kernel', 'bert/transform/kernel'),
    ('MlmLayer_0/mlm_dense/bias', 'bert/transform/bias'),
    ('MlmLayer_0/mlm_ln/scale', 'bert/transform_norm/scale'),
    ('MlmLayer_0/mlm_ln/bias', 'bert/transform_norm/bias'),
    ('MlmLayer_0/mlm_bias/bias', 'head/bias'),
)


def maskgit(config: ModelConfig) -> list[Entry]:
    """Entries of MaskGIT's transformer; official names are joined by '/'."""
    own = rules.of_heads(config.width // config.heads)
    entries = [Entry(ours, (theirs,)) for theirs, ours in _BERT_SINGLE]
    last = config.encoder_depth + config.decoder_depth - 1
    stacks = (('bert/stack/blocks', range(last), True), ('bert/last', (last,), False))
    for stack, numbers, stacked in stacks:
        for theirs, mine, leaves in _BERT_LAYER:
            for their_leaf, my_leaf, name in leaves:
                path = f'{stack}/{mine}/{my_leaf}'
                sources = tuple(
                    f'TransformerLayer_{i}/{part}/{their_leaf}' for i in numbers for part in theirs
                )
                entries.append(Entry(path, sources, own.get(name, name), stacked, len(theirs)))
    return entries


# (trunk, head) of the models that have official names: config -> entries
ENTRIES: dict[tuple[str, str], Callable[[ModelConfig], list[Entry]]] = {
    ('mae', 'diffusion'): emigm,
    ('bert', 'categorical'): maskgit,
}

"""Official tokenizers -> our checkpoints, and back."""

import pathlib

from emigm_jax.checkpoints import store
from emigm_jax.conversion import left_out, rules, tokenizer_tables
from emigm_jax.conversion.conversion import Conversion, Export
from emigm_jax.conversion.options import Kind, Options
from emigm_jax.io.formats import local_files, torch_files
from emigm_jax.tokenizers import codec, learned
from emigm_jax.tokenizers.codec import Codec


def read(kind: Kind, places: dict[str, rules.Tensors], source: str, options: Options) -> Conversion:
    """Converts the content of an official file of a tokenizer.

    Args:
      kind: a key of `learned.KINDS`.
      places: the tensors at each entry of the file; the first one is read.
      source: for messages, and to look for the name that a Hugging Face folder calls itself.
      options: none of them applies.

    Raises:
      rules.Misfit: tensors are missing, unexpected or misshapen.
      UserError: there are options.
    """
    options.refuse('a tokenizer')
    tokenizer = learned.published(kind)
    config = tokenizer.config
    tensors = next(iter(places.values()))
    kept, unused = left_out.split(tensors, tokenizer_tables.IGNORED[kind])
    shapes = tokenizer.network.shapes()
    origin = f'{source}{_own_name(source)}'
    official = tokenizer_tables.ENTRIES[kind](config)
    forms = tokenizer_tables.OTHER_FORMS.get(kind, {})
    entries = next((form(config) for mark, form in forms.items() if mark in tensors), official)
    params = rules.to_params(entries, kept, shapes, origin, options.allow_non_finite)
    return Conversion(
        kind=kind,
        origin=origin,
        title=tokenizer.spec.title,
        details=f'numbers in {len(kept)} tensors, stride {config.stride}',
        params=params,
        facts={
            'source': {'file': pathlib.Path(source).name},
            'counters': _officially(left_out.counters(tensors, unused), entries, official),
        },
        writer=lambda target, params, facts: codec.save(target, Codec(tokenizer, params), **facts),
        left_out=unused,
    )


def _officially(counters, entries, official):
    """Counters of batch norms under official names, whatever the form of the file."""
    pairs = (
        (theirs.rpartition('.')[0], ours.rpartition('.')[0])
        for entry, same in zip(entries, official, strict=True)
        if entry.parts == 1
        for theirs, ours in zip(entry.sources, same.sources, strict=True)
    )
    norms = dict(pairs)
    split = ((name.rpartition('.'), count) for name, count in counters.items())
    return {f'{norms.get(norm, norm)}.{leaf}': count for (norm, _, leaf), count in split}


def _own_name(source):
    """', which calls itself ...' of a Hugging Face folder whose config.json has a name, or ''."""
    if not local_files.exists(f'{source}/config.json'):
        return ''
    name = torch_files.read_config(source).get('model_name')
    return f', which calls itself {str(name)[:80]!a}' if name else ''


def export(source: str, stored: store.Checkpoint | None, weights: str) -> Export:
    """Our checkpoint under official names, bit for bit; a tokenizer has one set of weights."""
    Options(weights=weights).refuse('a tokenizer')
    assert stored is not None  # whose description says what it is
    loaded = codec.of(stored)
    assert isinstance(loaded.tokenizer, learned.Learned)  # what `codec.of` makes
    entries = tokenizer_tables.ENTRIES[loaded.spec.kind](loaded.tokenizer.config)
    counted = left_out.counted(stored.description)
    return Export(source, rules.to_official(entries, loaded.params) | counted)

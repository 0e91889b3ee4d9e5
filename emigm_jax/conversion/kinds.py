"""The kinds of official weights: how each is known by its tensors, and what reads it."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from flax import traverse_util

from emigm_jax.checkpoints.store import Checkpoint
from emigm_jax.conversion import inception, models, places, rules, tokenizer_tables, tokenizers
from emigm_jax.conversion.conversion import Conversion, Export
from emigm_jax.conversion.options import Kind, Options
from emigm_jax.conversion.rules import Tensors
from emigm_jax.errors import UserError
from emigm_jax.evaluation.inception import ENTRY as INCEPTION
from emigm_jax.tokenizers import codec, learned


class Row(NamedTuple):
    """What distinguishes one kind from another."""

    title: str
    marks: tuple[str, ...]  # a tensor that no other kind has, of each form that it is stored in
    # Entries of a file that are read before any other, best first; '': the file itself.
    entries: tuple[str, ...]
    # (the tensors at each place in the file, source, options) -> what comes of it
    read: Callable[[dict[str, Tensors], str, Options], Conversion]


def _model(title):
    # Which of the two it is, the shape of the mask token tells their reader.
    return Row(title, ('diffloss.net.input_proj.weight',), ('model_ema',), models.read)


def _tokenizer(kind, mark, entries):
    marks = (mark, *tokenizer_tables.OTHER_FORMS.get(kind, ()))
    return Row(learned.KINDS[kind].title, marks, entries, functools.partial(tokenizers.read, kind))


KINDS = {
    Kind.EMIGM: _model('eMIGM'),
    Kind.MAR: _model('MAR'),
    Kind.MASKGIT: Row('MaskGIT', ('MlmLayer_0/mlm_bias/bias',), ('params',), models.read_maskgit),
    Kind.KL16: _tokenizer(Kind.KL16, 'post_quant_conv.weight', ('model', 'state_dict', '')),
    Kind.DC_AE: _tokenizer(Kind.DC_AE, 'decoder.project_in.main.conv.weight', ('state_dict', '')),
    Kind.VQGAN: _tokenizer(Kind.VQGAN, 'quantizer/codebook', ('params', '')),
    Kind.INCEPTION: Row(
        'the Inception network of FID', ('Conv2d_1a_3x3.conv.weight',), ('',), inception.read
    ),
}
# entry of a checkpoint's description, '' for models: (source, checkpoint, weights) -> export
EXPORTS: dict[str, Callable[[str, Checkpoint | None, str], Export]] = {
    INCEPTION: inception.export,
    codec.ENTRY: tokenizers.export,
    '': models.export,
}


def read(tree: dict[Any, Any], source: str, options: Options) -> Conversion:
    """Converts the content of a file of any kind.

    Args:
      tree: from `torch_files.read`.
      source: its path, for messages.
      options: what the user says about it.

    Raises:
      UserError: it is nothing that can be converted, or not what the user says.
      rules.Misfit: its tensors do not fit the model.
    """
    found = recognise(tree, source)
    kind = Kind(options.kind or next(iter(found)))
    if kind not in found:
        titles = ' or '.join(KINDS[k].title for k in found)
        raise UserError(
            f'{source}: is no {kind}, its tensors are those of {titles}; '
            f'{kind} has {" or ".join(KINDS[kind].marks)}'
        )
    conversion = KINDS[kind].read(found[kind], source, options)
    stored = {tensor.dtype.name for tensors in found[kind].values() for tensor in tensors.values()}
    narrow = ', '.join(sorted(name for name in stored if 'float' in name and name != 'float32'))
    notes = [*conversion.notes]
    if narrow:
        notes.append(f'stored as {narrow}, kept as float32')
    if options.allow_non_finite:
        notes += _taken(conversion.params)
    for place in places.unnamed(tree):
        notes.append(f'not read: {place}, a list of tensors without names (are they averages?)')
    return dataclasses.replace(conversion, notes=tuple(notes))


def _taken(params):
    """A line on parameters that are not finite, if there are any."""
    flat: dict[str, Any] = traverse_util.flatten_dict(params, sep='/')
    broken = [row for named in flat.items() for row in rules.non_finite(*named)]
    if not broken:
        return []
    shown = ', '.join(f'{name} ({detail})' for _, name, detail in broken[:3])
    more = f' and {len(broken) - 3} more' * (len(broken) > 3)
    return [f'not finite, and taken all the same: {shown}{more}']


def recognise(tree: dict[Any, Any], source: str) -> dict[Kind, dict[str, Tensors]]:
    """{kind: the tensors at each place in the file} of the kinds whose mark is there.

    Raises:
      UserError: there are none; it says what is there, and what would be.
    """
    tensors = places.flat(tree)
    found = {kind: _places(tensors, row, source) for kind, row in KINDS.items()}
    if not any(found.values()):
        *titles, last = (row.title for row in KINDS.values())
        marks = dict.fromkeys(mark for row in KINDS.values() for mark in row.marks)
        raise UserError(
            f'{source}: is neither {", ".join(titles)} nor {last}; it holds '
            f'{places.described(tree)}, and one of {", ".join(marks)} would be needed'
        )
    return {kind: place for kind, place in found.items() if place}


def _places(tensors, row, source):
    found = {}
    for mark in row.marks:
        found |= places.find(tensors, mark, source)
    return places.best_first(found, row.entries)

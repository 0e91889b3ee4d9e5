"""The kinds of official weights: how each is known by its tensors, and what reads it."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from flax import traverse_util

from emigm_jax.checkpoints.store import Checkpoint
from emigm_jax.conversion import inception, models, tokenizers
from emigm_jax.conversion.conversion import Conversion, Export
from emigm_jax.conversion.options import Kind, Options
from emigm_jax.conversion.rules import Tensors
from emigm_jax.errors import UserError
from emigm_jax.evaluation.inception import ENTRY as INCEPTION
from emigm_jax.tokenizers import codec, learned


class Row(NamedTuple):
    """What distinguishes one kind from another."""

    title: str
    mark: str  # a tensor that no other kind has
    entries: tuple[str, ...]  # of a file that may hold the tensors, best first; '': the file itself
    # (the tensors at each entry, source, options) -> what comes of it
    read: Callable[[dict[str, Tensors], str, Options], Conversion]


def _model(title):
    # Which of the two it is, the shape of the mask token tells their reader.
    mark = 'diffloss.net.input_proj.weight'
    return Row(title, mark, ('model_ema', 'model', ''), models.read)


def _tokenizer(kind, mark, entries):
    return Row(learned.KINDS[kind].title, mark, entries, functools.partial(tokenizers.read, kind))


KINDS = {
    Kind.EMIGM: _model('eMIGM'),
    Kind.MAR: _model('MAR'),
    Kind.KL16: _tokenizer(Kind.KL16, 'post_quant_conv.weight', ('model', 'state_dict', '')),
    Kind.DC_AE: _tokenizer(Kind.DC_AE, 'decoder.project_in.main.conv.weight', ('state_dict', '')),
    Kind.VQGAN: _tokenizer(Kind.VQGAN, 'quantizer/codebook', ('params', '')),
    Kind.INCEPTION: Row(
        'the Inception network of FID', 'Conv2d_1a_3x3.conv.weight', ('',), inception.read
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
    places = recognise(tree, source)
    kind = Kind(options.kind or next(iter(places)))
    if kind not in places:
        titles = ' or '.join(KINDS[k].title for k in places)
        raise UserError(f'{source}: is no {kind}, its tensors are those of {titles}')
    return KINDS[kind].read(places[kind], source, options)


def recognise(tree: dict[Any, Any], source: str) -> dict[Kind, dict[str, Tensors]]:
    """{kind: the tensors at each entry of the file} of the kinds whose mark is there.

    Raises:
      UserError: there are none.
    """
    places = {kind: _places(tree, row) for kind, row in KINDS.items()}
    if not any(places.values()):
        *titles, last = (row.title for row in KINDS.values())
        some = ', '.join(map(repr, list(_tensors(tree, ''))[:4]))
        raise UserError(f'{source}: is neither {", ".join(titles)} nor {last}; it holds {some}')
    return {kind: place for kind, place in places.items() if place}


def _places(tree, row):
    tensors = {entry: _tensors(tree, entry) for entry in row.entries}
    return {entry: named for entry, named in tensors.items() if row.mark in named}


def _tensors(tree, entry):
    """{joined name: tensor} of an entry of a file, {} if there is no such entry."""
    part = tree.get(entry) if entry else tree
    flat = traverse_util.flatten_dict(part) if isinstance(part, dict) else {}
    # Joined here, as not all the names in a file need be strings.
    return {'/'.join(map(str, path)): tensor for path, tensor in flat.items()}

"""Official files of eMIGM, MAR and MaskGIT -> our checkpoints, and our checkpoints -> those."""

import base64
import dataclasses
import pathlib
from typing import Any

import numpy as np

from emigm_jax.checkpoints import runs, store
from emigm_jax.config import recipes
from emigm_jax.conversion import rules, sizes, tables
from emigm_jax.conversion.conversion import Conversion, Export
from emigm_jax.conversion.options import NULLS, Kind, Options
from emigm_jax.errors import UserError
from emigm_jax.models import emigm

_MIDDLING = (256, 'b')  # whose settings go with sizes that were never published


def read(places: dict[str, rules.Tensors], source: str, options: Options) -> Conversion:
    """Converts the content of an official file of eMIGM or MAR.

    Args:
      places: the tensors at each entry of the file, '' for the file itself, best first.
      source: its path, for messages.
      options: all but `classes` apply. `kind` overrides what the shape of the mask token tells.
        `null` is the tensor that becomes eMIGM's shared mask and null token, '' for `mask_token`:
        the official loader ends up with it, which the EMA never averaged; `fake_latent` is the
        averaged one (models/emigm.py:90-92, engine_emigm.py:19-29).

    Raises:
      UserError: the file does not hold the weights asked for.
      rules.Misfit: it does not fit a model of its own sizes.
    """
    options.refuse('eMIGM and MAR', ('classes',))
    entry = _entry(places, source, options)
    tensors, tied = _untied(places[entry], options, source)
    notes, unread = [], {}
    model = sizes.model_config(tensors, source, options.heads)
    if model.shared_null:
        tensors, notes, unread = _one_token(tensors, options.null or NULLS[0], source)
        notes = [*tied, *notes]
    elif options.null:
        raise UserError(f'{source}: has a separate null token, so --null does not apply')
    shapes, anyway = emigm.network(model).shapes(), options.allow_non_finite
    params = rules.to_params(tables.emigm(model), tensors, shapes, source, anyway)
    kind = Kind(options.kind or model.method)
    return _conversion(kind, source, entry, model, params, notes, unread)


def read_maskgit(places: dict[str, rules.Tensors], source: str, options: Options) -> Conversion:
    """Converts the content of an official file of MaskGIT's transformer.

    Args:
      places: as in `read`.
      source: its path, for messages.
      options: `heads` and `null` do not apply; `classes` are needed for sizes of one's own.

    Raises:
      UserError: the file does not hold the weights asked for.
      rules.Misfit: it does not fit a model of its own sizes.
    """
    options.refuse('MaskGIT', ('heads', 'null'))
    entry = _entry(places, source, options)
    tensors = places[entry]
    model = sizes.maskgit(tensors, source, options.classes)
    shapes, anyway = emigm.network(model).shapes(), options.allow_non_finite
    params = rules.to_params(tables.maskgit(model), tensors, shapes, source, anyway)
    return _conversion(Kind.MASKGIT, source, entry, model, params)


def _entry(places, source, options):
    """The place whose tensors are wanted: the best one, or that which was asked for."""
    entry = options.weights or next(iter(places))
    if entry not in places:
        entries = ', '.join(filter(None, places)) or 'one nameless set'
        raise UserError(f'{source}: has no weights {entry!r}, but {entries}')
    return entry


def _conversion(kind, source, entry, model, params, notes=(), unread=None):
    """The `Conversion` of parameters, with what is published for their model."""
    title, config, presets, unpublished = _settings(kind, model)
    return Conversion(
        kind=kind,
        origin=source,
        title=title,
        details=f'parameters, weights {entry or "of the file"}',
        params=params,
        facts={
            'file': pathlib.Path(source).name,
            'weights': entry,
            'method': str(kind),
            'notes': list(notes),
            'unread': unread or {},  # for `official`
        },
        writer=lambda target, params, facts: runs.export(target, config, params, presets, facts),
        notes=(*notes, *unpublished),
    )


def _settings(kind, model):
    """(title, `Config`, sampling presets, what to say about them) of a `ModelConfig`."""
    published = emigm.preset_name(model)
    own = published if published in recipes.sizes(kind) else None
    image_size, size = own or _MIDDLING
    config = dataclasses.replace(recipes.published(kind, image_size, size), model=model)
    presets = recipes.sampling(kind, image_size, size)
    if own:
        return f'{kind} {size} at {image_size} pixels', config, presets, ()
    note = (
        f'no published sampling settings for these sizes: those of {size} at {image_size} '
        'pixels are put in'
    )
    return f'{kind}, own sizes', config, presets, (note,)


def _untied(tensors, options, source):
    """State dict with both names of eMIGM's token, and what to say about it.

    The two are one parameter while a model is trained, and who stores a parameter once drops a
    name: safetensors the later one in the alphabet. MAR's tokens are two.
    """
    there = [name for name in NULLS if name in tensors]
    if len(there) != 1 or options.kind == Kind.MAR or len(np.shape(tensors[there[0]])) != 2:
        return tensors, []
    if options.null not in ('', *there):
        raise UserError(f'{source}: has no {options.null}, only {there[0]}')
    missing = next(name for name in NULLS if name not in tensors)
    note = f'mask and null token: {there[0]}, as {missing}, which is tied to it, was left out'
    return {**tensors, missing: tensors[there[0]]}, [note]


def _one_token(tensors, null, origin):
    """State dict with one token in both roles, what to say about it, and the other token.

    The other one is kept where the official loader would overwrite it anyhow. Beside the averaged
    token it is not: that loader would put it in the place of the one that was asked for.
    """
    missing = [name for name in NULLS if name not in tensors]
    if missing:
        raise rules.Misfit(origin, [('missing', name, '') for name in missing])
    if tensors['fake_latent'].shape != tensors['mask_token'].shape:
        form = f'is {tensors["fake_latent"].shape}, mask_token {tensors["mask_token"].shape}'
        raise rules.Misfit(origin, [('misshapen', 'fake_latent', form)])
    tensors = dict(tensors)
    averaged = np.asarray(tensors.pop('fake_latent'), np.float32)
    loaded = np.asarray(tensors['mask_token'], np.float32)
    with np.errstate(over='ignore', invalid='ignore'):  # broken weights are told later
        apart = np.linalg.norm(averaged - loaded) / max(np.linalg.norm(loaded), 1e-30)
    if null == 'fake_latent':
        tensors['mask_token'] = averaged
    if not apart:
        return tensors, [], {}
    other = next(name for name in NULLS if name != null)
    why = {
        'mask_token': 'as the official loader ends up with it',
        'fake_latent': 'the averaged one',
    }
    differs = f'differs by {apart:.2%} of its norm' if np.isfinite(apart) else 'is another'
    note = f'mask and null token: {null} ({why[null]}); {other} {differs}, --null {other} takes it'
    return tensors, [note], {other: _text(averaged)} if other == 'fake_latent' else {}


def export(source: str, stored: store.Checkpoint | None, weights: str) -> Export:
    """A model, or the newest of a run, under official names.

    Args:
      source: checkpoint or workdir.
      stored: the checkpoint; None: `source` is a workdir.
      weights: an EMA decay or 'params'; '' for the first decay.

    Raises:
      UserError: there is no model there, or it has no such weights or official names.
    """
    saved = runs.require(source) if stored is None else runs.saved(stored)
    model = saved.config.model
    if (model.trunk, model.head) not in tables.ENTRIES:
        raise UserError(
            f'{source}: model.trunk = {model.trunk!r} with model.head = {model.head!r} is none of '
            'the published models, whose names its tensors could have'
        )
    params, name = saved.load_params(weights)
    unread = saved.source.get('unread', {})
    notes = ()
    one = model.method == 'emigm'  # token, under two names
    if one and unread:
        notes = ('fake_latent: as in the file that was converted',)
    elif one:
        notes = ('mask_token, fake_latent: the one token of this checkpoint',)
    return Export(source, official(model, params, unread), name, notes)


def official(
    model: emigm.ModelConfig, params: dict[str, Any], unread: dict[str, str] | None = None
) -> dict[str, np.ndarray]:
    """State dict of our parameters under official names, in float32, bit for bit.

    Args:
      unread: from the facts of the `Conversion` that the parameters were, so that a file comes
        back as it was; without it, a shared token has the same value under both of its names.
    """
    tensors = rules.to_official(tables.ENTRIES[model.trunk, model.head](model), params)
    if model.method == 'emigm':
        form = tensors['mask_token'].shape
        kept = {name: _row(name, text, form) for name, text in (unread or {}).items()}
        tensors |= {'fake_latent': tensors['mask_token']} | kept
    return tensors


def _text(row):
    """A float32 row (1, D) as text for a checkpoint's description, exactly."""
    return base64.b64encode(row.astype('<f4').tobytes()).decode('ascii')


def _row(name, text, form):
    """What `_text` made such a text of; UserError if it is none of the tensor's form."""
    try:
        row = np.frombuffer(base64.b64decode(text), '<f4')[None].astype(np.float32)
    except ValueError as error:
        raise UserError(f'the saved {name} is damaged ({error})') from error
    if row.shape != form:
        raise UserError(f'the saved {name} has the shape {row.shape}, not {form}')
    return row

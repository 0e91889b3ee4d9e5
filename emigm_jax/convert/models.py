"""Official eMIGM and MAR files -> our checkpoints, and our checkpoints -> official names."""

import base64
import dataclasses
from typing import NamedTuple

import numpy as np

from emigm_jax.convert import recognise, rules, tables
from emigm_jax.errors import UserError
from emigm_jax.models import emigm

NULLS = ('mask_token', 'fake_latent')


class Converted(NamedTuple):
    """A model as it goes into a checkpoint."""

    method: str  # emigm or mar
    size: tuple | None  # key of emigm.PRESETS, None if the sizes were never published
    model: emigm.ModelConfig
    params: dict
    entry: str  # of the file, '' for the file itself
    notes: list  # what the user should know
    unread: dict  # {official name: text} of tensors that only the way back needs, see `official`


def read(tree, origin, method='', weights='', null='', heads=0):
    """Converts the content of an official model file.

    Args:
      tree: from `torch_files.read`.
      origin: file name for messages.
      method: 'emigm' or 'mar'; '' judges by the shape of the mask token.
      weights: 'model_ema', 'model', or '' for the best there is.
      null: the tensor that becomes eMIGM's shared mask and null token, '' for `mask_token`: the
        official loader ends up with it, which the EMA never averaged; `fake_latent` is the
        averaged one (models/emigm.py:90-92, engine_emigm.py:19-29).
      heads: attention heads; 0: those of the published model of this width.

    Raises:
      UserError: the file does not hold the weights asked for.
      rules.Misfit: it does not fit a model of its own sizes.
    """
    tensors, entry = recognise.state_dict(tree, weights, origin)
    model = recognise.model_config(tensors, origin, heads)
    notes, unread = [], {}
    if model.shared_null:
        tensors, notes, unread = _one_token(tensors, null or NULLS[0], origin)
    elif null:
        raise UserError(f'{origin}: has a separate null token, so --null does not apply')
    params = rules.to_params(tables.emigm(model), tensors, emigm.network(model).shapes(), origin)
    method = method or ('emigm' if model.shared_null else 'mar')
    return Converted(method, emigm.preset_name(model), model, params, entry, notes, unread)


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
    note = (
        f'mask and null token: {null} ({why[null]}); {other} differs by {apart:.2%} of its '
        f'norm, --null {other} takes it'
    )
    return tensors, [note], {other: _text(averaged)} if other == 'fake_latent' else {}


def official(model, params, unread=None):
    """State dict of our parameters under official names: {name: float32 array}, bit for bit.

    Args:
      unread: of the `Converted` that the parameters were, so that a file comes back as it was;
        without it, a shared token has the same value under both of its names.
    """
    tensors = rules.to_official(tables.emigm(model), params)
    if model.shared_null:
        kept = {name: _row(text) for name, text in (unread or {}).items()}
        tensors |= {'fake_latent': tensors['mask_token']} | kept
    return tensors


def _text(row):
    """A float32 row (1, D) as text for a checkpoint's description, exactly."""
    return base64.b64encode(row.astype('<f4').tobytes()).decode('ascii')


def _row(text):
    return np.frombuffer(base64.b64decode(text), '<f4')[None].astype(np.float32)


def float32(model):
    """The model with float32 matrix products, which run anywhere; `--dtype` changes it."""
    return dataclasses.replace(model, dtype='float32')

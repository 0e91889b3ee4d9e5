"""What checkpoints lie where, and what one holds, read without its arrays."""

import dataclasses
import datetime
import math
import os
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath

from emigm_jax.checkpoints import copy, runs, store
from emigm_jax.config import nested, recipes
from emigm_jax.config.settings import SamplingConfig
from emigm_jax.errors import Damaged, UserError
from emigm_jax.io import access, files, paths
from emigm_jax.models.config import OF_DATA
from emigm_jax.models.emigm import preset_name

# Names of what is being written: by Orbax, by `copying`.
_UNFINISHED = (store.UNFINISHED, '.copying')


@dataclasses.dataclass(frozen=True)
class Entry:
    """A checkpoint in a folder of them."""

    name: str  # of its folder
    path: str
    step: int | None  # None if it is no step of a run
    size: int  # bytes of all files
    files: int
    changed: str  # when its newest file was written, ISO 8601, UTC
    finished: bool  # False: still being written, its writer was killed, or damaged
    damaged: bool  # written whole once; what it says about itself is cut off now


def entries(path: os.PathLike | str) -> list[Entry]:
    """The checkpoints of a workdir, or of a folder of checkpoints.

    Raises:
      UserError: there are none, or no such folder.
    """
    path = paths.absolute(path)
    access.probe(path, write=False)
    if store.is_checkpoint(path):
        return [_entry(path)]
    with files.reported(path):
        if not path.is_dir():
            raise UserError(f'{path}: no such checkpoint or workdir')
        folder = path / runs.FOLDER if (path / runs.FOLDER).is_dir() else path
        folders = [p for p in folder.iterdir() if _is_candidate(p)]
    checkpoints = sorted(map(_entry, folders), key=lambda e: (e.step is None, e.step or 0, e.name))
    if not checkpoints:
        raise UserError(
            f'{path}: holds no checkpoints (looked for {runs.FOLDER}/STEP, and '
            'for checkpoints beside each other)'
        )
    return checkpoints


def _is_candidate(path):
    named = path.name.isdecimal() or any(mark in path.name for mark in _UNFINISHED)
    return path.is_dir() and (named or store.is_checkpoint(path))


def _entry(path):
    listed = copy.listing(path)
    changed = max((file.changed for file in listed.values()), default=0.0)
    whole = store.is_checkpoint(path) and not any(mark in path.name for mark in _UNFINISHED)
    damaged = whole and _damaged(path)
    return Entry(
        name=path.name,
        path=str(path),
        step=int(path.name) if path.name.isdecimal() else None,
        size=sum(file.size for file in listed.values()),
        files=len(listed),
        changed=_date(changed),
        finished=whole and not damaged,
        damaged=damaged,
    )


def _damaged(path):
    try:
        store.description(path)
    except Damaged:
        return True
    return False


def _date(seconds):
    when = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return when.isoformat(timespec='seconds').replace('+00:00', 'Z')


def located(path: os.PathLike | str, step: int | None = None) -> epath.Path:
    """The checkpoint at `path`: itself, or of a workdir the newest or that of `step`.

    Raises:
      UserError: there is none.
    """
    path = paths.absolute(path)
    access.probe(path, write=False)
    if step is None:
        # Tokenizers and the network of FID are checkpoints, too, but no models.
        return path if store.is_checkpoint(path) else runs.require(path).path
    if store.is_checkpoint(path):
        raise UserError(f'{path}: is one checkpoint; --step goes with a workdir')
    steps = {e.step: e for e in entries(path) if e.finished and e.step is not None}
    if step not in steps:
        raise UserError(f'{path}: has no finished step {step}, but {", ".join(map(str, steps))}')
    return paths.absolute(steps[step].path)


def facts(path: os.PathLike | str) -> dict[str, Any]:
    """What a checkpoint says about itself, JSON-like.

    Keys: path, kind (run, model, or what else it is), step, size, files, changed, arrays ({part:
    {numbers, bytes, dtypes}}), parameters, ema_decays, recipe (published model whose sizes it has,
    or None), config (None if it is no model), class_names, presets, source, data, versions.
    """
    entry = _entry(paths.absolute(path))
    stored = store.checkpoint(path)
    description, tree = stored.description, stored.tree
    with store.readable(path):
        arrays = _arrays(tree)
    weights = [part for part in arrays if part == 'params' or part.startswith('ema/')]
    saved = runs.saved(stored) if 'config' in description else None
    other = [name for name in ('tokenizer', 'inception') if name in description]
    return {
        'path': entry.path,
        'kind': ('run' if 'opt' in tree else 'model') if saved else (other or ['unknown'])[0],
        'step': saved.step if saved else None,
        'size': entry.size,
        'files': entry.files,
        'changed': entry.changed,
        'arrays': arrays,
        'parameters': arrays[weights[0]]['numbers'] if weights else None,
        'ema_decays': [part.removeprefix('ema/') for part in weights if part != 'params'],
        'recipe': _recipe(saved.config.model) if saved else None,
        'config': nested.as_dict(saved.config) if saved else None,
        'class_names': list(saved.class_names) if saved else [],
        'presets': sorted(description.get('presets', {})),
        'source': description.get('source', {}),
        'data': description.get('data', ''),
        'versions': description.get('versions', {}),
    }


def _arrays(tree):
    """{part: {numbers, bytes, dtypes}}; the parts are the first keys, of 'ema' the second, too."""
    parts = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        keys = [str(getattr(key, 'key', getattr(key, 'idx', key))) for key in path]
        name = '/'.join(keys[: 1 + (keys[0] == 'ema')])
        part = parts.setdefault(name, {'numbers': 0, 'bytes': 0, 'dtypes': []})
        numbers = math.prod(leaf.shape)
        part['numbers'] += numbers
        part['bytes'] += numbers * leaf.dtype.itemsize
        part['dtypes'] = sorted({*part['dtypes'], str(leaf.dtype)})
    return parts


def _recipe(model):
    """[method, image size, size] of the published model with the sizes of `model`, or None."""
    key = preset_name(model)
    return [model.method, *key] if key in recipes.sizes(model.method) else None


def compared(config: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Settings of two nested dicts that differ: (in config, in other) by name.

    A size that `other` leaves to the data is no difference.
    """
    config, other = nested.flatten(config), nested.flatten(other)
    sizes = {f'model.{name}' for names in OF_DATA.values() for name in names}
    left_out = {name for name in sizes if not other.get(name)}
    config, other = ({n: c[n] for n in c if n not in left_out} for c in (config, other))
    plain = lambda v: list(v) if isinstance(v, tuple) else v
    names = [name for name in {**config, **other} if config.get(name) != other.get(name)]
    return {n: (plain(config.get(n)), plain(other.get(n))) for n in names}


def export(
    path: os.PathLike | str,
    target: os.PathLike | str,
    weights: str = '',
    presets: Mapping[str, SamplingConfig] | None = None,
) -> str:
    """Writes one set of EMA weights of a model as a checkpoint of its own, and returns its name.

    Args:
      path: the checkpoint of a run or a model.
      target: folder that does not exist yet.
      weights: an EMA decay, or '' for the first.
      presets: sampling settings to go with those that the model has; None: there are none.

    Raises:
      UserError: there are no such weights, or the target cannot be written.
    """
    if weights == 'params':
        raise UserError('only EMA weights are exported; --weights names a decay')
    saved = runs.require(path)
    store.check_free(target)
    params, name = saved.load_params(weights)
    # The decay that names the weights comes first, so that it is what is loaded.
    optimizer = dataclasses.replace(saved.config.optimizer, ema_decays=(float(name),))
    source = {'step': saved.step, 'weights': name, 'data': saved.data, 'of': saved.source}
    runs.export(
        target,
        dataclasses.replace(saved.config, optimizer=optimizer),
        params,
        {**saved.all_presets, **presets} if presets else saved.presets,
        {key: value for key, value in source.items() if value},
        saved.class_names,
    )
    return name

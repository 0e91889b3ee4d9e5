"""A run that begins with the weights of another model (`training.init`)."""

import dataclasses
import functools
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from emigm_jax.checkpoints import runs
from emigm_jax.config.class_copies import parse_copies
from emigm_jax.config.settings import Config
from emigm_jax.core import randomness
from emigm_jax.data import class_names
from emigm_jax.errors import UserError
from emigm_jax.models.config import NO_WEIGHTS, ModelConfig
from emigm_jax.nn import layers
from emigm_jax.nn.functional import Params
from emigm_jax.parallel import sharding
from emigm_jax.training.program import Program
from emigm_jax.training.start import Say

_name = functools.partial(jax.tree_util.keystr, simple=True, separator='/')
_CLASSES = 0x636C6173  # 'clas': keeps the noise of new classes apart from other draws of the seed


@dataclasses.dataclass(frozen=True)
class Origin:
    """The checkpoint that a run begins with, and which of its classes go where."""

    saved: runs.Saved
    # Per class of the run, which old one it is; -1: new. None: all classes are taken as they are.
    rows: tuple[int, ...] | None


def origin(config: Config, saved: runs.Saved, names: Sequence[str] = ()) -> Origin:
    """What a run takes of `saved`, whose arrays are not read.

    Args:
      config: of the run.
      saved: the checkpoint.
      names: of the classes of the run's data, in label order; (): nobody knows them.

    Raises:
      UserError: its weights mean nothing in the model of this config, or there are no such classes.
    """
    theirs, ours = saved.config.model, config.model
    check_fits(saved, ours)
    text = config.training.init_classes
    if not text and theirs.classes == ours.classes:
        return Origin(saved, None)
    rows = [-1] * ours.classes
    copied = set()
    for new, old in parse_copies('training.init_classes', text).items():
        label = _label(new, 'here', ours.classes, names)
        if label in copied:
            raise UserError(f'training.init_classes: class {label} is there twice')
        copied.add(label)
        rows[label] = _label(old, 'in training.init', theirs.classes, saved.class_names)
    return Origin(saved, tuple(rows))


def _label(name, where, classes, names):
    """The label of a class by its number or name."""
    if not name.isdecimal():
        try:
            return class_names.label(name, classes, names)
        except UserError as error:
            raise UserError(f'training.init_classes, {where}: {error}') from error
    if int(name) >= classes:
        raise UserError(
            f'training.init_classes: there is no class {name} {where}, only 0 to {classes - 1}'
        )
    return int(name)


def check_fits(saved: runs.Saved, ours: ModelConfig) -> None:
    """Raises UserError, which lists all reasons, unless its weights mean something in `ours`."""
    theirs = saved.config.model
    names = [f.name for f in dataclasses.fields(ours) if f.name not in (*NO_WEIGHTS, 'classes')]
    differ = {n: getattr(theirs, n) for n in names if getattr(theirs, n) != getattr(ours, n)}
    reasons = []
    if there := differ.pop('grid', 0):
        reasons.append(
            f'its tokens lie on a grid of {there} x {there}, those here on one of {ours.grid} x '
            f'{ours.grid}, and position embeddings are learned place by place: they mean nothing '
            'on another grid'
        )
    if {differ.pop(name, None) for name in ('channels', 'codes')} != {None}:
        reasons.append(f'its tokens are of {_token(theirs)}, those here of {_token(ours)}')
    if differ:
        flags = ' '.join(f'--config.model.{name}={value}' for name, value in differ.items())
        reasons.append(f'its network is another: say {flags}')
    if reasons:
        raise UserError(f'training.init = {saved.path}: {"; ".join(reasons)}')


def _token(model):
    return f'{model.codes} codes' if model.codes else f'{model.channels} numbers'


def begun(config: Config, built: Program, start: Origin, say: Say) -> dict[str, Any]:
    """The state before the first step of a run that begins at `start`; says what is in it.

    Raises:
      UserError: the checkpoint cannot be read, or has no such weights.
    """
    place = functools.partial(sharding.abstract, built.mesh)
    theirs, name = start.saved.load_params(config.training.init_weights, place)
    ours = built.state['params']
    check_finite(theirs, name, start.saved)
    say(f'started from weights {name} of {start.saved.path}, {runs.described(start.saved.stored)}')
    if remark := start.saved.remark(name):
        say(f'{remark}; to start from those: --config.training.init_weights=params')
    for line in table(config, theirs, ours, start.rows):
        say(line)
    if start.rows is not None:
        theirs = _with_classes(config, built, start.rows, theirs)
    return built.begin(theirs)


def check_finite(params: Params, name: str, saved: runs.Saved) -> None:
    """Raises UserError, which names them, if parameters of a checkpoint are not finite."""
    finite = jax.jit(lambda tree: jax.tree.map(lambda leaf: jnp.isfinite(leaf).all(), tree))
    flags = jax.tree_util.tree_leaves_with_path(finite(params))
    broken = [_name(path) for path, good in flags if not good]
    if broken:
        more = f' and {len(broken) - 3} more' * (len(broken) > 3)
        raise UserError(
            f'training.init = {saved.path}: of its weights {name}, {", ".join(broken[:3])}{more} '
            'hold numbers that are not finite; start from others (training.init_weights), or from '
            'another checkpoint'
        )


def _class_rows(model, path, rows):
    """Which of the rows of a parameter are of classes; None: none are."""
    if path[-1].key == 'class_embed':
        return range(rows)
    # MaskGIT's words are codes, classes and the mask, each with a bias of its logit.
    of_words = path[-1].key == 'words' or _name(path) == 'head/bias'
    return range(model.codes, rows - 1) if model.trunk == 'bert' and of_words else None


def _with_classes(config, built, rows, params):
    """`params` with a new class table, placed as the state of the run wants it."""
    key = jax.random.fold_in(randomness.key(config.seed), _CLASSES)
    placed = jax.tree.map(lambda leaf: leaf.sharding, built.state['params'])

    def renewed(path, leaf):
        if (at := _class_rows(config.model, path, len(leaf))) is None:
            return leaf
        new = class_table(leaf[at.start : at.stop], rows, key)
        return jnp.concatenate([leaf[: at.start], new, leaf[at.stop :]])

    make = functools.partial(jax.tree_util.tree_map_with_path, renewed)
    return sharding.with_mesh(built.mesh, jax.jit(make, out_shardings=placed))(params)


def class_table(old: jax.Array, rows: tuple[int, ...], key: jax.Array) -> jax.Array:
    """Class embeddings (classes, D), or biases (classes,), made of those of another model.

    Args:
      old: its table, of its own classes.
      rows: per new class the old one that it copies, or -1 for the mean of all of them plus what a
        class embedding is at the start of training, N(0, 0.02).
      key: of that noise.
    """
    chosen = np.array(rows)
    fresh = old.mean(axis=0) + layers.normal(key, (len(rows), *old.shape[1:]), old.dtype)
    copied = (chosen >= 0).reshape(-1, *[1] * (old.ndim - 1))
    return jnp.where(copied, old[np.maximum(chosen, 0)], fresh)


def table(config: Config, theirs: Params, ours: Params, rows: tuple[int, ...] | None) -> list[str]:
    """Lines that say, part by part, what is taken and what is new."""
    counts, how = Counter[str](), {}
    flat = zip(jax.tree_util.tree_leaves_with_path(theirs), jax.tree.leaves(ours), strict=True)
    for (path, old), new in flat:
        own, at = 0, _class_rows(config.model, path, len(old))
        if rows is not None and at is not None:
            own = len(rows) * math.prod(new.shape[1:])
            counts[_name(path)] += own
            how[_name(path)] = _classes(rows, len(at), config.training.init_classes)
        if new.size > own:
            counts[f'{path[0].key}/'] += new.size - own
            how[f'{path[0].key}/'] = 'taken'
    shown = [(part, f'{count:,}', how[part]) for part, count in counts.items()]
    shown = [('part', 'parameters', ''), *shown, ('optimizer, averages, step', '', 'new')]
    left, right = (max(len(row[i]) for row in shown) for i in (0, 1))
    return [f'  {a:{left}}  {b:>{right}}  {c}'.rstrip() for a, b, c in shown]


def _classes(rows, there, copies):
    new = sum(row < 0 for row in rows)
    parts = [f'copies {copies}'] * (new < len(rows))
    each = f'{new} classes, each' if new > 1 else '1 class,'
    parts += [f'new: {each} the mean of the {there} there plus noise'] * (new > 0)
    return '; '.join(parts)

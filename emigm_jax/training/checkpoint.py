"""Orbax checkpoints that describe themselves: the train state and the resolved config.

Layout: WORKDIR/checkpoints/STEP/. Orbax writes to a temporary name and renames at the end, so a
killed process leaves the earlier checkpoints whole.
"""

import dataclasses
import logging
import pathlib
import sys

import jax
import orbax.checkpoint.experimental.v1 as ocp
from orbax.checkpoint.experimental.v1 import training as ocp_training

from emigm_jax import config as configs
from emigm_jax.errors import UserError

FOLDER = 'checkpoints'


class Writer:
    """Saves train states of one run and keeps the newest `keep`."""

    def __init__(self, workdir, config):
        self._config = configs.as_dict(config)
        policy = ocp_training.preservation_policies.LatestN(config.training.keep)
        self._checkpointer = ocp_training.Checkpointer(
            pathlib.Path(workdir).resolve() / FOLDER,
            preservation_policy=policy,
            cleanup_tmp_directories=True,  # what a killed process left behind
        )

    def save(self, state):
        """Writes the state under its own step; a step that is there already is left alone."""
        step = int(state['step'])
        if step not in {c.step for c in self._checkpointer.checkpoints}:
            self._checkpointer.save(
                step, state, custom_metadata={'config': self._config}, force=True
            )

    def close(self):
        """Waits for what is being written."""
        self._checkpointer.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


@dataclasses.dataclass(frozen=True)
class Saved:
    """A checkpoint on disk: its step folder, step number and resolved config."""

    path: pathlib.Path
    step: int
    config: configs.Config


def find(path):
    """The `Saved` at a step folder, or the newest in a workdir; None if the workdir has none."""
    path = pathlib.Path(path).resolve()
    if path.name.isdigit() and (path / '_CHECKPOINT_METADATA').exists():
        return _open(path)
    folder = path / FOLDER if (path / FOLDER).is_dir() else path
    if not folder.is_dir():
        return None
    # A step that is still being written has a temporary name, which is no number.
    steps = sorted((int(p.name) for p in folder.iterdir() if p.name.isdigit()), reverse=True)
    return _open(folder / str(steps[0])) if steps else None


def require(path):
    """As `find`, but a missing checkpoint is the user's error."""
    if not pathlib.Path(path).exists():
        raise UserError(f'{path}: no such checkpoint or workdir')
    saved = find(path)
    if saved is None:
        raise UserError(f'{path}: holds no checkpoint (looked for {FOLDER}/STEP)')
    return saved


def _open(path):
    with _readable(path):
        config = ocp.metadata(path).custom_metadata['config']
    return Saved(path, int(path.name), configs.resolve(config))


def restore(saved, abstract):
    """Loads the whole train state; `abstract` has the shapes (and shardings) to restore into."""
    with _readable(saved.path):
        return ocp.load(saved.path, abstract)


def load_params(saved, weights=''):
    """Loads one set of parameters: weights '' (the first EMA decay), a decay, or 'params'.

    Returns:
      (parameters as a nested dict of arrays, the name of what was loaded).
    """
    with _readable(saved.path):
        tree = ocp.metadata(saved.path).metadata
        decays = sorted(tree['ema'], key=list(map(str, saved.config.optimizer.ema_decays)).index)
        names = [*decays, 'params']
        name = weights or names[0]
        if name not in names:
            raise UserError(f'{saved.path} has no weights {weights!r}, but {", ".join(names)}')
        skip = jax.tree.map(lambda _: ocp.PLACEHOLDER, tree)
        sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        wanted = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            tree['params'] if name == 'params' else tree['ema'][name],
        )
        if name == 'params':
            return ocp.load(saved.path, {**skip, 'params': wanted})['params'], name
        abstract = {**skip, 'ema': {**skip['ema'], name: wanted}}
        return ocp.load(saved.path, abstract)['ema'][name], name


class _readable:
    """Turns the many exceptions of a damaged checkpoint into one line.

    TensorStore has hundreds of reads under way when the first one fails; they end after the load
    has closed its event loop, and Python would print a traceback for each beside our line.
    """

    def __init__(self, path):
        self._path = path

    def __enter__(self):
        logging.getLogger('absl').setLevel(logging.ERROR)
        self._report = sys.unraisablehook
        sys.unraisablehook = self._filtered

    def _filtered(self, unraisable):
        if str(unraisable.exc_value) != 'Event loop is closed':
            self._report(unraisable)

    def __exit__(self, kind, error, _):
        if error is None or isinstance(error, UserError) or not isinstance(error, Exception):
            sys.unraisablehook = self._report
            return
        logging.getLogger('asyncio').setLevel(logging.CRITICAL)
        reason = ' '.join(str(error).split())[:160]
        raise UserError(
            f'{self._path}: the checkpoint is damaged or of another kind ({kind.__name__}: '
            f'{reason}); delete this folder to go on from an earlier one'
        ) from error

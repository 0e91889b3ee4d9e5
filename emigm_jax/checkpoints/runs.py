"""Checkpoints that describe themselves: arrays beside the resolved config and sampling presets.

A run keeps WORKDIR/checkpoints/STEP/ with the whole train state; a converted model is one such
folder anywhere, with EMA weights only.
"""

import contextlib
import dataclasses
import functools
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import jax
from etils import epath
from orbax.checkpoint.experimental.v1 import training as ocp_training

from emigm_jax.checkpoints import kept, store
from emigm_jax.config import averages, liftings, nested, recipes, settings
from emigm_jax.config.settings import SamplingConfig
from emigm_jax.errors import UserError
from emigm_jax.io import files, listings, paths
from emigm_jax.models import emigm
from emigm_jax.nn import functional

FOLDER = 'checkpoints'
CLASS_NAMES = 'class_names'  # of a description, in label order


class Writer:
    """Saves train states of one run in the background, and keeps some of them.

    Kept are the newest `training.keep`, one every `training.keep_every`, and the one with the best
    FID (in pixels: Frechet distance), if that is measured. All processes of a run must call `save`
    and `close`.
    """

    def __init__(
        self,
        workdir: os.PathLike | str,
        config: settings.Config,
        keep_every: int = 0,
        data: str = '',
        class_names: Sequence[str] = (),
    ):
        self._description = {
            CLASS_NAMES: list(class_names),
            'config': nested.as_dict(config),
            liftings.KEY: liftings.VERSION,
            'data': data,
            'versions': store.versions(),
        }
        self._scores: dict[int, dict[str, float]] = {}
        self._folder = paths.absolute(workdir) / FOLDER
        with store.writable(self._folder, lambda: ()), contextlib.ExitStack() as listed:
            listed.enter_context(listings.once(self._folder))
            self._checkpointer = ocp_training.Checkpointer(
                self._folder,
                preservation_policy=kept.policy(config.training.keep, keep_every, self._scores),
                step_name_format=kept.Steps(),
                cleanup_tmp_directories=True,  # what a killed process left behind
                context=store.writing(),
            )
            self._listed = listed.pop_all()  # Orbax looks for remains in a thread
        self._saved, self._pending, self._failed = None, None, False
        self._silence = store.Silence()  # a writing may fail while nobody waits for it yet

    def save(self, state: dict[str, Any]) -> None:
        """Begins to write the state under its own step; waits first for the one before.

        Args:
          state: train state; may be donated as soon as this returns.
        """
        step = int(state['step'])
        if step == self._saved:
            return
        self.wait()
        self._listed.close()
        with self._writing():
            self._pending = self._checkpointer.save_async(
                step,
                state,
                custom_metadata=self._description,
                force=True,
                overwrite=True,  # of a damaged one that the run went back behind
            )
        self._saved = step

    def score(self, step: int, scores: Mapping[str, float]) -> None:
        """Adds scores by name to the checkpoint of a step, when it is written."""
        # One that is not finite would stay the best for ever.
        if not any(name in kept.BEST and math.isfinite(value) for name, value in scores.items()):
            return
        self.wait()
        self._scores[step] = {**scores}
        if jax.process_index() == 0:
            files.write_text(self._folder / str(step) / kept.SCORES, json.dumps(self._scores[step]))

    def wait(self) -> None:
        """Returns when nothing is being written any more; raises what went wrong there."""
        pending, self._pending = self._pending, None
        if pending is not None:
            with self._writing():
                pending.result()

    @contextlib.contextmanager
    def _writing(self):
        leader = jax.process_index() == 0
        remains = lambda: self._folder.glob(f'*{store.UNFINISHED}*') if leader else ()
        with store.writable(self._folder, remains):
            try:
                yield
            except Exception:
                self._failed = True
                raise

    def close(self) -> None:
        """Waits for what is being written; after a failure it only ends what is still at work."""
        with self._listed:
            self._close()

    def _close(self):
        if not self._failed:
            self.wait()
            with self._writing():
                self._checkpointer.close()
            self._silence.end()
        elif jax.process_count() == 1:  # of several, closing would wait for one that may be gone
            # The threads of the failed writing fail, too, and say less than the first reason.
            with contextlib.suppress(Exception):
                self._checkpointer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_):
        self.close()


@dataclasses.dataclass(frozen=True)
class Saved:
    """The checkpoint of a model."""

    stored: store.Checkpoint
    step: int  # 0 for a converted model
    config: settings.Config
    presets: dict[str, SamplingConfig]  # of a converted or a tuned model
    source: dict[str, Any]  # what a converted model was made from
    data: str = ''  # fingerprint of the training data
    class_names: tuple[str, ...] = ()  # in label order; (): nobody saved them

    @property
    def path(self) -> epath.Path:
        """Where it lies."""
        return self.stored.path

    @property
    def all_presets(self) -> dict[str, SamplingConfig]:
        """Its own presets by name, or the published ones of a model of its sizes."""
        return self.presets or recipes.sampling_of(self.config.model)

    def sampling(self, preset: str | None = None) -> SamplingConfig:
        """Its own sampling settings, or those of a preset.

        Raises:
          UserError: no such preset.
        """
        if preset is None:
            return self.config.sampling
        presets = self.all_presets
        if preset not in presets:
            others = f'has the presets {", ".join(presets)}' if presets else 'has no presets'
            raise UserError(f'no preset {preset!r}: {self.path} {others}')
        return presets[preset]

    def restore(self, abstract: dict[str, Any]) -> dict[str, Any]:
        """The whole train state; `abstract` has the shapes and shardings to restore into.

        All processes call it.
        """
        return self.stored.load_by_all(abstract)

    def load_params(
        self, weights: str = '', place: store.Place | None = None
    ) -> tuple[dict[str, Any], str]:
        """Loads one set of parameters: weights '' (the first EMA decay), a decay, or 'params'.

        Args:
          weights: which.
          place: on which devices; None: on the default one.

        Returns:
          (parameters as a nested dict of arrays, the name of what was loaded).

        Raises:
          UserError: there are no such weights.
        """
        tree = self.stored.tree
        with store.readable(self.path):
            order = list(map(str, self.config.optimizer.ema_decays))
            names = sorted(tree['ema'], key=order.index) + ['params'] * ('params' in tree)
        name = weights or names[0]
        if name not in names:
            raise UserError(f'{self.path} has no weights {weights!r}, but {", ".join(names)}')
        keys = ('params',) if name == 'params' else ('ema', name)
        held = functools.reduce(lambda node, key: node[key], keys, tree)
        if wrong := functional.misfit(held, lambda: emigm.network(self.config.model)):
            raise UserError(f'{self.path}: its arrays are not those of its config: {wrong}')
        return self.stored.load_part(*keys, place=place), name

    def remark(self, weights: str) -> str:
        """One line to tell about weights that have hardly seen the training; '' about others."""
        steps = self.source.get('step', self.step)  # of a model that was exported
        return averages.remark(self.config.optimizer, weights, steps) if steps else ''


def export(
    path: os.PathLike | str,
    config: settings.Config,
    ema: dict[str, Any],
    presets: Mapping[str, SamplingConfig],
    source: Mapping[str, Any],
    class_names: Sequence[str] = (),
) -> None:
    """Writes a converted model as a checkpoint of its own.

    Args:
      path: folder that does not exist yet, local or gs://.
      config: its first EMA decay names the weights.
      ema: parameters.
      presets: by name.
      source: JSON-like, what the weights come from.
      class_names: in label order; (): nobody knows them.
    """
    description = {
        'config': nested.as_dict(config),
        liftings.KEY: liftings.VERSION,
        'presets': {name: nested.as_dict(value) for name, value in presets.items()},
        'source': source,
        CLASS_NAMES: list(class_names),
    }
    name = str(config.optimizer.ema_decays[0])
    store.save(path, {'ema': {name: ema}}, description)


def described(stored: store.Checkpoint) -> str:
    """What a checkpoint is, in a few words."""
    description, source = stored.description, stored.description.get('source', {})
    if 'config' in description and 'opt' in stored.tree:
        return f'step {stored.path.name} of a run'
    if 'inception' in description:
        return "FID's network"
    for title, known in (
        ('a model converted from {file}', source),
        ('a model exported from step {step} of a run', source),
        ('the tokenizer {name}', description.get('tokenizer', {})),
    ):
        with contextlib.suppress(KeyError):
            return title.format_map(known)
    return 'a model' if 'config' in description else 'no model, but another checkpoint'


def finished(path: os.PathLike | str) -> list[epath.Path]:
    """Folders of the finished checkpoints of a workdir, newest first; [] if it has none."""
    with listings.once(paths.absolute(path)):
        return list(newest_first(path))


def newest_first(path: os.PathLike | str) -> Iterator[epath.Path]:
    """As `finished`, but a step is asked about when it is its turn."""
    path = paths.absolute(path)
    with listings.once(path):
        folder = path / FOLDER if (path / FOLDER).is_dir() else path
        names = [p.name for p in folder.iterdir()] if folder.is_dir() else []
    # A step that is still being written has a temporary name, or on gs:// no mark of its end.
    for step in sorted(map(int, filter(str.isdecimal, names)), reverse=True):
        if store.is_checkpoint(folder / str(step)):
            yield folder / str(step)


def find(path: os.PathLike | str) -> Saved | None:
    """The `Saved` at a checkpoint folder, or the newest in a workdir; None if it has none."""
    with listings.once(path := paths.absolute(path)):
        newest = path if store.is_checkpoint(path) else next(newest_first(path), None)
        return None if newest is None else saved(store.checkpoint(newest))


def require(path: os.PathLike | str) -> Saved:
    """As `find`, but a missing checkpoint is the user's error."""
    with listings.once(place := paths.absolute(path)):
        if not place.exists():
            raise UserError(f'{path}: no such checkpoint or workdir')
        if saved := find(path):
            return saved
        if place.is_dir():
            raise UserError(f'{path}: holds no checkpoint (looked for {FOLDER}/STEP)')
    raise UserError(f'{path}: is a file, no checkpoint; `emigm convert` makes one of weights')


def saved(stored: store.Checkpoint) -> Saved:
    """What a checkpoint says about its model.

    Raises:
      UserError: it holds no model, or one of newer code.
    """
    description = stored.description
    if 'config' not in description:
        raise UserError(f'{stored.path}: holds no model')
    version = description.get(liftings.KEY, 0)
    lifted = functools.partial(liftings.lifted, version=version)
    try:
        config = nested.resolve(lifted(description['config']))
        # Presets are configs of which the sampling alone was kept.
        presets = {
            name: nested.build(SamplingConfig, lifted({'sampling': values})['sampling'])
            for name, values in description.get('presets', {}).items()
        }
    except UserError as error:
        raise UserError(f'{stored.path}: {error}') from error
    return Saved(
        stored,
        int(stored.path.name) if stored.path.name.isdecimal() else 0,
        config,
        presets,
        description.get('source', {}),
        description.get('data', ''),
        tuple(description.get(CLASS_NAMES, ())),
    )

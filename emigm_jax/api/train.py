"""Training with one call."""

import functools
import os
from collections.abc import Callable, Collection, Mapping
from typing import Any

import ml_collections

from emigm_jax.config import resuming
from emigm_jax.config.load import config_of
from emigm_jax.config.settings import Config
from emigm_jax.data import real
from emigm_jax.data.interface import Dataset
from emigm_jax.evaluation.online import online
from emigm_jax.parallel import compiled
from emigm_jax.sampling import generator
from emigm_jax.training import loop


def train(
    config: Config | ml_collections.ConfigDict | Mapping[str, Any] | os.PathLike | str,
    workdir: os.PathLike | str,
    *,
    allow_changes: Collection[str] = (),
    **settings: Any,
) -> None:
    """Trains a config in a workdir, or goes on from the newest checkpoint there.

    Args:
      config: a shipped config by name ('digits:smoke'), a file ('my.py:smoke'), or settings in any
        other form.
      workdir: of checkpoints, metrics and samples; local or gs://.
      allow_changes: settings, or groups of them ('optimizer'), in which a run that goes on may
        differ from the config it began with; what that does to its schedule is said.
      **settings: single settings to change, with their dotted names:
        `**{'training.total': '100 steps'}`.

    Raises:
      UserError: a setting makes no sense, or the workdir or the data cannot be used.
      loop.NonFinite: a loss or gradient was not finite; the last good state is saved.
      loop.Preempted: SIGTERM or a maintenance notice came; the state is saved.

    Example:
      >>> em.train('digits:smoke', 'runs/smoke', **{'training.total': '6 steps'})
    """
    resuming.check_names(allow_changes)
    compiled.keep()
    resolved = config_of(config, settings)
    loop.train(resolved, workdir, evaluator if resolved.evaluates else None, allow_changes)


def evaluator(config: Config, data: Dataset) -> Callable[[dict, int], dict[str, float]]:
    """What `loop.train` takes: measures the EMA weights of a run on the way."""
    ready = generator.while_training(config, data)
    assert data.codec is not None  # or `while_training` would have raised
    side = config.model.grid * data.codec.spec.stride
    maker = lambda params: ready(params).batch
    images = functools.partial(real.images, config.data)
    return online(config.evaluation, config.model.classes, maker, images, side)

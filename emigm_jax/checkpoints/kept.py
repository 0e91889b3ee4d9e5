"""Which checkpoints of a run stay, as Orbax asks for it."""

import types
from collections.abc import Iterator, Mapping
from typing import Any, final

import orbax.checkpoint.experimental.v1 as ocp
from etils import epath
from orbax.checkpoint.experimental.v1 import training

from emigm_jax.checkpoints import store
from emigm_jax.io import gcs

SCORES = 'metrics/metrics'  # of a checkpoint, as Orbax reads them where a run goes on
BEST = ('fid', 'frechet_distance')  # the scores of which the lowest value is kept, if there is one


def policy(newest: int, every: int, scores: Mapping[int, Mapping[str, float]]) -> Any:
    """Keeps the newest, one every so many steps (0: none of those), and the best.

    Args:
      newest, every: how many.
      scores: by step, of checkpoints that were written before they had any; may grow.
    """
    policies = training.preservation_policies
    best = policies.BestN(
        get_metric_fn=lambda found: next(found[n] for n in BEST if n in found),
        reverse=True,
        n=1,
        keep_checkpoints_without_metrics=False,
    )
    regular = [policies.EveryNSteps(every)] if every else []
    kept: list[Any] = [policies.LatestN(newest), *regular, _Scored(best, scores)]
    return policies.AnyPreservationPolicy(kept)


class _Scored:
    """A policy of Orbax that hears of scores that came after their checkpoint."""

    def __init__(self, policy, scores):
        self._policy, self._scores = policy, scores

    def should_preserve(self, checkpoints, *, context):
        """Whether each of the checkpoints stays."""
        scored = [
            types.SimpleNamespace(
                step=known.step,
                time=known.time,
                metrics=self._scores.get(known.step, known.metrics),
            )
            for known in checkpoints
        ]
        return self._policy.should_preserve(scored, context=context)


@final
class Steps(ocp.path.step.NameFormat):
    """Names of steps as Orbax has them; no file is read to tell when one was written.

    Orbax would read the description of every checkpoint that is kept, twice.
    """

    def build_name(self, step: int) -> str:
        """See Orbax."""
        return str(step)

    def find_all(self, base_path: Any) -> Iterator[Any]:
        """See Orbax."""
        folder = epath.Path(base_path)
        names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
        found = (_written(folder / name) for name in names if name == _number(name))
        return (known for known in found if known)

    def find_step(self, base_path: Any, step: int) -> Any:
        """See Orbax."""
        if (known := _written(epath.Path(base_path) / str(step))) is None:
            raise ValueError(f'{base_path}: has no step {step}')
        return known


def _number(name):
    """A name as the step of that number has it; '' if it is no number."""
    return str(int(name)) if name.isdecimal() else ''


def _written(path):
    """What Orbax wants to know of a step; None if it is not there, or not finished."""
    mark = path / store.mark(path)
    whole = mark.exists()
    # On a disk a damaged one has its name, too: it is Orbax's to overwrite or to delete.
    if not whole and (gcs.remote(path) or not path.is_dir()):
        return None
    when = int((mark if whole else path).stat().mtime * 1e9)
    return training.CheckpointMetadata(
        int(path.name), path=path, metadata=None, commit_timestamp_nsecs=when
    )

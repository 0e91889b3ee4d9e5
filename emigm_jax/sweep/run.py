"""Does what a sweep asks for and is not there yet; what was finished stays, whenever it ends."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from emigm_jax.api.evaluate import evaluate
from emigm_jax.api.model import load
from emigm_jax.api.train import train
from emigm_jax.config import nested, sweeps
from emigm_jax.config.settings import Config
from emigm_jax.config.sweeps import Sweep
from emigm_jax.errors import UserError
from emigm_jax.evaluation.evaluator import Work
from emigm_jax.evaluation.result import Result
from emigm_jax.io import access, files, paths
from emigm_jax.io.progress import Bar

RUNS, SCORES = 'runs', 'scores'


class Scored(NamedTuple):
    """One measurement of a sweep."""

    point: str
    seed: int
    options: dict[str, Any]
    result: Result


class _Task(NamedTuple):
    point: str
    seed: int
    config: Config
    options: dict[str, Any]

    @property
    def run(self) -> str:
        return f'{self.point}-{self.seed}'

    def file(self, folder):
        return folder / SCORES / self.run / f'{sweeps.text(self.options)}.json'

    def identity(self, num_images):
        """All that decides the scores."""
        flat = lambda config: nested.flatten(nested.as_dict(config))
        plain = flat(Config())
        # Without defaults, so that measurements outlive settings that are added later.
        chosen = {k: v for k, v in flat(self.config).items() if v != plain[k]}
        digest = hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:16]
        return {'config': digest, 'options': self.options, 'num_images': num_images}


def run(
    sweep: Sweep,
    folder: os.PathLike | str,
    share: tuple[int, int] = (1, 1),
    say: Callable[[str], object] = print,
) -> None:
    """Trains and measures what is missing in a folder: runs/POINT-SEED, scores/POINT-SEED.

    Args:
      sweep: what is wanted.
      folder: local or gs://; several processes may work in it, each on a share of its own.
      share: (i, n), one of n shares of the runs.
      say: gets a line for the user now and then.

    Raises:
      UserError: a run cannot be trained or measured.
      loop.NonFinite, loop.Preempted: as `train`; the next call goes on.
    """
    access.probe(folder)
    place = paths.absolute(folder)
    mine = [*sweep.runs()][share[0] - 1 :: share[1]]
    todo: dict[str, list[_Task]] = {}
    for task in _tasks(sweep):
        if (task.point, task.seed) in mine and _read(task, place, sweep.num_images) is None:
            todo.setdefault(task.run, []).append(task)
    for number, (name, tasks) in enumerate(todo.items(), 1):
        say(f'== {name}, run {number} of {len(todo)}')
        config = tasks[0].config
        train(config, place / RUNS / name)
        model = load(place / RUNS / name, batch_size=config.evaluation.batch_size)
        for task in Bar(tasks, unit=' measurements', desc='measuring'):
            result = _measured(task, model, sweep.num_images)
            value = {**task.identity(sweep.num_images), 'result': result.to_json()}
            files.write_json(task.file(place), value)


def scored(sweep: Sweep, folder: os.PathLike | str) -> tuple[list[Scored], int]:
    """What a folder holds of a sweep, in its order, and how many measurements it lacks."""
    place, found, lacking = paths.absolute(folder), [], 0
    for task in _tasks(sweep):
        result = _read(task, place, sweep.num_images)
        if result is None:
            lacking += 1
        else:
            found.append(Scored(task.point, task.seed, task.options, result))
    return found, lacking


def _tasks(sweep) -> Iterator[_Task]:
    for (point, seed), config in sweep.runs().items():
        for options in sweep.ways(point):
            yield _Task(point, seed, config, options)


def _read(task, folder, num_images) -> Result | None:
    """A measurement that was made with these settings."""
    file = task.file(folder)
    try:
        value = files.read_json(file)
        if value is None or any(
            value.get(name) != part
            for name, part in json.loads(json.dumps(task.identity(num_images))).items()
        ):
            return None
        return Result.from_json(value['result'])
    except (UserError, KeyError, AttributeError) as error:
        raise UserError(f'{file}: is no measurement of a sweep; remove it') from error


def _measured(task, model, num_images):
    settings = task.config.evaluation
    against: dict[str, Any] = {}
    if settings.reference:
        against = dict(
            reference=settings.reference,
            inception=settings.inception,
            metrics=settings.metrics.split(','),
        )
    work = Work(settings.batch_size)
    return evaluate(model, num_images=num_images, work=work, **against, **task.options)

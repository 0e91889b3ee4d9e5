"""Does what a sweep asks for and is not there yet; what was finished stays, whenever it ends."""

import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from emigm_jax.api.evaluate import evaluate
from emigm_jax.api.model import Model, load
from emigm_jax.api.train import train
from emigm_jax.checkpoints import runs
from emigm_jax.config.durations import parse_duration
from emigm_jax.config.load import config_of
from emigm_jax.config.settings import IN_PIXELS, Config
from emigm_jax.config.sweeps import Sweep
from emigm_jax.core import flops, masking
from emigm_jax.data import datasets
from emigm_jax.errors import UserError
from emigm_jax.evaluation.evaluator import Work
from emigm_jax.evaluation.result import Result
from emigm_jax.io import access, files, paths
from emigm_jax.io.progress import Bar
from emigm_jax.sweep.tasks import RUNS, Task, tasks
from emigm_jax.training.loop import NonFinite


class Scored(NamedTuple):
    """One measurement of a sweep."""

    point: str
    seed: int
    options: dict[str, Any]
    result: Result
    look: str = ''
    share: float = 1.0  # of the training, after which it was made
    costs: Mapping[str, float] = {}  # of figures: 'step', and 'flops' of the training until then
    run: str = ''  # its folder


def run(
    sweep: Sweep,
    folder: os.PathLike | str,
    share: tuple[int, int] = (1, 1),
    say: Callable[[str], object] = print,
) -> None:
    """Trains and measures what is missing in a folder: runs/POINT-SEED, scores/POINT-SEED.

    The runs of figures are called by their settings, runs/DIGEST-SEED.

    Args:
      sweep: what is wanted.
      folder: local or gs://; several processes may work in it, each on a share of its own.
      share: (i, n), one of n shares of the runs.
      say: gets a line for the user now and then.

    Raises:
      UserError: a run cannot be trained or measured.
      loop.NonFinite: a run of them, which is told and left out until all others are done.
      loop.Preempted: as `train`; the next call goes on.
    """
    access.probe(folder)
    place = paths.absolute(folder)
    mine = names(sweep)[share[0] - 1 :: share[1]]
    todo = {name: each for name, each in lacking(sweep, place).items() if name in mine}
    for config in (each[0].config for each in todo.values()):
        _check(config)  # before hours of training
    diverged: list[NonFinite] = []
    for number, (name, wanted) in enumerate(todo.items(), 1):
        config = wanted[0].config
        title = f'{wanted[0].point}-{config.seed}'
        title += f' in {RUNS}/{name}' * (title != name)
        say(f'== {title}, run {number} of {len(todo)}')
        try:
            if not wanted[0].shared:
                train(config, place / RUNS / name)
            elif not _is_trained(config, place / RUNS / name):
                train(_kept(config), place / RUNS / name)
        except NonFinite as error:
            diverged.append(NonFinite(f'{title}: {error}'))
            say(f'{diverged[-1]}')
            continue
        _measure(sweep, wanted, place)
    if diverged:
        raise diverged[0]


def names(sweep: Sweep) -> list[str]:
    """Folders of its runs, in its order."""
    return list(dict.fromkeys(task.run for task in tasks(sweep)))


def lacking(sweep: Sweep, folder: os.PathLike | str) -> dict[str, list[Task]]:
    """What a folder holds no measurement of, by the folder of its run."""
    place, found = paths.absolute(folder), {}
    for task in tasks(sweep):
        if task.read(place, sweep.num_images) is None:
            found.setdefault(task.run, []).append(task)
    return found


def scored(sweep: Sweep, folder: os.PathLike | str) -> tuple[list[Scored], int]:
    """What a folder holds of a sweep, in its order, and how many measurements it lacks."""
    place, found, missing = paths.absolute(folder), [], 0
    for task in tasks(sweep):
        read = task.read(place, sweep.num_images)
        if read is None:
            missing += 1
        else:
            result, beside = read
            costs = beside.get('costs', {})
            about = (task.look, task.share, costs, task.run)
            found.append(Scored(task.point, task.seed, task.options, result, *about))
    return found, missing


def _check(config):
    """Raises UserError if what is trained cannot be measured."""
    if config.data.name not in IN_PIXELS and not config.evaluation.reference:
        raise UserError(
            f'data.name = {config.data.name!r} is measured against evaluation.reference: say '
            '--config.evaluation.reference=STATISTICS --config.evaluation.inception=CHECKPOINT'
        )


def _is_trained(config, folder):
    """Whether a run that is named by its settings is finished; others may be measuring it, too."""
    last = max((int(path.name) for path in runs.finished(folder)), default=0)
    return last > 0 and last >= config.steps('total', datasets.dataset(config).examples)


def _kept(config):
    """Settings that keep a checkpoint of each quarter, which another figure may measure."""
    amount, unit = parse_duration('training.total', config.training.total)
    saved, its = parse_duration('training.checkpoint_every', config.training.checkpoint_every)
    settings = {'training.keep_every': f'{amount / 4:g} {unit}s'}
    if its != unit or not saved or amount / 4 % saved:  # only what is saved can be kept
        settings['training.checkpoint_every'] = settings['training.keep_every']
    return config_of(config, settings)


def _measure(sweep, wanted, place):
    """Makes measurements of one run, one checkpoint after the other."""
    folder, models = place / RUNS / wanted[0].run, {}
    for task in Bar(wanted, unit=' measurements', desc='measuring'):
        if task.share not in models:
            at = folder if task.share == 1.0 else checkpoint(folder, task.share)
            models = {task.share: load(at, batch_size=task.config.evaluation.batch_size)}
        model = models[task.share]
        value = task.identity(sweep.num_images)
        value |= {'costs': _costs(model)} if task.shared else {}
        value['result'] = _measured(task, model, sweep.num_images).to_json()
        files.write_json(task.file(place, sweep.num_images), value)


def checkpoint(folder: os.PathLike | str, share: float) -> os.PathLike:
    """The checkpoint of a finished run that lies at a share of it.

    Raises:
      UserError: there is none within 2 % of the run.
    """
    found = {int(path.name): path for path in runs.finished(folder)}
    last = max(found, default=0)
    nearest = min(found, key=lambda step: abs(step - share * last), default=0)
    if abs(nearest - share * last) > 0.02 * last or not found:
        raise UserError(
            f'{folder}: has no checkpoint of step {share * last:g}, as `emigm sweep` of a figure '
            'would have kept; remove it, and the same command trains it again'
        )
    return found[nearest]


def _costs(model: Model) -> dict[str, float]:
    """What was spent on a model."""
    config: Config = model.config
    batch, step = config.training.batch_size, model.saved.step
    groups = masking.group_count(config.loss.masking, batch // config.training.accumulate)
    budgets = masking.budgets(config.loss.masking, config.model.tokens, groups)
    forward = flops.train_image(config.model, budgets, config.loss.copies)
    return {'step': step, 'flops': 3.0 * forward * batch * step}  # a product has two gradients


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

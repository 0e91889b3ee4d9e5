"""Where a run begins: at its newest checkpoint, if its workdir has one."""

import contextlib
import functools
from collections.abc import Callable, Collection, Iterator

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from emigm_jax.checkpoints import runs, store
from emigm_jax.config import resuming
from emigm_jax.config.settings import Config
from emigm_jax.data.interface import Dataset
from emigm_jax.errors import Damaged, UserError
from emigm_jax.io import lease, listings
from emigm_jax.parallel import agreement, processes
from emigm_jax.training import program, schedules
from emigm_jax.training.state import State

# Raises UserError if another training has the folder by now.
Check = Callable[[], None]
Say = Callable[[str], None]
_FLAG = '--config.training.init'


@contextlib.contextmanager
def alone(workdir: epath.Path, say: Say) -> Iterator[Check]:
    """Around a run, of which the first process has the lease of its workdir.

    Raises:
      UserError: another training is at work there.
    """
    with contextlib.ExitStack() as stack:

        def take():
            try:
                if processes.is_first():
                    return stack.enter_context(lease.held(workdir, say)).check
            finally:
                processes.meet()  # the first may wait longer than the others would in a collective
            return lambda: None

        yield agreement.agreed(take)


def check_workdir(workdir: epath.Path) -> None:
    """Refuses a folder in which nobody would find what a run writes.

    Raises:
      UserError: it is a checkpoint itself, whose weights would be found in place of the run's, or
        checkpoints lie in it beside each other.
    """
    with listings.once(workdir):
        _check_workdir(workdir)


def _check_workdir(workdir):
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f'{workdir}: is a file, and --workdir names a folder')
    if store.is_checkpoint(workdir):
        stored = store.checkpoint(workdir)
        what = f'{workdir} is {runs.described(stored)}, and nobody would see what is trained in it'
        if 'config' not in stored.description:
            raise UserError(f'{what}: use another --workdir')
        further = f'use another --workdir, with {_FLAG}={workdir} to start from it'
        if workdir.parent.name == runs.FOLDER and 'opt' in stored.tree:
            further += f', or go on with its run by --workdir {workdir.parent.parent}'
        if (workdir / runs.FOLDER).is_dir():
            further += f'; {workdir / runs.FOLDER} holds what was trained in it so far'
        raise UserError(f'{what}: {further}')
    if not (workdir / runs.FOLDER).is_dir() and (beside := runs.finished(workdir)):
        what = f'{workdir} is no workdir, but holds checkpoints beside each other'
        further = f'use another --workdir, with {_FLAG}={beside[0]} to start from one'
        if workdir.name == runs.FOLDER:
            further += f', or go on with the run by --workdir {workdir.parent}'
        raise UserError(f'{what}: {further}')


def as_begun(config: Config, workdir: epath.Path, allowed: Collection[str], say: Say) -> Config:
    """A config with the values that a run keeps from where it began (`resuming.as_begun`)."""
    with listings.once(workdir):
        for folder in runs.newest_first(workdir):
            try:
                saved = runs.saved(store.checkpoint(folder)).config
            except UserError:  # said by `resumed`
                continue
            kept = resuming.as_begun(saved, config, allowed)
            for name, (value, _) in resuming.differences(kept, config).items():
                say(f'{name} stays {value}, as the run began; --allow-changes {name} changes it')
            return kept
    return config


def resumed(
    config: Config,
    data: Dataset,
    workdir: epath.Path,
    built: program.Program,
    allowed: Collection[str],
    say: Say,
) -> State | None:
    """The state of the newest checkpoint that can be read; None if there is none."""

    def described(folder):
        stored = store.checkpoint(folder)
        check_state(stored, workdir)
        saved = runs.saved(stored)
        check_resumable(saved, config, data, workdir, allowed)
        return saved

    with listings.once(workdir):  # nobody else writes checkpoints there
        folders = runs.newest_first(workdir)
        folder = next(folders, None)
        while folder is not None:
            saved = state = damage = None
            try:
                # Agreed on before arrays are read, of which each process reads a share for all.
                saved = agreement.agreed(functools.partial(described, folder))
                state = saved.restore(built.state)
            except Damaged as error:
                damage = error
            # All processes go on from the same step, or none does.
            if not _anywhere(damage):
                assert saved is not None and state is not None
                if int(state['step']) != saved.step:
                    raise UserError(_stray(folder, f'step {int(state["step"])} of a run', workdir))
                say(f'resumed from step {saved.step} in {folder}')
                for line in schedules.compared(saved.config, config, saved.step, data.examples):
                    say(line)
                return state
            if (before := next(folders, None)) is None:
                raise damage or Damaged(f'{folder}: another process cannot read it')
            say(f'{damage or folder}\ngoing on from the checkpoint before it')
            folder = before
    return None


def _anywhere(condition):
    if jax.process_count() == 1:
        return bool(condition)
    return bool(multihost_utils.process_allgather(np.array(bool(condition))).any())


def check_state(stored: store.Checkpoint, workdir: epath.Path) -> None:
    """Refuses what lies among the steps of a run and is none, such as a model's weights."""
    if 'opt' not in stored.tree:
        raise UserError(_stray(stored.path, runs.described(stored), workdir))


def _stray(folder, what, workdir):
    return (
        f'{folder} is {what}, not the step of that number of this run: move it out of {workdir}, '
        f'and start from it with {_FLAG}=WHERE_IT_IS_THEN'
    )


def check_resumable(
    saved: runs.Saved,
    config: Config,
    data: Dataset,
    workdir: epath.Path,
    allowed: Collection[str] = (),
) -> None:
    """Refuses a workdir whose checkpoint belongs to another config or other data."""
    resuming.check(saved.config, config, allowed, workdir)
    if saved.data not in ('', data.fingerprint):
        raise UserError(
            f'{workdir} holds a checkpoint that was trained on other data of the same kind: use '
            f'the data it was trained on, or another --workdir, with {_FLAG}={workdir} to start '
            'from its weights'
        )
    if saved.step > config.steps('total', data.examples):
        raise UserError(
            f'{workdir} is at step {saved.step} already, beyond training.total = '
            f'{config.training.total!r}'
        )

"""A disk that is full, as a limit on the size of files stands for it: one line with the reason."""

import contextlib
import errno
import os
import resource
import shutil
import threading
import time

import jax.numpy as jnp
import numpy as np
import pytest

from emigm_jax.checkpoints import runs, store
from emigm_jax.config import nested
from emigm_jax.errors import UserError
from emigm_jax.io import gcs
from emigm_jax.io.formats import data_files
from emigm_jax.training.events import Events

TREE = {'ema': {'0.9': {f'w{i}': jnp.ones((64, 64)) for i in range(8)}}}


@contextlib.contextmanager
def room(size):
    """No file can be larger than `size` bytes: writing more fails in Python and in C++."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_checkpoint(tmp_path, capfd, caplog):
    with room(2000), pytest.raises(UserError) as refused:
        store.save(tmp_path / 'a', TREE, {})
    assert str(refused.value) == f'{tmp_path}/a: cannot be written (File too large)'
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ('', '')
    assert not caplog.records
    store.save(tmp_path / 'a', TREE, {})
    assert store.is_checkpoint(tmp_path / 'a')


def test_the_state_of_a_run(tmp_path, capfd, caplog):
    def save(step):
        with runs.Writer(tmp_path, nested.resolve({})) as writer:
            writer.save({**TREE, 'step': jnp.int32(step)})

    save(1)
    line = f'{tmp_path}/checkpoints: cannot be written \\(File too large\\)'
    with room(2000), pytest.raises(UserError, match=f'^{line}$'):
        save(2)
    assert [path.name for path in (tmp_path / 'checkpoints').iterdir()] == ['1']
    assert capfd.readouterr() == ('', '')
    assert not caplog.records
    save(2)
    assert [path.name for path in runs.finished(tmp_path)] == ['2', '1']


def test_a_folder_that_becomes_a_file_keeps_no_thread_waiting(tmp_path):
    """They would wait for minutes for a folder that nobody can make, and the process for them."""
    with pytest.raises(UserError, match='cannot be written'):  # noqa: SIM117
        with runs.Writer(tmp_path, nested.resolve({})) as writer:
            writer.save({**TREE, 'step': jnp.int32(1)})
            writer.wait()
            shutil.rmtree(tmp_path / 'checkpoints')
            (tmp_path / 'checkpoints').write_text('')
            writer.save({**TREE, 'step': jnp.int32(2)})
    end = time.monotonic() + 10
    working = lambda: [t for t in threading.enumerate() if type(t).__name__ == '_SignalingThread']
    while working() and time.monotonic() < end:
        time.sleep(0.05)
    assert not working()


def test_the_first_reason_stands(tmp_path, monkeypatch):
    """Where a process has gone, saving fails in the collective and its threads in other ways."""

    def fails(error):
        def call(*_, **__):
            raise error

        return call

    with pytest.raises(UserError, match='Gloo AllGather failed'):  # noqa: SIM117
        with runs.Writer(tmp_path, nested.resolve({})) as writer:
            first = RuntimeError('Gloo AllGather failed: connection closed by peer')
            monkeypatch.setattr(writer._checkpointer, 'save_async', fails(first))
            monkeypatch.setattr(writer._checkpointer, 'close', fails(FileNotFoundError('x')))
            writer.save({'step': jnp.int32(1)})


def test_events(tmp_path, capfd):
    events = Events(str(tmp_path / 'events'), 0)
    with room(20):
        for step in range(20):  # more than the queue of a thread would hold
            events.add_scalar('loss', 1.0, step)
        with pytest.raises(UserError, match=r'events: File too large$'):
            events.flush()
        events.close()
    assert capfd.readouterr() == ('', '')


def test_the_reason_of_an_error():
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    wrapped = ValueError('a tree cannot be saved')
    wrapped.__cause__ = full
    place = '/a/long/path' * 20
    for error in (
        full,
        wrapped,
        ValueError(f'RESOURCE_EXHAUSTED: Failed writing: "{place}" [os_error_code=\'28\']'),
    ):
        assert gcs.brief(error) == 'No space left on device'
    long = gcs.brief(ValueError(f'Failed writing {place}: the quota is used up'))
    assert long.startswith('ValueError: Failed writing')
    assert long.endswith('the quota is used up')
    assert len(long) < 200


@pytest.mark.parametrize('mask', [0o022, 0o027])
def test_exported_files_have_the_mode_of_others(mask, tmp_path):
    before = os.umask(mask)
    try:
        data_files.write_safetensors(tmp_path / 'a', {'w': np.zeros(3, np.float32)})
        (tmp_path / 'b').write_text('')
    finally:
        os.umask(before)
    assert (tmp_path / 'a').stat().st_mode == (tmp_path / 'b').stat().st_mode
    assert sorted(path.name for path in tmp_path.iterdir()) == ['a', 'b']

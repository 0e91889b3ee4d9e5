"""tpu_worker.sh for real, but for its install: a small program in place of emigm."""

import os
import re
import shutil
import signal
import sys
import time

import pytest

from support.launchers import Desk


@pytest.fixture
def desk(tmp_path):
    return Desk(tmp_path)


STAY = """
import pathlib, signal, sys, time
def end(*_):
    print('saved', flush=True)
    sys.exit(75)
signal.signal(signal.SIGTERM, end)
print('here', sys.argv[1:], flush=True)
while not pathlib.Path(sys.argv[1]).exists():
    time.sleep(0.02)
sys.exit(int(pathlib.Path(sys.argv[1]).read_text()))
"""


def until(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def worker(desk, tmp_path):
    if not shutil.which('flock'):
        pytest.skip('flock (util-linux) is not installed')
    (tmp_path / 'stay.py').write_text(STAY)
    end = tmp_path / 'end'
    command = [sys.executable, str(tmp_path / 'stay.py'), str(end), 'a b']
    log = tmp_path / 'emigm_run' / 'log'

    def call(verb):
        ran = desk.run('tpu_worker.sh', verb, *(command if verb == 'start' else []))
        if verb == 'start' and ran.code == 0:
            until(lambda: 'here' in log.read_text())
        return ran.code if verb == 'start' else ran.out.strip()

    yield call
    end.write_text('0')
    call('follow')


def test_worker_keeps_a_command_and_its_code(worker, tmp_path):
    assert worker('status') == 'none'
    for code in (75, 3):
        assert worker('start') == 0
        assert worker('status') == 'running'
        assert worker('start') == 1  # one at a time
        (tmp_path / 'end').write_text(str(code))
        assert re.fullmatch(r"\[\S+\] here \['\S+/end', 'a b'\]", worker('follow'))
        assert worker('status') == str(code)
        (tmp_path / 'end').unlink()
    assert (tmp_path / 'emigm_run' / 'log.old').exists()


def test_worker_stop(worker):
    worker('start')
    worker('stop')
    assert worker('follow').endswith('] saved')
    assert worker('status') == 'stopped'  # and not 75, which would start it again
    worker('start')
    assert worker('status') == 'running'


def test_worker_that_goes_down(worker, tmp_path):
    """All get SIGTERM: the command saves, and its end is written down."""
    worker('start')
    pid = int((tmp_path / 'emigm_run' / 'pid').read_text())
    os.killpg(os.getpgid(pid), signal.SIGTERM)
    worker('follow')
    assert worker('status') == '75'


def test_worker_that_is_cut_off(worker, tmp_path):
    worker('start')
    pid = int((tmp_path / 'emigm_run' / 'pid').read_text())
    os.killpg(os.getpgid(pid), signal.SIGKILL)
    until(lambda: worker('status') != 'running')
    assert worker('status') == 'none'

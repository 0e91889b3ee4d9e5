"""Who works in a folder: one process, until it is gone. With a clock of the test's own."""

import dataclasses
import json
import os
import subprocess
import sys
import threading

import pytest

from emigm_jax.errors import UserError
from emigm_jax.io import lease, paths, swap
from support import gcs
from support.faulty_gcs import Rule

pytestmark = pytest.mark.filterwarnings('ignore:Sending a large body:ResourceWarning')


class Time:
    """A clock that passes only where somebody sleeps; then `meanwhile` happens."""

    def __init__(self, now=1e9, meanwhile=lambda: None):
        self.slept, self._now, self._meanwhile = 0.0, now, meanwhile
        self.clock = lease.Clock(lambda: self._now, self._sleep)

    def _sleep(self, seconds):
        assert seconds > 0
        self.slept += seconds
        self._now += seconds
        self._meanwhile()


@pytest.fixture(params=['disk', 'bucket'])
def folder(request, tmp_path):
    return paths.absolute(
        tmp_path / 'run' if request.param == 'disk' else request.getfixturevalue('bucket')
    )


def other(folder, **changes):
    """Leaves the lease of another owner in a folder; {} changes nothing of this process's."""
    owner = dataclasses.replace(lease.me(lease.Clock(lambda: 1e9)), host='other', **changes)
    swap.replace(folder / lease.FILE, lease._text(owner), swap.read(folder / lease.FILE))
    return owner


def taken(folder, time=None):
    lines = []
    made = lease.taken(folder, lines.append, (time or Time()).clock)
    made.check()
    return made, lines


def content(folder):
    return json.loads((folder / lease.FILE).read_text())


def test_the_second_is_refused_and_the_next_is_not(folder):
    with lease.held(folder, print):
        assert content(folder)['process'] == os.getpid()
        with pytest.raises(UserError, match='another training is at work there, process') as no:
            taken(folder)
        assert '\n' not in str(no.value)
    assert not (folder / lease.FILE).exists()
    taken(folder)


def test_an_owner_that_was_killed_is_gone_at_once(folder):
    process = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE)
    other(folder, process=process.pid, born=lease.born(process.pid))
    with pytest.raises(UserError, match=f'process {process.pid} of other'):
        taken(folder)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # nobody has asked for its end yet
    time = Time()
    assert taken(folder, time)[1] == []
    assert time.slept == 0
    process.communicate()
    other(folder, process=os.getpid(), born='another process had this number')
    taken(folder)


@pytest.mark.parametrize(('age', 'waits'), [(3600, 0), (45, 15), (-9999, lease.SILENCE)])
def test_an_owner_elsewhere_is_gone_when_it_is_silent(age, waits, folder):
    """A clock that is wrong cannot make it wait for longer."""
    other(folder, machine='elsewhere', alive=1e9 - age)
    time = Time()
    _, lines = taken(folder, time)
    assert time.slept == pytest.approx(waits, abs=1)
    assert lines == ([f'waiting for a sign of life of process {os.getpid()} of other, at most '
                      f'{waits:.0f} s'] if waits else [])  # fmt: skip
    assert content(folder)['host'] != 'other'


def test_an_owner_elsewhere_that_gives_a_sign_of_life_is_not_disturbed(folder):
    owner = other(folder, machine='elsewhere', alive=1e9 - 7)
    again = lambda: time.slept > 9 and other(folder, **named(owner), alive=1e9 + 3)
    time = Time(meanwhile=again)
    with pytest.raises(UserError, match='another training'):
        taken(folder, time)
    assert time.slept < 20
    assert content(folder)['token'] == owner.token


def named(owner):
    return {'token': owner.token, 'machine': owner.machine}


def test_of_two_that_come_together_one_is_refused(folder):
    other(folder, machine='elsewhere', alive=0.0)
    ends, both = [], threading.Barrier(6)

    def come():
        both.wait()
        try:
            ends.append(taken(folder)[0])
        except UserError as error:
            ends.append(error)

    threads = [threading.Thread(target=come) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(isinstance(end, lease.Lease) for end in ends) == 1


def test_who_was_taken_for_gone_ends(folder):
    mine, _ = taken(folder)
    mine.beat()
    mine.check()
    later = other(folder)
    mine.beat()
    with pytest.raises(UserError, match=r'taken over by process .* of other.*saves nothing'):
        mine.check()
    mine.leave()
    assert content(folder)['token'] == later.token


@pytest.mark.parametrize('text', ['{"owner"', '[]', '{"alive": 1}', None])
def test_a_file_that_is_no_lease_is_none(text, folder):
    if text is None:
        text = json.dumps({**dataclasses.asdict(other(folder)), 'alive': 'for ever'})
    swap.replace(folder / lease.FILE, text, swap.read(folder / lease.FILE))
    taken(folder)
    assert content(folder)['process'] == os.getpid()


def test_a_sign_of_life_that_is_stored_and_not_answered_is_no_other(bucket, faults, hurried):
    folder = paths.absolute(bucket)
    faults.use(Rule('stored', 'POST .*lease'), Rule('stored', 'POST .*lease', after=1))
    mine, _ = taken(folder)
    mine.beat()
    mine.check()
    assert faults.met == {0: 1, 1: 1}
    faults.use(Rule('403', 'POST .*lease'))
    mine.beat()  # is not heard
    mine.beat()
    mine.check()
    mine.leave()
    faults.use()
    with pytest.raises(FileNotFoundError):
        gcs.text(f'{bucket}/lease.json')

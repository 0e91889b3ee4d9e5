"""local.sh with real processes: a small program in place of emigm."""

import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

from support.launchers import LAUNCH, Desk


@pytest.fixture
def desk(tmp_path):
    return Desk(tmp_path)


@pytest.fixture
def heeded():
    """SIGINT is ignored where the tests run in the background, and would be in all they start."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


# What process I does at its n-th start: SCRIPT is a table of I -> words, the last one stays.
#   CODE: ends with it    wait: ends with 75 at SIGTERM, with 130 at SIGINT
#   deaf: takes no notice of SIGTERM    lost: ends with 75 a little later
# Nobody does anything before all have started.
PROGRAM = """
import json, os, pathlib, signal, sys, time
mine = sys.argv[sys.argv.index('--process-id') + 1]
count = pathlib.Path(os.environ['HOME'], 'starts' + mine)
n = int(count.read_text()) if count.exists() else 0
count.write_text(str(n + 1))
words = json.loads(os.environ['SCRIPT'])[mine]
word = words[min(n, len(words) - 1)]
def end(number, _):
    # Not by print, which the signal may have come in the middle of.
    os.write(1, (signal.Signals(number).name + '\\n').encode())
    os._exit(75 if number == signal.SIGTERM else 130)
signal.signal(signal.SIGTERM, signal.SIG_IGN if word == 'deaf' else end)
signal.signal(signal.SIGINT, end)
print('start', n, *sys.argv[1:], flush=True)
print('to stderr', file=sys.stderr, flush=True)
def here(process):
    return pathlib.Path(os.environ['HOME'], f'here{process}-{n}')
here(mine).touch()
while not all(here(process).exists() for process in json.loads(os.environ['SCRIPT'])):
    time.sleep(0.01)
if word == 'lost':
    time.sleep(0.2)
    sys.exit(75)
if word in ('wait', 'deaf'):
    time.sleep(60)
sys.exit(int(word))
"""


@pytest.fixture
def local(desk, tmp_path):
    (tmp_path / 'program.py').write_text(PROGRAM)
    command = [sys.executable, str(tmp_path / 'program.py')]

    def run(script, **environment):
        words = ', '.join(f'"{i}": {list(map(str, w))}' for i, w in enumerate(script))
        table = '{' + words.replace("'", '"') + '}'
        started = time.monotonic()
        ran = desk.run('local.sh', str(len(script)), '--', *command, SCRIPT=table, **environment)
        assert time.monotonic() - started < 30
        assert not list(tmp_path.glob('tmp.*'))  # no pipes are left
        return ran

    run.command = command
    return run


def starts(ran):
    return sorted(re.findall(r'^(\[\d\] start \d)', ran.out, re.M))


def test_all_end_well(local):
    ran = local([['0'], ['0']])
    assert ran.code == 0
    ports = set()
    for i in range(2):
        line = re.search(rf'^\[{i}\] start 0 (.*)$', ran.out, re.M)[1]
        port, rest = re.fullmatch(r'--coordinator 127\.0\.0\.1:(\d+) (.*)', line).groups()
        assert rest == f'--num-processes 2 --process-id {i}'
        ports.add(port)
        assert f'[{i}] to stderr\n' in ran.err
    assert len(ports) == 1


def test_one_fails_and_ends_the_others(local):
    ran = local([['wait'], ['3'], ['wait']])
    assert ran.code == 3
    assert '[0] SIGTERM' in ran.out
    assert '[2] SIGTERM' in ran.out
    assert 'process 1 ended with exit code 3' in ran.err
    assert len(starts(ran)) == 3


def test_one_fails_and_the_others_do_not_listen(local):
    ran = local([['deaf'], ['3']], GRACE='1')
    assert ran.code == 3


def test_a_failure_counts_more_than_those_that_lost_it(local):
    assert local([['lost'], ['1']], RESTARTS='0').code == 1


def test_ending_those_that_hang_is_no_failure(local):
    assert local([['75'], ['deaf'], ['lost']], GRACE='1', RESTARTS='0').code == 75


def test_75_starts_all_again(local):
    ran = local([['75', '75', '0'], ['lost', 'wait', '0']], GRACE='2')
    assert ran.code == 0
    assert starts(ran) == [f'[{i}] start {n}' for i in range(2) for n in range(3)]
    assert 'restart 2 of 3' in ran.err
    # The second time process 1 did not notice, and was told.
    assert ran.out.count('[1] SIGTERM') == 1


def test_restarts_are_counted(local):
    ran = local([['75']], RESTARTS='2')
    assert ran.code == 75
    assert len(starts(ran)) == 3
    assert 'gave up after 2 restarts' in ran.err


@pytest.mark.parametrize(('number', 'code'), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_signals_reach_all_once_and_nothing_is_restarted(local, desk, heeded, number, code):
    process = subprocess.Popen(
        [str(LAUNCH / 'local.sh'), '2', '--', *local.command],
        env={**desk.environment, 'SCRIPT': '{"0": ["wait"], "1": ["wait"]}'},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    lines = [process.stdout.readline() for _ in range(2)]
    assert all(' start 0 ' in line for line in lines)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does it
    else:
        process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == code
    assert sorted(out.split()) == sorted(['[0]', number.name, '[1]', number.name])
    assert 'restart' not in err


def test_the_last_lines_are_printed_before_it_ends(local, desk, tmp_path):
    slow = tmp_path / 'bin' / 'sed'
    slow.write_text(f'#!/bin/bash\nsleep 0.5\nexec {shutil.which("sed")} "$@"\n')
    slow.chmod(0o755)
    with (tmp_path / 'out').open('w') as out:
        command = [str(LAUNCH / 'local.sh'), '1', '--', 'bash', '-c', 'echo last; exit 3']
        done = subprocess.run(command, env=desk.environment, stdout=out, stderr=subprocess.DEVNULL)
        assert done.returncode == 3
    assert (tmp_path / 'out').read_text() == '[0] last\n'


def test_what_a_process_leaves_behind_is_ended(local, desk, tmp_path):
    child = 'import time; time.sleep(60)'
    mother = (
        'import pathlib, subprocess, sys; '
        f'child = subprocess.Popen([sys.executable, "-c", {child!r}]); '
        f'pathlib.Path({str(tmp_path / "child")!r}).write_text(str(child.pid)); sys.exit(4)'
    )
    ran = desk.run('local.sh', '1', '--', sys.executable, '-c', mother)
    assert ran.code == 4
    stat = pathlib.Path('/proc', (tmp_path / 'child').read_text(), 'stat')
    assert not stat.exists() or stat.read_text().rsplit(')')[1].split()[0] == 'Z'


@pytest.mark.parametrize(
    ('environment', 'settings'),
    [
        ({}, ['', '']),
        (
            {'DEVICES': '4', 'XLA_FLAGS': '--xla_a=b'},
            2
            * ["JAX_PLATFORMS=cpu 'XLA_FLAGS=--xla_a=b --xla_force_host_platform_device_count=4' "],
        ),
        (
            {'CUDA_VISIBLE_DEVICES': '4,5,6,7'},
            ['CUDA_VISIBLE_DEVICES=4,5 ', 'CUDA_VISIBLE_DEVICES=6,7 '],
        ),
        (
            {'CUDA_VISIBLE_DEVICES': '4,5,6', 'GPUS': '1'},
            ['CUDA_VISIBLE_DEVICES=4 ', 'CUDA_VISIBLE_DEVICES=5 '],
        ),
        ({'CUDA_VISIBLE_DEVICES': '4', 'GPUS': '0'}, ['', '']),
    ],
)
def test_dry_run_and_devices(desk, environment, settings):
    ran = desk.run('local.sh', '2', '--dry-run', '--', 'emigm', 'a b', PORT='9', **environment)
    common = "emigm 'a b' --coordinator 127.0.0.1:9 --num-processes 2 --process-id"
    assert ran.out == ''.join(f'env {s}{common} {i}\n' for i, s in enumerate(settings))


def test_gpus_of_the_machine_are_divided(desk):
    desk.answer(
        'nvidia-smi -L', ''.join(f'GPU {i}: NVIDIA H100 (UUID: GPU-{i})\n' for i in range(8))
    )
    ran = desk.run('local.sh', '4', '--dry-run', '--', 'emigm')
    shown = re.findall(r'CUDA_VISIBLE_DEVICES=(\S+)', ran.out)
    assert shown == ['0,1', '2,3', '4,5', '6,7']

"""tpu_vm.sh with a fake gcloud."""

import re
import shutil
import subprocess

import pytest

from support.launchers import TRAIN, TRAIN_QUOTED, Desk


@pytest.fixture
def desk(tmp_path):
    return Desk(tmp_path)


TPU = {'ZONE': 'z', 'TPU_TYPE': 'v5litepod-16'}
QUEUED = 'gcloud compute tpus queued-resources'
DESCRIBE = f'{QUEUED} describe a --format=value(state.state)'
CREATE = (
    f'{QUEUED} create a --node-id=a --accelerator-type=v5litepod-16 '
    '--runtime-version=v2-alpha-tpuv5-lite --spot'
)
DELETE = f'{QUEUED} delete a --force --quiet'
SSH = 'gcloud compute tpus tpu-vm ssh a'
INSTALL = (
    f'{SSH} --command=rm -rf emigm_jax && mkdir emigm_jax && tar -xzf emigm_jax.tgz -C emigm_jax '
    '&& bash emigm_jax/launch/tpu_worker.sh install'
)
START = f'{SSH} --command=bash emigm_jax/launch/tpu_worker.sh start {TRAIN_QUOTED}'
FOLLOW = f'{SSH} --command=bash emigm_jax/launch/tpu_worker.sh follow'
STATUS = f'{SSH} --command=test ! -d emigm_jax || bash emigm_jax/launch/tpu_worker.sh status'
ABSENT = (1, 'ERROR: (gcloud.compute.tpus.queued-resources.describe) NOT_FOUND: ...')


def tpu_run(desk, states, statuses, **environment):
    """`tpu_vm.sh run a` with answers to describe and status; the calls, scp's folder left out."""
    desk.answer('* describe *', *states)
    desk.answer('*tpu_worker.sh status*', *statuses)
    ran = desk.run('tpu_vm.sh', 'run', 'a', '--', *TRAIN, **{**TPU, **environment})
    calls = [re.sub(r'scp \S+/emigm_jax.tgz a:emigm_jax.tgz', 'scp', c) for c in ran.commands()]
    return ran, calls


SCP = 'gcloud compute tpus tpu-vm scp'


def test_tpu_run_from_nothing_to_the_end(desk):
    states = [ABSENT, 'WAITING_FOR_RESOURCES', 'PROVISIONING', 'ACTIVE']
    ran, calls = tpu_run(desk, states, ['0\n0'])
    assert ran.code == 0
    waits = [DESCRIBE, CREATE, DESCRIBE, DESCRIBE, DESCRIBE]
    assert calls == [*waits, SCP, INSTALL, START, FOLLOW, STATUS]
    assert 'WAITING_FOR_RESOURCES' in ran.err
    assert 'tpu_vm.sh delete a' in ran.err


def test_tpu_bundle_holds_the_checkout(desk, tmp_path):
    fake = tmp_path / 'bin' / 'gcloud'
    fake.write_text(f'#!/bin/bash\n[[ $4 == scp ]] && cp "$5" {tmp_path}/kept.tgz\nexit 0\n')
    assert desk.run('tpu_vm.sh', 'setup', 'a', **TPU).code == 0
    command = ['tar', '-tzf', f'{tmp_path}/kept.tgz']
    names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert {'setup.py', 'README.md', 'launch/tpu_worker.sh', 'configs/digits.py'} <= set(names)
    assert 'emigm_jax/cli/train.py' in names
    assert not [n for n in names if '__pycache__' in n]
    assert not list(tmp_path.glob('tmp.*'))  # the scratch folder is gone


def test_tpu_run_starts_again_on_75(desk):
    ran, calls = tpu_run(desk, ['ACTIVE'], ['none\nnone', '75\n75', '0\n75', '0\n0'])
    assert ran.code == 0
    again = [START, FOLLOW, STATUS, DESCRIBE]
    assert calls == [DESCRIBE, STATUS, SCP, INSTALL, *again, *again, START, FOLLOW, STATUS]
    assert 'restart 2 of 100' in ran.err


def test_tpu_run_gives_up(desk):
    ran, calls = tpu_run(desk, ['ACTIVE'], ['none', '75'], RESTARTS='1')
    assert ran.code == 75
    assert calls.count(START) == 2
    assert 'gave up after 1 restarts' in ran.err


@pytest.mark.parametrize(
    ('status', 'code', 'message'),
    [
        (
            '75\n1\n75',
            1,
            'failed with exit code 1',
        ),  # whatever those say that lost it
        ('0\n137', 137, 'failed with exit code 137'),
        ('stopped\n75', 75, 'was stopped'),
    ],
)
def test_tpu_run_reports_other_ends(desk, status, code, message):
    ran, calls = tpu_run(desk, ['ACTIVE'], ['none', status])
    assert ran.code == code
    assert calls.count(START) == 1
    assert message in ran.err


@pytest.mark.parametrize('state', ['SUSPENDING', 'SUSPENDED', 'FAILED'])
def test_tpu_run_survives_preemption(desk, state):
    states = ['ACTIVE', state, state, ABSENT, 'PROVISIONING', 'ACTIVE']
    ran, calls = tpu_run(desk, states, ['none', (255, 'ssh: gone'), '0'])
    assert ran.code == 0
    before = [DESCRIBE, STATUS, SCP, INSTALL, START, FOLLOW, STATUS, DESCRIBE]
    anew = [DESCRIBE, DELETE, DESCRIBE, CREATE, DESCRIBE, DESCRIBE]
    assert calls == [*before, *anew, SCP, INSTALL, START, FOLLOW, STATUS]


def test_tpu_run_asks_anew_when_preempted_before(desk):
    ran, calls = tpu_run(desk, ['SUSPENDED', ABSENT, 'ACTIVE'], ['0'])
    assert ran.code == 0
    assert calls[:4] == [DESCRIBE, DELETE, DESCRIBE, CREATE]


def test_tpu_run_follows_what_runs_already(desk):
    # A broken connection is not an end either: the same command is looked at again.
    ran, calls = tpu_run(desk, ['ACTIVE'], ['running\nrunning', (255, ''), '75\nrunning', '0\n0'])
    assert ran.code == 0
    assert START not in calls
    assert SCP not in calls
    assert calls.count(FOLLOW) == 3


def test_tpu_run_after_a_reboot_of_the_workers(desk):
    ran, calls = tpu_run(desk, ['ACTIVE'], ['none', 'none\n75', '0\n0'])
    assert ran.code == 0
    assert calls.count(START) == 2
    assert calls.count(INSTALL) == 2


def test_tpu_run_never_asks_again_for_what_somebody_deleted(desk):
    ran, calls = tpu_run(desk, ['ACTIVE', ABSENT], ['none', (1, 'not found')])
    assert ran.code == 1
    assert CREATE not in calls
    assert 'a was deleted' in ran.err


def test_tpu_run_when_nothing_answers(desk):
    ran, calls = tpu_run(desk, ['ACTIVE'], [(255, '')], RETRIES='2')
    assert (ran.code, calls.count(FOLLOW)) == (1, 3)
    assert 'the workers of a do not answer, even after 2 retries' in ran.err
    desk.answer('* list *', 'rows')
    assert desk.run('tpu_vm.sh', 'list', **TPU).out == 'rows'


def test_tpu_create(desk):
    desk.answer('* describe *', (1, 'PERMISSION_DENIED'), ABSENT, 'PROVISIONING', 'FAILED')
    ran = desk.run('tpu_vm.sh', 'create', 'a', **TPU)
    assert ran.code == 1
    assert 'PERMISSION_DENIED' in ran.err
    assert 'the request failed; why: gcloud' in ran.err
    assert "'--format=yaml(state)'" in ran.err
    assert ran.commands() == [DESCRIBE, DESCRIBE, CREATE, DESCRIBE, DESCRIBE]


def test_tpu_create_is_refused(desk):
    desk.answer('* describe *', ABSENT)
    desk.answer('* create *', (1, 'no quota'))
    ran = desk.run('tpu_vm.sh', 'create', 'a', **TPU)
    assert ran.code == 1
    assert 'no quota' in ran.err
    assert 'gcloud did not create a' in ran.err


def test_tpu_start_is_tried_again_where_it_failed(desk):
    desk.answer('*tpu_worker.sh start*', (255, 'ssh: no route'), (1, 'running already'))
    ran, calls = tpu_run(desk, ['ACTIVE'], ['none', '0\n0'])
    assert ran.code == 0
    assert calls[-4:] == [START, START, FOLLOW, STATUS]


def test_tpu_delete_is_refused(desk):
    desk.answer('* describe *', 'SUSPENDED')
    desk.answer('* delete *', (1, 'busy'))
    ran = desk.run('tpu_vm.sh', 'create', 'a', **TPU, RETRIES='2')
    assert ran.code == 1
    assert ran.commands() == 3 * [DESCRIBE, DELETE]
    assert 'gcloud does not delete a, even after 2 retries' in ran.err


def test_tpu_setup_that_fails(desk):
    desk.answer('*tpu_worker.sh install*', (1, 'no space left'))
    ran, calls = tpu_run(desk, ['ACTIVE'], ['none'])
    assert ran.code == 1
    assert START not in calls
    assert 'the setup of a failed' in ran.err


@pytest.mark.parametrize(
    ('environment', 'nodes', 'kind', 'rest'),
    [
        ({}, '--node-id=a', 'v5litepod-16', 'v2-alpha-tpuv5-lite --spot'),
        (
            {'TPU_TYPE': 'v4-32', 'CAPACITY': 'on-demand'},
            '--node-id=a',
            'v4-32',
            'tpu-ubuntu2204-base',
        ),
        (
            {'TPU_TYPE': 'v6e-64', 'CAPACITY': 'reserved', 'SLICES': '2'},
            '--node-count=2 --node-prefix=a',
            'v6e-64',
            'v2-alpha-tpuv6e --reserved',
        ),
        (
            {'TPU_TYPE': 'v5p-8', 'RUNTIME': 'mine', 'CREATE_FLAGS': '--network=n --internal-ips'},
            '--node-id=a',
            'v5p-8',
            'mine --spot --network=n --internal-ips',
        ),
    ],
)
def test_tpu_create_flags(desk, environment, nodes, kind, rest):
    desk.answer('* describe *', ABSENT, 'ACTIVE')
    ran = desk.run('tpu_vm.sh', 'create', 'a', **{**TPU, **environment})
    assert ran.code == 0
    flags = f'{nodes} --accelerator-type={kind} --runtime-version={rest}'
    assert ran.commands()[1] == f'{QUEUED} create a {flags}'


def test_tpu_small_commands(desk):
    def call(verb, **environment):
        return desk.run('tpu_vm.sh', *verb.split(), ZONE='z', **environment).calls

    zone = '--zone=z'
    follow = '--command=bash emigm_jax/launch/tpu_worker.sh follow'
    assert call('logs a') == [[*SSH.split(), '--worker=all', follow, zone]]
    assert call('logs a', WORKER='3') == [[*SSH.split(), '--worker=3', follow, zone]]
    slices = [*QUEUED.split(), 'ssh', 'a', '--node=all', '--batch-size=all']
    assert call('logs a', SLICES='2') == [[*slices, '--worker=all', follow, zone]]
    stop = '--command=bash emigm_jax/launch/tpu_worker.sh stop'
    assert call('stop a') == [[*SSH.split(), '--worker=all', stop, zone]]
    assert call('list', PROJECT='p') == [[*QUEUED.split(), 'list', zone, '--project=p']]
    assert call('delete a') == [[*DELETE.split(), zone]]


def test_tpu_dry_run(desk):
    ran = desk.run('tpu_vm.sh', 'run', 'a', '--dry-run', '--', *TRAIN, **TPU)
    assert (ran.code, ran.calls) == (0, [])
    printed = ran.out.splitlines()
    quoted = TRAIN_QUOTED.replace("'", r"'\''")
    kinds = [
        'describe',
        'create',
        'tar -czf',
        'scp',
        'install',
        f'start {quoted}',
        'follow',
        'status',
    ]
    assert len(printed) == len(kinds)
    for line, kind in zip(printed, kinds, strict=True):
        assert kind in line
    # What is printed is what is run.
    desk.answer('* describe *', ABSENT, 'ACTIVE')
    desk.answer('*status*', '0')
    real = desk.run('tpu_vm.sh', 'run', 'a', '--', *TRAIN, **TPU).calls
    start = next(call for call in real if 'start' in call[-2])
    echo = subprocess.run(
        ['bash', '-c', f'gcloud() {{ printf "%s\\n" "$@"; }}; {printed[5]}'],
        capture_output=True,
        text=True,
        check=True,
    )
    assert echo.stdout.splitlines() == start[1:]


# gcloud with two pretended workers: each has a home folder here, in which commands are run.
TWO_WORKERS = """#!/usr/bin/env bash
case $4 in
  describe) echo ACTIVE ;;
  scp) for home in "$FAKES"/worker*; do cp "$5" "$home/${6#*:}"; done ;;
  ssh)
    for word in "$@"; do [[ $word == --command=* ]] && command=${word#*=}; done
    for home in "$FAKES"/worker*; do
      cd "$home" && HOME=$home HOSTNAME=t1v-n-1-w-${home: -1} bash -c "$command" & running+=($!)
    done
    for one in "${running[@]}"; do wait "$one" || exit; done
    ;;
esac
"""
TWICE = """#!/usr/bin/env bash
echo "$PWD, $#: $*"
[[ -f $HOME/before ]] && exit 0
touch "$HOME/before"
exit 75
"""


def test_tpu_run_and_its_workers_together(desk, tmp_path):
    """All but gcloud and pip is real: copied, unpacked, started, followed, started again."""
    if not shutil.which('flock'):
        pytest.skip('flock (util-linux) is not installed')
    homes = [tmp_path / 'worker0', tmp_path / 'worker1']
    for home in homes:
        home.mkdir()
    for name, text in [('gcloud', TWO_WORKERS), ('emigm', TWICE), ('python3', '#!/bin/bash\n')]:
        (tmp_path / 'bin' / name).write_text(text)
        (tmp_path / 'bin' / name).chmod(0o755)
    ran = desk.run('tpu_vm.sh', 'run', 'a', '--', *TRAIN, **TPU)
    assert ran.code == 0, ran.err
    assert 'restart 1 of 100' in ran.err
    for i, home in enumerate(homes):
        line = f'[{i}] {home}/emigm_jax, 5: {" ".join(TRAIN[1:])}\n'
        assert ran.out.count(line) == 2
        assert (home / 'emigm_jax' / 'configs' / 'digits.py').exists()
        assert (home / 'emigm_run' / 'exit').read_text() == '0\n'

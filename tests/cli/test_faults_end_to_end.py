"""Runs whose bucket fails at the start, in the middle and while they save: nothing is lost."""

import pathlib
import re
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from emigm_jax.checkpoints import runs, store
from emigm_jax.cli import main
from emigm_jax.io import lease, paths
from emigm_jax.training import metrics
from support.faulty_gcs import Rule
from support.processes import with_devices

ROOT = pathlib.Path(__file__).parents[2]
pytestmark = pytest.mark.filterwarnings('ignore:Sending a large body:ResourceWarning')


def command(workdir, total=12):
    changes = {
        'optimizer.lr_schedule': 'constant',
        'training.total': f'{total} steps',
        'training.log_every': '1 step',
        'training.checkpoint_every': '4 steps',
        'training.sample_every': '0 steps',
    }
    flags = [f'--config.{name}={value}' for name, value in changes.items()]
    config = f'{ROOT}/configs/digits.py:smoke'
    return ['train', '--config', config, *flags, '--workdir', str(workdir)]


def losses(workdir):
    return {line['step']: line['loss'] for line in metrics.read(workdir)}


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """The workdir of an undisturbed run."""
    workdir = tmp_path_factory.mktemp('whole')
    assert main.main(command(workdir)) == 0
    return workdir


def assert_same_end(workdir, other):
    left, right = (runs.require(place).load_params('params')[0] for place in (workdir, other))
    jax.tree.map(np.testing.assert_array_equal, left, right)
    assert losses(workdir) == losses(other)


@pytest.mark.slow
def test_faults_on_the_way_change_nothing(whole, bucket, faults, hurried):
    workdir = f'{bucket}/run'
    every = [
        *(Rule(fault, 'GET .*prefix=') for fault in ('503', '429', 'reset', 'slow')),
        *(Rule(fault, 'POST .*(lease|metrics)') for fault in ('503', 'stored', 'reset', '429')),
        *(Rule(fault, 'POST .*/d/') for fault in ('503', 'reset', '429', 'stored')),
        *(Rule(fault, f'POST .*{store.MARK}') for fault in ('stored', '503')),
        *(Rule(fault, f'POST .*{store.COMMIT_MARK}') for fault in ('stored', 'reset')),
        *(Rule(fault, 'POST .*(config.json|tensorboard)') for fault in ('stored', '503')),
    ]
    reading = [
        *(Rule(fault, f'GET .*{store.MARK}.*alt=media') for fault in ('short', '503')),
        *(Rule(fault, 'GET .*/d/') for fault in ('short', 'reset', '503')),
        Rule('short', 'GET .*metrics.jsonl'),
    ]
    for total, rules in ((8, every), (12, [*every, *reading])):
        faults.use(*rules)
        assert main.main(command(workdir, total)) == 0
        assert len(faults.met) == len(rules)
        faults.use()
    assert_same_end(workdir, whole)
    assert not (paths.absolute(workdir) / lease.FILE).exists()


@pytest.mark.slow
@pytest.mark.parametrize(('fault', 'code'), [('503', 75), ('403', 2)])
def test_a_bucket_that_is_gone_ends_the_run_which_then_goes_on(
    fault, code, whole, bucket, faults, tmp_path
):
    workdir, sign, log = f'{bucket}/run', tmp_path / 'sign', tmp_path / 'log'
    argv = [sys.executable, '-m', 'support.hurried', '6', str(sign), *command(workdir)]
    env = {**with_devices(8), 'PYTHONPATH': f'{ROOT}:{ROOT}/tests'}
    with log.open('w') as f, subprocess.Popen(argv, stdout=f, stderr=f, env=env) as process:
        while not sign.exists() and process.poll() is None:
            time.sleep(0.01)
        faults.use(Rule(fault, times=10**9))
        while 'emigm: ' not in log.read_text() and process.poll() is None:
            time.sleep(0.01)
        told = time.monotonic()
        assert process.wait(60) == code, log.read_text()
        assert time.monotonic() - told < 10
    text = log.read_text()
    assert 'Traceback' not in text
    assert len(re.findall('^emigm: ', text, re.M)) == 1
    assert ('trying again' in text) == (fault == '503')
    faults.use()
    assert main.main(command(workdir)) == 0
    assert_same_end(workdir, whole)


def test_a_bucket_that_is_gone_at_the_start(bucket, faults, hurried, capsys):
    for fault, code in (('503', 75), ('403', 2)):
        faults.use(Rule(fault, times=10**9))
        assert main.main(command(f'{bucket}/run')) == code
        said = [line for line in capsys.readouterr().err.splitlines() if 'trying again' not in line]
        assert len(said) == 1
        assert said[0].startswith(f'emigm: {bucket}/run: ')


@pytest.mark.parametrize('remote', [False, True])
def test_a_second_training_is_refused(remote, bucket, tmp_path, capsys):
    workdir = paths.absolute(bucket if remote else tmp_path / 'run')
    with lease.held(workdir, print):
        assert main.main(command(workdir)) == 2
        assert [path.name for path in workdir.iterdir()] == [lease.FILE]
    said = capsys.readouterr().err
    assert said.startswith(f'emigm: {workdir}: another training is at work there, process ')
    assert said.count('\n') == 1

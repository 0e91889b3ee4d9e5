"""Runs of several processes, machines that are taken away, checkpoints that are damaged."""

import dataclasses
import gc
import http.server
import json
import os
import pathlib
import random
import shutil
import signal
import sys
import threading
import time

import jax
import numpy as np
import pytest
from PIL import Image

from emigm_jax.checkpoints import runs
from emigm_jax.cli import main
from emigm_jax.config.load import load_config
from emigm_jax.errors import Unavailable, UserError
from emigm_jax.parallel import agreement, preemption, processes
from emigm_jax.training import loop, metrics
from support.processes import Run, free_port

ROOT = pathlib.Path(__file__).parents[2]
SMOKE = f'{ROOT}/configs/digits.py:smoke'
# Files of a checkpoint that may be damaged.
PARTS = [
    pytest.param('state', id='index', marks=pytest.mark.slow),
    pytest.param('state/ocdbt.process_0', id='arrays'),
]
KILLS = int(os.environ.get('EMIGM_KILLS', '4'))
SETTINGS = ['--config.optimizer.lr_schedule=constant', '--config.training.sample_every=0 steps']


def train(workdir, **training):
    changed = [f'--config.training.{name}={value}' for name, value in training.items()]
    return ['train', '--config', SMOKE, '--workdir', str(workdir), *SETTINGS, *changed]


def final_params(workdir):
    return runs.require(workdir).load_params('params')[0]


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def smoke(**training):
    config = load_config(SMOKE, SETTINGS)
    return dataclasses.replace(config, training=dataclasses.replace(config.training, **training))


# --- One process ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_sigterm_saves_the_step_it_is_at(tmp_path, monkeypatch):
    monkeypatch.setattr(
        metrics.Metrics,
        'write',
        lambda self, step, *_: signal.raise_signal(signal.SIGTERM) if step == 4 else None,
    )
    with pytest.raises(loop.Preempted, match=r'^asked to end by SIGTERM: saved step 5 '):
        loop.train(smoke(log_every='4 steps', checkpoint_every='12 steps'), tmp_path)
    assert [p.name for p in runs.finished(tmp_path)] == ['5']
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    monkeypatch.setattr(
        loop, 'train', lambda *_: (_ for _ in ()).throw(loop.Preempted('saved step 5 in x'))
    )
    assert main.main(train(tmp_path)) == processes.RESTART


@pytest.mark.slow
def test_sigterm_in_an_evaluation_ends_it_and_loses_no_step(tmp_path):
    def evaluate(ema, step):
        assert step == 4
        signal.raise_signal(signal.SIGTERM)
        raise AssertionError('the evaluation goes on')

    config = smoke(checkpoint_every='12 steps')
    config = dataclasses.replace(
        config, evaluation=dataclasses.replace(config.evaluation, every='4 steps')
    )
    with pytest.raises(loop.Preempted, match=r'^asked to end by SIGTERM: saved step 4 '):
        loop.train(config, tmp_path, lambda config, data: evaluate)
    assert [p.name for p in runs.finished(tmp_path)] == ['4']
    # What was broken off comes first when the run goes on.
    measured = []
    scores = lambda ema, step: measured.append(step) or {'fid': 5.0 - step}
    for _ in range(2):
        loop.train(config, tmp_path, lambda config, data: scores)
        assert measured == [4, 8, 12]
    assert [line['step'] for line in metrics.read(tmp_path) if 'fid' in line] == [4, 8, 12]
    assert (tmp_path / 'checkpoints/12/metrics/metrics').read_text() == '{"fid": -7.0}'


def test_a_maintenance_notice_is_a_sigterm(monkeypatch):
    said = {'instance/id': '1', 'instance/preempted': 'FALSE', 'instance/maintenance-event': 'NONE'}

    class Metadata(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            assert self.headers['Metadata-Flavor'] == 'Google'
            self.send_response(200)
            self.end_headers()
            self.wfile.write(said[self.path.removeprefix('/computeMetadata/v1/')].encode())

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Metadata)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv('GCE_METADATA_HOST', f'127.0.0.1:{server.server_port}')
    monkeypatch.setattr(preemption, 'POLL', 0.05)
    with preemption.Watch() as watch:
        time.sleep(0.3)
        assert not watch.due(1)
        assert 'machine' not in watch.reason
        said['instance/maintenance-event'] = 'TERMINATE_ON_HOST_MAINTENANCE'
        end = time.monotonic() + 20
        while not watch.due(2):
            assert time.monotonic() < end
            time.sleep(0.02)
        assert watch.reason == 'this machine is about to be taken away'
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize('part', PARTS)
def test_a_damaged_checkpoint_is_stepped_over_and_replaced(part, tmp_path, capsys, monkeypatch):
    config = smoke(total='12 steps', checkpoint_every='6 steps')
    whole = loop.train(config, tmp_path)
    for file in (tmp_path / 'checkpoints' / '12' / part).rglob('d/*'):
        file.write_bytes(file.read_bytes()[:20])
    capsys.readouterr()
    stray = []
    monkeypatch.setattr(sys, 'unraisablehook', stray.append)
    again = loop.train(config, tmp_path)
    gc.collect()
    said = capsys.readouterr().out
    assert f'{tmp_path}/checkpoints/12: the checkpoint is damaged' in said
    assert 'going on from the checkpoint before it' in said
    assert 'resumed from step 6' in said
    # One line tells what cannot be read; the many reads that fail later say nothing.
    assert not stray
    assert 'TensorStore details' not in said
    assert_same(again, whole)
    assert_same(final_params(tmp_path), whole['params'])


@pytest.mark.slow
def test_which_checkpoints_are_kept(tmp_path):
    fid = iter([9.0, 3.0, 5.0, 7.0, 6.0, 8.0])
    evaluator = lambda config, data: lambda ema, step: {'fid': next(fid)}
    config = smoke(total='12 steps', checkpoint_every='12 steps', keep=1, keep_every='6 steps')
    evaluation = dataclasses.replace(config.evaluation, every='2 steps')
    loop.train(dataclasses.replace(config, evaluation=evaluation), tmp_path, evaluator)
    # The newest, those at multiples of 6, and the one with the lowest FID: what is scored is saved.
    assert [p.name for p in runs.finished(tmp_path)] == ['12', '6', '4']
    lines = [line for line in metrics.read(tmp_path) if 'fid' in line]
    assert [(line['step'], line['fid']) for line in lines][:2] == [(2, 9.0), (4, 3.0)]


@pytest.mark.parametrize(
    ('flags', 'says'),
    [
        (('--coordinator', 'here'), 'go together'),
        (('--coordinator', 'here', '--num-processes', '2', '--process-id', '0'), 'HOST:PORT'),
        (('--coordinator', 'a:1', '--num-processes', '2', '--process-id', '2'), '0 to 1'),
        (('--config.mesh.fsdp=3',), 'mesh.fsdp = 3'),
        (('--config.training.batch_size=12',), 'multiple of 8'),
    ],
)
def test_refusals(flags, says, capsys, tmp_path):
    workdir = tmp_path / 'run'
    assert main.main([*train(workdir), *flags]) == 2
    message = capsys.readouterr().err.strip()
    assert says in message
    assert '\n' not in message
    assert not workdir.exists()


def test_one_process_of_one_needs_no_coordinator():
    processes.start('127.0.0.1:1', 1, 0)
    assert not jax.distributed.is_initialized()


def test_what_may_work_later_ends_all_processes_with_the_code_of_a_restart(monkeypatch):
    def fails():
        raise Unavailable('gs://b: no answer')

    def end(code):
        raise SystemExit(code)

    monkeypatch.setattr(jax, 'process_count', lambda: 2)
    monkeypatch.setattr(jax.distributed, 'is_initialized', lambda: True)
    monkeypatch.setattr(agreement, 'gather', lambda rows: rows)
    monkeypatch.setattr(processes.os, '_exit', end)
    with pytest.raises(Unavailable, match=r'^gs://b: no answer$'):
        agreement.agreed(fails)
    for error, code in ((Unavailable('x'), processes.RESTART), (UserError('x'), 2)):
        with pytest.raises(SystemExit) as ended, processes.together():
            raise error
        assert ended.value.code == code


def test_an_unreachable_coordinator(tmp_path):
    flags = [
        '--coordinator',
        f'127.0.0.1:{free_port()}',
        '--num-processes',
        '2',
        '--process-id',
        '1',
        '--join-timeout',
        '1',
    ]
    run = Run(tmp_path / 'run', [*train(tmp_path / 'run'), *flags])
    assert run.codes() == [processes.RESTART]  # the others may come up later
    assert 'no connection with all processes through 127.0.0.1' in run.output().splitlines()[-1]
    assert not (tmp_path / 'run').exists()


# --- Two processes -------------------------------------------------------------------------------


LAST, EVERY = 60, 12  # steps of `two`, and between its checkpoints


@pytest.fixture(scope='module')
def two(tmp_path_factory):
    """The folder of a run of two processes, with two devices each, that nobody disturbs."""
    folder = tmp_path_factory.mktemp('two') / 'run'
    often = dict(checkpoint_every=f'{EVERY} steps', sample_every=f'{EVERY} steps', keep=LAST)
    often['total'] = f'{LAST} steps'
    run = Run(folder, train(folder, **often), 2, 2)
    assert run.codes() == [0, 0], run.output()
    assert 'done' in run.output() and 'done' not in run.output(1)  # the first speaks for both
    return folder


def params_at(workdir, step):
    return runs.require(workdir / 'checkpoints' / str(step)).load_params('params')[0]


@pytest.mark.slow
def test_two_processes_are_one_run(two, tmp_path):
    every = f'{EVERY} steps'
    command = train(tmp_path / 'one', total=every, checkpoint_every=every, sample_every=every)
    run = Run(tmp_path / 'one', command, 1, 4)
    assert run.codes() == [0], run.output()
    expected = metrics.read(tmp_path / 'one')
    found = metrics.read(two)[: len(expected)]
    assert [line['step'] for line in found] == [line['step'] for line in expected]
    assert {line['slowest_process'] for line in found if 'loss' in line} <= {0, 1}
    assert not any('slowest_process' in line for line in expected)
    for name in ('loss', 'gradient_norm'):
        np.testing.assert_allclose(
            [line[name] for line in found], [line[name] for line in expected], rtol=1e-5
        )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6),
        params_at(two, EVERY),
        final_params(tmp_path / 'one'),
    )
    left, right = (
        np.asarray(Image.open(folder / f'samples/{EVERY:08}.png'), int)
        for folder in (two, tmp_path / 'one')
    )
    assert np.abs(left - right).max() <= 2
    # What two processes wrote, one goes on with, cut otherwise.
    shutil.copytree(two, tmp_path / 'two')
    command = [
        *train(tmp_path / 'two', total=f'{LAST + 2} steps'),
        '--config.mesh.data=1',
        '--config.mesh.fsdp=4',
    ]
    run = Run(tmp_path / 'two', command, 1, 4)
    assert run.codes() == [0], run.output()
    assert f'resumed from step {LAST}' in run.output()


@pytest.mark.slow
def test_a_killed_process_ends_the_run_which_then_goes_on_exactly(two, tmp_path):
    endless = train(tmp_path / 'run', total='100000 steps', checkpoint_every='4 steps')
    for victim in (1, 0):
        run = Run(tmp_path / 'run', endless, 2, 2)
        run.await_text('step 8/' if victim else 'step 16/')
        run.processes[victim].kill()
        start = time.monotonic()
        codes = run.codes(60)
        assert time.monotonic() - start < 60
        assert codes[1 - victim] == processes.RESTART
        assert f'(code {processes.RESTART})' in run.output(1 - victim).splitlines()[-1]
    reached = runs.require(tmp_path / 'run').step
    assert reached >= 8
    last = EVERY * (reached // EVERY + 1)
    assert last <= LAST
    run = Run(tmp_path / 'run', train(tmp_path / 'run', total=f'{last} steps'), 2, 2)
    assert run.codes() == [0, 0], run.output()
    assert_same(final_params(tmp_path / 'run'), params_at(two, last))


@pytest.mark.slow
def test_sigterm_at_one_of_two_processes(tmp_path):
    command = train(
        tmp_path / 'run', total='100000 steps', checkpoint_every='100000 steps', log_every='1 step'
    )
    run = Run(tmp_path / 'run', command, 2, 2)
    run.await_text('step 3/')
    run.processes[1].send_signal(signal.SIGTERM)
    assert run.codes() == [processes.RESTART] * 2
    saved = runs.require(tmp_path / 'run').step
    assert saved >= 3
    assert f'saved step {saved} ' in run.output()


@pytest.mark.slow
def test_kills_lose_nothing(tmp_path):
    """Killed at random moments, saving included: each start resumes, and nothing differs at the
    end."""
    often = dict(total='400 steps', checkpoint_every='1 step')
    command, moments, reached = train(tmp_path / 'run', **often), random.Random(0), 0
    longest = 3.0
    for kill in range(KILLS):
        run = Run(tmp_path / 'run', command, 1, 2)
        run.await_text(f'step {reached + 1}/')
        if not kill:
            # Disks differ: half of the kills, at least, come when a step has been saved.
            start = time.monotonic()
            run.await_text('step 5/')
            longest = max(longest, 2 * (time.monotonic() - start) / 4)
        time.sleep(moments.uniform(0.0, longest))
        run.kill()
        if reached:
            assert f'resumed from step {reached}' in run.output()
        saved = runs.find(tmp_path / 'run')  # None: the first was not finished yet
        reached = saved.step if saved else 0
    assert reached >= 3
    lines = (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()
    assert all(json.loads(line)['step'] for line in lines[:-1])
    total = f'{reached + 2} steps'
    for name in ('run', 'whole'):
        run = Run(tmp_path / name, train(tmp_path / name, total=total), 1, 2)
        assert run.codes() == [0], run.output()
    assert_same(final_params(tmp_path / 'run'), final_params(tmp_path / 'whole'))

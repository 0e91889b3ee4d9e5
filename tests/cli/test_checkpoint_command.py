"""`emigm checkpoint`: what it lists and tells; copies that are whole or not there at all."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from emigm_jax.checkpoints import copy, runs, store
from emigm_jax.cli import main
from emigm_jax.errors import UserError
from emigm_jax.io import files, paths
from support.runs import SMOKE, run, state, write_run  # noqa: F401 (fixtures)

ROOT = pathlib.Path(__file__).parents[2]
PARAMETERS = 72_992  # of the smoke model, with two EMAs of it here
pytestmark = pytest.mark.filterwarnings('ignore:Sending a large body:ResourceWarning')


def emigm(*command):
    assert main.main(['checkpoint', *map(str, command)]) == 0


def shown(capsys, *command):
    capsys.readouterr()
    emigm(*command, '--json', '-')
    return json.loads(capsys.readouterr().out)


def same(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)


def contents(path):
    """{name: bytes} of a checkpoint's files but the mark of its end."""
    path = paths.absolute(path)
    return {n: (path / n).read_bytes() for n in copy.listing(path) if n != store.COMMIT_MARK}


def test_ls(run, state, bucket, tmp_path, capsys):
    (run / 'checkpoints/15.orbax-checkpoint-tmp').mkdir()
    found = shown(capsys, 'ls', run)
    (run / 'checkpoints/15.orbax-checkpoint-tmp').rmdir()
    assert [(e['name'], e['step'], e['finished']) for e in found] == [
        ('5', 5, True),
        ('10', 10, True),
        ('15.orbax-checkpoint-tmp', None, False),
    ]
    on_disk = sum(f.stat().st_size for f in (run / 'checkpoints/10').rglob('*') if f.is_file())
    assert found[1]['size'] == on_disk
    assert found[1]['changed'] >= '2024'

    emigm('copy', run, f'{bucket}/run', '--step', '5')
    emigm('copy', run / 'checkpoints/10', f'{bucket}/run/checkpoints/10')
    paths.absolute(f'{bucket}/run/checkpoints/10/{store.COMMIT_MARK}').unlink()
    capsys.readouterr()
    emigm('ls', f'{bucket}/run', '--json', f'{bucket}/ls.json')
    table = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in table] == ['checkpoint', '5', '10']
    assert [line.endswith('not finished') for line in table[1:]] == [False, True]
    assert [e['step'] for e in json.loads(paths.absolute(f'{bucket}/ls.json').read_text())] == [
        5,
        10,
    ]
    # A folder of models, and a model itself.
    store.save(f'{bucket}/models/small', {'params': {'a': np.ones(3)}}, {})
    assert [e['name'] for e in shown(capsys, 'ls', f'{bucket}/models')] == ['small']
    assert [e['step'] for e in shown(capsys, 'ls', f'{bucket}/models/small')] == [None]


def test_inspect(run, capsys):
    facts = shown(capsys, 'inspect', run)
    assert (facts['kind'], facts['step'], facts['data']) == ('run', 10, 'digits')
    assert facts['parameters'] == PARAMETERS
    assert facts['arrays']['ema/0.5'] == {
        'numbers': PARAMETERS,
        'bytes': 4 * PARAMETERS,
        'dtypes': ['float32'],
    }
    assert sorted(facts['ema_decays']) == ['0.5', '0.9']
    assert facts['config']['model']['width'] == 32
    assert shown(capsys, 'inspect', run, '--step', '5')['step'] == 5

    emigm('inspect', run, '--against', SMOKE)
    out = capsys.readouterr().out
    assert f'parameters  {PARAMETERS:,}\n' in out
    assert 'digits.py:smoke, but for\n' in out
    assert '  optimizer.ema_decays = [0.9, 0.5] (there [0.5])\n' in out
    assert '"width"' not in out
    facts = shown(capsys, 'inspect', run, '--against', SMOKE)
    assert set(facts['differences']) == {'optimizer.ema_decays', 'training.keep'}


def test_inspect_what_is_no_model(tmp_path, capsys):
    store.save(tmp_path / 'k', {'params': {'a': np.ones((2, 3))}}, {'tokenizer': {'name': 'x'}})
    facts = shown(capsys, 'inspect', tmp_path / 'k')
    assert (facts['kind'], facts['parameters'], facts['config']) == ('tokenizer', 6, None)
    assert facts['versions']['orbax'] == store.versions()['orbax']


@pytest.mark.parametrize(
    'way', ['to', 'from', *(pytest.param(w, marks=pytest.mark.slow) for w in ('disk', 'within'))]
)
def test_copy(way, run, state, bucket, tmp_path, capsys):
    source, target = run, f'{bucket}/there'
    if way in ('from', 'within'):
        write_run(f'{bucket}/run', state, (10,))
        source = f'{bucket}/run'
    if way in ('disk', 'from'):
        target = tmp_path / 'there'
    emigm('copy', source, target)
    assert 'checksums compared' in capsys.readouterr().out

    path = f'{target}/checkpoints/10'
    assert contents(path) == contents(f'{source}/checkpoints/10')
    assert store.is_checkpoint(path)
    saved = runs.find(target)
    assert (saved.step, str(saved.path)) == (10, path)
    want = {**state[1], 'step': jax.numpy.int32(10)}
    abstract = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), want
    )
    same(saved.restore(abstract), want)
    same(saved.load_params('0.5')[0], want['ema']['0.5'])
    # Orbax's own bookkeeping takes it for a step of the run, and goes on from there; a copy under
    # way beside it does no harm.
    files.write_text(f'{target}/checkpoints/.15.copying/state/d/1', 'x')
    write_run(target, state, (20,))
    assert [p.name for p in runs.finished(target)] == ['20', '10']

    assert main.main(['checkpoint', 'copy', str(source), str(target)]) == 2
    assert 'exists already' in capsys.readouterr().err


# Kills itself when it is about to write, or has half written, its N-th file.
KILLED = """
import os, signal, sys
from emigm_jax.checkpoints import copy
from emigm_jax.io import files
source, target, number, half = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4] == 'half'
write, count = files.write, 0
copy.PARALLEL = 1
def dying(path, chunks):
    global count
    count += 1
    def torn():
        yield next(iter(chunks))
        os.kill(os.getpid(), signal.SIGKILL)
    if count == number and not half:
        os.kill(os.getpid(), signal.SIGKILL)
    write(path, torn() if count == number else chunks)
files.write = dying
copy.copy(source, target)
"""
FILES = 10  # of the checkpoint, the mark of the end included


def kill_and_repeat(run, target, number, half):
    source, workdir = run / 'checkpoints/10', paths.absolute(target)
    target = workdir / 'checkpoints/10'
    command = [sys.executable, '-c', KILLED, source, target, str(number), half]
    env = {**os.environ, 'PYTHONPATH': str(ROOT)}
    done = subprocess.run(list(map(str, command)), env=env, stderr=subprocess.DEVNULL)
    assert done.returncode == -signal.SIGKILL
    assert not store.is_checkpoint(target)
    assert runs.find(workdir) is None
    files_, size, kept = copy.copy(source, target)
    assert files_ == FILES - 1
    assert size == sum(len(content) for content in contents(source).values())
    # The files before it stay; of some the size is 0.
    assert (kept > 0) == (number > 3)
    assert contents(target) == contents(source)
    assert [p.name for p in (workdir / 'checkpoints').iterdir()] == ['10']
    assert store.is_checkpoint(target)


def test_a_killed_copy_is_no_checkpoint_and_goes_on(run, bucket):
    kill_and_repeat(run, bucket, FILES, 'before')  # all is there but the mark


@pytest.mark.slow
@pytest.mark.parametrize(
    ('remote', 'number', 'half'),
    [
        (True, 1, 'before'),
        (True, 5, 'half'),
        (True, FILES - 1, 'before'),
        (True, FILES, 'half'),
        (False, 1, 'half'),
        (False, 5, 'before'),
        (False, FILES, 'half'),
    ],
)
def test_a_copy_killed_anywhere(remote, number, half, run, bucket, tmp_path):
    kill_and_repeat(run, bucket if remote else tmp_path / 'run', number, half)


@pytest.mark.parametrize('remote', [False, True])
def test_bytes_that_change_on_the_way_are_noticed(remote, run, bucket, tmp_path, monkeypatch):
    target, write = (bucket if remote else tmp_path) / pathlib.Path('x'), files.write
    target = f'{bucket}/x' if remote else tmp_path / 'x'
    flip = lambda chunk: bytes([chunk[0] ^ 1]) + bytes(chunk[1:])

    def flipped(path, chunks):
        write(path, map(flip, chunks) if str(path).endswith('state/_METADATA') else chunks)

    monkeypatch.setattr(files, 'write', flipped)
    with pytest.raises(UserError, match='_METADATA: did not arrive as it was sent'):
        copy.copy(run / 'checkpoints/10', target)
    assert not store.is_checkpoint(target)
    monkeypatch.setattr(files, 'write', write)
    copy.copy(run / 'checkpoints/10', target)  # and what is wrong there is replaced
    assert contents(target) == contents(run / 'checkpoints/10')


def test_a_copy_spares_what_is_there(run, bucket, tmp_path, capsys):
    files.write_text(f'{bucket}/mine/notes.txt', 'dear')
    with pytest.raises(UserError, match=r'holds something else \(notes.txt\)'):
        copy.copy(run / 'checkpoints/10', f'{bucket}/mine')
    assert list(copy.listing(f'{bucket}/mine')) == ['notes.txt']


def test_export(run, state, bucket, tmp_path, capsys):
    emigm('export', run, f'{bucket}/small')
    saved = runs.require(f'{bucket}/small')
    assert saved.source == {'step': 10, 'weights': '0.9', 'data': 'digits'}
    params, name = saved.load_params()
    assert name == '0.9'
    same(params, state[1]['ema']['0.9'])
    assert set(saved.stored.tree) == {'ema'}
    size = lambda path: sum(file.size for file in copy.listing(path).values())
    assert size(saved.path) < 0.3 * size(run / 'checkpoints/10')
    assert main.main(['checkpoint', 'export', str(run), f'{bucket}/small']) == 2
    assert 'exists already' in capsys.readouterr().err


@pytest.mark.slow
def test_export_of_what_was_exported(run, state, bucket, tmp_path, capsys):
    emigm('export', run, tmp_path / 'other', '--weights', '0.5', '--step', '5')
    saved = runs.require(tmp_path / 'other')
    same(saved.load_params()[0], state[1]['ema']['0.5'])
    assert saved.source['step'] == 5
    facts = shown(capsys, 'inspect', tmp_path / 'other')
    assert (facts['kind'], facts['ema_decays'], facts['parameters']) == (
        'model',
        ['0.5'],
        PARAMETERS,
    )
    # An exported model is exported, copied and sampled like any other.
    emigm('copy', tmp_path / 'other', f'{bucket}/copied')
    emigm('export', f'{bucket}/copied', tmp_path / 'again')
    same(runs.require(tmp_path / 'again').load_params()[0], state[1]['ema']['0.5'])


@pytest.mark.parametrize(
    ('command', 'says'),
    [
        (('ls', '{empty}'), 'holds no checkpoints'),
        (('ls', '{empty}/none'), 'no such checkpoint or workdir'),
        (('ls', 'gs://nobody-has-this/x'), 'there is no bucket gs://nobody-has-this'),
        (('ls', '{run}', '--step', '5'), 'checkpoint ls: unrecognized arguments: --step 5 (see'),
        (('ls', '{run}', '{new}'), 'unrecognized arguments'),
        (('copy', '{run}'), 'arguments are required: target'),
        (('copy', '{run}', '{new}', '--step', '7'), 'no finished step 7, but 5, 10'),
        (('copy', '{run}/checkpoints/5', '{new}', '--step', '5'), '--step goes with a workdir'),
        (('copy', '{empty}', '{new}'), 'holds no checkpoint'),
        (('copy', '{run}', '/proc/new'), '/proc/new/checkpoints'),
        (('copy', '{run}', 'gs://nobody-has-this/x'), 'there is no bucket'),
        (('inspect', '{run}', '--against', 'none.py'), 'no such file'),
        (('export', '{run}', '{new}', '--weights', '0.7'), "no weights '0.7', but 0.9, 0.5"),
        (('export', '{run}', '{new}', '--weights', 'params'), 'only EMA weights'),
        (('export', '{run}', '{empty}'), 'exists already'),
        (
            ('lss', '{run}'),
            "'checkpoint lss' (did you mean 'ls'?); there are ls, inspect",
        ),
    ],
)
def test_refusals(command, says, run, bucket, tmp_path, capsys):
    (tmp_path / 'empty').mkdir()
    places = dict(run=run, empty=tmp_path / 'empty', new=tmp_path / 'new')
    before = sorted(run.rglob('*'))
    assert main.main(['checkpoint', *(word.format(**places) for word in command)]) == 2
    message = capsys.readouterr().err.strip()
    assert says in message
    assert message.startswith('emigm: ')
    assert '\n' not in message
    assert [p.name for p in tmp_path.iterdir()] == ['empty']
    assert sorted(run.rglob('*')) == before

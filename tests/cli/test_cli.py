"""The commands as a user types them: what they write, how fast they start, how they refuse."""

import dataclasses
import errno
import importlib
import json
import logging
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from emigm_jax.cli import main
from emigm_jax.cli.arguments import numbers
from emigm_jax.config.options import OPTIONS
from emigm_jax.config.settings import SamplingConfig
from emigm_jax.core.setting import declared

ROOT = pathlib.Path(__file__).parents[2]
SMOKE = f'--config={ROOT}/configs/digits.py:smoke'


# A rate that stays gives the program that other tests have compiled, and two steps half as much.
RUN = (
    'train',
    SMOKE,
    '--config.optimizer.lr_schedule=constant',
    '--config.sampling.reveal.steps=2',
)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp('run')
    assert main.main([*RUN, '--workdir', str(workdir)]) == 0
    return workdir


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


def test_sample(run, tmp_path, capsys):
    out = tmp_path / 'out'
    command = [
        'sample',
        '--checkpoint',
        str(run),
        '--classes',
        '3,7',
        '--seeds',
        '0-2,9',
        '--out',
        str(out),
        '--batch-size',
        '3',
    ]
    assert main.main(command) == 0
    with np.load(out / 'samples.npz') as data:
        assert data['images'].shape == (8, 8, 8, 1)
        assert data['images'].dtype == np.uint8
        assert list(data['labels']) == [3] * 4 + [7] * 4
        assert list(data['seeds']) == [0, 1, 2, 9] * 2
        picture = pixels(out / 'images/class_0007_seed_000009.png')
        np.testing.assert_array_equal(picture, data['images'][-1, ..., 0])
        levels = np.unique(data['images'])
    assert set(levels) <= {round(i * 255 / 16) for i in range(17)}  # the digits' grey levels
    height, width = pixels(out / 'grid.png').shape
    assert height == 2 * 66 + 2
    assert width > 4 * 66 + 2  # a column of titles, then the images
    assert 'NFE 3' in capsys.readouterr().out


def test_what_is_given_twice_is_drawn_once(run, tmp_path):
    flags = ['--classes', '3,1,2-3', '--seeds', '5,0,5', '--out', str(tmp_path)]
    assert main.main(['sample', '--checkpoint', str(run), *flags]) == 0
    with np.load(tmp_path / 'samples.npz') as data:
        assert list(data['labels']) == [3, 3, 1, 1, 2, 2]
        assert list(data['seeds']) == [5, 0] * 3
    assert len(list(tmp_path.glob('images/class_*.png'))) == 6


def test_sample_with_other_settings(run, tmp_path):
    flags = [
        '--steps',
        '2',
        '--solver',
        'ddpm',
        '--solver-steps',
        '3',
        '--temperature',
        '0.9',
        '--guidance',
        '3',
        '--guidance-schedule',
        'linear',
        '--interval',
        '0,1',
        '--schedule',
        'cosine',
        '--weights',
        'params',
        '--counts',
        'per_image',
    ]
    command = ['sample', '--checkpoint', str(run), '--seeds', '0', '--classes', 'none', *flags]
    assert main.main([*command, '--out', str(tmp_path)]) == 0
    assert (tmp_path / 'images/class_null_seed_000000.png').exists()


def test_evaluate(run, tmp_path, capsys):
    file = tmp_path / 'scores.json'
    command = ['evaluate', '--checkpoint', str(run), '--num-images', '20', '--json', str(file)]
    assert main.main(command) == 0
    result = json.loads(file.read_text())
    for scores in (result, result['real_halves']):
        assert {'accuracy', 'frechet_distance', 'precision', 'recall'} <= set(scores)
    assert result['frechet_distance'] > result['real_halves']['frechet_distance']
    shown = capsys.readouterr().out
    assert shown.startswith('computing the metrics\n')
    assert 'real halves' in shown


@pytest.mark.parametrize(
    ('what', 'config'),
    [
        pytest.param('train', SMOKE, marks=pytest.mark.slow),
        pytest.param('train', '--config=mdm:smoke', marks=pytest.mark.slow),
        ('sample', SMOKE),
    ],
)
def test_benchmark(what, config, tmp_path):
    file = tmp_path / 'figures.json'
    few = ['--config.sampling.reveal.steps=1', '--config.sampling.solver.steps=2']
    flags = ['--batch-size', '16', '--repeats', '1', '--json', str(file), *few]
    assert main.main(['benchmark', what, config, *flags]) == 0
    (row,) = json.loads(file.read_text())['rows']
    assert row['batch_size'] == 16 and 'model.width' in row['settings']
    figures = row['figures']
    assert {'images_per_second', 'flops_per_image', 'program_memory_gb', 'compile_seconds'} <= set(
        figures
    )
    assert all(v > 0 for v in figures.values() if isinstance(v, float))


def refusal(capsys, *command):
    capsys.readouterr()
    assert main.main(list(map(str, command))) == 2
    message = capsys.readouterr().err.strip()
    assert '\n' not in message
    assert message.startswith('emigm: ')
    return message


TRAIN = ('train', SMOKE)


@pytest.mark.parametrize(
    ('command', 'says'),
    [
        (('trian',), "did you mean 'train'"),
        (('train',), '--config'),
        (TRAIN, '--workdir is required'),
        ((*TRAIN, '--workdr', 'x'), "unknown argument '--workdr'"),
        (('train', '--config=nowhere.py', '--workdir', 'x'), 'no such file'),
        (('train', f'{SMOKE}x', '--workdir', 'x'), 'no variant'),
        ((*TRAIN, '--workdir', 'x', '--config.model.widht=3'), 'widht'),
        ((*TRAIN, '--workdir', 'x', '--config.model.width=wide'), 'width'),
        ((*TRAIN, '--workdir', 'x', '--config.model.width=33'), 'does not divide model.width = 33'),
        ((*TRAIN, '--workdir', 'x', '--config.model.heads=0'), 'model.heads'),
        ((*TRAIN, '--workdir', 'x', '--config.data.patch=3'), 'does not divide the image size'),
        ((*TRAIN, '--workdir', 'x', '--config.model.grid=3'), 'say --config.model.grid=2'),
        ((*TRAIN, '--workdir', 'x', '--config.loss.masking.schedule=expp'), "did you mean 'exp'"),
        ((*TRAIN, '--workdir', 'x', '--config.model.widht=8'), "did you mean 'model.width'"),
        ((*TRAIN, '--workdir', 'x', '--config.wide=8'), '--config.wide: no such setting'),
        ((*TRAIN, '--workdir', 'x', '--config.model=8'), '--config.model: no such setting'),
        ((*TRAIN, '--workdir', 'x', '--config.training.total=soon'), '500 steps'),
        ((*TRAIN, '--workdir', 'x', '--config.training.accumulate=3'), 'does not divide'),
        ((*TRAIN, '--workdir', '/proc/x'), '/proc/x: cannot be reached or written'),
        (('sample', '--checkpoint', 'nowhere', '--out', 'x'), 'no such checkpoint'),
        (('benchmark', 'sleep', SMOKE), 'sleep'),
    ],
)
def test_refusals(command, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert says in refusal(capsys, *command)
    assert not list(tmp_path.iterdir())  # nothing half-written


@pytest.mark.parametrize(
    ('flags', 'says'),
    [
        (('--classes', '3,10'), 'no class 10'),
        (('--seeds', '5-2'), 'reversed'),
        (('--seeds', 'a'), "'0-15'"),
        (('--seeds', '0-99999999999'), 'end at 4294967295'),
        (('--seeds', '4294967296'), 'end at 4294967295'),
        (('--seeds', '9' * 5000), 'end at 4294967295'),
        (('--seeds', '0-4294967295'), '1000000 at most'),
        (('--seeds', '-1'), "'0-15'"),
        (('--seeds', '\N{SUPERSCRIPT TWO}'), "'0-15'"),
        (('--classes', '4294967296'), 'no class 4294967296'),
        (('--base-seed', '-1'), 'sampling.seed must be at least 0'),
        (('--base-seed', '4294967296'), 'sampling.seed must be at most 4294967295'),
        (('--plan-seed', str(2**64)), 'plan_seed must be at most'),
        (('--guidance', 'nan'), 'guidance must be a finite number, not nan'),
        (('--guidance', 'inf'), 'guidance must be a finite number, not inf'),
        (('--solver', 'ddpm', '--temperature', 'nan'), 'temperature must be a finite number'),
        (('--interval', 'nan,0.5'), 'interval must be a finite number, not nan'),
        (('--interval', '0,inf'), 'interval must be a finite number, not inf'),
        (('--interval', '0.5'), "'0.1,0.3'"),
        (('--interval', '0.5,0.1'), 'guidance_to'),
        (('--solver', 'euler'), 'dpm, ddim, ddpm'),
        (('--steps', '0'), 'at least 1'),
        (('--steps', 'x'), 'invalid int'),
        (('--batch-size', '0'), 'at least 1'),
        (('--weights', '0.3'), 'no weights'),
    ],
)
def test_refusals_of_sample(run, flags, says, capsys, tmp_path):
    out = tmp_path / 'out'
    assert says in refusal(capsys, 'sample', '--checkpoint', run, '--out', out, *flags)
    assert not out.exists()


def test_a_disk_that_is_full(run, capsys, tmp_path, monkeypatch):
    replace, file = os.replace, 'class_0003_seed_000001.png'

    def full(source, target):
        if os.fspath(target).endswith(file):
            raise OSError(errno.ENOSPC, 'No space left on device')
        replace(source, target)

    monkeypatch.setattr(os, 'replace', full)
    command = ('sample', '--checkpoint', run, '--classes', '3', '--seeds', '0-1', '--out', tmp_path)
    assert f'{file}: ' in (line := refusal(capsys, *command))
    assert 'No space left on device' in line
    assert not [p for p in tmp_path.iterdir() if p.name.startswith('.') or p.name == file]


def test_dry_run_prints_the_resolved_config(capsys):
    assert main.main([*TRAIN, '--dry-run', '--config.model.width=64']) == 0
    assert json.loads(capsys.readouterr().out)['model']['width'] == 64


def test_numbers():
    assert numbers('seeds', '3, 7-9,1') == [3, 7, 8, 9, 1]
    assert numbers('seeds', '4294967295,000,07') == [2**32 - 1, 0, 7]


@pytest.mark.parametrize('command', [None, *main.COMMANDS])
def test_help_starts_fast_and_imports_nothing_heavy(command):
    code = (
        'import sys; from emigm_jax.cli.main import main\n'
        f'try: main({[command, "--help"] if command else ["--help"]})\n'
        'except SystemExit: pass\n'
        'print(sorted(sys.modules.keys() & {"jax", "tensorflow", "torch", "orbax", "sklearn"}))'
    )
    start = time.perf_counter()
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert time.perf_counter() - start < 3
    assert out.stdout.strip().endswith('[]')
    assert 'example' in out.stdout
    assert 'emigm' in out.stdout


# By print, by argparse, by both, and to standard error.
PRINTING = (['--help'], ['sample', '--help'], ['prepare', '--help'], ['sampel'])


@pytest.mark.parametrize('unbuffered', ['', '1'])
@pytest.mark.parametrize('command', PRINTING, ids=' '.join)
def test_output_that_nobody_reads(unbuffered, command, tmp_path):
    """As after `2>&1 | head`: met at the print, or when what Python buffers is written."""
    read, write = os.pipe()
    os.close(read)
    log = tmp_path / 'log'  # of standard error, where the command itself prints elsewhere
    environment = {**os.environ, 'PYTHONUNBUFFERED': unbuffered}
    with log.open('w') as file:
        error = write if command == ['sampel'] else file
        argv = [sys.executable, '-m', 'emigm_jax', *command]
        done = subprocess.run(argv, stdout=write, stderr=error, env=environment)
    os.close(write)
    assert log.read_text() == ''
    by_argparse = unbuffered and command == ['sample', '--help']  # which hides that it failed
    assert done.returncode == (0 if by_argparse else 128 + signal.SIGPIPE)


def broken(argv):
    raise OSError(errno.EROFS, os.strerror(errno.EROFS), '/data/cache')


def lost(argv):
    raise TimeoutError


def test_a_place_that_does_not_answer_is_worth_another_try(monkeypatch, capsys):
    monkeypatch.setitem(main.COMMANDS, 'lost', (f'{__name__}:lost', ''))
    assert main.main(['lost']) == 75
    assert capsys.readouterr().err == 'emigm: TimeoutError\n'


def test_a_place_that_fails_is_one_line(monkeypatch, capsys):
    monkeypatch.setitem(main.COMMANDS, 'broken', (f'{__name__}:broken', ''))
    assert refusal(capsys, 'broken') == 'emigm: /data/cache: Read-only file system'


@pytest.mark.parametrize('group', ['prepare', 'checkpoint', 'benchmark'])
def test_help_of_a_group_shows_how_each_is_called(group, capsys):
    assert main.main([group, '--help']) == 0
    shown = capsys.readouterr().out
    for name in importlib.import_module(f'emigm_jax.cli.{group}').COMMANDS:
        assert shown.count(f'usage: emigm {group} {name} ') == 1
        shown_of_it = shown.partition(f'usage: emigm {group} {name} ')[2]
        assert re.search(f'^  emigm {group} {name}\\b', shown_of_it, re.M)
        assert main.main([group, name, '--help']) == 0
        assert 'options:' in capsys.readouterr().out


def test_help_lists_choices_as_they_are_declared(capsys):
    config, fields = SamplingConfig(), {}
    for group in ('reveal', 'solver', 'codes'):
        fields |= {(group, f.name): f for f in dataclasses.fields(getattr(config, group))}
    assert main.main(['sample', '--help']) == 0
    shown = capsys.readouterr().out
    for name, option in OPTIONS.items():
        declaration = declared(fields[option.group, option.fields[0]]) if option.group else None
        assert option.choices == (declaration.choices if declaration else ())
        if option.choices:
            assert f'--{name.replace("_", "-")} {{{",".join(option.choices)}}}\n' in shown


def test_settings_are_listed_without_flax():
    code = (
        'import sys; from emigm_jax.cli.main import main; main(["settings", "guidance"])\n'
        'print(sorted(sys.modules.keys() & {"flax", "scipy.stats", "orbax", "tensorflow"}))'
    )
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert out.stdout.endswith('\n[]\n')


def test_a_finished_run_says_so(run, capsys):
    assert main.main([*RUN, '--workdir', str(run)]) == 0
    shown = capsys.readouterr().out
    assert 'finished before, at step 12: a larger --config.training.total goes on\n' in shown
    assert 'compiling' not in shown


def test_what_the_library_notes_is_shown_once(capsys):
    for _ in range(2):
        assert main.main(['--version']) == 0
    logging.getLogger('emigm_jax.nn.kernels.choice').info('attention by kernel')
    assert capsys.readouterr().err == 'attention by kernel\n'

"""Parts of a sweep beside one another: each on cores of its own, ended together, tabled as one."""

import os
import pathlib
import signal
import subprocess
import sys

import pytest

from emigm_jax.cli import main
from emigm_jax.errors import UserError
from emigm_jax.parallel import processes
from emigm_jax.sweep import at_once, run, write

FLAGS = ['--config', 'digits:smoke', '--draw', 'steps=2', '--num-images', '20']


def test_lines_are_numbered_and_codes_kept(monkeypatch):
    masks, lines = [], []
    monkeypatch.setattr(at_once, '_cores', lambda: [0, 2, 3, 5, 8])
    monkeypatch.setattr(os, 'sched_setaffinity', lambda _, mask: masks.append(mask), raising=False)
    assert at_once.run([['--version'], ['--version']], lines.append) == 0
    assert masks == [[0, 2], [3, 5, 8]]
    assert sorted(line[:16] for line in lines) == ['[1/2] emigm_jax ', '[2/2] emigm_jax ']
    assert at_once.run([['--version'], ['paint']], lines.append) == 2
    assert "[2/2] emigm: no command 'paint'" in lines[-1] + lines[-2]
    with pytest.raises(UserError, match='6 at once: this process may use 5 cores'):
        at_once.run([['--version']] * 6)


def test_a_restart_is_asked_for_if_one_wants_it(monkeypatch):
    begun, codes = subprocess.Popen, iter([1, processes.RESTART, 0])
    ends = lambda _, **how: begun([sys.executable, '-c', f'raise SystemExit({next(codes)})'], **how)
    monkeypatch.setattr(subprocess, 'Popen', ends)
    monkeypatch.setattr(at_once, '_cores', lambda: [0, 1, 2])
    monkeypatch.setattr(os, 'sched_setaffinity', lambda *_: None, raising=False)
    before = signal.getsignal(signal.SIGTERM)
    assert at_once.run([[], [], []]) == processes.RESTART
    assert signal.getsignal(signal.SIGTERM) == before


def test_what_is_divided_is_the_whole_and_tabled_once(tmp_path, monkeypatch):
    """Of the second half of a sweep, too; a share alone says no tables."""
    asked, tabled = [], []
    monkeypatch.setattr(write, 'write', lambda _, out: tabled.append(out))
    monkeypatch.setattr(at_once, 'run', lambda commands, say: asked.extend(commands) or 0)
    command = ['sweep', *FLAGS, '--seeds', '0-6', '--out', str(tmp_path)]
    assert main.main([*command, '--at-once', '3']) == 0
    assert main.main([*command, '--at-once', '2', '--share', '2/3']) == 0
    mine = []
    monkeypatch.setattr(run, 'run', lambda sweep, out, share, say: mine.append(share))
    for part in asked:
        assert main.main(part) == 0
    assert tabled == [str(tmp_path)]
    assert mine == [(1, 3), (2, 3), (3, 3), (2, 6), (5, 6)]
    for flag in ('--table', '--commands'):
        assert main.main([*command, '--at-once', '2', flag]) == 2


@pytest.mark.slow
@pytest.mark.skipif(os.cpu_count() == 1, reason='two runs at once take two cores')
def test_runs_beside_one_another(tmp_path):
    """What is asked to end asks its parts, which save; the same command goes on, and tables."""
    # On all cores, of which this process may have been given one.
    anywhere = 'import os, sys; os.sched_setaffinity(0, range(os.cpu_count())); '
    anywhere += 'from emigm_jax.cli.main import main; sys.exit(main())'
    command = [sys.executable, '-c', anywhere, 'sweep', *FLAGS, '--seeds', '0,1', '--at-once', '2']
    command += ['--config.training.total=60 steps', '--config.training.checkpoint_every=60 steps']
    begin = lambda: subprocess.Popen(
        [*command, '--out', str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with begin() as process:
        for line in process.stdout:
            if '] step ' in line:
                break
        process.terminate()
        assert ' saved ' in process.communicate()[0]
    assert process.returncode == processes.RESTART
    with begin() as process:
        said = process.communicate()[0]
    assert process.returncode == 0, said
    assert 'resumed from step ' in said
    assert '| digits |' in pathlib.Path(tmp_path / 'table.md').read_text()
    assert len(list(tmp_path.glob('scores/*/*.json'))) == 2

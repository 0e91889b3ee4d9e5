"""Progress: a bar on a terminal, lines in a pipe, silence where work is soon done."""

import io
import sys
import time

import pytest

from emigm_jax.io import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_lines_in_a_pipe(capsys, monkeypatch):
    monkeypatch.setattr(progress, 'PERIOD', 0.02)
    with progress.Bar(total=4, desc='computing') as bar:
        for _ in range(4):
            time.sleep(0.03)
            bar.update()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    assert lines[1].startswith('computing: 50%, 2 of 4 images, 00:00 so far, ')
    assert lines[-1].startswith('computing: 100%, 4 of 4 images')
    assert list(progress.Bar(range(3), unit=' shards')) == [0, 1, 2]


def test_work_that_is_soon_done_says_nothing(capsys):
    list(progress.Bar(range(5), desc='computing'))
    progress.Bar(total=5).close()
    assert capsys.readouterr().err == ''


@pytest.mark.parametrize('quiet', [False, True])
def test_a_bar_on_a_terminal(quiet, monkeypatch):
    monkeypatch.setattr(sys, 'stderr', Terminal())
    with progress.Bar(total=2, desc='evaluating', quiet=quiet) as bar:
        bar.update(2)
    shown = sys.stderr.getvalue()
    assert shown == '' if quiet else '\revaluating: 100%' in shown


def test_without_standard_error(monkeypatch):
    monkeypatch.setattr(sys, 'stderr', None)
    assert list(progress.Bar(range(3))) == [0, 1, 2]


def test_who_waits_is_told(monkeypatch, capsys):
    monkeypatch.setattr(progress, 'PERIOD', 0.05)
    with progress.waiting('gs://b: still being written'):
        time.sleep(0.18)
    said = capsys.readouterr().err.splitlines()
    assert 2 <= len(said) <= 3
    assert said[0] == 'gs://b: still being written, 0 s so far'
    with progress.waiting('x', lambda: False):
        time.sleep(0.1)
    assert capsys.readouterr().err == ''

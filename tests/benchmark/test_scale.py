"""What `emigm benchmark scale` prints; the figures at their size have tests of their own."""

import numpy as np
import pytest

from emigm_jax.aot import microbatches
from emigm_jax.benchmark import scale
from emigm_jax.cli import main


@pytest.mark.parametrize(('share', 'code'), [(1.0, 0), (4.0, 1)])
def test_it_prints_every_figure_and_says_what_is_over(share, code, monkeypatch, capsys):
    for name, value in dict(PROCESSES=32, _DEAD=7, SHARDS=300).items():
        monkeypatch.setattr(scale, name, value)
    monkeypatch.setattr(microbatches, 'on_fake_devices', lambda: share)
    assert main.main(['benchmark', 'scale']) == code
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ['found', 'at', 'most']
    assert len(lines) == 12
    assert [line.endswith('over') for line in lines] == [False] * 11 + [bool(code)]
    named = lines[2].split()
    assert lines[2].startswith('32 processes')
    assert 30 < float(named[-3]) < 60


def test_an_endless_wait_is_over_every_bound():
    assert not scale.Figure('', np.inf, 60).good
    assert scale.Figure('', 60, 60).good

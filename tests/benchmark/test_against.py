"""The official code in turns with ours: what it is told, what is timed, what ends in one line."""

import json
import pathlib
import stat
import sys

import numpy as np
import pytest

from emigm_jax.cli import main

# In place of a Python with torch: answers as `official_code` does, and keeps what it was given.
STAND_IN = """#!{python}
import json, shutil, sys
asked = json.load(open(sys.argv[2]))
shutil.copy(asked['weights'], {kept!r})
json.dump(asked, open({kept!r} + '.json', 'w'))
print('torch 0', flush=True)
for _ in sys.stdin:
    print(4096.0, flush=True)
"""
# A clone with a model of one weight, which takes and gives what the official one does.
CLONE = """
import torch
class eMIGM(torch.nn.Module):
    def __init__(self, norm_layer, **sizes):
        super().__init__()
        self.sizes, self.weight = sizes, torch.nn.Parameter(torch.zeros(1, 1))
        assert norm_layer(4).eps == 1e-6
    def load_state_dict(self, tensors):
        assert tensors['class_emb.weight'].shape == (10, self.sizes['encoder_embed_dim'])
    def forward(self, images, labels):
        assert images.shape == (8, 16, 2, 2) and labels.shape == (8,) and self.training
        return (images.cuda().mean() + labels.float().mean()) * self.weight.sum()
    def sample_tokens(self, images, num_iter, cfg, cfg_schedule, labels):
        assert len(labels) == images and not self.training and not torch.is_grad_enabled()
        return torch.linspace(1.0, 0.0, num_iter, device='cuda')
"""

FEW = '--config.sampling.reveal.steps=2', '--config.sampling.solver.steps=2'


@pytest.fixture
def clone(tmp_path):
    (tmp_path / 'clone/models').mkdir(parents=True)
    (tmp_path / 'clone/models/emigm.py').write_text(CLONE)
    return tmp_path / 'clone'


def benchmark(what, clone, *flags):
    words = ('--config', 'digits:smoke', '--batch-size', '8', '--against', clone, *FEW, *flags)
    return main.main(['benchmark', what, *map(str, words)])


@pytest.mark.slow
def test_a_step_of_each_in_turns(clone, tmp_path, capsys):
    python, kept, record = (tmp_path / name for name in ('python', 'kept.npz', 'record.json'))
    python.write_text(STAND_IN.format(python=sys.executable, kept=str(kept)))
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    assert benchmark('sample', clone, '--against-python', python, '--json', record) == 0
    assert f'beside it {clone}: torch 0' in capsys.readouterr().out
    ((figures,),) = ([row['figures'] for row in json.loads(record.read_text())['rows']],)
    assert figures['official_fastest_step'] == figures['official_seconds_per_step'] == 4096
    ratio = 4096 / figures['seconds_per_step']
    assert figures['times_as_fast'] == pytest.approx(ratio) and ratio > 1
    asked = json.loads(pathlib.Path(f'{kept}.json').read_text())
    assert asked['arguments']['num_sampling_steps'] == '2'
    assert asked['sampling'] == {'num_iter': 2, 'cfg': 2.0, 'cfg_schedule': 'constant'}
    with np.load(kept) as weights:
        assert {'z_proj.weight', 'mask_token', 'fake_latent'} <= set(weights.files)


def test_it_ends_between_two_steps(clone, tmp_path, capsys):
    python = tmp_path / 'python'
    python.write_text('#!/bin/sh\necho torch 0\nexec 1>&-\necho Killed >&2\n')
    python.chmod(0o755)
    assert benchmark('sample', clone, '--against-python', python) == 2
    error = capsys.readouterr().err
    assert 'does not run by' in error and 'Killed' in error and error.count('\n') == 1


@pytest.mark.slow  # in an environment with torch
@pytest.mark.parametrize('what', ['train', 'sample'])
def test_a_stand_in_of_the_official_code(what, clone, capsys):
    pytest.importorskip('torch')
    assert benchmark(what, clone, '--repeats', '1') == 0
    shown = capsys.readouterr().out
    assert 'cpu, ' in shown and 'times_as_fast' in shown


@pytest.mark.parametrize(
    ('flags', 'says'),
    [
        (('--against', '/nowhere'), '/nowhere: --against names a clone of github.com/ML-GSAI'),
        (('--against-python', '/nowhere'), '--against-python /nowhere: No such file'),
        (('--against-python', 'false'), 'does not run by false: it ended with code 1; --against-'),
        (('--config.sampling.reveal.order=halton',), "reveal.order = 'random' alone, not 'halton'"),
        (('--config.sampling.solver.name=ddim',), "the official eMIGM has no solver 'ddim'"),
        (('--config', 'maskgit:smoke'), "has model.head = 'diffusion' alone, not 'categorical'"),
    ],
)
def test_refusals(flags, says, clone, capsys):
    assert benchmark('sample', clone, *flags) == 2
    error = capsys.readouterr().err
    assert error.startswith('emigm: ') and says in error and error.count('\n') == 1

"""Models of codes as a user meets them: four methods, MaskGIT's own weights, what is refused."""

import json
import pathlib

import jax
import numpy as np
import pytest
from PIL import Image

from emigm_jax.checkpoints import runs
from emigm_jax.cli import main
from emigm_jax.config import family
from emigm_jax.tokenizers import codec, vqgan
from emigm_jax.tokenizers.codec import Codec
from emigm_jax.tokenizers.learned import Learned
from support import golden

FEW = '--config.sampling.reveal.steps=2'


def emigm(*words):
    return main.main([str(word) for word in words])


@pytest.mark.slow
@pytest.mark.parametrize('method', family.CHOICES)
def test_a_method_trains_samples_and_is_scored(method, tmp_path, capsys):
    run, out = tmp_path / 'run', tmp_path / 'out'
    config = f'--config={method}:smoke', '--config.data.held_back=10', FEW
    assert emigm('train', *config, '--workdir', run) == 0
    assert 'data: digits, 1618 examples of 64 tokens' in capsys.readouterr().out
    # As many at once as in the grid of the training and in the evaluation: one program for all.
    flags = '--classes', '3,7', '--seeds', '0-9', '--out', out
    assert emigm('sample', '--checkpoint', run, *flags) == 0
    assert len(list((out / 'images').glob('*.png'))) == 20
    scores = tmp_path / 'scores.json'
    named = '--checkpoint', run, '--json', scores
    assert emigm('evaluate', *named, '--num-images', '20') == 0
    assert {'accuracy', 'recall'} <= json.loads(scores.read_text()).keys()
    capsys.readouterr()
    bits = *named, '--metrics', 'bits_per_dim', '--draws', '8'
    codes = runs.require(run).config.model.head == 'categorical'
    assert emigm('evaluate', *bits) == (0 if codes else 2)
    shown = capsys.readouterr()
    if not codes:
        assert "which a head 'diffusion' cannot tell: it is for models of codes" in shown.err
        return
    assert '179 pictures (held back), 8 draws each' in shown.out
    found = json.loads(scores.read_text())
    # Barely trained: near log2(17) bits per pixel, and more when pixels are drawn several at once.
    assert 2.5 < found['bits_per_dim'] <= found['bits_per_dim_in_steps'] + 0.02 < 4.6
    assert 0 < found['bits_per_dim_error'] < 0.1


@pytest.fixture(scope='module')
def maskgit(tmp_path_factory):
    """The tiny official file, converted, and a VQGAN with as many codes."""
    folder = tmp_path_factory.mktemp('maskgit')
    source, rng = golden.path('maskgit_tiny_checkpoint'), np.random.default_rng(0)
    assert emigm('convert', source, folder / 'model', '--classes', '10') == 0
    for name, codes in (('vqgan', 48), ('other', 16)):
        config = vqgan.VQGANConfig(codes=codes, channels=8, width=8, multipliers=(1, 2), groups=4)
        tokenizer = Learned('vqgan', config)
        draw = lambda s: rng.normal(0.0, 0.1, s.shape).astype(s.dtype)
        params = jax.tree.map(draw, tokenizer.network.shapes())
        codec.save(folder / name, Codec(tokenizer, params))
    return folder


@pytest.mark.slow
def test_official_weights_make_pictures(maskgit, tmp_path):
    words = 'sample', '--checkpoint', maskgit / 'model', '--tokenizer', maskgit / 'vqgan'
    # It has no null class, but another model may guide it, of which here nothing leads away.
    itself = '--guide', maskgit / 'model', '--guidance', '2', '--interval=-1,1'
    for name, more in (('a', ()), ('b', itself), ('c', ('--choice-temperature', '0'))):
        flags = '--classes', '1,5', '--seeds', '0-2', '--out', tmp_path / name
        assert emigm(*words, *flags, *more) == 0
    pictures = {
        name: [
            np.asarray(Image.open(p)) for p in sorted((tmp_path / name / 'images').glob('*.png'))
        ]
        for name in 'abc'
    }
    assert [p.shape for p in pictures['a']] == [(8, 8, 3)] * 6
    np.testing.assert_array_equal(pictures['a'], pictures['b'])
    assert (np.stack(pictures['a']) != np.stack(pictures['c'])).any()


@pytest.mark.parametrize(
    ('flags', 'says'),
    [
        (('--guidance', '2', '--interval=-1,1'), 'needs a null class, and this model is trained'),
        (('--solver', 'ddim'), "solver goes with models of head 'diffusion', this one is 'categ"),
        (('--positions', '0,1,2'), 'must name each of 0 to 15 once: there are 3'),
        (('--order', 'given'), "positions and order = 'given' go together"),
        (('--positions', '1', '--order', 'confidence'), "order = 'given' go together"),
        (('--classes', 'none'), 'this model has no null class: it is trained with loss.label_drop'),
        (
            ('--guide', 'model'),
            '--guide guides nothing: guidance is 1, and 0.1 < s',
        ),
        (('--nucleus', '0'), 'nucleus must be at least 1e-06'),
        (('--tokenizer', 'other'), "VQGAN has 16 codes, this model's tokens are of 48"),
    ],
)
def test_what_makes_no_sense_of_codes_is_one_line(maskgit, flags, says, tmp_path, capsys):
    flags = [maskgit / flag if flag in ('other', 'model') else flag for flag in flags]
    words = ['sample', '--checkpoint', maskgit / 'model', '--tokenizer', maskgit / 'vqgan']
    assert emigm(*words, '--classes', '1', '--out', tmp_path / 'out', *flags) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count('\n') == 1
    assert not pathlib.Path(tmp_path / 'out').exists()


@pytest.mark.parametrize(
    ('flags', 'says'),
    [
        (('--metrics', 'bits_per_dim,fid'), 'bits_per_dim is measured alone'),
        (('--draws', '16'), '--draws goes with --metrics bits_per_dim'),
        (('--metrics', 'bits_per_dim', '--guide', 'x'), '--guide goes with --checkpoint, to draw'),
        (('--metrics', 'bits_per_dim', '--reference', 'r.npz'), 'and no --reference'),
        (('--metrics', 'bits_per_dim', '--data', 'x'), '--data goes with latents, folder, tfds'),
        (('--metrics', 'bits_per_dim'), 'nothing was held back from training: train with'),
    ],
)
def test_what_makes_no_sense_of_bits_is_one_line(maskgit, flags, says, capsys):
    words = 'evaluate', '--checkpoint', maskgit / 'model', '--tokenizer', maskgit / 'vqgan'
    assert emigm(*words, *flags) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count('\n') == 1

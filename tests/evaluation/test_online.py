"""Evaluation while training: its settings, its numbers, and that nothing is compiled twice."""

import functools
import json
import pathlib

import jax
import numpy as np
import pytest

from emigm_jax.api import train
from emigm_jax.cli import main
from emigm_jax.config import nested, resuming
from emigm_jax.config.load import load_config
from emigm_jax.data import datasets, sizes
from emigm_jax.errors import UserError
from emigm_jax.evaluation import inception, references, scores
from emigm_jax.models import emigm
from emigm_jax.parallel import batches
from emigm_jax.sampling import sampler, steps
from emigm_jax.sampling.sampler import Sampler
from emigm_jax.training import loop, metrics

SMOKE = f'{pathlib.Path(__file__).parents[2]}/configs/digits.py:smoke'


def smoke(**evaluation):
    flags = [f'--config.evaluation.{name}={value}' for name, value in evaluation.items()]
    return load_config(
        SMOKE, [*flags, '--config.training.total=4 steps', '--config.training.warmup=1 step']
    )


def counted(monkeypatch, module, name):
    """A list that grows whenever the function is traced."""
    function, traces = getattr(module, name), []

    @functools.wraps(function)
    def traced(*arguments, **options):
        traces.append(name)
        return function(*arguments, **options)

    monkeypatch.setattr(module, name, traced)
    return traces


@pytest.mark.slow
def test_digits_are_compared_in_pixels(monkeypatch):
    """One compilation for all calls, and the scores of the images that the sampler makes."""
    traces = counted(monkeypatch, steps.Steps, 'generate')
    config = smoke(every='2 steps', num_images=20, batch_size=16)
    data = datasets.dataset(config)
    config = sizes.fitted(config, data)
    evaluate = train.evaluator(config, data)
    shapes, rng = emigm.network(config.model).shapes(), np.random.default_rng(0)
    drawn = lambda s: np.float32(0.1) * rng.standard_normal(s.shape, np.float32)
    params, others = (batches.place(jax.tree.map(drawn, shapes)) for _ in range(2))
    results = [evaluate(weights, step=i) for i, weights in enumerate((params, others, params))]
    assert len(traces) == 1
    assert results[0] == results[2] != results[1]
    tokens = Sampler(config.model, config.sampling)(params, np.arange(20) // 2, np.arange(20))
    flat = lambda images: np.asarray(images).reshape(len(images), -1) / 255.0
    exact = scores.compare(
        flat(data.source.images),
        data.source.labels,
        flat(data.codec.decode(tokens)),
        np.arange(20) // 2,
    )
    assert results[0] == pytest.approx(exact, rel=1e-9)


@pytest.mark.slow
def test_digits_while_training(tmp_path, monkeypatch, capsys):
    for kept in (sampler.sampler, sampler._kept):  # other tests may have drawn such grids
        kept.cache_clear()
    traces = counted(monkeypatch, steps.Steps, 'generate')
    config = smoke(every='2 steps', num_images=30, batch_size=16)
    assert config.evaluates
    loop.train(config, tmp_path / 'run', train.evaluator)
    assert len(traces) == 2  # of the evaluator, and of the grid at the end
    assert 'step 2/4  accuracy' in capsys.readouterr().out
    lines = [line for line in metrics.read(tmp_path / 'run') if 'frechet_distance' in line]
    assert [line['step'] for line in lines] == [2, 4]
    assert lines[0]['frechet_distance'] != lines[1]['frechet_distance']
    # The images and the numbers are those of the command.
    assert (
        main.main(
            [
                'evaluate',
                '--checkpoint',
                str(tmp_path / 'run'),
                '--num-images',
                '30',
                '--json',
                str(tmp_path / 'scores.json'),
            ]
        )
        == 0
    )
    scores = json.loads((tmp_path / 'scores.json').read_text())
    for name in ('accuracy', 'frechet_distance', 'precision', 'recall'):
        assert lines[1][name] == pytest.approx(scores[name], rel=1e-9)


def test_settings():
    assert not smoke().evaluates
    with pytest.raises(UserError, match=r'needs evaluation\.reference and evaluation\.inception'):
        load_config(SMOKE, ['--config.evaluation.every=1 step', '--config.data.name=synthetic'])
    with pytest.raises(UserError, match='go together'):
        smoke(reference='real.npz')
    with pytest.raises(UserError, match=r'evaluation\.every must look like'):
        smoke(every='sometimes')
    with pytest.raises(UserError, match=r'evaluation\.num_images'):
        smoke(num_images=1)
    # They may change on resuming, and checkpoints that know nothing of them still load.
    assert resuming.differences(smoke(), smoke(every='2 steps', num_images=20)) == {}
    old = nested.as_dict(smoke())
    del old['evaluation']
    assert nested.resolve(old) == smoke()


def test_mistakes_show_before_the_training(tmp_path, capsys):
    np.savez(tmp_path / 'small.npz', mu=np.zeros(10), sigma=np.eye(10))
    flags = ['--config.evaluation.every=2 steps', '--config.evaluation.inception=nowhere']
    workdir = tmp_path / 'run'
    for more, says in (
        (['--config.evaluation.reference=nowhere.npz'], 'nowhere.npz: no such file'),
        ([f'--config.evaluation.reference={tmp_path}/small.npz'], 'mu must be real numbers'),
        (['--config.evaluation.reference=x', '--config.evaluation.metrics=fod'], "mean 'fid'"),
    ):
        command = ['train', '--config', SMOKE, '--workdir', str(workdir), *flags, *more]
        assert main.main(command) == 2
        assert says in capsys.readouterr().err
    assert not workdir.exists()
    latents = load_config(SMOKE, ['--config.data.name=synthetic'])
    with pytest.raises(UserError, match=r'data\.tokenizer'):
        train.evaluator(latents, datasets.dataset(latents))


@pytest.mark.full
def test_inception_while_training(tmp_path, monkeypatch, capsys):
    """As `emigm evaluate` of the same weights; and compiled once. The batches are of one size, as a
    digit's pixel may round to another of the 17 grey levels in a program of another shape."""
    shapes = inception.network().shapes()
    rng = np.random.default_rng(3)
    normal = lambda s: (
        np.float32(np.sqrt(2 / max(1, np.prod(s.shape[:-1]))))
        * rng.standard_normal(s.shape, np.float32)
    )
    still = lambda s: np.ones(s.shape, np.float32)
    inception.save(
        tmp_path / 'fid',
        jax.tree.map(lambda s: normal(s) if len(s.shape) > 1 else still(s), shapes),
    )
    mean = rng.standard_normal(2048)
    references.write(tmp_path / 'real.npz', (mean, np.eye(2048)), source='made up', count=9)
    traces = counted(monkeypatch, inception, 'features')
    config = smoke(
        every='2 steps',
        num_images=21,
        batch_size=8,
        reference=tmp_path / 'real.npz',
        inception=tmp_path / 'fid',
        metrics='fid,sfid,inception_score',
    )
    loop.train(config, tmp_path / 'run', train.evaluator)
    assert len(traces) == 1
    assert 'sfid: not computed, the reference has no mu_s' in capsys.readouterr().out
    lines = [line for line in metrics.read(tmp_path / 'run') if 'fid' in line]
    assert [line['step'] for line in lines] == [2, 4]
    assert (
        main.main(
            [
                'evaluate',
                '--checkpoint',
                str(tmp_path / 'run'),
                '--num-images',
                '21',
                '--batch-size',
                '8',
                '--inception',
                str(tmp_path / 'fid'),
                '--reference',
                str(tmp_path / 'real.npz'),
                '--metrics',
                'fid,inception_score',
                '--out',
                str(tmp_path / 'out'),
            ]
        )
        == 0
    )
    result = json.loads((tmp_path / 'out/result.json').read_text())
    for name in ('fid', 'inception_score'):
        assert lines[1][name] == pytest.approx(result[name], rel=1e-6)

"""XS at 256 pixels and KL-16, full size: minutes, run by `pytest -m full`."""

import functools

import jax
import numpy as np
import pytest
from PIL import Image

from emigm_jax.checkpoints import runs
from emigm_jax.cli import main
from emigm_jax.config import settings
from emigm_jax.config.settings import SamplingConfig
from emigm_jax.core import randomness
from emigm_jax.core.reveal import RevealConfig
from emigm_jax.core.solvers import SolverConfig
from emigm_jax.data.interface import Batch
from emigm_jax.models import emigm
from emigm_jax.sampling.sampler import Sampler
from emigm_jax.training import state, step
from support import checkpoint_files, golden

MODEL = emigm.preset(256, 'xs')


@pytest.mark.full
def test_sampler_compiles_once_and_batches_change_no_image():
    config = SamplingConfig(reveal=RevealConfig(steps=4), solver=SolverConfig(steps=4))
    sampler = Sampler(MODEL, config)
    params = jax.jit(emigm.network(MODEL).init)(jax.random.key(0))
    for start in range(3):
        seeds = np.arange(2) + 2 * start
        tokens = sampler(params, seeds % 1000, seeds)
        assert np.isfinite(tokens).all()
    run, _ = sampler.prepared(params, [0, 1], [0, 1])
    assert run._cache_size() == 1
    alone = sampler(params, seeds[:1] % 1000, seeds[:1])
    np.testing.assert_allclose(alone[0], tokens[0], rtol=1e-4, atol=1e-4)


@pytest.mark.full
def test_train_step_compiles_once_over_steps():
    optimizer = settings.OptimizerConfig()
    net = emigm.network(MODEL)
    tx = state.optimizer(optimizer, state.learning_rate(optimizer, 4, 0, 10))
    current = jax.jit(functools.partial(state.create, net, optimizer, tx))(jax.random.key(0))
    run = step.TrainStep(net, MODEL, settings.LossConfig(), optimizer, tx)
    run, words = jax.jit(run, donate_argnums=0), randomness.words(0)
    rng = np.random.default_rng(0)
    for number in range(3):
        batch = Batch(
            labels=rng.integers(1000, size=4).astype(np.int32),
            tokens=rng.standard_normal((4, 256, 16), np.float32),
        )
        current, values = run(current, batch, words)
        if number == 0:
            # Zero-initialised output, so the squared error is that of the noise alone.
            assert float(values['mse']) == pytest.approx(1.0, abs=0.03)
    assert int(current['step']) == 3
    assert run._cache_size() == 1


@pytest.mark.full
def test_official_files_to_pictures(tmp_path):
    """The two files a user downloads, here with formula weights, to PNG files of 256 x 256."""
    formula = golden.formula()
    tensors = formula.state_dict(golden.path('emigm_xs_256_keys.json'))
    files = {
        'eMIGM_xsmall_256_checkpoint.pth': {'model_ema': tensors},
        'kl16.ckpt': {'model': formula.state_dict(golden.path('kl16_keys.json'))},
    }
    for name, tree in files.items():
        checkpoint_files.write_arrays(tmp_path / name, tree)
        target = tmp_path / name.partition('.')[0]
        assert main.main(['convert', str(tmp_path / name), str(target)]) == 0
    model = tmp_path / 'eMIGM_xsmall_256_checkpoint'
    saved = runs.require(model)
    assert saved.config.model == MODEL
    params, _ = saved.load_params()
    jax.tree.map(np.testing.assert_array_equal, params, golden.params(MODEL, tensors))

    command = [
        'sample',
        '--checkpoint',
        str(model),
        '--tokenizer',
        str(tmp_path / 'kl16'),
        '--classes',
        '207',
        '--seeds',
        '0-1',
        '--steps',
        '3',
        '--solver-steps',
        '2',
    ]
    for batch in ('1', '2'):
        out = tmp_path / batch
        assert main.main([*command, '--batch-size', batch, '--out', str(out)]) == 0
    for name in (f'images/class_0207_golden_retriever_seed_00000{n}.png' for n in (0, 1)):
        one, two = (np.asarray(Image.open(tmp_path / b / name)).astype(int) for b in '12')
        assert one.shape == (256, 256, 3)
        assert one.std() > 1
        assert np.abs(one - two).max() <= 1  # rounding

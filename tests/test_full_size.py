"""XS at 256 pixels, full size: one compilation per setting (minutes; `pytest -m slow`)."""

import functools

import jax
import numpy as np
import pytest

from emigm_jax.core.reveal import RevealConfig
from emigm_jax.core.solvers import SolverConfig
from emigm_jax.models import emigm
from emigm_jax.sampling import Sampler, SamplingConfig
from emigm_jax.training import loss, state, step

MODEL = emigm.preset(256, 'xs')


@pytest.mark.slow
def test_sampler_compiles_once_and_batches_change_no_image():
    config = SamplingConfig(reveal=RevealConfig(steps=16), solver=SolverConfig(steps=8))
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


@pytest.mark.slow
def test_train_step_compiles_once_over_steps():
    optimizer = state.OptimizerConfig()
    net = emigm.network(MODEL)
    tx = state.optimizer(optimizer, state.learning_rate(optimizer, 4, 0, 10))
    current = jax.jit(functools.partial(state.create, net, optimizer, tx))(jax.random.key(0))
    run = jax.jit(
        functools.partial(step.train_step, net, MODEL, loss.LossConfig(), optimizer, tx, 0, 1),
        donate_argnums=0,
    )
    rng = np.random.default_rng(0)
    for number in range(3):
        batch = {
            'tokens': rng.standard_normal((4, 256, 16), np.float32),
            'labels': rng.integers(1000, size=4).astype(np.int32),
        }
        current, values = run(current, batch)
        if number == 0:
            # Zero-initialised output, so the squared error is that of the noise alone.
            assert float(values['mse']) == pytest.approx(1.0, abs=0.03)
    assert int(current['step']) == 3
    assert run._cache_size() == 1

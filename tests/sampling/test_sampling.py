"""Generation: the same image whatever the batch, each position once, one program per setting."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emigm_jax.config.settings import SamplingConfig
from emigm_jax.core import flops
from emigm_jax.core.reveal import RevealConfig, plan
from emigm_jax.core.solvers import SolverConfig
from emigm_jax.models import emigm
from emigm_jax.sampling.sampler import Sampler, sampler

MODEL = emigm.ModelConfig(
    grid=4,
    channels=3,
    classes=5,
    width=16,
    heads=2,
    encoder_depth=1,
    decoder_depth=2,
    buffer=2,
    head_width=16,
    head_depth=1,
)
CONFIG = SamplingConfig(reveal=RevealConfig(steps=5), solver=SolverConfig(steps=3))
LABELS, SEEDS = np.arange(70) % 5, np.arange(70)
COUNTS = ['shared', pytest.param('per_image', marks=pytest.mark.slow)]


@pytest.fixture(scope='module')
def params():
    params = jax.jit(emigm.network(MODEL).init)(jax.random.key(0))
    return jax.tree.map(lambda p: p + 0.05 * jnp.cos(jnp.arange(p.size)).reshape(p.shape), params)


@pytest.mark.slow
def test_settings_of_the_plan_share_a_program(params):
    change = lambda **reveal: dataclasses.replace(
        CONFIG, seed=4, reveal=dataclasses.replace(CONFIG.reveal, **reveal)
    )
    stronger, wider = change(guidance=2.5, guidance_schedule='linear'), change(guidance_to=1.0)
    first = sampler(MODEL, CONFIG)
    first(params, LABELS[:8], SEEDS[:8])
    assert sampler(MODEL, stronger)._run is first._run
    assert sampler(MODEL, wider)._run is not first._run
    assert sampler(MODEL, change(order='halton'))._run is not first._run
    shared = sampler(MODEL, stronger)(params, LABELS[:8], SEEDS[:8])
    np.testing.assert_array_equal(shared, Sampler(MODEL, stronger)(params, LABELS[:8], SEEDS[:8]))


@pytest.mark.parametrize('counts', COUNTS)
def test_batch_size_changes_no_image(params, counts):
    config = dataclasses.replace(CONFIG, reveal=RevealConfig(steps=5, counts=counts))
    sampler = Sampler(MODEL, config)
    whole = sampler(params, LABELS[:64], SEEDS[:64])
    for size in (1, 7):
        for start in (0, 35, 63 - 63 % size - size):
            rows = slice(start, start + size)
            part = sampler(params, LABELS[rows], SEEDS[rows])
            np.testing.assert_allclose(part, whole[rows], rtol=1e-4, atol=1e-5)
    assert len(np.unique(np.asarray(whole).round(3), axis=0)) == 64


def test_every_device_computes_its_share(params):
    tokens = Sampler(MODEL, CONFIG)(params, LABELS[:64], SEEDS[:64])
    assert len(tokens.sharding.device_set) == jax.local_device_count() == 8
    assert {s.data.shape[0] for s in tokens.addressable_shards} == {8}
    run, arguments = Sampler(MODEL, CONFIG).prepared(params, LABELS[:64], SEEDS[:64])
    program = run.lower(*arguments).compile().as_text()
    for collective in ('all-gather', 'all-reduce', 'all-to-all', 'collective-permute'):
        assert collective not in program


@pytest.mark.slow
def test_settings_decide_the_image(params):
    one = lambda config, label=1, seed=3: Sampler(MODEL, config)(params, [label], [seed])
    base = one(CONFIG)
    np.testing.assert_array_equal(base, one(CONFIG))
    for other in (
        one(dataclasses.replace(CONFIG, seed=1)),
        one(CONFIG, label=2),
        one(CONFIG, label=-1),
        one(CONFIG, seed=4),
        one(dataclasses.replace(CONFIG, solver=SolverConfig('ddpm', 3))),
        one(dataclasses.replace(CONFIG, reveal=RevealConfig(steps=5, guidance=1.0))),
        one(dataclasses.replace(CONFIG, reveal=RevealConfig(steps=5, order='halton'))),
    ):
        assert float(jnp.abs(base - other).max()) > 1e-4


@pytest.mark.parametrize('steps', [1, 3, 40])
@pytest.mark.parametrize('counts', COUNTS)
def test_every_token_is_drawn_once(steps, counts):
    """With one solver row and a network of zeros a token is its first noise over alpha."""
    params = jax.jit(emigm.network(MODEL).init)(jax.random.key(0))  # epsilon = 0 at init
    config = SamplingConfig(
        reveal=RevealConfig(steps=steps, counts=counts, guidance=1.0),
        solver=SolverConfig('ddim', 1),
    )
    tokens = Sampler(MODEL, config)(params, LABELS[:40], SEEDS[:40])
    # DDIM with one row jumps to x / alpha(0): unit noise, never the zeros of an unset token.
    assert (np.asarray(tokens) != 0).all()
    assert abs(float(tokens.std()) - 1.0) < 0.1
    flat = np.asarray(tokens).reshape(-1)
    assert len(np.unique(flat)) == flat.size


def test_one_compilation_per_setting(params):
    sampler = Sampler(MODEL, CONFIG)
    run, arguments = sampler.prepared(params, LABELS[:8], SEEDS[:8])
    for start in range(0, 40, 8):
        sampler(params, LABELS[start : start + 8], SEEDS[start : start + 8])
    run(*arguments)
    assert run._cache_size() == 1


def test_programs_of_steps_are_shared_and_compiled_once(params):
    """Rows that a program returned are those of its next call, not a second compilation."""
    reveal = RevealConfig(steps=16, guidance_from=0.3, guidance_to=0.7)
    sampler = Sampler(MODEL, dataclasses.replace(CONFIG, reveal=reveal))
    programs = {run.program for _, run in sampler._programs()}
    assert len(programs) < len(sampler.segments)
    for program in programs:
        program.clear_cache()
    *_, last = sampler.steps(params, LABELS[:8], SEEDS[:8])
    assert all(program._cache_size() == 1 for program in programs)
    whole = sampler(params, LABELS[:8], SEEDS[:8])
    np.testing.assert_allclose(last.tokens, whole, rtol=1e-4, atol=1e-4)


def test_xs_256_padded_flops():
    """Within 15 % of exact shapes with a full last block (fast setting)."""
    model = emigm.preset(256, 'xs')
    for steps, rows in ((16, 8), (128, 14)):
        config = SamplingConfig(reveal=RevealConfig(steps=steps), solver=SolverConfig(steps=rows))
        sampler = Sampler(model, config)
        drawn = plan(config.reveal, 256)
        cost = functools.partial(flops.sample_step, model, rows)
        exact = sum(
            cost(int(v), int(r), bool(g))
            for v, r, g in zip(drawn.visible_budget, drawn.reveal_budget, drawn.guided, strict=True)
            if r
        )
        assert exact <= sampler.flops <= 1.15 * exact
        assert len(sampler.segments) <= 12
    # The decoder is most of the transformer: 17.3 GF per evaluation, on all 320 tokens.
    assert abs(flops.decoder(model, 320) / 17.3e9 - 1) < 0.02


@pytest.mark.parametrize(('steps', 'low', 'high', 'nfe'), [(16, 0.1, 0.3, 19), (64, 0.25, 0.5, 80)])
def test_nfe(steps, low, high, nfe):
    reveal = RevealConfig(steps=steps, guidance_from=low, guidance_to=high)
    model = emigm.preset(512, 'xs')
    assert Sampler(model, SamplingConfig(reveal=reveal)).nfe == nfe


def test_the_order_decides_what_is_revealed_first(params):
    reveal = RevealConfig(steps=5, order='raster')
    sampler = Sampler(MODEL, dataclasses.replace(CONFIG, reveal=reveal))
    progress = next(sampler.steps(params, LABELS[:2], SEEDS[:2]))
    first = plan(reveal, MODEL.tokens, seeds=(0,)).counts[0, 0]
    np.testing.assert_array_equal(progress.revealed, [np.arange(16) < first] * 2)
    assert (np.abs(progress.tokens).sum(-1) > 0).tolist() == progress.revealed.tolist()

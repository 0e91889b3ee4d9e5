"""Generation of codes by confidence, against recordings of MaskGIT's own `parallel_decode`."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import serialization

from emigm_jax.config.settings import SamplingConfig
from emigm_jax.core import orders, reveal
from emigm_jax.core.reveal import RevealConfig
from emigm_jax.errors import UserError
from emigm_jax.sampling import steps
from emigm_jax.sampling.sampler import Sampler
from support import golden

MODEL = golden.MASKGIT_TINY
SCHEDULES = {'cosine': 'cosine', 'uniform': 'linear'}  # their name: ours


@pytest.fixture(scope='module')
def params():
    file = golden.path('maskgit_tiny_checkpoint').read_bytes()
    tree = serialization.msgpack_restore(file)
    return jax.tree.map(jnp.asarray, golden.maskgit_params(MODEL, tree))


def counts(masked, total, first):
    """Tokens revealed by each of `total` iterations where those before `first` do not run."""
    found, left = [0] * first, masked
    for i in range(first, total - 1):
        gamma = math.cos(math.pi / 2 * (i + 1) / total)
        found.append(left - max(1, min(left - 1, math.floor(masked * gamma))))
        left -= found[-1]
    return [*found, left]


def recording(name):
    """(settings, plan, labels, known tokens, order, noise of codes, of choices, steps, final)."""
    data = golden.arrays('maskgit_tiny_outputs.npz')
    take = lambda key: data[f'{name}_{key}']
    total, temperature, first = take('settings')
    total, first = int(total), int(first)
    config = RevealConfig(
        steps=total,
        schedule=SCHEDULES[str(take('method'))],
        rule='fixed',
        order='confidence',
        choice_temperature=float(temperature),
        guidance=1.0,
    )
    codes = take('start')[:, 1:]
    raster = jnp.tile(jnp.arange(MODEL.tokens), (len(codes), 1))
    order = np.asarray(orders.given_first(raster, jnp.asarray(codes < 0)))
    if first:
        masked = (codes < 0).sum(1)
        rows = np.array([counts(m, total, first) for m in masked], np.int32)
        plan = reveal.plan_of_counts(config, rows, MODEL.tokens)
    else:
        plan = reveal.plan(config, MODEL.tokens)
    before = lambda noise: np.concatenate([np.zeros_like(noise[:1])] * first + [noise])
    noise = before(take('gumbel_codes'))[:, :, 1:].transpose(1, 2, 0, 3)
    choice = before(take('gumbel_choice'))[:, :, 1:].transpose(1, 2, 0)
    known = np.take_along_axis(np.maximum(codes, 0), order, axis=1).astype(np.int32)
    recorded = take('steps')[:, :, 1:], take('final')[:, 1:]
    return config, plan, data['labels'], known, order, noise, choice, *recorded


@pytest.mark.parametrize('name', ['decode8', 'decode4', 'edit'])
def test_official_runs_are_replayed_code_for_code(params, name):
    config, plan, labels, known, order, noise, choice, _, final = recording(name)
    sampler = Sampler(MODEL, SamplingConfig(reveal=config))
    drawn = sampler.replay(params, labels, order, plan, noise, choice, known)
    np.testing.assert_array_equal(drawn, final)


@pytest.mark.parametrize('name', [pytest.param('decode8', marks=pytest.mark.slow), 'edit'])
def test_each_step_of_an_official_run(params, name):
    """What a step reveals is what the official one drew, and stays: the others are drawn anew."""
    config, plan, labels, known, order, noise, choice, recorded, _ = recording(name)
    masked = golden.arrays('maskgit_tiny_outputs.npz')[f'{name}_start'][:, 1:] < 0
    device = steps.Steps(MODEL, SamplingConfig(reveal=config))
    random = steps.recorded(*map(jnp.asarray, (order, noise, choice)))
    full = np.broadcast_to(plan.counts, (len(labels), config.steps))
    images = steps.Images(
        jnp.asarray(labels, jnp.int32),
        jax.random.split(jax.random.key(0), len(labels)),
        jnp.asarray(full),
        jnp.ones(full.shape, jnp.float32),
        # As `emigm edit` has it; what is in masked places is not heeded.
        steps.Given(np.take_along_axis(known, np.argsort(order, 1), 1), masked),
    )
    segments = reveal.segments(plan, lambda visible, read, guided: 1.0 + read)
    state = device.start(images, random)
    run = jax.jit(
        lambda segment, state, k: device.one(
            segment, params, state, jnp.full(len(labels), k), images, random
        ),
        static_argnums=0,
    )
    number = 0
    for segment in segments:
        for k in segment.steps:
            state, progress = run(segment, state, k)
            revealed = np.asarray(progress.revealed)
            np.testing.assert_array_equal(revealed.sum(1), MODEL.tokens - full[:, k + 1 :].sum(1))
            for later in recorded[number:]:
                np.testing.assert_array_equal(
                    np.asarray(progress.tokens)[revealed], later[revealed]
                )
            number += 1
    assert number == len(recorded)


def test_a_batch_changes_no_image(params):
    config = RevealConfig(steps=2, rule='fixed', order='confidence', guidance=1.0)
    sampler = Sampler(MODEL, SamplingConfig(reveal=config))
    labels, seeds = np.arange(16) % 10, np.arange(16)
    whole = np.asarray(sampler(params, labels, seeds))
    assert whole.dtype == np.int32
    assert whole.min() >= 0
    assert whole.max() < MODEL.codes
    *_, last = sampler.steps(params, labels[3:6], seeds[3:6])
    np.testing.assert_array_equal(last.tokens, whole[3:6])
    assert len(np.unique(whole, axis=0)) == 16


def test_confidence_of_a_diffusion_head_is_refused():
    config = SamplingConfig(reveal=RevealConfig(order='confidence'))
    with pytest.raises(UserError, match="'diffusion' cannot tell: choose another order"):
        Sampler(golden.TINY, config)

"""Our networks, losses, solvers and samples against recordings of the official code."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emigm_jax.config import settings
from emigm_jax.core import gaussian, reveal, solvers
from emigm_jax.models import emigm
from emigm_jax.models.interface import Group, Suffix
from emigm_jax.sampling.sampler import Sampler
from support import golden

NETWORK, LOSS, SOLVER, SAMPLE = 1e-4, 1e-4, 1e-4, 1e-3


@pytest.fixture(scope='module')
def tiny():
    params = golden.checkpoint(golden.TINY, 'emigm_tiny_training.pth')
    net = emigm.network(golden.TINY).bind(jax.tree.map(jnp.asarray, params))
    return net, golden.arrays('emigm_tiny_outputs.npz')


def ascending(mask):
    """Order with the visible positions first, each part ascending, and the visible counts."""
    order = np.argsort(mask, axis=1, kind='stable').astype(np.int32)
    return jnp.asarray(order), jnp.asarray((mask == 0).sum(1), jnp.int32)


def conditions(net, tokens, order, visible, labels, null=None):
    """z of all tokens in natural order, and the encoder's output."""
    budget, tokens = int(visible.max()), jnp.asarray(tokens)
    return _conditions(net, budget, tokens, order, visible, labels, null)


@functools.partial(jax.jit, static_argnums=1)
def _conditions(net, budget, tokens, order, visible, labels, null):
    trunk, count = net.trunk, order.shape[1]
    group = Group(
        tokens=jnp.take_along_axis(jnp.asarray(tokens), order[..., None], axis=1),
        positions=trunk.positions(order),
        condition=trunk.condition(labels, null),
        visible=visible,
        budget=budget,
        read=Suffix(count),
    )
    (encoded,), (z,) = trunk.encode([group]), trunk([group])
    return jnp.take_along_axis(z, jnp.argsort(order, axis=1)[..., None], axis=1), encoded


def test_tiny_forward(tiny):
    net, data = tiny
    order, visible = ascending(data['mask'])
    labels = jnp.asarray(data['labels'])
    z, encoded = conditions(net, data['tokens'], order, visible, labels)
    golden.close(encoded, data['encoder_out'], NETWORK)
    golden.close(z, data['decoder_out'], NETWORK)
    null = jnp.ones(3, bool)
    z, _ = conditions(net, data['tokens'], order, visible, labels, null)
    golden.close(z, data['decoder_out_null'], NETWORK)
    z, _ = conditions(net, data['tokens'], order, jnp.zeros(3, jnp.int32), labels)
    golden.close(z, data['decoder_out_fully_masked'], NETWORK)


def test_padding_of_the_encoder_changes_nothing(tiny):
    net, data = tiny
    order, visible = ascending(data['mask'])
    visible = visible.at[1].add(-2)  # ragged counts in one batch
    labels = jnp.asarray(data['labels'])
    together, _ = conditions(net, data['tokens'], order, visible, labels)
    alone = slice(1, 2)
    z, _ = conditions(net, data['tokens'][alone], order[alone], visible[alone], labels[alone])
    golden.close(together[alone], z, 1e-5)


def test_head_and_loss(tiny):
    net, data = tiny
    x, t, noise = (jnp.asarray(data[k]) for k in ('head_x', 'head_t', 'head_noise'))
    t = t.astype(jnp.int32)
    condition = net.head.condition(jnp.asarray(data['head_z']))
    golden.close(net.head(x, net.head.time(t), condition), data['head_out'], NETWORK)
    x_t = gaussian.q_sample(x, t, noise)
    terms = gaussian.loss_terms(net.head(x_t, net.head.time(t), condition), x, x_t, t, noise)
    assert (np.asarray(t) == 0).any()  # the likelihood branch is recorded, too
    for name, value in (('mse', terms.mse), ('vb', terms.vlb), ('total', terms.total)):
        np.testing.assert_allclose(value, data[f'loss_{name}'], rtol=LOSS, atol=1e-6)


def guided(net, z_cond, z_uncond, scale):
    condition = net.head.condition(jnp.stack([jnp.asarray(z_cond), jnp.asarray(z_uncond)]))

    def network(x, t):
        both = jnp.broadcast_to(x, (2, *x.shape))
        epsilon, v = jnp.split(net.head(both, net.head.time(t), condition), 2, axis=-1)
        return epsilon[1] + scale * (epsilon[0] - epsilon[1]), v[0]

    return network


@pytest.mark.parametrize('steps', [3, 4, 5, 8, 14, 20])
@pytest.mark.parametrize('scale', [1, 4])
def test_dpm_solver(tiny, steps, scale):
    net, data = tiny
    network = guided(net, data['dpm_z_cond'], data['dpm_z_uncond'], scale)
    table = solvers.dpm_table(steps)
    assert len(table.t) == steps
    x = solvers.solve(table, network, jnp.asarray(data['dpm_noise']))
    golden.close(x, data[f'dpm_{steps}_cfg{scale}'], SOLVER)


@pytest.mark.parametrize(
    'name', ['ddpm_10_temp0.9_cfg1.0', 'ddpm_100_temp1.0_cfg1.0', 'ddpm_10_temp1.0_cfg3.0']
)
def test_ddpm(tiny, name):
    net, data = tiny
    steps, temperature, scale = (
        float(part.removeprefix('temp').removeprefix('cfg')) for part in name.split('_')[1:]
    )
    table = solvers.ddpm_table(int(steps), temperature)
    np.testing.assert_array_equal(np.sort(table.t), data[f'ddpm_{int(steps)}_timesteps'])
    noises = jnp.asarray(data[f'{name}_noises'])
    network = guided(net, data['dpm_z_cond'], data['dpm_z_uncond'], scale)
    x = solvers.solve(table, network, jnp.asarray(data['dpm_noise']), lambda row: noises[row])
    golden.close(x, data[name], SOLVER)


def nchw(tokens):
    side = int(tokens.shape[1] ** 0.5)
    return np.asarray(tokens).reshape(len(tokens), side, side, -1).transpose(0, 3, 1, 2)


@pytest.mark.parametrize('name', ['K6', pytest.param('K10', marks=pytest.mark.slow), 'K4'])
def test_end_to_end_sample(tiny, name):
    _, data = tiny
    params = golden.checkpoint(golden.TINY, 'emigm_tiny_training.pth')
    get = lambda key: data[f'sample_{name}_{key}']
    steps, rows, low, high, cfg = get('settings')
    config = settings.SamplingConfig(
        reveal=reveal.RevealConfig(
            steps=int(steps), guidance=cfg, guidance_from=low, guidance_to=high
        ),
        solver=solvers.SolverConfig(steps=int(rows)),
    )
    guided_steps = reveal.guided_steps(config.reveal)
    counts = np.zeros((1, int(steps)), np.int32)  # the official loop may have stopped early
    counts[0, : len(get('counts'))] = get('counts')
    np.testing.assert_array_equal(guided_steps[: len(get('guided'))], get('guided'))
    plan = reveal.plan_of_counts(config.reveal, counts, golden.TINY.tokens)
    noise = np.zeros((3, 16, 1 + int(rows), 16), np.float32)
    noise[:, :, 0] = get('noise_in_order')
    order = jnp.asarray(get('order').astype(np.int32))
    tokens = Sampler(golden.TINY, config).replay(params, data['labels'], order, plan, noise)
    golden.close(nchw(tokens), get('out_nchw'), SAMPLE)


@pytest.mark.parametrize('name', ['K5', 'K4'])
def test_end_to_end_mar(name):
    data = golden.arrays('mar_tiny_outputs.npz')
    params = golden.checkpoint(golden.MAR_TINY, 'mar_tiny.pth')
    get = lambda key: data[f'mar_{name}_{key}']
    steps, rows, cfg, temperature = get('settings')
    config = settings.SamplingConfig(
        reveal=reveal.RevealConfig(
            steps=int(steps),
            schedule='cosine',
            rule='fixed',
            guidance=cfg,
            guidance_schedule='linear',
            guidance_from=-1.0,
            guidance_to=1.0,
        ),
        solver=solvers.SolverConfig('ddpm', int(rows), temperature=temperature),
    )
    plan = reveal.plan(config.reveal, golden.MAR_TINY.tokens)
    np.testing.assert_array_equal(plan.counts[0], get('counts'))
    np.testing.assert_allclose(plan.guidance[0], get('guidance'), rtol=1e-6)
    order = jnp.asarray(get('order').astype(np.int32))
    tokens = Sampler(golden.MAR_TINY, config).replay(
        params, get('labels'), order, plan, get('noise_in_order')
    )
    golden.close(nchw(tokens), get('out_nchw'), SAMPLE)


def test_xs_256():
    formula, data = golden.formula(), golden.arrays('emigm_xs_256_outputs.npz')
    tensors = formula.state_dict(golden.path('emigm_xs_256_keys.json'))
    config = emigm.preset(256, 'xs')
    params = jax.tree.map(jnp.asarray, golden.params(config, tensors))
    net = emigm.network(config)
    tokens = 4.0 * formula.fill('xs_tokens', (2, 256, 16))
    order = jnp.asarray(data['order'].astype(np.int32))
    labels = jnp.asarray(data['labels'].astype(np.int32))
    visible = jnp.full(2, 40, jnp.int32)
    z, _ = conditions(net.bind(params), tokens, order, visible, labels)
    golden.close(z, data['z'], NETWORK)
    head = net.bind(params).head
    x = jnp.asarray(4.0 * formula.fill('xs_noisy', (32, 16)))
    t = jnp.arange(0, 960, 30)
    output = head(x, head.time(t), head.condition(jnp.asarray(data['z'][0, :32])))
    golden.close(output, data['head_out'], NETWORK)

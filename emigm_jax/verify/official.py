"""Networks, losses, solvers and whole runs against recordings of the official implementations."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from emigm_jax.config.settings import SamplingConfig
from emigm_jax.core import gaussian, orders, reveal, solvers
from emigm_jax.core.guidance import guided
from emigm_jax.models import emigm
from emigm_jax.models.config import ModelConfig
from emigm_jax.models.interface import Group, Suffix
from emigm_jax.nn.functional import Params
from emigm_jax.sampling.sampler import Sampler
from emigm_jax.verify import recordings
from emigm_jax.verify.part import Finding, differing, relative


def of_emigm(dtype: str) -> tuple[ModelConfig, Params, dict[str, np.ndarray]]:
    """(settings of the network, parameters, what is recorded)."""
    params, outputs = recordings.emigm()
    return dataclasses.replace(recordings.EMIGM, dtype=dtype), params, outputs


def of_maskgit(dtype: str) -> tuple[ModelConfig, Params, dict[str, np.ndarray]]:
    """As `of_emigm`."""
    params, outputs = recordings.maskgit()
    return dataclasses.replace(recordings.MASKGIT, dtype=dtype), params, outputs


def trunk(dtype: str) -> Finding:
    """Conditions z of all tokens: of some masks, for the null class, of a masked image."""
    model, params, data = of_emigm(dtype)
    order = np.argsort(data['mask'], axis=1, kind='stable').astype(np.int32)  # visible ones first
    visible = (data['mask'] == 0).sum(1).astype(np.int32)
    cases = (
        ('decoder_out', visible, False),
        ('decoder_out_null', visible, True),
        ('decoder_out_fully_masked', 0 * visible, False),
    )
    budget = int(visible.max())
    run = jax.jit(lambda *arguments: _conditions(model, budget, *arguments))
    errors = []
    tokens = np.take_along_axis(data['tokens'], order[..., None], axis=1)
    for name, seen, null in cases:
        images = _Images(tokens, order, seen, data['labels'], np.full(len(seen), null))
        z = np.asarray(run(params, images))
        in_raster = np.take_along_axis(z, np.argsort(order, axis=1)[..., None], axis=1)
        errors.append(relative(in_raster, data[name]))
    return Finding(max(errors), 'z, of its deviation')


def head(dtype: str) -> Finding:
    """The diffusion head's (epsilon, v) of noisy tokens, at all kinds of times."""
    model, params, data = of_emigm(dtype)

    @jax.jit
    def run(params, x, t, z):
        head = emigm.network(model).bind(params).head
        return head(x, head.time(t), head.condition(z))

    out = run(params, *(data[f'head_{name}'] for name in ('x', 't', 'z')))
    return Finding(relative(out, data['head_out']), 'epsilon and v, of their deviation')


def loss(dtype: str) -> Finding:
    """The terms of the loss per token: error of the noise, variational bound, both."""
    model, params, data = of_emigm(dtype)

    @jax.jit
    def run(params, x, t, noise, z):
        head = emigm.network(model).bind(params).head
        x_t = gaussian.q_sample(x, t, noise)
        out = head(x_t, head.time(t), head.condition(z))
        return gaussian.loss_terms(out, x, x_t, t, noise)

    terms = run(params, *(data[f'head_{name}'] for name in ('x', 't', 'noise', 'z')))
    found = {'mse': terms.mse, 'vb': terms.vlb, 'total': terms.total}
    errors = [relative(value, data[f'loss_{name}']) for name, value in found.items()]
    return Finding(max(errors), 'terms, of their deviation')


def solver(dtype: str) -> Finding:
    """Tokens of DPM-Solver++ with 5 and 14 steps, guided in the second, and of DDPM with 10."""
    model, params, data = of_emigm(dtype)
    noises = jnp.asarray(data['ddpm_10_temp0.9_cfg1.0_noises'])[:, None]  # of one image
    cases = (
        ('dpm_5_cfg1', solvers.dpm_table(5), 1.0),
        ('dpm_14_cfg4', solvers.dpm_table(14), 4.0),
        ('ddpm_10_temp0.9_cfg1.0', solvers.ddpm_table(10, 0.9), 1.0),
    )

    def run(table, scale, params, conditions, noise):
        head = emigm.network(model).bind(params).head
        condition = head.condition(conditions)

        def network(x, t):
            both = jnp.broadcast_to(x, (2, *x.shape))
            epsilon, v = jnp.split(head(both, head.time(t), condition), 2, axis=-1)
            return guided(epsilon[0], epsilon[1], jnp.full(1, scale)), v[0]

        return solvers.solve(table, network, noise, lambda row: noises[row])

    conditions = np.stack([data['dpm_z_cond'], data['dpm_z_uncond']])[:, None]
    noise = data['dpm_noise'][None]
    errors = []
    for name, table, scale in cases:
        jitted = jax.jit(lambda *arguments, of=(table, scale): run(*of, *arguments))
        errors.append(relative(jitted(params, conditions, noise)[0], data[name]))
    return Finding(max(errors), 'tokens, of their deviation')


def sample(dtype: str) -> Finding:
    """Three whole images, 6 steps of 16 tokens each, from recorded order, counts and noise."""
    model, params, data = of_emigm(dtype)
    steps, rows, low, high, guidance = data['sample_K6_settings']
    config = SamplingConfig(
        reveal=reveal.RevealConfig(
            steps=int(steps), guidance=guidance, guidance_from=low, guidance_to=high
        ),
        solver=solvers.SolverConfig(steps=int(rows)),
    )
    plan = reveal.plan_of_counts(config.reveal, data['sample_K6_counts'][None], model.tokens)
    noise = data['sample_K6_noise_in_order'][:, :, None]  # DPM-Solver draws none on the way
    order = data['sample_K6_order']
    tokens = Sampler(model, config).replay(params, data['labels'], order, plan, noise)
    side = model.grid
    in_pixels = np.asarray(tokens).reshape(-1, side, side, model.channels).transpose(0, 3, 1, 2)
    return Finding(relative(in_pixels, data['sample_K6_out_nchw']), 'tokens, of their deviation')


def maskgit_logits(dtype: str) -> Finding:
    """MaskGIT's logits at every position, some of which are masked."""
    model, params, data = of_maskgit(dtype)
    codes = data['sequence'][:, 1:]  # the first is the class, -1 is masked
    order = np.argsort(codes < 0, axis=1, kind='stable').astype(np.int32)
    tokens = np.take_along_axis(codes, order, axis=1)
    visible = (codes >= 0).sum(1).astype(np.int32)
    in_raster = np.argsort(order, axis=1)[..., None]

    @jax.jit
    def run(params):
        images = _Images(tokens, order, visible, data['labels'], np.zeros(len(visible), bool))
        z = _conditions(model, model.tokens, params, images)
        return emigm.network(model).bind(params).head.logits(z)

    logits = np.take_along_axis(np.asarray(run(params)), in_raster, axis=1)
    return Finding(relative(logits, data['logits'][:, 1:]), 'logits, of their deviation')


def maskgit_codes(dtype: str) -> Finding:
    """MaskGIT's decoding in 8 steps by confidence, from recorded noise: code for code."""
    model, params, data = of_maskgit(dtype)
    steps, temperature, _ = data['decode8_settings']
    config = reveal.RevealConfig(
        steps=int(steps),
        schedule='cosine',
        rule='fixed',
        order='confidence',
        choice_temperature=float(temperature),
        guidance=1.0,
    )
    noise = data['decode8_gumbel_codes'][:, :, 1:].transpose(1, 2, 0, 3)
    choice = data['decode8_gumbel_choice'][:, :, 1:].transpose(1, 2, 0)
    order = np.tile(np.arange(model.tokens, dtype=np.int32), (len(noise), 1))
    plan = reveal.plan(config, model.tokens)
    sampler = Sampler(model, SamplingConfig(reveal=config))
    codes = sampler.replay(params, data['labels'], order, plan, noise, choice)
    return Finding(differing(codes, data['decode8_final'][:, 1:]), 'codes that differ')


def halton(dtype: str) -> Finding:
    """The Halton order of a 16 x 16 grid; no matter of dtypes."""
    del dtype
    cells = recordings.halton() @ np.array([16, 1])
    return Finding(differing(orders.halton_cells(16), cells), 'places that differ')


class _Images(NamedTuple):
    """What the trunk is told of B images."""

    tokens: np.ndarray  # (B, N, ...) in generation order
    order: np.ndarray  # (B, N) raster positions
    visible: np.ndarray  # (B,) how many of them are seen
    labels: np.ndarray  # (B,)
    null: np.ndarray  # (B,) whether of the null class


def _conditions(model, budget, params, images):
    """z (B, N, D) of all tokens in generation order."""
    trunk = emigm.network(model).bind(params).trunk
    group = Group(
        tokens=jnp.asarray(images.tokens),
        positions=trunk.positions(jnp.asarray(images.order)),
        condition=trunk.condition(jnp.asarray(images.labels), jnp.asarray(images.null)),
        visible=jnp.asarray(images.visible),
        budget=budget,
        read=Suffix(model.tokens),
    )
    (z,) = trunk([group])
    return z

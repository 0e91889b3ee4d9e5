"""The categorical head: its loss by hand, what it trains, what its guided draws are."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emigm_jax.config.settings import Config, LossConfig, OptimizerConfig, SamplingConfig
from emigm_jax.core import categorical, masking
from emigm_jax.core.categorical import CodesConfig
from emigm_jax.core.masking import MaskingConfig
from emigm_jax.core.reveal import RevealConfig
from emigm_jax.data.interface import Batch
from emigm_jax.errors import UserError
from emigm_jax.models import emigm
from emigm_jax.models.config import ModelConfig
from emigm_jax.models.interface import Group, Suffix
from emigm_jax.parallel import sharding
from emigm_jax.sampling.sampler import Sampler
from emigm_jax.training import loss, program

MODEL = ModelConfig(
    grid=2,
    head='categorical',
    codes=5,
    classes=2,
    width=16,
    heads=2,
    encoder_depth=1,
    decoder_depth=2,
    buffer=2,
    attention_dropout=0.0,
    projection_dropout=0.0,
)
LOSS = LossConfig(MaskingConfig(groups=2), copies=1, label_smoothing=0.1)
BATCH = 16


@jax.jit
def logits_of(params, order, label, tokens, visible):
    """Of one image, in generation order, of which all rows are read; label -1: of no class."""
    net = emigm.network(MODEL).bind(params)
    condition = net.trunk.condition(jnp.maximum(label, 0)[None], (label < 0)[None])
    positions = net.trunk.positions(order[None])
    (z,) = net.trunk([Group(tokens[None], positions, condition, visible[None], 4, Suffix(4))])
    return net.head.logits(z)[0]


@pytest.fixture(scope='module')
def trained():
    """A model of two pictures, one per class; (config, params, losses on the way)."""
    config = Config(
        model=MODEL,
        loss=dataclasses.replace(LOSS, masking=MaskingConfig(groups=1), label_smoothing=0.0),
        optimizer=OptimizerConfig(base_learning_rate=0.1, ema_decays=(0.5,)),
    )
    training = dataclasses.replace(config.training, batch_size=BATCH)
    config = dataclasses.replace(config, training=training)
    built = program.build(config, sharding.make_mesh(config.mesh, jax.devices()[:1]), 0, 80)
    labels = np.arange(BATCH, dtype=np.int32) % 2
    pictures = np.array([[0, 1, 2, 3], [4, 4, 0, 1]], np.int32)
    state, losses = built.create(), []
    for number in range(80):
        state, metrics = built.step(state, Batch(labels, pictures[labels]), np.int32(number))
        losses.append(float(metrics['loss']))
        np.testing.assert_allclose(metrics['loss'], metrics['cross_entropy'], rtol=1e-6)
    return pictures, jax.tree.map(jnp.asarray, jax.device_get(state['params'])), losses


@pytest.mark.slow
def test_pictures_are_learned_by_class(trained):
    pictures, params, losses = trained
    assert abs(losses[0] - np.log(5)) < 0.3
    assert losses[-1] < 0.4 * losses[0]  # images without their class keep the rest
    for order in ('random', 'confidence'):
        reveal = RevealConfig(steps=2, order=order, guidance=1.0)
        settings = SamplingConfig(reveal=reveal, codes=CodesConfig(temperature=0.0))
        drawn = Sampler(MODEL, settings)(params, [0, 1, 0, 1], range(4))
        np.testing.assert_array_equal(drawn, pictures[[0, 1, 0, 1]])


@pytest.mark.slow
def test_guidance_acts_on_logits(trained):
    """With one step all tokens are drawn from guided logits of nothing visible."""
    _, params, _ = trained
    reveal = RevealConfig(steps=1, guidance=3.0, guidance_from=-1.0, guidance_to=1.0)
    sampler = Sampler(MODEL, SamplingConfig(reveal=reveal))
    count = 4000
    drawn = np.asarray(sampler(params, [0] * count, range(count)))

    of = lambda label: logits_of(
        params, np.arange(4), np.int32(label), np.zeros(4, int), np.int32()
    )
    logits = [np.asarray(of(label)) for label in (0, -1)]
    p = np.asarray(jax.nn.softmax(logits[1] + 3.0 * (logits[0] - logits[1]), axis=-1))
    found = np.stack([np.bincount(drawn[:, i], minlength=5) / count for i in range(4)])
    np.testing.assert_allclose(found, p, atol=4 * np.sqrt(0.25 / count))
    assert sampler.nfe == 2


@pytest.mark.parametrize('normalize', ['image', 'tokens'])
def test_the_loss_is_a_mean_of_cross_entropies(normalize):
    """Of masked tokens alone, with smoothed labels; at first all codes are about as likely."""
    config = dataclasses.replace(LOSS, normalize=normalize)
    net = emigm.network(MODEL)
    params = jax.jit(net.init)(jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (4, 4), 0, 5, jnp.int32)
    labels = jnp.zeros(4, jnp.int32)
    draws = jax.jit(loss.draw, static_argnums=(0, 1, 3, 4))(MODEL, config, jax.random.key(5), 4, 2)
    budgets = masking.budgets(config.masking, 4, 2)
    value, terms = jax.jit(lambda p, d: loss.loss(net.bind(p), config, budgets, tokens, labels, d))(
        params, draws
    )
    total = 0.0
    for i in range(4):
        order, visible = draws.order[i], draws.visible[i]
        mine = tokens[i][order]
        logits = logits_of(params, order, -draws.null[i].astype(int), mine, visible)
        each = np.asarray(categorical.cross_entropy(logits, mine, 0.1))[int(visible) :]
        total += np.sum(each) / (len(each) if normalize == 'image' else 4) / 4
    np.testing.assert_allclose(value, total, rtol=1e-5)
    assert terms.parts['cross_entropy'] != value


def test_the_table_of_codes_is_one_parameter():
    shapes = emigm.network(MODEL).shapes()
    assert shapes['head']['words'].shape == (5, 16)
    assert 'token_embed' not in shapes['mae']


@pytest.mark.parametrize(
    ('changes', 'says'),
    [
        (dict(head='diffusion'), "model.codes goes with model.head = 'categorical'"),
        (dict(channels=3), "model.channels goes with model.head = 'diffusion'"),
        (dict(trunk='bert', head='diffusion', codes=0), '--config.model.head=categorical'),
    ],
)
def test_sizes_that_mean_nothing_are_refused(changes, says):
    with pytest.raises(UserError, match=says):
        dataclasses.replace(MODEL, **changes)

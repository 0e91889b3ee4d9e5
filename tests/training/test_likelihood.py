"""MDM's bounds: Monte-Carlo estimates against the sum over all masks and all orders of a toy."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emigm_jax.core import bounds, categorical, randomness
from emigm_jax.core.reveal import RevealConfig
from emigm_jax.data.interface import Batch, Dataset
from emigm_jax.errors import UserError
from emigm_jax.models import emigm
from emigm_jax.models.interface import Group, Suffix
from emigm_jax.training import likelihood
from support.weights import random_weights

TOY = emigm.ModelConfig(
    grid=2,
    head='categorical',
    codes=3,
    classes=2,
    width=16,
    heads=2,
    encoder_depth=1,
    decoder_depth=2,
    buffer=2,
)
TOKENS, LABELS = jnp.asarray([[0, 2, 1, 1], [2, 2, 0, 1]]), jnp.asarray([1, 0])
DRAWS = 4000


@pytest.fixture(scope='module')
def params():
    return random_weights(emigm.network(TOY))


@pytest.fixture(scope='module')
def exact(params):
    """{image: {masked positions: {position: -log p}}} of every mask, each by the network alone."""

    @jax.jit
    def loss(order, visible, image):
        net = emigm.network(TOY).bind(params)
        group = Group(
            TOKENS[image][order][None],
            net.trunk.positions(order[None]),
            net.trunk.condition(LABELS[image][None]),
            visible[None],
            4,
            Suffix(4),
        )
        (z,) = net.trunk([group])
        return categorical.cross_entropy(net.head.logits(z), group.tokens)[0]

    def of(image, masked):
        order = [*(p for p in range(4) if p not in masked), *masked]
        found = loss(jnp.asarray(order), jnp.asarray(4 - len(masked)), image)
        return dict(zip(order, np.asarray(found, np.float64), strict=True))

    subsets = [s for k in range(1, 5) for s in itertools.combinations(range(4), k)]
    return [{s: of(image, s) for s in subsets} for image in (0, 1)]


@pytest.fixture(scope='module')
def drawn(params):
    keys = jax.vmap(lambda i: jax.random.fold_in(randomness.key(3), i))(jnp.arange(2))
    run = jax.jit(lambda *rows: likelihood.losses(TOY, DRAWS // 4, *rows))
    return run(params, TOKENS, LABELS, keys)


def by_masks(losses, weights):
    """Sum over k of c_k times the mean over all sets of k masked tokens of their mean loss."""
    total = 0.0
    for k, weight in enumerate(weights, 1):
        means = [np.mean([found[p] for p in s]) for s, found in losses.items() if len(s) == k]
        assert len(means) == math.comb(4, k)
        total += weight * np.mean(means)
    return total


def test_the_continuous_bound_is_that_of_all_orders(exact):
    for losses in exact:
        orders = [
            sum(losses[tuple(sorted(order[i:]))][order[i]] for i in range(4))
            for order in itertools.permutations(range(4))
        ]
        np.testing.assert_allclose(by_masks(losses, bounds.continuous(4)), np.mean(orders), 1e-6)


CONFIGS = [RevealConfig(steps=s, schedule='linear', rule='ancestral') for s in (1, 3, 50)]


@pytest.mark.parametrize(
    'weights', [bounds.continuous(4), *(bounds.discrete(c, 4) for c in CONFIGS)]
)
def test_estimates_agree_with_the_sum_over_masks(exact, drawn, weights):
    for image, losses in enumerate(exact):
        mean, masked = (np.asarray(each)[image] for each in drawn)
        estimates = np.mean(4 * weights[masked - 1] * mean, axis=1)
        error = estimates.std(ddof=1) / np.sqrt(len(estimates))
        expected = by_masks(losses, weights)
        assert abs(estimates.mean() - expected) < 4 * error + 1e-5
        assert error < 0.05 * expected


def test_one_step_draws_all_tokens_alone(exact):
    weights = bounds.discrete(CONFIGS[0], 4)
    np.testing.assert_allclose(weights, [0, 0, 0, 4], atol=1e-12)
    for losses in exact:
        alone = sum(losses[0, 1, 2, 3].values())
        np.testing.assert_allclose(by_masks(losses, weights), alone, rtol=1e-6)


def test_all_counts_are_drawn_alike(drawn):
    counts = np.bincount(np.asarray(drawn.masked).ravel(), minlength=5)
    np.testing.assert_array_equal(counts, [0, *[2 * DRAWS // 4] * 4])


def test_bits_are_counted_by_dimension(drawn):
    found = likelihood.bits(drawn, bounds.continuous(4), dimensions=2)
    np.testing.assert_allclose(found.per_dim, found.nats / 8 / np.log(2))
    np.testing.assert_allclose(found.per_token, 2 * found.per_dim)
    assert 0 < found.draw_error < found.standard_error


class Data(Dataset):
    """The toy's two images, over and over."""

    examples, params = 40, {}

    def read(self, indices, mirrored):
        assert not mirrored.any()
        return {
            'tokens': np.asarray(TOKENS)[indices % 2],
            'labels': np.asarray(LABELS)[indices % 2],
        }

    def to_batch(self, params, rows, key):
        return Batch(rows['labels'], rows['tokens'])


@pytest.mark.slow
def test_a_data_set_is_measured_whatever_the_batch(params):
    found = [
        likelihood.measure(TOY, params, Data(), likelihood.Draws(8), batch) for batch in (40, 24)
    ]
    np.testing.assert_array_equal(found[0].masked, found[1].masked)
    np.testing.assert_allclose(found[0].mean, found[1].mean, rtol=1e-5)
    assert found[0].mean.shape == (40, 2, 4)
    alike = found[0].mean[0::2]  # the same picture, each time with draws of its own
    assert len(np.unique(alike, axis=0)) == len(alike)
    for wrong, says in (
        (likelihood.Draws(4), 'draws must be 8 at least'),
        (likelihood.Draws(8, images=41), 'there are 40 images to code'),
    ):
        with pytest.raises(UserError, match=says):
            likelihood.measure(TOY, params, Data(), wrong)

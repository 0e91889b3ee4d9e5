"""Edits: what is given stays, what is not is as in generation, whatever the method."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emigm_jax.config.settings import SamplingConfig
from emigm_jax.core.reveal import RevealConfig
from emigm_jax.core.solvers import SolverConfig
from emigm_jax.errors import UserError
from emigm_jax.models import emigm
from emigm_jax.sampling import editing
from emigm_jax.sampling.editing import Blend
from emigm_jax.sampling.generator import Generator
from emigm_jax.sampling.sampler import sampler
from emigm_jax.sampling.steps import Given
from emigm_jax.tokenizers.codec import Codec
from emigm_jax.tokenizers.pixel_codes import PixelCodes
from emigm_jax.tokenizers.pixels import Pixels
from support.small_tokenizers import small

SIZES = dict(
    grid=4,
    classes=5,
    width=16,
    heads=2,
    encoder_depth=1,
    decoder_depth=2,
    buffer=2,
    head_width=16,
    head_depth=1,
)
VECTORS = emigm.ModelConfig(channels=4, **SIZES)
CODES = emigm.ModelConfig(channels=0, head='categorical', codes=16, **SIZES)
GUIDED = dict(guidance=2.0, guidance_from=0.1, guidance_to=0.9)
slow = functools.partial(pytest.param, marks=pytest.mark.slow)
METHODS = {
    'emigm': (VECTORS, RevealConfig(steps=3, **GUIDED), SolverConfig(steps=2)),
    'mar': (
        dataclasses.replace(VECTORS, shared_null=False),
        RevealConfig(steps=3, rule='fixed', schedule='cosine', **GUIDED),
        SolverConfig('ddpm', 3),
    ),
    'maskgit': (
        dataclasses.replace(CODES, trunk='bert', buffer=1),
        RevealConfig(steps=3, rule='fixed', order='confidence', guidance=1.0),
        SolverConfig(),
    ),
    'mdm': (
        CODES,
        RevealConfig(steps=3, rule='ancestral', schedule='linear', order='halton', **GUIDED),
        SolverConfig(),
    ),
}
ROWS = 8
LABELS, SEEDS = np.arange(ROWS) % 5, np.arange(ROWS)


def generator(method, codec=None):
    model, reveal, solver = METHODS[method]
    if codec and not codec.spec.codes:
        model = dataclasses.replace(model, channels=codec.spec.channels)
    params = jax.jit(emigm.network(model).init)(jax.random.key(0))
    params = jax.tree.map(
        lambda p: p + 0.05 * jnp.cos(jnp.arange(p.size)).reshape(p.shape).astype(p.dtype), params
    )
    codec = codec or Codec(PixelCodes(8, 2, 1, 2) if model.codes else Pixels(8, 2, 1))
    return Generator(
        params, sampler(model, SamplingConfig(reveal=reveal, solver=solver)), codec, ROWS, 'params'
    )


def pictures(count=1, side=8, colours=1):
    return np.random.default_rng(0).integers(0, 256, (count, side, side, colours), np.uint8)


def given(make, masked):
    """Tokens of pictures of their own for every row of `masked` (M, N)."""
    codec = make.codec
    return Given(np.asarray(codec.to_tokens(codec.encode(pictures(len(masked))))), masked)


@pytest.mark.parametrize('method', ['emigm', slow('mar'), 'maskgit', slow('mdm')])
def test_what_is_given_stays_and_the_rest_is_drawn(method):
    make, half = generator(method), np.tile(np.arange(4) < 2, (ROWS, 4))
    half[1::2, 0] = False  # masks differ: 8 and 7 tokens
    there = given(make, half)
    drawn = editing.tokens(make, there, LABELS, SEEDS)
    np.testing.assert_array_equal(drawn[~half], there.tokens[~half])
    assert (drawn[half] != there.tokens[half]).mean() > 0.5
    # What is under the mask is never seen.
    other = np.where(half.reshape(half.shape + (1,) * (drawn.ndim - 2)), 1, there.tokens)
    again = editing.tokens(make, Given(other.astype(drawn.dtype), half), LABELS, SEEDS)
    np.testing.assert_array_equal(again, drawn)
    # Nothing masked, something, all: one call, each row as in a call of its own.
    nothing, all_of_it = np.zeros_like(half), np.ones_like(half)
    np.testing.assert_array_equal(
        editing.tokens(make, Given(there.tokens, nothing), LABELS, SEEDS), there.tokens
    )
    whole = np.asarray(make.sampler(make.params, LABELS, SEEDS))
    np.testing.assert_array_equal(
        editing.tokens(make, Given(there.tokens, all_of_it), LABELS, SEEDS), whole
    )
    mixed = half.copy()
    mixed[2], mixed[5] = False, True
    drawn[2], drawn[5] = there.tokens[2], whole[5]
    found = editing.tokens(make, Given(there.tokens, mixed), LABELS, SEEDS)
    np.testing.assert_allclose(found, drawn, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope='module')
def make():
    return generator('emigm')


LEFT = np.tile(np.arange(8) < 4, (8, 1))


DEFAULT = Blend()


def edited(make, mask, blend=DEFAULT, count=1):
    """All rows that fit into a batch: one shape for all tests, which is compiled once."""
    rows = ROWS // count
    return editing.prepare(make, pictures(count), mask, LABELS[:rows], SEEDS[:rows], blend)


def test_images_of_masks(make):
    images = editing.images(make, *edited(make, LEFT))
    np.testing.assert_array_equal(images[:, :, 4:], pictures().repeat(ROWS, 0)[:, :, 4:])
    assert (images[:, :, :4] != pictures()[:, :, :4]).any((1, 2, 3)).all()
    assert len(np.unique(images, axis=0)) == ROWS
    # Some pixels of tokens that are drawn: only these are shown.
    some = LEFT & (np.arange(8) % 4 != 0)
    exact, *pairs = edited(make, some, Blend('exact'))
    np.testing.assert_array_equal(exact.given.masked, edited(make, LEFT)[0].given.masked)
    expected = np.where(some[..., None], images, pictures())
    np.testing.assert_array_equal(editing.images(make, exact, *pairs), expected)
    # Several pictures, one mask or one each: the picture comes before class and seed.
    two, labels, seeds = edited(make, [LEFT, ~LEFT], count=2)
    np.testing.assert_array_equal(labels, np.tile(LABELS[:4], 2))
    np.testing.assert_array_equal(seeds, np.tile(SEEDS[:4], 2))
    np.testing.assert_array_equal(two.pictures, pictures(2).repeat(4, 0))
    np.testing.assert_array_equal(two.given.masked[0], ~two.given.masked[4])
    np.testing.assert_allclose(editing.images(make, two, labels, seeds)[:4], images[:4], atol=1)


def test_a_soft_edge_reaches_as_far_as_a_token_more(make):
    large = dataclasses.replace(make, codec=Codec(Pixels(128, 32, 1)))
    mask = np.tile(np.arange(128) < 64, (128, 1))
    put = lambda blend: editing.prepare(large, pictures(1, 128), mask, [1], [0], blend)[0]
    for blend, columns in ((Blend(), 3), (Blend(grow=0), 2), (Blend('exact'), 2)):
        edit = put(blend)
        np.testing.assert_array_equal(edit.given.masked[0], np.tile(np.arange(4) < columns, 4))
    # Nearly all of what was asked for is new, and most of the rest is the picture's own.
    assert put(Blend()).weights[0][mask].min() > 0.99
    assert (put(Blend()).weights[0] == 0.0).mean() > 0.1


def test_all_and_nothing_masked(make):
    white, black = np.full((8, 8), 255, np.uint8), np.zeros((8, 8), np.uint8)
    for blend in (Blend(), Blend('exact'), Blend('none')):
        edit, *pairs = edited(make, white, blend)
        np.testing.assert_array_equal(
            editing.images(make, edit, *pairs), make.images(LABELS, SEEDS)
        )
        edit, *pairs = edited(make, black, blend)
        own = make.codec.decode(edit.given.tokens)
        np.testing.assert_array_equal(editing.images(make, edit, *pairs), own)
        assert editing.nfe(make, edit) == 0
        assert 'what the tokens of the picture decode to' in edit.described()


@pytest.mark.slow
def test_steps_end_in_the_images(make):
    masks = [LEFT, np.zeros_like(LEFT)]
    edit, *pairs = edited(make, masks, count=2)
    yielded = list(editing.steps(make, edit, *pairs))
    assert len(yielded) == editing.count_steps(make, edit) == 3
    images, last = yielded[-1]
    np.testing.assert_array_equal(images, editing.images(make, edit, *pairs))
    assert last.revealed.all()
    counts = [progress.revealed.sum(1) for _, progress in yielded]
    assert (np.diff(counts, axis=0) >= 0).all()
    for _, progress in yielded:
        assert progress.revealed[~edit.given.masked].all()
        known = progress.revealed
        np.testing.assert_array_equal(progress.tokens[known], last.tokens[known])
        assert not progress.tokens[~known].any()
    # Nothing to draw is one step.
    nothing, *pairs = edited(make, masks[1])
    assert len(list(editing.steps(make, nothing, *pairs))) == 1
    assert editing.count_steps(make, nothing) == 1


def test_a_share_is_chosen_by_the_seed(make):
    edit, *_ = edited(make, 0.3)
    assert edit.given.masked.sum(1).tolist() == [5] * ROWS
    assert len(np.unique(edit.given.masked, axis=0)) > 4
    assert (edit.weights == 1.0).all()
    again, *_ = edited(make, 0.3, count=2)
    np.testing.assert_array_equal(again.given.masked, np.tile(edit.given.masked[:4], (2, 1)))
    other = make.with_sampling(dataclasses.replace(make.sampler.config, seed=1))
    assert (edited(other, 0.3)[0].given.masked != edit.given.masked).any()
    for share, count in ((0.0, 0), (1, 16)):
        assert (edited(make, share)[0].given.masked.sum(1) == count).all()
    with pytest.raises(UserError, match='share of tokens must be at most 1'):
        edited(make, 1.5)
    with pytest.raises(UserError, match='go with a mask'):
        edited(make, 0.5, Blend('exact'))


@pytest.mark.slow
@pytest.mark.parametrize('name', ['kl16', 'dc_ae', 'vqgan'])
def test_tokenizers(name):
    codec = small(name)
    make = generator('mdm' if codec.spec.codes else 'emigm', codec)
    side = 4 * codec.spec.stride
    picture = pictures(1, side, 3)
    mask = np.tile(np.arange(side) < side // 2, (side, 1))
    for blend in (Blend('none'), Blend('exact')):
        edit, *pairs = editing.prepare(make, picture, mask, LABELS[:2], SEEDS[:2], blend)
        drawn = editing.tokens(make, edit.given, *pairs)
        known = ~edit.given.masked
        np.testing.assert_array_equal(drawn[known], edit.given.tokens[known])
        images = editing.images(make, edit, *pairs)
        own = make.codec.decode(drawn)
        expected = own if blend.mask == 'none' else np.where(mask[..., None], own, picture)
        np.testing.assert_array_equal(images, expected)
    nothing = editing.prepare(make, picture, ~mask & mask, LABELS[:1], SEEDS[:1], Blend())
    np.testing.assert_array_equal(
        editing.images(make, *nothing), make.codec.decode(nothing[0].given.tokens)
    )

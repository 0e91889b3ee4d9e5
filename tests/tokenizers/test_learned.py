"""Tokenizers behind one face: checkpoints, batches, raw latents, tokens and pictures."""

import pathlib

import jax
import numpy as np
import pytest

from emigm_jax.cli import main
from emigm_jax.conversion import kinds, rules, tokenizer_tables
from emigm_jax.errors import UserError
from emigm_jax.io.formats import torch_files
from emigm_jax.tokenizers import codec
from emigm_jax.tokenizers.codec import Codec, NonFinite
from emigm_jax.tokenizers.pixels import Pixels
from support.small_tokenizers import SMALL, small


def convert(*arguments):
    return main.main(['convert', *map(str, arguments)])


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


# One of them is enough for every day.
LARGER = [pytest.param(name, marks=pytest.mark.slow) for name in SMALL if name != 'vqgan']


@pytest.mark.parametrize('name', ['vqgan', *LARGER])
def test_tokenizers_behind_one_face(name, tmp_path):
    tokenizer = small(name, batch=2)
    codec.save(tmp_path / name, tokenizer)
    loaded = codec.load(tmp_path / name, batch=3)
    assert loaded.tokenizer == tokenizer.tokenizer
    same(loaded.params, tokenizer.params)
    rng = np.random.default_rng(0)
    images = rng.integers(256, size=(5, 16, 16, 3)).astype(np.uint8)
    raw = np.asarray(tokenizer.encode(images))
    np.testing.assert_allclose(raw, loaded.encode(images), rtol=1e-4, atol=1e-4)
    tokens = tokenizer.to_tokens(raw)
    side = 16 // tokenizer.spec.stride
    assert tokens.shape[:2] == (5, side**2)
    pictures = np.asarray(tokenizer.decode(tokens))
    assert (pictures.shape, pictures.dtype) == (images.shape, np.uint8)
    # By hand: the network's own range, unscaled latents, one image at a time.
    net = tokenizer.tokenizer.network
    latents = raw[..., : raw.shape[-1] // 2] if name == 'kl16' else raw
    pixels = np.asarray(jax.jit(lambda p, x: net.bind(p).decode(x))(tokenizer.params, latents))
    low = {'kl16': -1.0, 'dc_ae': -1.0, 'vqgan': 0.0}[name]
    expected = np.clip((pixels - low) / (1 - low), 0, 1) * 255
    assert np.abs(pictures - expected).max() <= 0.51
    half = codec.load(tmp_path / name, dtype='bfloat16')
    assert half.tokenizer.config.dtype == 'bfloat16'
    assert np.abs(np.asarray(half.decode(tokens), float) - pictures).mean() < 8
    if name != 'vqgan':
        with pytest.raises(UserError, match='do not fit'):
            tokenizer.decode(np.zeros((1, 4, 3), np.float32))
        assert tokenizer.spec.scale == {'kl16': 0.2325, 'dc_ae': 0.3189}[name]
    with pytest.raises(UserError, match='no square grid'):
        tokenizer.decode(tokens[:, :3])


def test_moments_are_drawn_by_key():
    tokenizer = small('kl16')
    raw = tokenizer.encode(np.zeros((1, 8, 8, 3), np.uint8))
    mean, log_variance = np.split(raw.reshape(1, 16, 32), 2, axis=-1)
    keys = jax.random.split(jax.random.key(0), 400)
    drawn = np.stack([tokenizer.to_tokens(raw, key) for key in keys]) / 0.2325
    deviation = np.exp(0.5 * log_variance)
    assert np.abs(drawn.mean(0) - mean).max() < 5 * deviation.max() / 20
    np.testing.assert_allclose(drawn.std(0), deviation, rtol=0.2)


@pytest.mark.parametrize('name', SMALL)
def test_tokenizers_go_out_and_in(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # relative names, as the README has them
    tokenizer = small(name)
    counters = {'x.num_batches_tracked': 7} if name == 'dc_ae' else {}
    codec.save(name, tokenizer, counters=counters)
    assert convert(name, 'x.safetensors', '--to', 'safetensors') == 0
    tensors = torch_files.read('x.safetensors')
    assert kinds.recognise(tensors, 'x') == {name: {'': tensors}}
    assert {n: tensors[n] for n in counters} == counters
    config, shapes = tokenizer.tokenizer.config, tokenizer.tokenizer.network.shapes()
    kept = {n: tensor for n, tensor in tensors.items() if n not in counters}
    again = rules.to_params(tokenizer_tables.ENTRIES[name](config), kept, shapes, 'x')
    same(again, tokenizer.params)
    same(codec.load(name).params, tokenizer.params)
    assert convert(name, 'y.safetensors', '--to', 'safetensors', '--weights', '0.9') == 2
    assert not pathlib.Path('y.safetensors').exists()


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_no_picture(value):
    """Neither black nor white: where one number is not, and where finite tokens overflow."""
    pixels = Codec(Pixels(image_size=4, patch=2, colours=1, levels=17))
    tokens = np.zeros((3, 4, 4), np.float32)
    grey = pixels.decode(tokens)
    assert isinstance(grey, np.ndarray) and grey.dtype == np.uint8
    assert set(grey.reshape(-1)) == {128}  # 8 of 16
    tokens[1, 2, 3] = value
    with pytest.raises(NonFinite, match='1 of 3 images are not finite: the model drew tokens'):
        pixels.decode(tokens)
    small = Codec(Pixels(image_size=4, patch=2, colours=1, scale=1e-30))
    with pytest.raises(NonFinite, match=r'3 of 3 images .* the tokens are, their pixels are not'):
        small.decode(np.full((3, 4, 4), 1e30, np.float32))

"""Pixels as codes: what is quantised comes back, and what there is not is no picture."""

import numpy as np
import pytest

from emigm_jax.data import sources
from emigm_jax.errors import UserError
from emigm_jax.tokenizers.codec import Codec, NonFinite
from emigm_jax.tokenizers.pixel_codes import PixelCodes


def quantised(images, levels):
    """By the definition, in float64."""
    steps = levels - 1
    return np.round(np.round(images / 255.0 * steps) / steps * 255.0).astype(np.uint8)


def test_digits_without_a_loss():
    """They have 17 grey levels."""
    images = sources.digits().images
    codec = Codec(PixelCodes(8, 1, 1, levels=17), batch=300)
    raw = np.asarray(codec.encode(images))
    assert (raw.shape, raw.dtype) == ((len(images), 8, 8), np.int32)
    tokens = np.asarray(codec.to_tokens(raw))
    assert (tokens.shape, tokens.min(), tokens.max()) == ((len(images), 64), 0, 16)
    assert (codec.spec.codes, codec.spec.channels) == (17, 0)
    np.testing.assert_array_equal(codec.decode(tokens), images)


@pytest.mark.parametrize(
    ('patch', 'colours', 'levels'), [(2, 1, 4), (1, 3, 8), (2, 3, 2), (4, 1, 2), (1, 3, 40)]
)
def test_images_come_back_quantised(patch, colours, levels):
    rng = np.random.default_rng(0)
    images = rng.integers(256, size=(6, 8, 8, colours)).astype(np.uint8)
    codec = Codec(PixelCodes(8, patch, colours, levels), batch=2)
    tokens = np.asarray(codec.to_tokens(codec.encode(images)))
    assert tokens.shape == (6, (8 // patch) ** 2)
    assert codec.tokenizer.raw_shape(8) == (8 // patch, 8 // patch)
    assert tokens.min() >= 0 and tokens.max() < codec.spec.codes == levels ** (patch**2 * colours)
    np.testing.assert_array_equal(codec.decode(tokens), quantised(images, levels))


@pytest.mark.parametrize('levels', [2, 3, 16, 17, 100, 255, 256])
def test_every_grey_is_rounded_as_defined(levels):
    greys = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    codec = Codec(PixelCodes(16, 1, 1, levels))
    codes = np.asarray(codec.encode(greys))[0]
    np.testing.assert_array_equal(codes, np.round(greys[0, ..., 0] / 255.0 * (levels - 1)))


def test_a_code_is_a_number_of_digits():
    """Row by row inside a patch, the first counting least."""
    image = np.array([[0, 85, 0, 0], [170, 255, 0, 0], [255, 0, 0, 0], [0, 0, 0, 85]], np.uint8)
    raw = Codec(PixelCodes(4, 2, 1, levels=4)).encode(image[None, ..., None])
    assert np.asarray(raw).tolist() == [[[0 + 1 * 4 + 2 * 16 + 3 * 64, 0], [3, 1 * 64]]]


def test_codes_that_there_are_not():
    codec = Codec(PixelCodes(4, 2, 1, levels=4))
    tokens = np.zeros((3, 4), np.int32)
    codec.decode(tokens)
    for code in (256, -1, 2**30):
        tokens[1, 2] = code
        says = f'1 of 3 images .* drew code {code}, pixels as codes has 0 to 255'
        with pytest.raises(NonFinite, match=says):
            codec.decode(tokens)
    with pytest.raises(UserError, match=r'codes \(5,\) do not fit images of 4 patches'):
        codec.decode(np.zeros((1, 5), np.int32))


@pytest.mark.parametrize(
    ('size', 'patch', 'colours', 'levels', 'says'),
    [
        (8, 2, 1, 17, r'make 17\^4 codes, more than 65,536: say --config.data.levels=16 or '
         '--config.data.patch=1'),
        (32, 1, 3, 64, r'make 64\^3 codes, .*: say --config.data.levels=40$'),
        (32, 4, 3, 8, r'make 8\^48 codes, .*: say --config.data.patch=1$'),
        (256, 256, 3, 256, '.*: say --config.data.levels=40 --config.data.patch=1$'),
        (8, 3, 1, 4, 'data.patch = 3 does not divide the image size 8'),
    ],
)  # fmt: skip
def test_refusals(size, patch, colours, levels, says):
    with pytest.raises(UserError, match=says):
        PixelCodes(size, patch, colours, levels)


def test_codes_have_neither_a_scale_nor_official_caches():
    tokenizer = PixelCodes(8, 1, 1, levels=2)
    for method in (tokenizer.latent_moments, tokenizer.from_official_cache):
        with pytest.raises(UserError):
            method(np.zeros((1, 8, 8)))

"""Pictures and masks as people give them, and how an edit is put into its picture."""

import numpy as np
import pytest
from PIL import Image

from emigm_jax.errors import UserError
from emigm_jax.sampling import edit_masks, originals

rng = np.random.default_rng(0)
COLOURS = rng.integers(0, 256, (24, 32, 3), np.uint8)
LARGE = Image.fromarray(COLOURS)


@pytest.mark.parametrize('mode', ['RGB', 'L', 'P', 'RGBA', 'LA', 'CMYK', '1', 'I;16'])
def test_pictures_of_any_mode(mode, tmp_path):
    if mode == 'I;16':
        image = Image.fromarray(np.asarray(LARGE.convert('L')).astype(np.uint16) * 257)
    else:
        image = LARGE.convert(mode)
    image.save(tmp_path / f'a.{"tif" if mode == "CMYK" else "png"}')
    (path,) = tmp_path.iterdir()
    opened = originals.opened(path, 'a picture')
    assert (opened.mode, opened.size) == ('RGB', (32, 24))
    expected = LARGE.convert('L' if mode == 'I;16' else mode).convert('RGB')
    np.testing.assert_array_equal(opened, expected)
    grey = originals.cropped(opened, 8, 1)
    assert (grey.shape, originals.cropped(opened, 8, 3).shape) == ((8, 8, 1), (8, 8, 3))


def test_what_has_the_size_of_the_model_stays_as_it_is():
    square = COLOURS[:, :24]
    for image in (square, square[..., :1], square[..., 0]):
        opened = originals.opened(image, 'a picture')
        kept = originals.cropped(opened, 24, 3 if image is square else 1)
        np.testing.assert_array_equal(kept, image.reshape(24, 24, -1))
    assert originals.described(originals.opened(square, ''), 24) == '24 x 24 pixels'
    assert originals.described(LARGE, 8) == (
        '32 x 24 pixels, cropped to the middle 24 x 24, made 8 x 8'
    )


def test_masks_of_three_sizes_and_in_grey():
    white = np.zeros((24, 32), np.uint8)
    white[:, :16] = 128
    white[:, 16:] = 127
    whole = originals.opened(white, 'a mask')
    assert originals.has_greys(whole)
    assert not originals.has_greys(originals.opened(white > 127, 'a mask'))
    left = np.tile(np.arange(8) < 4, (8, 1))
    # Cropped as the picture; as large as what the model makes; a pixel for each of 4 x 4 tokens.
    for mask in (whole, originals.opened(left, ''), originals.opened(left[:4, ::2], '')):
        np.testing.assert_array_equal(originals.as_mask(mask, (32, 24), 8, 4), left)
    with pytest.raises(UserError, match=r'has 8 x 8 pixels: .* 32 x 24 .*, 16 x 16 .* or 4 x 4'):
        originals.as_mask(originals.opened(left, ''), (32, 24), 16, 4)


def test_tokens_of_a_mask():
    pixels = np.zeros((2, 8, 8), bool)
    pixels[0, 3, 2] = True
    one = edit_masks.to_tokens(pixels, 4, 0)
    np.testing.assert_array_equal(np.argwhere(one), [[0, 1, 1]])
    grown = edit_masks.to_tokens(pixels, 4, 1)
    assert grown[0, :3, :3].all()
    assert grown.sum() == 9
    np.testing.assert_array_equal(edit_masks.to_pixels(one, 8)[0, 2:4, 2:4], True)
    assert edit_masks.to_pixels(one, 8).sum() == 4


@pytest.mark.parametrize(('side', 'radius'), [(8, 0), (32, 1), (256, 15), (512, 31)])
def test_the_blur_of_a_mask(side, radius):
    assert edit_masks.blur(side) == radius
    pixels = np.tile(np.arange(side) < side // 2, (3, side, 1))
    pixels[1], pixels[2] = True, False
    tokens = edit_masks.to_tokens(pixels, 4, 0)
    soft = edit_masks.weights(pixels, tokens, 'blurred')
    np.testing.assert_allclose(soft[0, :, [side // 2 - 1, side // 2]].sum(0), 1.0, atol=0.02)
    between = np.unique(soft[0])
    assert (len(between) > 2) == (radius > 0)
    assert (np.diff(soft[0], axis=1) <= 0).all()
    # All white, or nothing: the image alone.
    assert (soft[1:] == 1.0).all()
    assert set(np.unique(edit_masks.weights(pixels, tokens, 'exact')[0])) == {0.0, 1.0}
    assert (edit_masks.weights(pixels, tokens, 'none') == 1.0).all()


def test_where_the_weight_is_whole_nothing_is_rounded():
    picture, image = (rng.integers(0, 256, (1, 256, 256, 1), np.uint8) for _ in range(2))
    weights = rng.integers(0, 3, (1, 256, 256)).astype(np.float32) / 2
    found = edit_masks.blended(picture, image, weights)
    for weight, expected in ((0.0, picture), (1.0, image)):
        where = weights == weight
        np.testing.assert_array_equal(found[where], expected[where])
    middle = weights == 0.5
    between = (picture[middle].astype(float) + image[middle]) / 2
    assert np.abs(found[middle] - between).max() <= 0.5


def test_boxes_and_margins():
    box = edit_masks.box(8, (0.0, 0.25, 0.5, 1.0))
    np.testing.assert_array_equal(np.argwhere(box).min(0), [2, 0])
    np.testing.assert_array_equal(np.argwhere(box).max(0), [7, 3])
    assert box.sum() == 24
    assert np.argwhere(edit_masks.box(8, (0.3, 0.3, 0.31, 0.31))).tolist() == [[2, 2]]
    for edges in ((0, 0, 0, 1), (0.5, 0, 0.4, 1), (0, -0.1, 1, 1), (0, 0, 1, 1.1)):
        with pytest.raises(UserError, match='a box is LEFT,TOP,RIGHT,BOTTOM'):
            edit_masks.box(8, edges)
    assert edit_masks.margin(8, 0.25) == 2
    for share in (0.0, 0.01, 0.5, -1.0, float('nan')):
        with pytest.raises(UserError, match=r'margin (of|must be)'):
            edit_masks.margin(8, share)
    picture, mask = originals.framed(LARGE, 16, 4)
    assert (picture.shape, mask.sum()) == ((16, 16, 3), 16**2 - 8**2)
    np.testing.assert_array_equal(picture[4:12, 4:12], originals.cropped(LARGE, 8, 3))
    assert not mask[4:12, 4:12].any()

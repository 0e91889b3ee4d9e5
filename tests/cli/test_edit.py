"""`emigm edit` as a user types it."""

import numpy as np
import pytest
from PIL import Image

from emigm_jax.cli import main
from emigm_jax.sampling import edit_sheet
from support.runs import run, state  # noqa: F401

SEEDS, CLASSES = 3, 2


def emigm(*words):
    return main.main([str(word) for word in words])


@pytest.fixture
def files(tmp_path):
    """A picture in colours that is wider than high, a mask of its left half in greys, a text."""
    picture = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    Image.fromarray(picture).convert('P').save(tmp_path / 'picture.png')
    mask = np.where(np.arange(32) < 16, 200, 3).astype(np.uint8)
    Image.fromarray(np.tile(mask, (24, 1))).save(tmp_path / 'mask.png')
    Image.new('L', (5, 5)).save(tmp_path / 'small.png')
    (tmp_path / 'text.txt').write_text('a text')
    return tmp_path


def test_edit(run, files, capsys):
    out = files / 'out'
    words = 'edit', '--checkpoint', run, '--picture', files / 'picture.png', '--out', out
    drawn = '--classes', '3,7', '--seeds', '0-2'
    assert emigm(*words, '--mask', files / 'mask.png', *drawn) == 0
    said = capsys.readouterr().out
    assert '32 x 24 pixels, cropped to the middle 24 x 24, made 8 x 8; greys of the mask' in said
    assert '2 of 4 tokens are drawn anew\n' in said
    assert f'6 images, weights 0.9, NFE 4 -> {out}' in said
    names = [f'class_000{c}_seed_00000{s}.png' for c in (3, 7) for s in range(3)]
    assert sorted(path.name for path in (out / 'images').glob('*.png')) == names
    images = np.stack([np.asarray(Image.open(out / 'images' / name)) for name in names])
    assert images.shape == (6, 8, 8)
    assert (images[:, :, 4:] == images[:1, :, 4:]).all()
    assert len(np.unique(images[:SEEDS, :, :4], axis=0)) == SEEDS
    sheet = np.asarray(Image.open(out / 'sheet.png'))
    height, width = CLASSES * 66 + 2, (2 + SEEDS) * 66 + 2
    assert sheet.shape[0] == height
    assert sheet.shape[1] > width  # a column of titles, then pictures
    cell = lambda row, column: sheet[2:, -width:][66 * row :, 2 + 66 * column :][:64, :64]
    for row in range(CLASSES):
        edge = (cell(row, 1) == edit_sheet.EDGE).all(-1)
        inside = np.argwhere(edge)
        assert inside.min(0).tolist() == [0, 0]
        assert inside.max(0).tolist() == [63, 31]  # the left half, of which it is the frame
        assert not edge[1:-1, 1:31].any()
        np.testing.assert_array_equal(cell(row, 0)[~edge], cell(row, 1)[~edge])
    # Another mask is another set of images, which are not mixed with these.
    assert emigm(*words, '--box', '0,0,1,0.5', *drawn) == 2
    assert '--overwrite' in capsys.readouterr().err
    assert emigm(*words, '--box', '0,0,1,0.5', '--classes', '3', '--seeds', '0', '--overwrite') == 0
    assert [path.name for path in (out / 'images').glob('*.png')] == names[:1]


@pytest.mark.parametrize(
    ('flags', 'says'),
    [
        (('--margin', '0.25'), 'made 4 x 4, within 8 x 8\n4 of 4 tokens'),
        (('--share', '0'), '\n0 of 4 tokens are drawn anew: the images are what the tokens of the'),
        (('--share', '1'), '\n4 of 4 tokens are drawn anew, as `emigm sample` draws them'),
        (('--box', '0.6,0.6,1,1', '--grow', '1', '--blend', 'exact'), '\n4 of 4 tokens'),
    ],
)
def test_what_is_masked(run, files, flags, says, capsys):
    out = files / 'out'
    words = 'edit', '--checkpoint', run, '--picture', files / 'picture.png', '--out', out
    assert emigm(*words, '--classes', '3', '--seeds', '0-2', *flags) == 0
    assert says in capsys.readouterr().out
    assert len(list((out / 'images').glob('*.png'))) == SEEDS


@pytest.mark.parametrize(
    ('flags', 'says'),
    [
        (('--mask', 'small.png'), 'the mask has 5 x 5 pixels: it must have 32 x 24 as its picture'),
        (('--mask', 'text.txt'), 'text.txt: no picture of a known kind'),
        (('--mask', 'none.png'), 'none.png: No such file or directory'),
        (('--box', '0,0,1'), "--box must look like '0,0,0.5,1', not '0,0,1'"),
        (('--box', '0,0,1,2'), 'a box is LEFT,TOP,RIGHT,BOTTOM'),
        (('--margin', '0.5'), 'a margin of 0.5 is 4 of 8 pixels'),
        (('--share', '2'), 'the share of tokens must be at most 1'),
        (('--share', '0.5', '--grow', '1'), 'go with a mask, not with a share'),
        (('--share', '0.5', '--box', '0,0,1,1'), 'not allowed with argument'),
        (('--share', '0.5', '--classes', '11'), 'there is no class 11, only 0 to 9'),
        ((), 'one of the arguments --mask --box --margin --share is required'),
    ],
)
def test_mistakes_are_one_line(run, files, flags, says, capsys):
    flags = [files / flag if str(flag).endswith(('.png', '.txt')) else flag for flag in flags]
    words = 'edit', '--checkpoint', run, '--picture', files / 'picture.png', '--classes', '3'
    assert emigm(*words, '--out', files / 'out', *flags) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count('\n') == 1
    assert not (files / 'out').exists()

"""Generated images as files: never mixed with others, and read again as a set of images."""

import numpy as np
import pytest
from PIL import Image

from emigm_jax.errors import UserError
from emigm_jax.evaluation import image_sets
from emigm_jax.io import npz
from emigm_jax.sampling import save

LABELS, SEEDS = np.repeat([3, -1], 4), np.tile(np.arange(4), 2)
SETTINGS = {'guidance': 2.0, 'classes': [3, -1]}


def made(colours, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (8, 8, 8, colours), np.uint8)


def write(folder, images, settings=SETTINGS, overwrite=False):
    save.begin(folder, settings, overwrite)
    save.save_samples(folder, images, LABELS, SEEDS, 10)


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob('*') if path.is_file()}


def batches(images):
    return np.concatenate(list(images.batches([slice(0, 5), slice(5, 8)], 5)))


@pytest.mark.parametrize('colours', [1, 3])
def test_what_is_saved_is_a_set_of_images(colours, tmp_path):
    images = made(colours)
    write(tmp_path, images)
    coloured = np.repeat(images, 3, -1) if colours == 1 else images
    folder = image_sets.folder(tmp_path)
    assert len(folder) == 8  # without the grid
    # In order of the names: class_0003 goes before class_null.
    np.testing.assert_array_equal(batches(folder), coloured)
    np.testing.assert_array_equal(batches(image_sets.folder(tmp_path / 'images')), coloured)
    np.testing.assert_array_equal(batches(image_sets.stored(tmp_path / 'samples.npz')), coloured)


def test_a_folder_with_a_folder_of_images_is_no_set_of_ours(tmp_path):
    (tmp_path / 'images').mkdir()
    for name in ('a.png', 'images/b.png'):
        Image.fromarray(made(3)[0]).save(tmp_path / name)
    assert len(image_sets.folder(tmp_path)) == 2


@pytest.mark.parametrize(
    'array', [np.zeros((2, 4, 4, 4), np.uint8), np.zeros((2, 4, 4, 3), np.float32)]
)
def test_arrays_that_are_no_images(array, tmp_path):
    npz.write(tmp_path / 'a.npz', {'images': array})
    with pytest.raises(UserError, match=r'images is (uint8|float32) .* not uint8 \(N, H, W, 3\)'):
        image_sets.stored(tmp_path / 'a.npz')


def test_images_of_two_runs_are_never_mixed(tmp_path):
    write(tmp_path, made(3))
    before = files(tmp_path)
    write(tmp_path, made(3))  # the same command again
    assert files(tmp_path) == before
    other = {**SETTINGS, 'guidance': 3.0}
    with pytest.raises(UserError, match=r'guidance = 2\.0, not 3\.0; .* --overwrite'):
        save.check(tmp_path, other)
    assert files(tmp_path) == before
    (tmp_path / 'images/class_0009_seed_000000.png').write_bytes(b'')  # of the run that goes
    (tmp_path / 'notes.txt').write_text('mine')
    write(tmp_path, made(3, 1), other, overwrite=True)
    assert files(tmp_path) == before | {'notes.txt'}
    np.testing.assert_array_equal(batches(image_sets.folder(tmp_path)), made(3, 1))


def test_pictures_of_somebody_else_are_not_deleted(tmp_path):
    (tmp_path / 'images').mkdir()
    (tmp_path / 'images/holiday.png').write_bytes(b'sun')
    for overwrite in (False, True):
        with pytest.raises(UserError, match='holds something else'):
            save.begin(tmp_path, SETTINGS, overwrite)
    assert files(tmp_path) == {'images/holiday.png'}


def test_a_row_per_class(tmp_path):
    images = np.zeros((8, 64, 64, 1), np.uint8)
    images[:4] = 255
    grid = save.class_grid(images, LABELS, 10)
    height, width = 2 * 66 + 2, 4 * 66 + 2
    assert grid.shape[0] == height and grid.shape[1] > width  # a column of titles, then images
    right = grid[:, -width:]
    assert (right[2:66, 2:66] == 255).all() and (right[68:132, 2:66] == 0).all()
    assert len(np.unique(grid[:, :-width])) > 2  # something is written there

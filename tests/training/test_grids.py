"""The grids of samples of a run: which images they show, and how."""

import types

import numpy as np
import pytest
from PIL import Image

from emigm_jax.config.load import config_of
from emigm_jax.data.interface import Dataset
from emigm_jax.io import paths
from emigm_jax.sampling import save
from emigm_jax.training import loop


class Shown(Dataset):
    """Data of which only the classes and the way to pictures are asked."""

    read = to_batch = None

    def __init__(self, classes):
        self.classes, self.codec = classes, types.SimpleNamespace(decode=self._decode)

    def _decode(self, labels):  # pictures that tell their class
        shape = (len(labels), 64, 64, 1)
        return np.broadcast_to(labels[:, None, None, None], shape).astype(np.uint8)


@pytest.mark.parametrize(
    ('classes', 'count', 'rows', 'columns'),
    [(10, 20, 10, 2), (10, 25, 10, 2), (1000, 40, 10, 4), (3, 8, 3, 2), (10, 4, 4, 1)],
)
def test_a_grid_shows_what_sample_would(classes, count, rows, columns, tmp_path, monkeypatch):
    asked = []

    def draw(params, labels, seeds):
        asked.append((list(labels), list(seeds)))
        return np.asarray(labels)

    data = Shown(classes)
    monkeypatch.setattr(loop, 'sampler', lambda *_: draw)
    config = config_of('digits:smoke', {'training.sample_images': count})
    loop.sample_grid(config, data, {}, paths.absolute(tmp_path), 7)
    labels, seeds = np.repeat(np.arange(rows), columns), np.tile(np.arange(columns), rows)
    assert asked == [(list(labels), list(seeds))]
    with Image.open(tmp_path / 'samples/00000007.png') as picture:
        shown = np.asarray(picture)
    np.testing.assert_array_equal(
        shown, save.class_grid(data.codec.decode(labels), labels, classes)[..., 0]
    )
    assert shown.shape[0] == rows * 66 + 2

"""The grids of samples of a run: which images they show, and how."""

import types

import jax
import numpy as np
import pytest
from PIL import Image

from emigm_jax.config.load import config_of
from emigm_jax.data import datasets, sizes
from emigm_jax.data.interface import Dataset
from emigm_jax.io import paths
from emigm_jax.models import emigm
from emigm_jax.parallel import agreement, batches, exchange
from emigm_jax.sampling import save
from emigm_jax.sampling.sampler import sampler
from emigm_jax.training import grids


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
    monkeypatch.setattr(grids, 'sampler', lambda *_: draw)
    config = config_of('digits:smoke', {'training.sample_images': count})
    grids.draw(config, data, {}, paths.absolute(tmp_path), 7)
    labels, seeds = np.repeat(np.arange(rows), columns), np.tile(np.arange(columns), rows)
    assert asked == [(list(labels), list(seeds))]
    with Image.open(tmp_path / 'samples/00000007.png') as picture:
        shown = np.asarray(picture)
    np.testing.assert_array_equal(
        shown, save.class_grid(data.codec.decode(labels), labels, classes)[..., 0]
    )
    assert shown.shape[0] == rows * 66 + 2


@pytest.mark.parametrize(('processes', 'count'), [(2, 20), (4, 20), (8, 7)])
def test_processes_share_a_grid(processes, count, tmp_path, monkeypatch):
    """Each draws its part, the first one has all of them in their order."""
    drawn, handed = [], []

    def draw(params, labels, seeds):
        drawn.append(list(zip(labels.tolist(), seeds.tolist(), strict=True)))
        return labels

    data, config = Shown(10), config_of('digits:smoke', {'training.sample_images': count})
    monkeypatch.setattr(grids, 'sampler', lambda *_: draw)
    grids.draw(config, data, {}, paths.absolute(tmp_path), 1)
    whole = drawn.pop()
    monkeypatch.setattr(jax, 'process_count', lambda: processes)
    monkeypatch.setattr(jax, 'device_count', lambda: processes)  # one each
    monkeypatch.setattr(agreement, 'gather', lambda rows: rows)
    monkeypatch.setattr(exchange, 'to_first', lambda rows: handed.append(rows))
    for process in range(processes):
        monkeypatch.setattr(jax, 'process_index', lambda process=process: process)
        assert grids.draw(config, data, {}, paths.absolute(tmp_path), 2) is None
    most = -(-len(whole) // processes)
    parts = [max(1, min(most, len(whole) - p * most)) for p in range(processes)]
    assert [len(rows) for rows in drawn] == parts
    assert len({rows.shape for rows in handed}) == 1
    monkeypatch.setattr(exchange, 'to_first', lambda rows: np.concatenate(handed))
    monkeypatch.setattr(jax, 'process_index', lambda: 0)
    grids.draw(config, data, {}, paths.absolute(tmp_path), 2)
    one, other = (tmp_path / f'samples/{at:08}.png' for at in (1, 2))
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.slow
def test_grids_are_compiled_once(tmp_path):
    config = sizes.known(config_of('digits:smoke', {'sampling.reveal.steps': 1}))
    data, net = datasets.dataset(config), emigm.network(config.model)
    params = batches.place(net.init(jax.random.key(0)))
    program = sampler(config.model, config.sampling)._run.program
    program.clear_cache()  # of these settings, which other tests have, too
    for at in (1, 2):
        grids.draw(config, data, params, paths.absolute(tmp_path), at)
    assert program._cache_size() == 1
    one, other = (tmp_path / f'samples/{at:08}.png' for at in (1, 2))
    assert one.read_bytes() == other.read_bytes()

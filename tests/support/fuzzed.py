"""The kinds of files that are read here: how small sound ones are made, and what reads them."""

import dataclasses
import functools
import json
import pathlib
import pickle
import shutil
import types
import zipfile
from collections.abc import Callable

import numpy as np
from flax import serialization
from PIL import Image

from emigm_jax.checkpoints import descriptions, inspect, runs, store
from emigm_jax.config.settings import SamplingConfig
from emigm_jax.conversion import convert
from emigm_jax.conversion.options import Options
from emigm_jax.data import latents, prepare, rows
from emigm_jax.data.pictures import center_crop, decode
from emigm_jax.data.sources import Unreadable
from emigm_jax.evaluation import image_sets, references, statistics
from emigm_jax.io import files
from emigm_jax.io.formats import data_files, torch_files
from emigm_jax.report import gather, panels, tables
from emigm_jax.tokenizers import codec as codecs
from emigm_jax.tokenizers import learned
from support import caches, checkpoint_files, golden, synthetic_runs
from support.pictures import scene
from support.small_tokenizers import SMALL

WIDTH = 6  # of the features of references here, for 2048


@dataclasses.dataclass(frozen=True)
class Kind:
    """One kind of file."""

    make: Callable[[pathlib.Path], object]  # writes sound files into a folder
    read: Callable[[pathlib.Path], object]  # reads one of these files, or the folder
    together: bool = False  # the folder: its files belong together
    slow: int = 1  # cases of others that one of it takes the time of


def _statistics():
    rng = np.random.default_rng(0)
    values = rng.standard_normal((40, WIDTH))
    return {'mu': values.mean(0), 'sigma': np.cov(values, rowvar=False)}


def _references(folder):
    statistics = _statistics()
    np.savez(folder / 'a.npz', **statistics, arr_0=np.zeros((3, 4, 4, 3), np.uint8))
    np.savez_compressed(folder / 'b.npz', **statistics, features=np.zeros((5, WIDTH)))
    (folder / 'c.pkl').write_bytes(pickle.dumps({'fid': statistics}, 2))
    np.save(folder / 'd.npy', statistics, allow_pickle=True)
    np.savez(folder / 'plain.npz', **statistics)
    moments = tuple(statistics.values())
    references.write(folder / 'e.npz', moments, source='made', count=40)


def _read_reference(file):
    reference = references.read(file)
    for held in (reference.images, reference.features):
        if held is not None:
            held.read()


def _sets(folder):
    np.savez(folder / 'a.npz', arr_0=np.zeros((5, 4, 4, 3), np.uint8))
    np.savez_compressed(folder / 'b.npz', images=np.zeros((5, 4, 4, 1), np.uint8))


def _read_set(file):
    found = image_sets.stored(file)
    pieces = [slice(i, i + 1) for i in range(len(found))][:100]
    list(found.batches(pieces, 1))


def _totals(folder):
    rng = np.random.default_rng(0)
    moments = {'pool': statistics.Moments(rng.random(WIDTH), rng.random((WIDTH, WIDTH)))}
    sums = statistics.Sums(np.float64(9), moments, None)
    statistics.save(folder / 'totals.npz', statistics.Totals({'pool': rng.random(WIDTH)}, sums))


def _weights(folder):
    tensors = {f'blocks.{i}.weight': np.arange(6, dtype=np.float32) for i in range(3)}
    checkpoint_files.write_arrays(folder / 'a.pth', {'model': tensors, 'epoch': tensors})
    value = {'m': checkpoint_files.tensor((2, 3), (3, 1))}
    checkpoint_files.write_legacy(folder / 'b.pth', value, [checkpoint_files.SIX])
    data_files.write_safetensors(folder / 'c.safetensors', tensors)
    (folder / 'd.msgpack').write_bytes(serialization.to_bytes({'params': tensors, 'n': 1}))
    (folder / 'e.pkl').write_bytes(pickle.dumps({'a': tensors, 'b': {1: [2.5, 'x', {3}]}}, 4))
    np.save(folder / 'f.npy', np.arange(6.0))


def _sharded(folder):
    names = {}
    for i in range(2):
        tensors = {f'layer.{i}': np.arange(4, dtype=np.float32)}
        data_files.write_safetensors(folder / f'model-{i}.safetensors', tensors)
        names |= dict.fromkeys(tensors, f'model-{i}.safetensors')
    index = {'metadata': {'total_size': 32}, 'weight_map': names}
    (folder / 'model.safetensors.index.json').write_text(json.dumps(index))
    (folder / 'config.json').write_text(json.dumps({'model_name': 'x'}))


def _read_sharded(folder):
    torch_files.read(folder)
    torch_files.read_config(folder)


def _model(folder):
    shutil.copy(golden.FOLDER / 'emigm_tiny_release.pth', folder / 'a.pth')


def _read_model(file):
    convert.read(file, Options(heads=golden.TINY.heads))


def _cache(folder):
    caches.make(folder / 'c', caches.Made(8), shard_rows=4)


def _read_cache(folder):
    cache = latents.Cache(folder / 'c')
    indices = np.arange(len(cache))
    cache.take(indices, indices % 2 == 0)
    for number in range(len(cache.shards)):
        cache.shard(number)
    cache.verify()


def _begun(folder):
    _cache(folder)
    (folder / 'c/manifest.json').unlink()


def _go_on(folder):
    caches.make(folder / 'c', caches.Made(8), shard_rows=4)


def _official(folder):
    (folder / 'n01').mkdir()
    for i in range(2):
        both = {n: np.zeros((32, 2, 2), np.float32) for n in ('moments', 'moments_flip')}
        np.savez(folder / f'n01/{i}.npz', **both)


def _read_official(folder):
    made = rows.OfficialFiles(folder, codecs.Codec(learned.published('kl16')))
    contents = made.contents('float16', 4)
    skipped = [row for row in made.rows(0, len(made)) if isinstance(row, prepare.Skipped)]
    prepare.prepare(folder / 'cache', made, contents, max_unreadable=1.0)
    for row in skipped:
        raise Unreadable(*row)


PICTURES = ('PNG', 'JPEG', 'GIF', 'BMP', 'WEBP', 'TIFF', 'PPM', 'TGA', 'ICO', 'DDS')


def _pictures(folder):
    image = Image.fromarray(scene(np.random.default_rng(0), 20, 16))
    for kind in PICTURES:
        image.save(folder / f'{kind}.{kind.lower()}', kind)
    deep = Image.fromarray(np.arange(320, dtype=np.uint16).reshape(16, 20) * 200)
    deep.save(folder / 'deep.png')
    deep.save(folder / 'deep.tiff')


def _read_picture(file):
    image = decode(file.read_bytes(), file.name)
    assert center_crop(image, 8).shape == (8, 8, 3)


def _checkpoint(folder):
    with zipfile.ZipFile(golden.FOLDER / 'checkpoint_36fa651/checkpoint.zip') as archive:
        archive.extractall(folder / 'step')


def _read_checkpoint(folder):
    saved = runs.require(folder / 'step')
    inspect.facts(folder / 'step')
    saved.load_params()


def _tokenizer(folder):
    described = {'name': 'kl16', 'config': dataclasses.asdict(SMALL['kl16'])}
    (folder / 'tokenizer.json').write_text(json.dumps({'tokenizer': described}))


@functools.cache
def _arrays():
    return {'params': learned.Learned('kl16', SMALL['kl16']).network.shapes()}


def _read_tokenizer(file):
    with store.readable(file):
        description = descriptions.checked(files.read_json(file))
    stored = types.SimpleNamespace(path=file, description=description, tree=_arrays())
    stored.load_part = stored.tree.get
    codecs.of(stored)


def _descriptions(folder):
    _checkpoint(folder)
    description = store.checkpoint(folder / 'step').description
    shutil.rmtree(folder / 'step')
    presets = {'best': dataclasses.asdict(SamplingConfig())}
    source = {'file': 'a.pth', 'step': 4}
    (folder / 'model.json').write_text(
        json.dumps({**description, 'presets': presets, 'source': source, 'config_version': 3})
    )


def _read_description(file):
    with store.readable(file):
        description = descriptions.checked(files.read_json(file))
    stored = store.Checkpoint(file, description, {})
    runs.described(stored)
    saved = runs.saved(stored)
    saved.sampling('best')
    saved.remark('0.99')


def _run(folder):
    config = {**synthetic_runs.IMAGENET, 'sampling': {'solver': {'name': 'dpm'}}}
    path = synthetic_runs.workdir(folder / 'run', fids={2000: 9.5}, config=config, grids=(1000,))
    (path / 'about.json').write_text(json.dumps({'data': 'x', 'id': 'y', 'began': 'z'}))
    (path / 'class_names.json').write_text(json.dumps({'class_names': ['a', 'b']}))
    (path / 'evaluation').mkdir()
    result = synthetic_runs.result(3.5)
    (path / 'evaluation/result.json').write_text(json.dumps(result))
    synthetic_runs.workdir(folder / 'other', fids={3000: 8.5})


def _read_run(folder):
    found = gather.gather([folder / 'run', folder / 'other'])
    tables.not_computed(found)
    for made in (tables.overview, tables.made, tables.scores, tables.settings):
        made(found)
    for made in (panels.over_steps, panels.training, panels.against_cost):
        made(found)


def _settings(folder):
    files.claim(folder / 'm', {'a': 1, 'b': {'c': [1.5, 'x']}, 'd': None}, 'the measurement')


def _read_settings(folder):
    files.claim(folder / 'm', {'a': 1, 'b': {'c': [1.5, 'x']}, 'd': None}, 'the measurement')


KINDS = {
    'references': Kind(_references, _read_reference),
    'image sets': Kind(_sets, _read_set),
    'totals': Kind(_totals, statistics.load),
    'weights': Kind(_weights, torch_files.read),
    'sharded': Kind(_sharded, _read_sharded, True),
    'model': Kind(_model, _read_model, slow=8),
    'cache': Kind(_cache, _read_cache, True),
    'half a cache': Kind(_begun, _go_on, True),
    'official latents': Kind(_official, _read_official, True, slow=2),
    'pictures': Kind(_pictures, _read_picture),
    'checkpoint': Kind(_checkpoint, _read_checkpoint, True, slow=30),
    'tokenizer': Kind(_tokenizer, _read_tokenizer, slow=30),
    'descriptions': Kind(_descriptions, _read_description),
    'run': Kind(_run, _read_run, True),
    'settings': Kind(_settings, _read_settings, True),
}


def narrow_references():
    """References of few features can be changed, and read, many times a second."""
    references._PAIRS = (('mu', 'sigma', WIDTH), ('mu_s', 'sigma_s', WIDTH))
    references.POOL = WIDTH

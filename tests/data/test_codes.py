"""Tokens that are codes: from pixels, from a VQGAN in the step, and from a cache of its codes."""

import dataclasses

import jax
import numpy as np
import pytest

from emigm_jax.cli import main
from emigm_jax.config.load import config_of
from emigm_jax.config.settings import Config, DataConfig
from emigm_jax.data import datasets, latents, pipeline, rows, sizes, survey
from emigm_jax.data.folder import ImageFolder
from emigm_jax.data.pictures import center_crop
from emigm_jax.data.survey import Survey
from emigm_jax.errors import UserError
from emigm_jax.io import files
from emigm_jax.models.config import ModelConfig
from emigm_jax.tokenizers import codec, learned
from emigm_jax.tokenizers.codec import Codec
from emigm_jax.tokenizers.learned import Learned
from support import caches
from support.pictures import write_folder
from support.small_tokenizers import SMALL

CODES = {'model.head': 'categorical'}


def of(config):
    model = config.model
    return model.grid, model.channels, model.codes, model.classes


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp('pictures'), 14, np.random.default_rng(0))


@pytest.fixture(scope='module')
def vqgan(tmp_path_factory):
    tokenizer, rng = Learned('vqgan', SMALL['vqgan']), np.random.default_rng(1)
    normal = lambda s: (0.3 * rng.standard_normal(s.shape)).astype(s.dtype)  # nothing to compile
    path = tmp_path_factory.mktemp('vqgan') / 'tokenizer'
    codec.save(path, Codec(tokenizer, jax.tree.map(normal, tokenizer.network.shapes())))
    return path


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
    path = tmp_path_factory.mktemp('coded') / 'cache'
    caches.make_coded(path)
    return path


# --- Pixels --------------------------------------------------------------------------------------


@pytest.mark.parametrize(('patch', 'levels', 'codes'), [(1, 17, 17), (2, 4, 256)])
def test_digits(patch, levels, codes):
    config = config_of('digits:smoke', {**CODES, 'data.patch': patch, 'data.levels': levels})
    data = datasets.dataset(config)
    assert sizes.known(config) == sizes.fitted(config, data) == sizes.without_data(config)
    assert of(sizes.known(config)) == (8 // patch, 0, codes, 10)
    drawn = data.to_batch({}, data.read(np.arange(40), np.zeros(40, bool)), None)
    assert (drawn.tokens.shape, drawn.tokens.dtype) == ((40, (8 // patch) ** 2), np.int32)
    if levels == 17:
        np.testing.assert_array_equal(data.codec.decode(drawn.tokens), data.source.images[:40])


def test_pictures(folder):
    settings = DataConfig('folder', str(folder.path), image_size=8, patch=1, levels=8, scale=0.0)
    config = dataclasses.replace(Config(model=ModelConfig(head='categorical')), data=settings)
    assert of(sizes.known(config)) == (8, 0, 512, 0)
    data = datasets.dataset(config)
    assert of(sizes.fitted(config, data)) == (8, 0, 512, len(folder.classes))
    read = data.read(np.arange(4), np.arange(4) % 2 == 0)
    tokens = jax.jit(data.to_batch)({}, read, jax.random.key(0)).tokens
    assert (tokens.shape, tokens.dtype) == ((4, 64), np.int32)
    quantised = np.round(np.round(read['images'] / 255.0 * 7) / 7 * 255.0)
    np.testing.assert_array_equal(data.codec.decode(tokens), quantised)
    # Codes have no scale: none is measured, whatever is left out.
    assert not [line for line in data.remarks if 'scale' in line or 'deviation' in line]


def test_what_pictures_suggest_for_codes(folder):
    settings = DataConfig('folder', str(folder.path), image_size=0, patch=0, levels=8, scale=0.0)
    filled = lambda side, **changes: survey.filled(
        dataclasses.replace(settings, **changes), Survey(np.array([[side, side]]), []), None, 0
    )
    assert [(f.image_size, f.patch) for f in (filled(28), filled(500))] == [(28, 1), (32, 1)]
    assert filled(9, patch=2).image_size == 8
    config = dataclasses.replace(Config(model=ModelConfig(head='categorical')), data=settings)
    data = datasets.dataset(config)
    assert (data.settings.patch, data.codes, data.grid) == (1, 512, data.settings.image_size)
    assert data.settings.scale == 0.0
    (taken,) = (line for line in data.remarks if line.startswith('taken'))
    assert taken.endswith(f'--config.data.image_size={data.grid} --config.data.patch=1')
    # A run goes on with the very settings.
    fitted = sizes.fitted(config, data)
    assert fitted == sizes.fitted(fitted, datasets.dataset(fitted))


def test_pixels_are_codes_of_one_kind():
    with pytest.raises(UserError, match=r'say --config.data.levels=0 or --config.data.tokenizer='):
        DataConfig('folder', 'x', 'vqgan', levels=8)
    with pytest.raises(UserError, match=r'17\^4 codes, more than .*: say --config.data.levels=16'):
        sizes.known(config_of('digits:smoke', {'data.patch': 2, 'data.levels': 17}))


# --- A VQGAN -------------------------------------------------------------------------------------


def test_pictures_to_a_cache_of_codes_and_to_the_step(folder, vqgan, tmp_path, capsys):
    """Both give what encoding gives, mirrored too; a cache holds it as uint16."""
    tokenizer, path = codec.load(vqgan), tmp_path / 'cache'
    common = ['prepare', 'latents', str(path), '--folder', str(folder.path)]
    common += ['--tokenizer', str(vqgan), '--image-size', '16', '--max-unreadable', '0.3']
    assert main.main([*common, '--dtype', 'float32']) == 2
    assert 'the codes of VQGAN are held as uint16, leave it out' in capsys.readouterr().err
    assert not (path / 'settings.json').exists()
    assert main.main(common) == 0
    stored = np.load(path / latents.shard_file(0))
    count = len(folder.readable)
    assert (stored.shape, stored.dtype) == ((count, 2, 8, 8), np.uint16)

    source, readable = ImageFolder(folder.path), set(folder.readable)
    index = np.array([i for i in range(len(source)) if source.name(i) in readable])
    crops = np.stack([center_crop(source.example(i).image, 16) for i in index])
    mirrored = np.arange(count) % 2 == 1
    seen = np.where(mirrored[:, None, None, None], crops[:, :, ::-1], crops)
    want = np.asarray(tokenizer.to_tokens(tokenizer.encode(seen)))
    assert (want.shape, want.dtype) == ((count, 64), np.int32)
    assert len(np.unique(want)) > 1

    tokens = {}
    for name, settings in {
        'latents': DataConfig('latents', str(path), str(vqgan), verify=True),
        'folder': DataConfig('folder', str(folder.path), str(vqgan), image_size=16),
    }.items():
        model = ModelConfig(head='categorical')
        config = dataclasses.replace(Config(model=model), data=settings)
        data = datasets.dataset(config)
        assert of(sizes.fitted(config, data)) == (8, 0, 16, len(folder.classes))
        read = data.read(np.arange(count) if name == 'latents' else index, mirrored)
        batch = jax.jit(data.to_batch)(data.params, read, jax.random.key(0))
        assert (batch.tokens.shape, batch.tokens.dtype) == ((count, 64), np.int32)
        tokens[name] = np.asarray(batch.tokens)
    np.testing.assert_array_equal(tokens['latents'], want)
    # Compiled together with what is around it a row may be as near as another.
    assert (tokens['folder'] == want).mean() > 0.99


def test_a_cache_of_codes(cache, tmp_path):
    held = latents.Cache(cache)
    assert (held.shape, held.dtype) == ((4, 4), np.uint16)
    order = np.random.default_rng(0).permutation(len(held))
    taken = held.take(order, order % 2 == 1)
    for row, i in zip(taken, order, strict=True):
        np.testing.assert_array_equal(row, caches.Coded.views(caches.GOOD[i])[i % 2])
    config = config_of(
        Config(model=ModelConfig(head='categorical')),
        {'data.name': 'latents', 'data.path': str(cache), 'data.local_copy': str(tmp_path / 'c')},
    )
    data = datasets.dataset(config)
    assert sizes.known(config) == dataclasses.replace(sizes.fitted(config, data), data=config.data)
    assert of(sizes.known(config)) == (4, 0, caches.V, 3)
    batch = next(pipeline.host_rows(data, 6, 0, 0, 1))
    tokens = data.to_batch({}, batch, jax.random.key(0)).tokens
    np.testing.assert_array_equal(tokens, batch['raw'].reshape(6, 16))
    assert tokens.dtype == np.int32


def test_a_cache_of_vectors_says_nothing_of_codes(tmp_path):
    """As those that were begun before there were codes."""
    caches.make(tmp_path / 'cache')
    for name in ('settings', 'manifest'):
        assert 'codes' not in files.read_json(tmp_path / f'cache/{name}.json')['tokenizer']


def test_codes_have_no_scale(cache, capsys):
    assert main.main(['prepare', 'stats', str(cache)]) == 2
    said = f'emigm: {cache}: holds codes of VQGAN, which have no scale\n'
    assert capsys.readouterr().err == said


def test_codes_beyond_the_codebook(tmp_path):
    class Beyond(caches.Coded):
        @staticmethod
        def views(i):
            return caches.Coded.views(i) + (i == 20) * caches.V

    path = tmp_path / 'cache'
    caches.make_coded(path, Beyond())
    settings = DataConfig('latents', str(path), verify=True)
    datasets.Latents(dataclasses.replace(settings, verify=False))
    says = r'00002.npy: holds code (1[6-9]|2\d|3[01]), vqgan has 0 to 15; prepare'
    with pytest.raises(UserError, match=says):
        datasets.Latents(settings)
    manifest = files.read_json(path / 'manifest.json')
    for change in ({'dtype': 'float16'}, {'shape': [4, 4, 6]}, {'dtype': 'odd'}):
        files.write_json(path / 'manifest.json', {**manifest, **change})
        with pytest.raises(UserError, match=r'its manifest.json is damaged'):
            latents.Cache(path)


def test_a_cache_of_another_tokenizer(cache, vqgan):
    with pytest.raises(UserError, match=r'was made with another tokenizer \(vqgan 0\) than'):
        datasets.Latents(DataConfig('latents', str(cache), str(vqgan)))


def test_which_dtype_a_cache_has():
    spec = learned.published('vqgan').spec
    assert (spec.codes, spec.channels) == (1024, 0)
    assert rows.dtype(spec, None) == 'uint16'
    assert rows.dtype(dataclasses.replace(spec, codes=2**16), None) == 'uint16'
    with pytest.raises(UserError, match='VQGAN has 65,537 codes, a cache holds up to 65,536'):
        rows.dtype(dataclasses.replace(spec, codes=2**16 + 1), None)
    vectors = learned.published('kl16').spec
    assert [rows.dtype(vectors, asked) for asked in (None, 'float32')] == ['float16', 'float32']


def test_official_files_hold_no_codes(vqgan, tmp_path, capsys):
    (tmp_path / 'npz/n01').mkdir(parents=True)
    np.savez(
        tmp_path / 'npz/n01/a.npz', moments=np.zeros((8, 2, 2)), moments_flip=np.ones((8, 2, 2))
    )
    command = ['prepare', 'latents', str(tmp_path / 'c'), '--from-npz', str(tmp_path / 'npz')]
    assert main.main([*command, '--tokenizer', str(vqgan)]) == 2
    error = capsys.readouterr().err
    assert 'no official caches of the codes of VQGAN' in error and error.count('\n') == 1


def test_random_codes():
    config = config_of(
        Config(model=ModelConfig(head='categorical', grid=3, codes=7, classes=5)),
        {'data.name': 'synthetic', 'data.examples': 100},
    )
    data = datasets.dataset(config)
    assert sizes.fitted(config, data) == config
    read = data.read(np.arange(50), np.zeros(50, bool))
    assert (read['tokens'].shape, read['tokens'].dtype) == ((50, 9), np.int32)
    assert set(np.unique(read['tokens'])) == set(range(7))
    again = data.read(np.array([17]), np.array([False]))['tokens'][0]
    np.testing.assert_array_equal(again, read['tokens'][17])
    left_out = config_of(config, {'model.codes': 0})
    with pytest.raises(UserError, match=r'model.codes is not set.* say --config.model.codes='):
        sizes.fitted(left_out, datasets.dataset(left_out))

"""Official weights in, checkpoints out, images from them, and back to official names."""

import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from emigm_jax.checkpoints import runs, store
from emigm_jax.cli import main
from emigm_jax.config import recipes
from emigm_jax.conversion import convert as library
from emigm_jax.conversion import kinds, models, rules, sizes, tables
from emigm_jax.conversion.options import NULLS, Kind, Options
from emigm_jax.core import reveal
from emigm_jax.errors import UserError
from emigm_jax.io import paths
from emigm_jax.io.formats import torch_files
from emigm_jax.models import emigm
from emigm_jax.tokenizers import codec, learned
from support import checkpoint_files, golden
from support.processes import with_devices
from support.small_tokenizers import small

HEADS = ('--heads', '4')  # of the recorded tiny models; no shape tells them


def convert(*arguments):
    return main.main(['convert', *map(str, arguments)])


def refusal(capsys, *command):
    capsys.readouterr()
    assert main.main(list(map(str, command))) == 2
    message = capsys.readouterr().err.strip()
    assert '\n' not in message and message.startswith('emigm: ')
    return message


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture
def tiny(tmp_path):
    target = tmp_path / 'tiny'
    assert convert(golden.path('emigm_tiny_release.pth'), target, *HEADS) == 0
    return target


# --- Models --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('file', 'flags', 'entry', 'config'),
    [
        ('emigm_tiny_release.pth', (), 'model_ema', golden.TINY),
        ('emigm_tiny_training.pth', (), 'model_ema', golden.TINY),
        ('emigm_tiny_training.pth', ('--weights', 'model'), 'model', golden.TINY),
        ('mar_tiny.pth', (), 'model_ema', golden.MAR_TINY),
        ('mar_tiny.pth', ('--weights', 'model', '--kind', 'mar'), 'model', golden.MAR_TINY),
    ],
)
def test_models_go_in_and_out(file, flags, entry, config, tmp_path):
    target, back = tmp_path / 'model', tmp_path / 'back.safetensors'
    assert convert(golden.path(file), target, *HEADS, *flags) == 0
    saved = runs.require(target)
    assert saved.config.model == config
    assert saved.source['weights'] == entry
    params, name = saved.load_params()
    assert name == '0.9999'
    same(params, golden.checkpoint(config, file, entry))

    assert convert(target, back, '--to', 'safetensors') == 0
    official, again = torch_files.read(golden.path(file))[entry], torch_files.read(back)
    assert set(official) == set(again)
    for key, value in official.items():
        np.testing.assert_array_equal(again[key], np.asarray(value), strict=True)
    assert convert(back, tmp_path / 'again', *HEADS) == 0
    same(runs.require(tmp_path / 'again').load_params()[0], params)


def test_library(tmp_path):
    """What the command does, for programs."""
    file, target = golden.path('emigm_tiny_release.pth'), tmp_path / 'model'
    dry = library.convert(file, target, heads=4, dry_run=True)
    assert list(tmp_path.iterdir()) == []
    done = library.convert(file, target, heads=4)
    assert (done.kind, done.title, done.parameters) == (Kind.EMIGM, 'emigm, own sizes', 114_528)
    assert done.left_out == {} and done.facts['weights'] == 'model_ema'
    same(done.params, dry.params)
    same(runs.require(target).load_params()[0], done.params)
    assert library.read(file, Options('mar', heads=4)).kind == Kind.MAR
    back = library.export(target, tmp_path / 'x.safetensors')
    assert (back.weights, len(back.tensors)) == ('0.9999', 104)
    same(torch_files.read(tmp_path / 'x.safetensors'), back.tensors)
    for options, says in (
        (dict(kind='emgim'), "did you mean 'emigm'"),
        (dict(null='latent'), "not 'latent'"),
        (dict(heads=0), 'heads must be at least 1'),
        (dict(weights='x'), "no weights 'x'"),
    ):
        with pytest.raises(UserError, match=says):
            library.convert(file, tmp_path / 'y', **options)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['model', 'x.safetensors']


def test_every_kind_has_a_row():
    assert list(kinds.KINDS) == list(Kind)
    assert set(learned.KINDS) < set(kinds.KINDS)


def test_names_that_are_no_strings():
    """Files of training hold an optimizer, whose parameters are numbered."""
    x = np.zeros(2)
    with pytest.raises(UserError, match="it holds 'optimizer/0/a', 'None', 'b/c', and one of"):
        kinds.recognise({'optimizer': {0: {'a': x}, 1: {}}, None: x, 'b/c': x, 'step': 3}, 'x')


def test_null_token(tmp_path, capsys):
    file = golden.path('emigm_tiny_release.pth')
    tensors = torch_files.read(file)['model_ema']
    for null in NULLS:
        target = tmp_path / null
        assert convert(file, target, *HEADS, '--null', null) == 0
        assert f'null token: {null}' in capsys.readouterr().out
        params, _ = runs.require(target).load_params()
        np.testing.assert_array_equal(params['mae']['mask_token'], np.asarray(tensors[null])[0])
    # The official loader would put `mask_token` in the place of the averaged one.
    back = tmp_path / 'back.safetensors'
    assert convert(tmp_path / 'fake_latent', back, '--to', 'safetensors') == 0
    for name in NULLS:
        np.testing.assert_array_equal(torch_files.read(back)[name], tensors['fake_latent'])


def test_files_in_a_bucket(tmp_path, monkeypatch):
    """The path of gs:// with a folder for a bucket; whether gs:// itself works is its library's."""
    absolute = store.absolute
    for module in (store, paths):
        monkeypatch.setattr(
            module,
            'absolute',
            lambda path: absolute(str(path).replace('gs://bucket', str(tmp_path))),
        )
    release = golden.path('emigm_tiny_release.pth')
    (tmp_path / 'x.pth').write_bytes(release.read_bytes())
    assert convert('gs://bucket/x.pth', tmp_path / 'model', *HEADS) == 0
    assert convert(tmp_path / 'model', 'gs://bucket/x.safetensors', '--to', 'safetensors') == 0
    (tmp_path / 'hub').mkdir()
    (tmp_path / 'x.safetensors').rename(tmp_path / 'hub/model.safetensors')
    same(torch_files.read('gs://bucket/hub'), dict(torch_files.read(release)['model_ema']))
    with pytest.raises(UserError, match='gs://bucket/y: no such file or folder'):
        torch_files.read('gs://bucket/y')
    assert sorted(p.name for p in tmp_path.iterdir()) == ['hub', 'model', 'x.pth']


# image size, size: keys of the official state dict
KEYS = {
    (256, 'xs'): 292,
    (256, 's'): 340,
    (256, 'b'): 364,
    (256, 'l'): 476,
    (256, 'h'): 604,
    (512, 'xs'): 316,
    (512, 's'): 364,
    (512, 'b'): 380,
    (512, 'l'): 476,
}


@pytest.mark.parametrize('key', KEYS)
def test_every_preset_is_recognised_by_its_official_shapes(key):
    config = emigm.preset(*key)
    # Arrays without memory: only their shapes count here.
    hollow = jax.tree.map(
        lambda s: np.broadcast_to(np.float32(0), s.shape), emigm.network(config).shapes()
    )
    tensors = models.official(config, hollow)
    assert len(tensors) == KEYS[key]
    assert sum(t.size for t in tensors.values()) == emigm.PRESETS[key][2] + config.width
    assert sizes.model_config(tensors, 'x.pth') == config
    assert emigm.preset_name(config) == key
    consumed = [name for entry in tables.emigm(config) for name in entry.sources]
    assert sorted([*consumed, 'fake_latent']) == sorted(tensors)
    places = {'model_ema': tensors}
    assert kinds.recognise(places, 'x.pth') == {Kind.EMIGM: places, Kind.MAR: places}


# (method, image size, size): NFE of fast and best, as the code really runs
NFE = {
    ('emigm', 256, 'xs'): (19, 181),
    ('emigm', 256, 'b'): (19, 173),
    ('emigm', 256, 'h'): (19, 179),
    ('emigm', 512, 'l'): (19, 80),
    ('mar', 256, 'h'): (128, 512),
}


@pytest.mark.parametrize('key', NFE)
def test_published_sampling(key):
    settings = recipes.sampling(*key)
    for name, nfe in zip(('fast', 'best'), NFE[key], strict=True):
        plan = settings[name].reveal
        assert plan.steps + reveal.guided_steps(plan).sum() == nfe
    assert recipes.sampling_of(recipes.published(*key).model) == settings


def test_misfits_are_listed_and_nothing_is_written(tmp_path, capsys):
    tensors = dict(torch_files.read(golden.path('emigm_tiny_release.pth'))['model_ema'])
    tensors['encoder_norm.weight'] = np.zeros(31, np.float32)
    tensors['left.over'] = np.zeros(3, np.float32)
    del tensors['decoder_blocks.1.mlp.fc1.bias']
    with pytest.raises(rules.Misfit) as caught:
        models.read({'model_ema': tensors}, 'x.pth', Options(heads=4))
    assert {row[:2] for row in caught.value.rows} == {
        ('missing', 'decoder_blocks.1.mlp.fc1.bias'),
        ('unexpected', 'left.over'),
        ('misshapen', 'encoder_norm.weight'),
    }
    for name, value in {'fake_latent': np.zeros((1, 31)), 'class_emb.weight': 3}.items():
        with pytest.raises(rules.Misfit, match=name):
            models.read({'model_ema': {**tensors, name: value}}, 'x.pth', Options(heads=4))
    file = tmp_path / 'x.pth'
    checkpoint_files.write_arrays(file, {'model_ema': tensors})
    line = refusal(capsys, 'convert', file, tmp_path / 'out', *HEADS)
    assert 'does not fit the model' in line
    assert list(tmp_path.iterdir()) == [file]


def test_names_in_files_reach_no_terminal_as_they_are(tmp_path, capsys):
    file, out, name = tmp_path / 'x.pth', tmp_path / 'out', '\x1b]0;mine\x07\n' + 'x' * 800
    checkpoint_files.write_arrays(file, {name: np.zeros(3)})
    refusal(capsys, 'convert', file, out)
    tensors = dict(torch_files.read(golden.path('emigm_tiny_release.pth'))['model_ema'])
    checkpoint_files.write_arrays(file, {'model_ema': {**tensors, name: np.zeros(3, np.float32)}})
    assert convert(file, out, *HEADS) == 2
    shown = capsys.readouterr()
    assert r'unexpected  \x1b]0;mine\x07\nxxx' in shown.out
    for line in [*shown.out.splitlines(), *shown.err.splitlines()]:
        assert line.isprintable() and len(line) < 2000


def test_numbers_that_are_not_finite_are_named(tmp_path, capsys):
    tree = torch_files.read(golden.path('emigm_tiny_release.pth'))
    tensors = {name: np.array(value) for name, value in tree['model_ema'].items()}
    tensors['encoder_norm.weight'][3] = np.nan
    tensors['decoder_blocks.1.mlp.fc1.bias'][:2] = np.inf, -np.inf
    file, out = tmp_path / 'x.pth', tmp_path / 'out'
    checkpoint_files.write_arrays(file, {'model_ema': tensors})
    assert '--allow-non-finite takes it' in refusal(capsys, 'convert', file, out, *HEADS)
    assert convert(file, out, *HEADS) == 2
    rows = [line.split(maxsplit=3) for line in capsys.readouterr().out.splitlines()]
    assert [row[2:] for row in rows] == [
        ['encoder_norm.weight', '1 of 32 numbers'],
        ['decoder_blocks.1.mlp.fc1.bias', '2 of 128 numbers'],
    ]
    assert list(tmp_path.iterdir()) == [file]
    tensors['diffloss.net.input_proj.bias'] = np.full(48, 1e300)  # no float32
    with pytest.raises(rules.NonFinite, match=r'input_proj\.bias 48 of 48'):
        models.read({'model_ema': tensors}, 'x.pth', Options(heads=4))

    assert convert(file, out, *HEADS, '--allow-non-finite') == 0
    back = tmp_path / 'back.safetensors'
    line = refusal(capsys, 'convert', out, back, '--to', 'safetensors')
    assert 'encoder_norm.weight 1 of 32 numbers' in line
    assert not back.exists()
    assert convert(out, back, '--to', 'safetensors', '--allow-non-finite') == 0
    bias = torch_files.read(back)['decoder_blocks.1.mlp.fc1.bias']
    np.testing.assert_array_equal(bias, tensors['decoder_blocks.1.mlp.fc1.bias'])


@pytest.mark.parametrize(
    ('change', 'says'),
    [
        (lambda data: data[: len(data) // 2], ''),
        (lambda data: b'', 'empty'),
        (lambda data: b'\x00' * 4096, ''),
        (lambda data: json.dumps({'a': 1}).encode(), 'text file'),
    ],
)
def test_damaged_and_foreign_files(change, says, tmp_path, capsys):
    file = tmp_path / 'x.pth'
    file.write_bytes(change(golden.path('emigm_tiny_release.pth').read_bytes()))
    line = refusal(capsys, 'convert', file, tmp_path / 'out', *HEADS)
    assert str(file) in line and says in line
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    ('name', 'says'),
    [('Conv2d_1a_3x3.conv.weight', 'Inception'), ('fc.weight', "it holds 'fc.weight'")],
)
def test_foreign_tensors_are_named(name, says, tmp_path, capsys):
    file = checkpoint_files.write_arrays(tmp_path / 'x.pth', {name: np.zeros((2, 2))})
    assert says in refusal(capsys, 'convert', file, tmp_path / 'out')
    assert list(tmp_path.iterdir()) == [file]


def test_refusals(tiny, tmp_path, capsys):
    release = golden.path('emigm_tiny_release.pth')
    for command, says in [
        ((release, tmp_path / 'out'), '--heads'),
        ((release, tmp_path / 'out', '--heads', '5'), 'does not divide'),
        ((release, tmp_path / 'out', *HEADS, '--weights', 'model'), "no weights 'model'"),
        ((release, tmp_path / 'out', *HEADS, '--kind', 'kl16'), 'eMIGM or MAR'),
        ((release, tiny, *HEADS), 'exists already'),
        ((tiny, tmp_path / 'out'), 'is converted already'),
        (
            (golden.path('mar_tiny.pth'), tmp_path / 'out', *HEADS, '--null', 'fake_latent'),
            'separate null token',
        ),
        ((tiny, tmp_path / 'no' / 'x.safetensors', '--to', 'safetensors'), 'does not exist'),
        (
            (tiny, tmp_path / 'x.safetensors', '--to', 'safetensors', '--weights', '0.5'),
            "no weights '0.5'",
        ),
        ((release, '/proc/out', *HEADS), 'written'),
        ((release, 'foo://out', *HEADS), 'no access'),
        ((release, tmp_path / 'out', *HEADS, '--heads', '0'), 'at least 1'),
        ((tiny, '/proc/x.safetensors', '--to', 'safetensors'), 'cannot be written'),
        ((tiny, tmp_path / 'x', '--to', 'safetensors', '--null', 'mask_token'), 'not apply'),
    ]:
        assert says in refusal(capsys, 'convert', *command)
        assert [p.name for p in tmp_path.iterdir()] == ['tiny']
    assert convert(release, tmp_path / 'out', *HEADS, '--dry-run') == 0
    assert not (tmp_path / 'out').exists()


# --- Images from converted weights ---------------------------------------------------------------

# In a process of its own, as the number of devices is fixed at its start.
SAMPLE = """
import sys, jax
from emigm_jax.cli.main import main
assert jax.device_count() == int(sys.argv[1])
sys.exit(main(sys.argv[2:]))
"""


def sample(devices, *flags):
    command = [sys.executable, '-c', SAMPLE, str(devices), 'sample', *map(str, flags)]
    subprocess.run(command, check=True, env=with_devices(devices))


@pytest.mark.slow
def test_pth_to_pictures(tiny, tmp_path, capsys):
    tokenizer = small('kl16')
    codec.save(tmp_path / 'kl16', tokenizer)
    flags = (
        '--checkpoint',
        tiny,
        '--tokenizer',
        tmp_path / 'kl16',
        '--classes',
        '3,7',
        '--seeds',
        '0-7',
        '--steps',
        '4',
        '--solver-steps',
        '3',
    )
    for devices, batch in ((1, 1), (8, 16)):
        out = tmp_path / f'{devices}-{batch}'
        sample(devices, *flags, '--out', out, '--batch-size', batch)
    read = lambda file: np.asarray(Image.open(file)).astype(int)
    one, eight = (tmp_path / name / 'images' for name in ('1-1', '8-16'))
    for file in one.glob('class_*.png'):
        assert np.abs(read(file) - read(eight / file.name)).max() <= 1  # rounding
    assert len(list(one.glob('class_*.png'))) == 16
    # The grid has a column of titles.
    assert read(tmp_path / '1-1/grid.png').shape[1] > 8 * 64 + 9 * 2


def test_presets_and_wrong_tokenizers(tiny, tmp_path, capsys):
    tokenizer = small('dc_ae')
    codec.save(tmp_path / 'dc_ae', tokenizer)
    out = ('--out', tmp_path / 'out', '--classes', '0')
    base = ('sample', '--checkpoint', tiny)
    assert main.main([*map(str, base), '--preset', 'best', '--dry-run', '--out', 'x']) == 0
    assert json.loads(capsys.readouterr().out)['reveal']['steps'] == 128
    for flags, says in [
        ((), '--tokenizer'),
        (('--tokenizer', tmp_path / 'dc_ae'), 'KL-16'),
        (('--tokenizer', tiny), 'holds no tokenizer'),
        (('--tokenizer', tmp_path / 'nowhere'), 'emigm convert'),
        (('--preset', 'slow'), 'fast, best'),
    ]:
        assert says in refusal(capsys, *base, *flags, *out)
        assert not (tmp_path / 'out').exists()
    assert 'holds no model' in refusal(capsys, 'sample', '--checkpoint', tmp_path / 'dc_ae', *out)


@pytest.mark.parametrize('size', ['b', 'l', 'h'])
def test_mar_is_recognised_by_its_official_shapes(size):
    config = emigm.preset(256, size, shared_null=False)
    hollow = jax.tree.map(
        lambda s: np.broadcast_to(np.float32(0), s.shape), emigm.network(config).shapes()
    )
    tensors = models.official(config, hollow)
    assert tensors['mask_token'].shape == (1, 1, config.width)
    assert len(tensors) == KEYS[256, size]
    assert sum(t.size for t in tensors.values()) == emigm.PRESETS[256, size][2] + config.width
    assert sizes.model_config(tensors, 'x.pth') == config


def test_storage_writes_whole_or_not(tmp_path, monkeypatch):
    store.save(tmp_path / 'a', {'x': np.arange(3.0)}, {'what': 'a test'})
    description = store.checkpoint(tmp_path / 'a').description
    assert description == {'what': 'a test', 'versions': store.versions()}
    assert [p.name for p in pathlib.Path(tmp_path).iterdir()] == ['a']
    with pytest.raises(UserError, match='exists already'):
        store.save(tmp_path / 'a', {'x': np.arange(3.0)}, {})

    def full(*_, **__):
        (tmp_path / 'b.orbax-checkpoint-tmp').mkdir()
        raise ValueError('RESOURCE_EXHAUSTED:\nno space left')

    monkeypatch.setattr(store.ocp, 'save', full)
    with pytest.raises(UserError, match=r'b: cannot be written .*: no space left'):
        store.save(tmp_path / 'b', {'x': np.arange(3.0)}, {})
    with pytest.raises(UserError, match='cannot be reached'):
        store.save(tmp_path / 'a' / store.MARK / 'c', {'x': np.arange(3.0)}, {})
    assert [p.name for p in pathlib.Path(tmp_path).iterdir()] == ['a']

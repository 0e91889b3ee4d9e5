"""Official weights in, checkpoints out, images from them, and back to official names."""

import json
import os
import pathlib
import subprocess
import sys

import checkpoint_files
import golden
import jax
import numpy as np
import pytest
from PIL import Image

from emigm_jax import recipes, storage
from emigm_jax.cli import main
from emigm_jax.convert import models, recognise, rules, tables, tokenizer_tables, torch_files
from emigm_jax.core import reveal
from emigm_jax.errors import UserError
from emigm_jax.models import emigm
from emigm_jax.tokenizers import dc_ae, kl_vae, learned, vqgan
from emigm_jax.training import checkpoint

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
    saved = checkpoint.require(target)
    assert saved.config.model == config
    assert saved.source['weights'] == entry
    params, name = checkpoint.load_params(saved)
    assert name == '0.9999'
    same(params, golden.checkpoint(config, file, entry))

    assert convert(target, back, '--to', 'safetensors') == 0
    official, again = torch_files.read(golden.path(file))[entry], torch_files.read(back)
    assert set(official) == set(again)
    for key, value in official.items():
        role = 'mask_token' if config.shared_null and key == 'fake_latent' else key
        np.testing.assert_array_equal(again[key], np.asarray(official[role]), strict=True)
        assert again[key].shape == value.shape
    assert convert(back, tmp_path / 'again', *HEADS) == 0
    same(checkpoint.load_params(checkpoint.require(tmp_path / 'again'))[0], params)


def test_null_token(tmp_path, capsys):
    file = golden.path('emigm_tiny_release.pth')
    tensors = torch_files.read(file)['model_ema']
    for null in models.NULLS:
        target = tmp_path / null
        assert convert(file, target, *HEADS, '--null', null) == 0
        assert f'null token: {null}' in capsys.readouterr().out
        params, _ = checkpoint.load_params(checkpoint.require(target))
        np.testing.assert_array_equal(params['mae']['mask_token'], np.asarray(tensors[null])[0])


# image size, size: keys of the official state dict (paper.md section 10)
KEYS = {(256, 'xs'): 292, (256, 's'): 340, (256, 'b'): 364, (256, 'l'): 476, (256, 'h'): 604,
        (512, 'xs'): 316, (512, 's'): 364, (512, 'b'): 380, (512, 'l'): 476}  # fmt: skip


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
    assert recognise.model_config(tensors, 'x.pth') == config
    assert emigm.preset_name(config) == key
    consumed = [name for entry in tables.emigm(config) for name in entry.sources]
    assert sorted([*consumed, 'fake_latent']) == sorted(tensors)
    assert recognise.kind({'model_ema': tensors}, 'x.pth') == 'masked'


# (method, image size, size): NFE of fast and best (paper.md section 5, as the code really runs)
NFE = {('emigm', 256, 'xs'): (19, 181), ('emigm', 256, 'b'): (19, 173), ('emigm', 256, 'h'):
       (19, 179), ('emigm', 512, 'l'): (19, 80), ('mar', 256, 'h'): (128, 512)}  # fmt: skip


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
        models.read({'model_ema': tensors}, 'x.pth', heads=4)
    assert {row[:2] for row in caught.value.rows} == {
        ('missing', 'decoder_blocks.1.mlp.fc1.bias'),
        ('unexpected', 'left.over'),
        ('misshapen', 'encoder_norm.weight'),
    }
    for name, value in {'fake_latent': np.zeros((1, 31)), 'class_emb.weight': 3}.items():
        with pytest.raises(rules.Misfit, match=name):
            models.read({'model_ema': {**tensors, name: value}}, 'x.pth', heads=4)
    file = tmp_path / 'x.pth'
    checkpoint_files.write_arrays(file, {'model_ema': tensors})
    line = refusal(capsys, 'convert', file, tmp_path / 'out', *HEADS)
    assert 'does not fit the model' in line
    assert list(tmp_path.iterdir()) == [file]


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
        ((golden.path('mar_tiny.pth'), tmp_path / 'out', *HEADS, '--null', 'fake_latent'),
         'separate null token'),
        ((tiny, tmp_path / 'no' / 'x.safetensors', '--to', 'safetensors'), 'does not exist'),
        ((tiny, tmp_path / 'x.safetensors', '--to', 'safetensors', '--weights', '0.5'),
         "no weights '0.5'"),
        ((release, '/proc/out', *HEADS), 'written'),
        ((release, 'foo://out', *HEADS), 'no access'),
        ((release, tmp_path / 'out', *HEADS, '--heads', '0'), 'at least 1'),
        ((tiny, '/proc/x.safetensors', '--to', 'safetensors'), 'cannot be written'),
        ((tiny, tmp_path / 'x', '--to', 'safetensors', '--null', 'mask_token'), 'not apply'),
    ]:  # fmt: skip
        assert says in refusal(capsys, 'convert', *command)
        assert [p.name for p in tmp_path.iterdir()] == ['tiny']
    assert convert(release, tmp_path / 'out', *HEADS, '--dry-run') == 0
    assert not (tmp_path / 'out').exists()


# --- Tokenizers ----------------------------------------------------------------------------------

SMALL = {
    'kl16': kl_vae.KLVAEConfig(
        channels=16, width=8, multipliers=(1, 2), attention_levels=(1,), groups=4
    ),
    'dc_ae': dc_ae.DCAEConfig(channels=8, widths=(16, 32, 32), encoder_depths=(1, 1, 1),
                              decoder_depths=(1, 1, 1), head_width=8),
    'vqgan': vqgan.VQGANConfig(codes=16, channels=8, width=8, multipliers=(1, 2), groups=4),
}  # fmt: skip


def small(name, batch=16):
    config = SMALL[name]
    params = jax.jit(learned.KINDS[name].module.network(config).init)(jax.random.key(0))
    return learned.Learned(name, config, params, batch)


@pytest.mark.parametrize('name', SMALL)
def test_tokenizers_behind_one_face(name, tmp_path):
    tokenizer = small(name, batch=2)
    learned.save(tmp_path / name, name, tokenizer.config, tokenizer.params)
    loaded = learned.load(tmp_path / name, batch=3)
    assert loaded.config == tokenizer.config
    same(loaded.params, tokenizer.params)
    rng = np.random.default_rng(0)
    images = rng.integers(256, size=(5, 16, 16, 3)).astype(np.uint8)
    raw = tokenizer.encode(images)
    np.testing.assert_allclose(raw, loaded.encode(images), rtol=1e-4, atol=1e-4)
    tokens = tokenizer.tokens(raw)
    side = 16 // tokenizer.spec.stride
    assert tokens.shape[:2] == (5, side**2)
    pictures = tokenizer.decode(tokens)
    assert (pictures.shape, pictures.dtype) == (images.shape, np.uint8)
    # By hand: the network's own range, unscaled latents, one image at a time.
    kind, net = learned.KINDS[name], learned.KINDS[name].module.network(tokenizer.config)
    latents = raw[..., : raw.shape[-1] // 2] if kind.raw == 'moments' else raw
    pixels = np.asarray(jax.jit(lambda p, x: net.bind(p).decode(x))(tokenizer.params, latents))
    low = {'kl16': -1.0, 'dc_ae': -1.0, 'vqgan': 0.0}[name]
    expected = np.clip((pixels - low) / (1 - low), 0, 1) * 255
    assert np.abs(pictures - expected).max() <= 0.51
    half = learned.load(tmp_path / name, dtype='bfloat16')
    assert half.config.dtype == 'bfloat16'
    assert np.abs(half.decode(tokens).astype(float) - pictures).mean() < 8
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
    drawn = np.stack([tokenizer.tokens(raw, key) for key in keys]) / 0.2325
    deviation = np.exp(0.5 * log_variance)
    assert np.abs(drawn.mean(0) - mean).max() < 5 * deviation.max() / 20
    np.testing.assert_allclose(drawn.std(0), deviation, rtol=0.2)


# --- Images from converted weights ---------------------------------------------------------------

# In a process of its own, as the number of devices is fixed at its start.
SAMPLE = """
import sys, jax
from emigm_jax.cli.main import main
assert jax.device_count() == int(sys.argv[1])
sys.exit(main(sys.argv[2:]))
"""


def sample(devices, *flags):
    environment = {**os.environ,
                   'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices}'}  # fmt: skip
    command = [sys.executable, '-c', SAMPLE, str(devices), 'sample', *map(str, flags)]
    subprocess.run(command, check=True, env=environment)


def test_pth_to_pictures(tiny, tmp_path, capsys):
    tokenizer = small('kl16')
    learned.save(tmp_path / 'kl16', 'kl16', tokenizer.config, tokenizer.params)
    flags = ('--checkpoint', tiny, '--tokenizer', tmp_path / 'kl16', '--classes', '3,7',
             '--seeds', '0-7', '--steps', '4', '--solver-steps', '3')  # fmt: skip
    for devices, batch in ((1, 1), (8, 16)):
        out = tmp_path / f'{devices}-{batch}'
        sample(devices, *flags, '--out', out, '--batch-size', batch)
    read = lambda file: np.asarray(Image.open(file)).astype(int)
    one, eight = tmp_path / '1-1', tmp_path / '8-16'
    for file in one.glob('class_*.png'):
        assert np.abs(read(file) - read(eight / file.name)).max() <= 1  # rounding
    assert len(list(one.glob('class_*.png'))) == 16
    # The grid has a column of titles.
    assert read(one / 'grid.png').shape[1] > 8 * 64 + 9 * 2


def test_presets_and_wrong_tokenizers(tiny, tmp_path, capsys):
    tokenizer = small('dc_ae')
    learned.save(tmp_path / 'dc_ae', 'dc_ae', tokenizer.config, tokenizer.params)
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


@pytest.mark.parametrize('name', SMALL)
def test_tokenizers_go_out_and_in(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # relative names, as the README has them
    tokenizer = small(name)
    counters = {'x.num_batches_tracked': 7} if name == 'dc_ae' else {}
    learned.save(name, name, tokenizer.config, tokenizer.params, counters=counters)
    assert convert(name, 'x.safetensors', '--to', 'safetensors') == 0
    tensors = torch_files.read('x.safetensors')
    assert recognise.kind(tensors, 'x') == name
    assert {n: tensors[n] for n in counters} == counters
    shapes = learned.KINDS[name].module.network(tokenizer.config).shapes()
    again = tokenizer_tables.params(name, tokenizer.config, tensors, shapes, 'x')
    same(again, tokenizer.params)
    same(learned.load(name).params, tokenizer.params)
    assert convert(name, 'y.safetensors', '--to', 'safetensors', '--weights', '0.9') == 2
    assert not pathlib.Path('y.safetensors').exists()


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
    assert recognise.model_config(tensors, 'x.pth') == config


def test_storage_writes_whole_or_not(tmp_path, monkeypatch):
    storage.save(tmp_path / 'a', {'x': np.arange(3.0)}, {'what': 'a test'})
    description, _ = storage.describe(tmp_path / 'a')
    assert description == {'what': 'a test'}
    assert [p.name for p in pathlib.Path(tmp_path).iterdir()] == ['a']
    with pytest.raises(UserError, match='exists already'):
        storage.save(tmp_path / 'a', {'x': np.arange(3.0)}, {})

    def full(*_, **__):
        (tmp_path / 'b.orbax-checkpoint-tmp').mkdir()
        raise ValueError('RESOURCE_EXHAUSTED:\nno space left')

    monkeypatch.setattr(storage.ocp, 'save', full)
    with pytest.raises(UserError, match=r'b: cannot be written .*: no space left'):
        storage.save(tmp_path / 'b', {'x': np.arange(3.0)}, {})
    with pytest.raises(UserError, match='cannot be reached'):
        storage.save(tmp_path / 'a' / storage.MARK / 'c', {'x': np.arange(3.0)}, {})
    assert [p.name for p in pathlib.Path(tmp_path).iterdir()] == ['a']

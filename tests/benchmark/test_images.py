"""`emigm benchmark decode|evaluate`, and the count of FLOPs that they divide by."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emigm_jax.benchmark import products
from emigm_jax.cli import main
from emigm_jax.evaluation import inception
from emigm_jax.tokenizers import codec
from emigm_jax.tokenizers.learned import Learned
from support import narrow_inception
from support.small_tokenizers import SMALL


def measured(tmp_path, *command):
    file = tmp_path / 'record.json'
    assert main.main(['benchmark', *map(str, command), '--json', str(file)]) == 0
    return json.loads(file.read_text())['rows']


def test_pixels_have_a_row_per_batch_size(tmp_path, capsys):
    flags = ('--config', 'digits', '--repeats', '2')
    rows = measured(tmp_path, 'decode', *flags, '--batch-size', '8,16')
    assert [(row['name'], row['batch_size']) for row in rows] == [('digits', 8), ('digits', 16)]
    assert all(row['figures']['images_per_second'] > 0 for row in rows)
    # uint8 images and whether they are finite, 2 of 16 on each of 8 devices; tokens come on top.
    assert rows[1]['figures']['program_memory_gb'] * 1e9 >= 2 * (64 + 1 + 4 * 64)
    shown = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in shown[-2:]] == [['digits', '8'], ['digits', '16']]


def test_the_batch_that_fits_is_found(tmp_path, capsys):
    flags = ('--config', 'digits', '--repeats', '1')
    rows = measured(tmp_path, 'decode', *flags, '--find-batch', '40')
    assert [row['batch_size'] for row in rows] == [8, 16, 32]
    fastest = max(rows, key=lambda row: row['figures']['images_per_second'])['batch_size']
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f'digits: the largest batch is 32 (MOST is 40), the fastest {fastest} (')


def test_a_tokenizer_of_a_folder(tmp_path):
    tokenizer = Learned('kl16', dataclasses.replace(SMALL['kl16'], multipliers=(1,), blocks=1))
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape), tokenizer.network.shapes())
    codec.save(tmp_path / 'kl16', codec.Codec(tokenizer, params))
    command = ('--tokenizer', tmp_path / 'kl16', '--image-size', '4', '--batch-size', '8')
    (row,) = measured(tmp_path, 'decode', *command, '--repeats', '1')
    assert repr(tokenizer) == row['settings']['tokenizer']
    count = products.flops(tokenizer.decode, params, jnp.zeros((1, 16, 16)))
    assert row['figures']['flops_per_image'] == count > 0


def test_features_are_those_of_the_inception_that_is_named(tmp_path, monkeypatch):
    wide = jnp.zeros((8 * 8 * 3, 7))
    flat = lambda images: images.reshape(len(images), -1).astype(jnp.float32)
    monkeypatch.setattr(inception, 'load', lambda path: inception.Extractor({path: wide}))
    monkeypatch.setattr(inception, 'features', lambda params, x: flat(x) @ params['folder'])
    command = ('--inception', 'folder', '--image-size', '8', '--batch-size', '8')
    (row,) = measured(tmp_path, 'evaluate', *command, '--repeats', '1')
    assert row['figures']['flops_per_image'] == 2 * wide.size


@pytest.mark.slow
def test_inception_with_random_weights(tmp_path, monkeypatch):
    narrow_inception.install(monkeypatch.setattr)
    command = ('--image-size', '8', '--batch-size', '8')
    (row,) = measured(tmp_path, 'evaluate', *command, '--repeats', '1')
    assert row['settings'] == {'image_size': '8'}
    assert row['figures']['of_matmul_peak'] > 0


@pytest.mark.parametrize(
    ('flags', 'says'),
    [
        ((), 'one of --tokenizer, --config is needed'),
        (('--tokenizer', 'nowhere'), 'no tokenizer checkpoint, and none of kl16, dc_ae, vqgan'),
        (('--config', 'digits', '--dtype', 'float32'), '--dtype goes with --tokenizer'),
        (('--config', 'digits', '--image-size', '16'), 'have 8 pixels per side, not 16'),
        (('--config', 'digits', '--image-size', '7'), 'which are 4 wide'),
        (('--config', 'imagenet256:size=xs'), '--tokenizer kl16 at 256'),
        (('--tokenizer', 'kl16', '--config.data.patch=2'), 'goes with --config'),
        (('--config', 'digits', '--batch-size', '1,x'), "invalid counts value: '1,x'"),
        (('--config', 'digits', '--find-batch', '4', '--batch-size', '8'), '--find-batch 4 starts'),
    ],
)
def test_refusals(flags, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main.main(['benchmark', 'decode', *flags]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count('\n') == 1


def test_products_are_counted_wherever_they_are():
    a, kernel = jnp.zeros((3, 5)), jnp.zeros((3, 3, 2, 7))

    def looped(a):
        return jax.lax.scan(lambda x, _: (jax.jit(jnp.matmul)(x, x.T @ x), None), a, length=4)[0]

    assert products.flops(looped, a) == 4 * 2 * (5 * 3 * 5 + 3 * 5 * 5)
    images = jnp.zeros((2, 8, 8, 4))
    convolved = lambda x, k: jax.lax.conv_general_dilated(
        x, k, (2, 2), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'), feature_group_count=2
    )
    assert products.flops(convolved, images, jnp.zeros((3, 3, 2, 6))) == 2 * (2 * 4 * 4 * 6) * 18
    compiled = jax.jit(convolved).lower(images, kernel[..., :6]).compile()
    reported = compiled.cost_analysis()
    assert reported and reported['flops'] <= products.flops(convolved, images, kernel[..., :6])

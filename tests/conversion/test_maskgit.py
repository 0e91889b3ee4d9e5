"""MaskGIT's transformer: official weights in, a checkpoint with its recipe out, and back."""

import dataclasses

import jax
import numpy as np
import pytest
import safetensors.numpy
from flax import traverse_util

from emigm_jax.checkpoints import inspect, runs
from emigm_jax.cli import main
from emigm_jax.config import published, recipes
from emigm_jax.conversion import convert as library
from emigm_jax.conversion import kinds, models, rules, sizes, tables
from emigm_jax.conversion.options import Kind, Options
from emigm_jax.errors import UserError
from emigm_jax.io.formats import torch_files
from emigm_jax.models import emigm
from support import golden

TINY = golden.path('maskgit_tiny_checkpoint')
CLASSES = Options(classes=10)


@pytest.fixture
def official():
    """Tensors of the recorded file by name."""
    return dict(traverse_util.flatten_dict(torch_files.read(TINY)['params'], sep='/'))


def convert(*arguments):
    return main.main(['convert', *map(str, arguments)])


def test_it_goes_in_and_out(official, tmp_path, capsys):
    target, back, again = (tmp_path / name for name in ('model', 'back.safetensors', 'again'))
    assert convert(TINY, target, '--classes', '10') == 0
    assert 'maskgit, own sizes, 29,307 parameters' in capsys.readouterr().out
    saved = runs.require(target)
    assert saved.config.model == golden.MASKGIT_TINY
    assert saved.source['weights'] == 'params' and saved.source['method'] == 'maskgit'
    params, _ = saved.load_params()
    same = lambda a, b: jax.tree.map(np.testing.assert_array_equal, a, b)
    same(params, golden.maskgit_params(golden.MASKGIT_TINY, torch_files.read(TINY)))

    assert convert(target, back, '--to', 'safetensors') == 0
    tensors = torch_files.read(back)
    assert set(tensors) == set(official)
    for name, value in official.items():
        np.testing.assert_array_equal(tensors[name], value, strict=True)
    assert convert(back, again, '--classes', '10') == 0
    same(runs.require(again).load_params()[0], params)


@pytest.mark.parametrize('layer', range(3))
def test_heads_keep_their_places(official, layer):
    """q, k and v lie beside each other, their heads too; the last layer apart from the others."""
    bert = models.read_maskgit({'': official}, 'x', CLASSES).params['bert']
    ours = bert['last'] if layer == 2 else jax.tree.map(lambda a: a[layer], bert['stack']['blocks'])
    theirs = lambda name: official[f'TransformerLayer_{layer}/Attention_0/self_attention/{name}']
    qkv, out = ours['attention']['qkv'], ours['attention']['out']
    for i, part in enumerate(('query', 'key', 'value')):
        for head in range(4):
            columns = slice(32 * i + 8 * head, 32 * i + 8 * (head + 1))
            kernel, bias = theirs(f'{part}/kernel')[:, head], theirs(f'{part}/bias')[head]
            np.testing.assert_array_equal(qkv['kernel'][:, columns], kernel)
            np.testing.assert_array_equal(qkv['bias'][columns], bias)
    for head in range(4):
        rows = slice(8 * head, 8 * (head + 1))
        np.testing.assert_array_equal(out['kernel'][rows], theirs('out/kernel')[head])


@pytest.mark.parametrize('key', emigm.MASKGIT)
def test_published_sizes_by_their_official_shapes(key):
    shapes = golden.maskgit_shapes(key[0])
    assert len(shapes) == 393
    # Arrays without memory: only their shapes count here.
    hollow = {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}
    config = sizes.maskgit(hollow, 'x')
    assert config == emigm.maskgit(*key)
    entries = tables.maskgit(config)
    assert sorted(name for entry in entries for name in entry.sources) == sorted(shapes)
    ours = emigm.network(config).shapes()
    flat = traverse_util.flatten_dict(ours, sep='/')
    assert sorted(entry.path for entry in entries) == sorted(flat)
    empty = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), ours)
    back = models.official(config, empty)
    assert {name: array.shape for name, array in back.items()} == shapes
    assert sum(array.size for array in back.values()) == emigm.MASKGIT[key][1]


def test_recipe():
    for (image_size, size), steps in zip(recipes.sizes('maskgit'), (8, 12), strict=True):
        config = recipes.published('maskgit', image_size, size)
        assert dataclasses.replace(config.model, dtype='float32') == emigm.maskgit(image_size)
        assert config.sampling.reveal.steps == steps
        assert (config.steps('total', 1), config.steps('warmup', 1)) == (2_000_000, 5000)
        assert recipes.sampling_of(config.model) == recipes.sampling('maskgit', image_size, size)
        assert published.rows('maskgit', image_size, size)['fast'].nfe == str(steps)
    tiny = recipes.recipe('maskgit', 256, 'size=b,tiny')
    assert (tiny.model.trunk, tiny.model.width) == ('bert', 32)
    with pytest.raises(ValueError, match='has the sizes b, not'):
        recipes.recipe('maskgit', 256, 'size=l')


def test_the_checkpoint_has_the_recipe(tmp_path):
    done = library.convert(TINY, tmp_path / 'model', classes=10)
    assert (done.kind, done.parameters, done.left_out) == (Kind.MASKGIT, 29_307, {})
    saved = runs.require(tmp_path / 'model')
    wanted = recipes.published('maskgit', 256, 'b')
    assert saved.config == dataclasses.replace(wanted, model=golden.MASKGIT_TINY)
    assert saved.presets == recipes.sampling('maskgit', 256, 'b')
    assert inspect.facts(tmp_path / 'model')['recipe'] is None


def test_misfits_are_listed_and_nothing_is_written(official, tmp_path):
    tensors = dict(official)
    query, out = (
        f'TransformerLayer_1/Attention_0/self_attention/{name}/kernel' for name in ('query', 'out')
    )
    tensors[query] = tensors[query].reshape(32, 32)
    tensors['TransformerLayer_1/left/over'] = np.zeros(3, np.float32)
    del tensors[out]
    file = tmp_path / 'x.safetensors'
    safetensors.numpy.save_file(tensors, file)
    with pytest.raises(rules.Misfit) as caught:
        library.convert(file, tmp_path / 'out', classes=10)
    assert '\n' not in str(caught.value)
    assert caught.value.rows == [
        ('missing', out, ''),
        ('unexpected', 'TransformerLayer_1/left/over', ''),
        (
            'misshapen',
            query,
            'is (32, 32) where bert/stack/blocks/attention/qkv/kernel needs (32, 4, 8)',
        ),
    ]
    assert list(tmp_path.iterdir()) == [file]


WORDS = 'Embed_0/word_embeddings/embedding'
POSITIONS = 'Embed_0/position_embeddings/embedding'


@pytest.mark.parametrize(
    ('change', 'options', 'says'),
    [
        ({}, {}, r'no published model has 59 words .* say --classes'),
        ({}, dict(classes=58), '59 words do not hold 58 classes'),
        ({}, dict(classes=10, heads=4), '--heads does not apply to MaskGIT'),
        ({}, dict(classes=10, null='mask_token'), '--null does not apply to MaskGIT'),
        ({}, dict(classes=10, weights='ema'), "no weights 'ema'"),
        ({WORDS: None}, dict(classes=10), f'missing {WORDS}'),
        ({WORDS: np.zeros(3)}, dict(classes=10), f'misshapen {WORDS}'),
        ({POSITIONS: np.zeros((19, 32))}, dict(classes=10), '18 tokens are no square grid'),
    ],
)
def test_refusals(official, change, options, says):
    tensors = {name: array for name, array in (official | change).items() if array is not None}
    with pytest.raises(UserError, match=says) as caught:
        kinds.read({'params': tensors}, 'x', Options(**options))
    assert '\n' not in str(caught.value)


def test_classes_are_of_maskgit_alone():
    emigm_tiny = torch_files.read(golden.path('emigm_tiny_release.pth'))
    with pytest.raises(UserError, match='--classes does not apply to eMIGM and MAR'):
        kinds.read(emigm_tiny, 'x', CLASSES)


def test_models_without_official_names_say_so(tmp_path):
    config = recipes.published('emigm', 256, 'xs')
    model = dataclasses.replace(golden.TINY, head='categorical', channels=0, codes=8)
    runs.export(
        tmp_path / 'x', dataclasses.replace(config, model=model), {'a': np.zeros(1)}, {}, {}
    )
    with pytest.raises(UserError, match=r"head = 'categorical' is none of the published"):
        library.export(tmp_path / 'x', tmp_path / 'x.safetensors')

"""Weights as people save them: under other entries, behind prefixes, in parts, in few bits."""

import json
import re

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from flax import traverse_util

from emigm_jax.conversion import convert, kinds, models, places, rules, tokenizer_tables, tokenizers
from emigm_jax.conversion.options import NULLS, Kind, Options
from emigm_jax.errors import UserError
from emigm_jax.io.formats import torch_files
from emigm_jax.io.formats.strangers import Placeholder
from emigm_jax.tokenizers import dc_ae, learned
from emigm_jax.tokenizers.learned import Learned
from support import golden
from support.small_tokenizers import SMALL

MARK = 'diffloss.net.input_proj.weight'
X, Y, Z = (np.full(2, value, np.float32) for value in (1, 2, 3))
HEADS = Options(heads=4)


@pytest.fixture(scope='module')
def release():
    return dict(torch_files.read(golden.path('emigm_tiny_release.pth'))['model_ema'])


def behind(prefix, tensors):
    return {prefix + name: tensor for name, tensor in tensors.items()}


def found(tree):
    return places.find(places.flat(tree), MARK, 'x.pth')


# --- Prefixes and entries ------------------------------------------------------------------------

STATE = {MARK: X, 'encoder_blocks.0.attn.qkv.weight': Y}
WRAPPED = {
    'nothing': '',
    'DistributedDataParallel': 'module.',
    'torch.compile': '_orig_mod.',
    'compiled, then distributed': 'module._orig_mod.',
    'distributed, then compiled': '_orig_mod.module.',
    'FSDP': '_fsdp_wrapped_module._checkpoint_wrapped_module.',
    'three': 'module.module._orig_mod.',
}


@pytest.mark.parametrize('what', WRAPPED)
def test_what_wraps_a_module(what):
    assert found(behind(WRAPPED[what], STATE)) == {'': STATE}
    assert found({'model': behind(WRAPPED[what], STATE), 'epoch': 3}) == {'model': STATE}


def test_parts_that_are_wrapped():
    inside = {
        'diffloss._orig_mod.net.module.input_proj.weight': X,
        'encoder_blocks.0._checkpoint_wrapped_module.attn.qkv.weight': Y,
    }
    assert found(behind('module.', inside)) == {'': STATE}


def test_entries_and_prefixes_of_all_kinds():
    """Of a file of training: the averaged weights first, and nothing of the optimizer."""
    optimizer = {'state': {0: {'exp_avg': X}}, 'param_groups': [{'lr': 0.1}]}
    others = {'optimizer': optimizer, 'epoch': 3, 'args': Placeholder('trainer.Settings')}
    for tree, names in (
        ({'model': STATE, 'model_ema': STATE}, ['model_ema', 'model']),
        ({'model': STATE, 'ema': STATE}, ['ema', 'model']),
        ({'model_state': STATE, 'ema_state_dict': STATE}, ['ema_state_dict', 'model_state']),
        ({'module': STATE}, ['module']),
        ({'checkpoint': {'state': {'net': STATE}}}, ['checkpoint/state/net']),
        (
            {'state_dict': behind('model.', STATE) | behind('ema_model.', STATE)},
            ['state_dict/ema_model', 'state_dict/model'],
        ),
        (
            {'ema': behind('online_model.', STATE) | behind('ema_model.', STATE)},
            ['ema/ema_model', 'ema/online_model'],
        ),
        (behind('module.', STATE) | {'n_averaged': X}, ['']),
        (STATE | behind('ema.', STATE), ['ema', '']),
    ):
        ordered = kinds.recognise({**others, **tree}, 'x.pth')[Kind.EMIGM]
        assert list(ordered) == names
        assert all(tensors == STATE for tensors in ordered.values())


def test_what_the_official_loader_reads_comes_first():
    codec = {'post_quant_conv.weight': X}
    tree = {'ema': codec, 'state_dict': codec, 'model': codec}
    ordered = kinds.recognise(tree, 'x.ckpt')[Kind.KL16]
    assert list(ordered) == ['model', 'state_dict', 'ema']


def test_two_tensors_of_one_name():
    with pytest.raises(UserError, match=r"^x\.pth: holds two tensors 'a\.b'"):
        found({MARK: X, 'a.b': X, 'a.module.b': Y})


def test_a_model_behind_everything_at_once(release, tmp_path):
    expected = kinds.read({'model_ema': release}, 'x', HEADS).params
    tree = {
        'model_state': behind('module._orig_mod.', {n: t * 0 for n, t in release.items()}),
        'ema': behind('_orig_mod.module.', release),
        'args': Placeholder('trainer.Settings'),
        'step': np.int64(3),
    }
    done = kinds.read(tree, 'x', HEADS)
    assert done.facts['weights'] == 'ema' and done.title == 'emigm, own sizes'
    same(done.params, expected)
    other = kinds.read(tree, 'x', Options(weights='model_state', heads=4))
    assert not np.any(other.params['mae']['token_embed']['kernel'])
    with pytest.raises(UserError, match="no weights 'model_ema', but ema, model_state"):
        kinds.read(tree, 'x', Options(weights='model_ema', heads=4))


def same(a, b):
    a, b = (traverse_util.flatten_dict(tree, sep='/') for tree in (a, b))
    assert a.keys() == b.keys()
    for name, array in a.items():
        np.testing.assert_array_equal(array, b[name], name)


# --- Numbers and tokens --------------------------------------------------------------------------


@pytest.mark.parametrize('dtype', ['float16', 'bfloat16'])
def test_half_as_many_bits(release, dtype):
    halved = {name: np.asarray(x).astype(np.dtype(dtype)) for name, x in release.items()}
    done = kinds.read({'model': halved}, 'x', HEADS)
    assert f'stored as {dtype}, kept as float32' in done.notes
    exact = kinds.read({'model': release}, 'x', HEADS)
    assert not any('stored as' in note for note in exact.notes)
    pairs = (traverse_util.flatten_dict(done.params, sep='/') for done in (done, exact))
    ours, exact = pairs
    for name, array in ours.items():
        assert array.dtype == np.float32
        rounded = exact[name].astype(np.dtype(dtype)).astype(np.float32)
        np.testing.assert_array_equal(array, rounded)
    assert ml_dtypes.bfloat16  # numpy knows its name by this import


@pytest.mark.parametrize('dtype', ['int8', 'uint8', 'bool', 'complex64'])
def test_what_is_stored_as_no_floats(release, dtype):
    """Weights that were quantised would become zeros, without a word."""
    stored = {**release, MARK: np.asarray(release[MARK]).astype(dtype)}
    with pytest.raises(rules.Misfit, match=f'no floats {re.escape(MARK)} is {dtype}'):
        kinds.read({'model': stored}, 'x', HEADS)


def test_what_is_not_finite_is_told(release):
    weights = np.array(release[MARK])
    weights[0, 0] = np.nan
    options = Options(heads=4, allow_non_finite=True)
    notes = kinds.read({'model': {**release, MARK: weights}}, 'x', options).notes
    shown = 'not finite, and taken all the same: head/input/kernel (1 of'
    assert [note for note in notes if note.startswith(shown)]


def test_averages_without_names_are_told(release):
    averages = [np.ones((2, 2), np.float32)] * 3
    tree = {'model': release, 'ema': {'shadow_params': averages, 'steps': [1, 2]}}
    notes = kinds.read(tree, 'x', HEADS).notes
    assert [note for note in notes if note.startswith('not read: ema/shadow_params, a list of')]


@pytest.mark.parametrize('kept', NULLS)
def test_a_tied_token_of_one_name(release, kept):
    tensors = {name: x for name, x in release.items() if name not in NULLS or name == kept}
    done = models.read({'model': tensors}, 'x', HEADS)
    np.testing.assert_array_equal(done.params['mae']['mask_token'], tensors[kept][0])
    (dropped,) = set(NULLS) - {kept}
    assert done.notes[0].startswith(f'mask and null token: {kept}, as {dropped}')
    with pytest.raises(UserError, match=f'x: has no {dropped}, only {kept}'):
        models.read({'model': tensors}, 'x', Options(heads=4, null=dropped))
    without = {name: x for name, x in tensors.items() if name not in NULLS}
    with pytest.raises(rules.Misfit, match='missing mask_token'):
        models.read({'model': without}, 'x', HEADS)
    if kept == 'fake_latent':  # MAR's mask token is not tied to it
        with pytest.raises(rules.Misfit, match='missing mask_token'):
            models.read({'model': tensors}, 'x', Options('mar', heads=4))


def test_safetensors_say_which_name_was_dropped(tmp_path):
    """As `safetensors.torch.save_model` writes it."""
    notes = {'format': 'pt', 'mask_token': 'fake_latent', 'b': 'nowhere'}
    safetensors.numpy.save_file({'fake_latent': X, 'a': Y}, tmp_path / 'x', notes)
    got = torch_files.read(tmp_path / 'x')
    assert sorted(got) == ['a', 'fake_latent', 'mask_token']
    np.testing.assert_array_equal(got['mask_token'], X)


# --- What is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('tree', 'holds'),
    [
        ({'epoch': 3, 'args': {}}, "no tensors, but 'epoch' (a int), 'args' (a dict)"),
        ({'model': Placeholder('net.EMIGM')}, "'model' (an object of net.EMIGM; if that is the"),
        ({'a': {'b.c': X}}, "'a/b.c', and"),
        (dict.fromkeys('abcdef', X), "'a', 'b', 'c', 'd' and 2 more, and"),
        ({}, 'a dict'),
    ],
)
def test_what_was_found_and_what_would_be_needed(tree, holds):
    with pytest.raises(UserError) as caught:
        kinds.recognise(tree, 'x.pth')
    line = str(caught.value)
    assert holds in line and '\n' not in line
    assert f'one of {MARK}, ' in line and ', post_quant_conv.weight, ' in line
    assert line.endswith('would be needed')


def test_another_kind_than_was_said():
    with pytest.raises(UserError, match=r'those of eMIGM or MAR; kl16 has post_quant_conv\.weight'):
        kinds.read(STATE, 'x.pth', Options('kl16'))


def test_no_table_of_tensors(tmp_path):
    np.save(tmp_path / 'x.npy', X)
    with pytest.raises(UserError, match='is no table of tensors by name, but a ndarray'):
        convert.read(tmp_path / 'x.npy')


# --- DC-AE as diffusers stores it ----------------------------------------------------------------

# Official names -> those of AutoencoderDC (huggingface/diffusers#9708), in this order.
RENAMED = (
    (r'(encoder|decoder)\.stages', lambda m: f'{m[1]}.{"down" if m[1][0] == "e" else "up"}_blocks'),
    (r'\.op_list\.(\d+)\.main\.', r'.\1.'),
    (r'\.op_list\.(\d+)\.', r'.\1.'),
    (r'encoder\.project_in\.', 'encoder.conv_in.'),
    (r'encoder\.project_out\.main\.0\.conv', 'encoder.conv_out'),
    (r'decoder\.project_in\.main\.conv', 'decoder.conv_in'),
    (r'decoder\.project_out\.0', 'decoder.norm_out'),
    (r'decoder\.project_out\.2\.conv\.conv', 'decoder.conv_out.conv'),
    (r'context_module\.main\.proj\.norm', 'attn.norm_out'),
    (r'context_module\.main\.proj\.conv', 'attn.to_out'),
    (r'context_module\.main\.qkv\.conv', 'attn.qkv'),
    (r'local_module\.main\.(inverted|depth|point)_conv\.conv', r'conv_out.conv_\1'),
    (r'local_module\.main\.point_conv\.norm', 'conv_out.norm'),
    (r'conv([12]?)\.conv', r'conv\1'),
    (r'conv2\.norm', 'norm'),
)


def as_diffusers(official):
    """Official tensors as diffusers' own conversion leaves them."""
    tensors = {}
    for name, tensor in official.items():
        for pattern, replacement in RENAMED:
            name = re.sub(pattern, replacement, name)
        if '.attn.qkv.' in name:
            for letter, part in zip('qkv', np.split(tensor[..., 0, 0], 3), strict=True):
                tensors[name.replace('qkv', f'to_{letter}')] = part
        else:
            tensors[name] = tensor[..., 0, 0] if '.to_out.' in name else tensor
    return tensors


def test_dc_ae_of_diffusers(monkeypatch):
    """Our weights, regrouped as diffusers does it, are read as what they were, and go out so."""
    tokenizer = Learned('dc_ae', SMALL['dc_ae'])
    monkeypatch.setattr(learned, 'published', lambda name: tokenizer)
    rng = np.random.default_rng(0)
    shapes = traverse_util.flatten_dict(tokenizer.network.shapes(), sep='/')
    flat = {path: rng.standard_normal(s.shape, np.float32) for path, s in shapes.items()}
    params = traverse_util.unflatten_dict(flat, sep='/')
    official = rules.to_official(tokenizer_tables.ENTRIES['dc_ae'](tokenizer.config), params)
    norms = [n.removesuffix('running_var') for n in official if n.endswith('running_var')]
    counters = {f'{norm}num_batches_tracked': np.int64(i + 1) for i, norm in enumerate(norms)}
    stored = as_diffusers(official | counters)
    assert not {n for n in stored if 'op_list' in n or 'module' in n} and len(norms) == 2

    done = kinds.read(stored, 'x', Options())
    assert done.kind == Kind.DC_AE
    same(done.params, params)
    assert done.facts['counters'] == {name: int(count) for name, count in counters.items()}
    back = rules.to_official(tokenizer_tables.dc_ae_diffusers(tokenizer.config), params)
    same(back, {n: x for n, x in stored.items() if 'num_batches' not in n})

    name = next(name for name in stored if name.endswith('to_k.weight'))
    with pytest.raises(rules.Misfit, match=f'misshapen {re.escape(name)}'):
        tokenizers.read(Kind.DC_AE, {'': stored | {name: X}}, 'x', Options())
    del stored[name]
    with pytest.raises(rules.Misfit, match=f'missing {re.escape(name)}$'):
        tokenizers.read(Kind.DC_AE, {'': stored}, 'x', Options())


def test_every_published_tensor_of_diffusers_is_read_once():
    with open(golden.path('dcae_f32c32_keys.json')) as file:
        official = {n: np.broadcast_to(0, shape) for n, shape in json.load(file).items()}
    stored = as_diffusers(official)
    assert len(stored) == 362
    needed = [name for name in stored if not name.endswith('num_batches_tracked')]
    entries = tokenizer_tables.dc_ae_diffusers(dc_ae.DCAEConfig())
    assert sorted(source for entry in entries for source in entry.sources) == sorted(needed)
    assert list(kinds.recognise(stored, 'x')) == [Kind.DC_AE]

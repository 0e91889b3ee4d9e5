"""KL-16, DC-AE and the VQGAN of MaskGIT: recorded outputs, official names, small configs."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from emigm_jax.conversion import kinds, left_out, rules, tokenizer_tables
from emigm_jax.errors import UserError
from emigm_jax.nn import functional
from emigm_jax.tokenizers import dc_ae, kl_vae, vqgan
from support import golden

TOLERANCE = 3e-4  # of the standard deviation, at most
BFLOAT16 = 0.05  # of the standard deviation, root mean square

KL_TINY = kl_vae.KLVAEConfig(
    channels=4, width=8, multipliers=(1, 2), attention_levels=(1,), groups=4
)
DC_TINY = dc_ae.DCAEConfig(
    channels=8,
    widths=(16, 32, 32),
    encoder_depths=(1, 2, 1),
    decoder_depths=(2, 1, 1),
    head_width=8,
)
VQ_TINY = vqgan.VQGANConfig(codes=16, channels=8, width=8, multipliers=(1, 2, 4), groups=4)
# tokenizer: module, config, shape of its latents for images of 32 x 32 pixels
TINY = {
    'kl16': (kl_vae, KL_TINY, (16, 16, 4)),
    'dc_ae': (dc_ae, DC_TINY, (4, 4, 8)),
    'vqgan': (vqgan, VQ_TINY, (8, 8)),
}
# tokenizer: module, config, golden files, entry of the file, parameters (counted in
# the official code; those of DC-AE and the 12800 recorded statistics of its batch norms).
OFFICIAL = {
    'kl16': (kl_vae, kl_vae.KLVAEConfig(), 'kl16', 'model', 66_456_019),
    'dc_ae': (dc_ae, dc_ae.DCAEConfig(), 'dcae_f32c32', None, 323_356_460 + 12_800),
}


def nhwc(a):
    return jnp.asarray(np.asarray(a).transpose(0, 2, 3, 1))


@functools.cache
def network(module, config):
    return module.network(config)


@functools.cache
def shapes_of(module, config):
    return network(module, config).shapes()


@functools.cache
def compiled(module, config, method):
    """One method of a tokenizer as a function of its parameters and its argument."""
    bind = network(module, config).bind
    return jax.jit(lambda params, x: getattr(bind(params), method)(x))


def weights(module, config):
    """Random parameters, norms too, without compiling the initialisation of every shape."""
    rng = np.random.default_rng(0)

    def fill(path, shape):
        normal = rng.standard_normal(shape, np.float32)
        if path.endswith(('scale', 'variance')):
            return np.exp(0.2 * normal)
        if path.endswith(('bias', 'mean')):
            return 0.2 * normal
        return np.float32(normal / np.sqrt(np.prod(shape[-4:-1])))

    flat = traverse_util.flatten_dict(shapes_of(module, config), sep='/')
    filled = {path: fill(path, leaf.shape) for path, leaf in flat.items()}
    return traverse_util.unflatten_dict(filled, sep='/')


def wrapped(tensors, entry):
    return tensors if entry is None else {entry: tensors}


# --- Official files ------------------------------------------------------------------------------


def split(tokenizer, tree):
    """Tensors of the content of a file that are needed, and why others are not."""
    (tensors,) = kinds.recognise(tree, 'x.ckpt')[tokenizer].values()
    return left_out.split(tensors, tokenizer_tables.IGNORED[tokenizer])


def params_of(tokenizer, config, tree):
    """Our parameters of the content of a file, of any sizes."""
    shapes = shapes_of(TINY[tokenizer][0], config)
    kept, _ = split(tokenizer, tree)
    return rules.to_params(tokenizer_tables.ENTRIES[tokenizer](config), kept, shapes, 'x.ckpt')


@pytest.mark.slow
@pytest.mark.parametrize('tokenizer', OFFICIAL)
def test_recorded_outputs(tokenizer):
    module, config, name, entry, _ = OFFICIAL[tokenizer]
    formula, data = golden.formula(), golden.arrays(f'{name}_outputs.npz')
    tree = wrapped(formula.state_dict(golden.path(f'{name}_keys.json')), entry)
    params = params_of(tokenizer, config, tree)
    params = jax.device_put(params)  # once for all calls
    rows = {  # method, its argument as it was recorded, its result
        'kl16': (
            ('encode', formula.image('kl16', (2, 3, 64, 64)), 'moments_nchw'),
            ('decode', 3.0 * formula.fill('kl16_latent', (2, 16, 4, 4)), 'image_nchw'),
        ),
        'dc_ae': (
            ('encode', formula.image('dcae', (1, 3, 128, 128)), 'latent_nchw'),
            ('decode', 2.0 * formula.fill('dcae_latent', (1, 32, 4, 4)), 'image_nchw'),
        ),
    }[tokenizer]
    half = dataclasses.replace(config, dtype='bfloat16')
    for method, x, recorded in rows:
        x, expected = nhwc(x), nhwc(data[recorded])
        golden.close(compiled(module, config, method)(params, x), expected, TOLERANCE)
        rounded = compiled(module, half, method)(params, x)
        assert rounded.dtype == jnp.float32
        error = jnp.sqrt(jnp.square(rounded - expected).mean()) / expected.std()
        assert 1e-3 < error < BFLOAT16, (method, error)  # it did round


@pytest.mark.parametrize('tokenizer', OFFICIAL)
def test_official_names(tokenizer):
    module, config, name, entry, count = OFFICIAL[tokenizer]
    with open(golden.path(f'{name}_keys.json')) as file:
        names = {k: np.broadcast_to(0, shape) for k, shape in json.load(file).items()}
    kept, ignored = split(tokenizer, wrapped(names, entry))
    assert len(ignored) == (15 if tokenizer == 'dc_ae' else 0)
    shapes = shapes_of(module, config)
    check_table(tokenizer, config, kept, shapes)
    assert functional.parameter_count(shapes) == count


def check_table(tokenizer, config, tensors, shapes):
    """Each official tensor is read once, each of our parameters is made once."""
    entries = tokenizer_tables.ENTRIES[tokenizer](config)
    assert sorted(source for e in entries for source in e.sources) == sorted(tensors)
    assert sorted(e.path for e in entries) == sorted(traverse_util.flatten_dict(shapes, sep='/'))


def vqgan_names():
    """Official names and shapes of the VQGAN."""
    conv = lambda name, *shape: {f'{name}/kernel': shape, f'{name}/bias': shape[-1:]}
    norm = lambda name, width: {f'{name}/scale': (width,), f'{name}/bias': (width,)}
    shapes = {
        'quantizer/codebook': (1024, 256),
        'encoder/Conv_0/kernel': (3, 3, 3, 128),
        **norm('encoder/GroupNorm_0', 512),
        **conv('encoder/Conv_1', 1, 1, 512, 256),
        **conv('decoder/Conv_0', 3, 3, 256, 512),
        **norm('decoder/GroupNorm_0', 128),
        **conv('decoder/Conv_5', 3, 3, 128, 3),
    }
    for i, width in enumerate((512, 256, 256, 128), 1):
        shapes |= conv(f'decoder/Conv_{i}', 3, 3, width, width)
    widths = {'encoder': [128] * 4 + [256] * 4 + [512] * 4}  # after each residual block
    widths['decoder'] = widths['encoder'][::-1]
    for half in widths:
        before = widths[half][0]
        for i, width in enumerate(widths[half]):
            block = f'{half}/ResBlock_{i}'
            shapes |= norm(f'{block}/GroupNorm_0', before) | norm(f'{block}/GroupNorm_1', width)
            shapes[f'{block}/Conv_0/kernel'] = (3, 3, before, width)
            shapes[f'{block}/Conv_1/kernel'] = (3, 3, width, width)
            if before != width:
                shapes[f'{block}/Conv_2/kernel'] = (1, 1, width, width)
            before = width
    return shapes


def test_vqgan_official_names():
    config, shapes = vqgan.VQGANConfig(), vqgan_names()
    assert len(shapes) == 168
    ours = shapes_of(vqgan, config)
    check_table('vqgan', config, shapes, ours)
    flat = traverse_util.flatten_dict(ours, sep='/')
    for entry in tokenizer_tables.ENTRIES['vqgan'](config):
        assert flat[entry.path].shape == shapes[entry.sources[0]], entry
    counts = {part: functional.parameter_count(tree) for part, tree in ours.items()}
    assert counts == {'encoder': 23_775_104, 'decoder': 30_478_339, 'codebook': 262_144}


def test_extra_tensors_of_kl16_are_left_out_with_a_reason():
    params = weights(kl_vae, KL_TINY)
    tensors = official_tensors('kl16', KL_TINY, params)
    extra = {**tensors, 'loss.logvar': np.zeros(())}
    _, ignored = split('kl16', {'model': extra})
    assert list(ignored) == ['loss.logvar'] and 'training' in ignored['loss.logvar']
    for tree in ({'model': extra}, {'state_dict': extra}, extra):
        again = params_of('kl16', KL_TINY, tree)
        jax.tree.map(np.testing.assert_array_equal, again, params)
    del tensors['quant_conv.bias']
    with pytest.raises(UserError, match=r'missing quant_conv\.bias$'):
        params_of('kl16', KL_TINY, {'model': tensors})


def official_tensors(tokenizer, config, params):
    """Our parameters under their official names, by the table's second direction."""
    return rules.to_official(tokenizer_tables.ENTRIES[tokenizer](config), params)


# --- Small configs -------------------------------------------------------------------------------


@pytest.mark.parametrize('tokenizer', TINY)
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_small_configs(tokenizer, dtype):
    module, config, latent = TINY[tokenizer]
    config = dataclasses.replace(config, dtype=dtype)
    params = weights(module, config)
    assert {x.dtype for x in jax.tree.leaves(shapes_of(module, config))} == {jnp.dtype('float32')}
    images = jax.random.uniform(jax.random.key(1), (2, 32, 32, 3))
    encoded = latents = compiled(module, config, 'encode')(params, images)
    if tokenizer == 'kl16':
        latents = kl_vae.sample_moments(encoded, jax.random.key(2))
        assert encoded.shape == (*latents.shape[:-1], 2 * latents.shape[-1])
    assert latents.shape == (2, *latent)
    decoded = compiled(module, config, 'decode')(params, latents)
    assert decoded.shape == images.shape and decoded.dtype == jnp.float32
    assert np.isfinite(decoded).all()


@pytest.mark.parametrize('tokenizer', TINY)
def test_sides_may_differ_but_must_fit(tokenizer):
    module, config, latent = TINY[tokenizer]
    bind, params = network(module, config).bind, shapes_of(module, config)
    call = lambda method, x: jax.eval_shape(lambda p, x: getattr(bind(p), method)(x), params, x)
    images = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    assert call('encode', images(1, 64, 32, 3)).shape[1:3] == (2 * latent[0], latent[1])
    with pytest.raises(UserError, match=r'33 x 32 pixels .* stride \d: resize'):
        call('encode', images(1, 33, 32, 3))
    with pytest.raises(UserError, match='images must have shape'):
        call('encode', images(1, 32, 32, 1))
    with pytest.raises(UserError, match='must have shape'):
        call('decode', images(4, 4, 5, 5, 5))


@pytest.mark.parametrize(
    'build',
    [
        lambda: kl_vae.KLVAEConfig(dtype='float16'),
        lambda: kl_vae.KLVAEConfig(width=48),
        lambda: vqgan.VQGANConfig(codes=0),
        lambda: dc_ae.DCAEConfig(widths=(256, 512)),
        lambda: dc_ae.DCAEConfig(head_width=48),
        lambda: dc_ae.DCAEConfig(channels=48),
        lambda: dc_ae.DCAEConfig(widths=(254, 512, 512, 1024, 1024)),
    ],
)
def test_bad_configs_are_named(build):
    with pytest.raises(UserError, match=r'^(kl_vae|vqgan|dc_ae)[.:].*\d'):
        build()


# --- Parts ---------------------------------------------------------------------------------------


def test_sample_moments():
    mean = jnp.arange(3.0)
    draw = lambda log_variance: kl_vae.sample_moments(
        jnp.concatenate([mean, jnp.full(3, log_variance)]), jax.random.key(0)
    )
    noise = draw(0.0) - mean
    np.testing.assert_allclose(draw(2.0) - mean, np.e * noise, rtol=1e-5)
    np.testing.assert_allclose(draw(1000.0) - mean, np.exp(10.0) * noise, rtol=1e-5)
    np.testing.assert_allclose(draw(-1000.0), mean, atol=1e-5)
    np.testing.assert_array_equal(kl_vae.sample_moments(jnp.arange(6.0), None), mean)


def test_shuffles_and_channel_order():
    x = jnp.arange(2 * 4 * 6 * 3, dtype=jnp.float32).reshape(2, 4, 6, 3)
    packed = dc_ae.unshuffle(x)
    np.testing.assert_array_equal(dc_ae.shuffle(packed), x)
    np.testing.assert_array_equal(packed[0, 1, 2, 4 * 2 + 2 * 1 + 0], x[0, 3, 4, 2])
    repeated = dc_ae.fit_channels(x, 6)
    np.testing.assert_array_equal(repeated[..., 1], x[..., 0])
    np.testing.assert_array_equal(dc_ae.fit_channels(repeated, 3), x)


def test_linear_attention_is_attention_with_relu_products():
    keys = jax.random.split(jax.random.key(0), 3)
    q, k, v = (jax.random.normal(key, (2, 10, 3, 4)) for key in keys)
    products = jnp.einsum('bnhd,bmhd->bhnm', jax.nn.relu(q), jax.nn.relu(k))
    weights = products / (products.sum(-1, keepdims=True) + 1e-15)
    expected = jnp.einsum('bhnm,bmhd->bnhd', weights, v)
    golden.close(dc_ae.linear_attention(q, k, v), expected, 1e-5)
    dark = dc_ae.linear_attention(-jnp.abs(q), k, v)  # nothing is attended to: 0, not NaN
    np.testing.assert_array_equal(dark, 0.0)


def test_codes_survive_the_codebook():
    codebook = jnp.asarray(golden.formula().fill('quantizer.codebook', (1024, 256)))
    codes = jax.random.permutation(jax.random.key(0), 1024).reshape(4, 16, 16)
    np.testing.assert_array_equal(vqgan.nearest(codebook[codes], codebook), codes)
    noisy = codebook[codes] + 0.01 * jax.random.normal(jax.random.key(1), (4, 16, 16, 256))
    np.testing.assert_array_equal(vqgan.nearest(noisy, codebook), codes)


# --- The VQGAN, read from its official names and no plan ------------------------------------------


def convolve(x, leaf):
    y = jax.lax.conv_general_dilated(
        x, leaf['kernel'], (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    )
    return y + leaf.get('bias', 0.0)


def normalise(x, leaf, groups):
    parts = []
    for part in jnp.split(x, groups, axis=-1):
        mean, variance = (f(part, axis=(1, 2, 3), keepdims=True) for f in (jnp.mean, jnp.var))
        parts.append((part - mean) / jnp.sqrt(variance + 1e-6))
    y = jnp.concatenate(parts, axis=-1) * leaf['scale'] + leaf['bias']
    return y / (1.0 + jnp.exp(-y))


def residual(x, tree, groups):
    h = convolve(normalise(x, tree['GroupNorm_0'], groups), tree['Conv_0'])
    h = convolve(normalise(h, tree['GroupNorm_1'], groups), tree['Conv_1'])
    return h + (convolve(h, tree['Conv_2']) if 'Conv_2' in tree else x)


@jax.jit
def features_of(images, part, groups=VQ_TINY.groups):
    x = convolve(images, part['Conv_0'])
    for block in range(8):
        x = residual(x, part[f'ResBlock_{block}'], groups)
        if block in (1, 3):
            x = (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4
    return convolve(normalise(x, part['GroupNorm_0'], groups), part['Conv_1'])


@jax.jit
def images_of(features, part, groups=VQ_TINY.groups):
    x = convolve(features, part['Conv_0'])
    for block in range(8):
        x = residual(x, part[f'ResBlock_{block}'], groups)
        if block in (3, 5):
            x = convolve(jnp.kron(x, jnp.ones((1, 2, 2, 1))), part[f'Conv_{(block - 1) // 2}'])
    return convolve(normalise(x, part['GroupNorm_0'], groups), part['Conv_3'])


def test_vqgan_by_its_official_names():
    """Three levels of two blocks and two at the bottom, two changes of scale in each half."""
    params = weights(vqgan, VQ_TINY)
    tree = traverse_util.unflatten_dict(official_tensors('vqgan', VQ_TINY, params), sep='/')
    codebook = tree['quantizer']['codebook']
    images = jax.random.uniform(jax.random.key(2), (2, 32, 32, 3))  # compiled for others, too
    features = features_of(images, tree['encoder'])
    golden.close(compiled(vqgan, VQ_TINY, 'features')(params, images), features, 1e-4)
    codes = compiled(vqgan, VQ_TINY, 'encode')(params, images)
    distances = jnp.square(features[..., None, :] - codebook).sum(-1)
    np.testing.assert_array_equal(codes, distances.argmin(-1))
    assert len(np.unique(codes)) > 1
    decoded = images_of(codebook[codes], tree['decoder'])
    golden.close(compiled(vqgan, VQ_TINY, 'decode')(params, codes), decoded, 1e-4)

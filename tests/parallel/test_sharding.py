"""Sharding: the table of rules, what a device holds, and equal numbers on every mesh."""

import dataclasses
import math

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P

from emigm_jax.aot import collectives, hlo
from emigm_jax.config import settings as configs
from emigm_jax.core import gaussian
from emigm_jax.core.masking import MaskingConfig
from emigm_jax.data.interface import Batch
from emigm_jax.errors import UserError
from emigm_jax.models import emigm
from emigm_jax.models.emigm import ModelConfig, preset
from emigm_jax.parallel import sharding
from emigm_jax.training import program, state

BATCH, STEPS = 16, 4
# Of many layers: they are scanned, so that depth costs no compilation.
MODEL = ModelConfig(
    grid=4,
    channels=8,
    classes=5,
    width=32,
    heads=4,
    encoder_depth=8,
    decoder_depth=8,
    buffer=8,
    head_width=32,
    head_depth=2,
)


def abstract_mesh(**sizes):
    shape = tuple(sizes.get(axis, 1) for axis in sharding.AXES)
    return AbstractMesh(shape, sharding.AXES, axis_types=(AxisType.Auto,) * 4)


def of_preset(mesh, *name):
    config = configs.Config(model=preset(*name))
    net, tx = emigm.network(config.model), state.optimizer(config.optimizer, lambda _: 0.0)
    create = lambda: state.create(net, config.optimizer, tx, jax.random.key(0))
    return sharding.abstract(mesh, jax.eval_shape(create))


@pytest.mark.parametrize(
    ('name', 'sizes'),
    [
        ((256, 'h'), dict(fsdp=256)),
        ((256, 'h'), dict(fsdp=32, tensor=8)),
        ((512, 'l'), dict(data=2, fsdp=64)),
        ((256, 'xs'), dict(fsdp=8)),
    ],
)
def test_a_device_holds_its_share_of_the_state(name, sizes):
    held = of_preset(abstract_mesh(**sizes), *name)
    size = lambda shape: math.prod(shape) * 4
    total = sum(size(leaf.shape) for leaf in jax.tree.leaves(held))
    mine = sum(size(leaf.sharding.shard_shape(leaf.shape)) for leaf in jax.tree.leaves(held))
    assert mine <= 1.05 * total / (sizes['fsdp'] * sizes.get('tensor', 1))


def test_rules():
    held = of_preset(abstract_mesh(fsdp=4, tensor=2), 256, 'b')
    block = held['params']['mae']['encoder']['blocks']
    assert block['attention']['qkv']['kernel'].sharding.spec == P(None, 'fsdp', 'tensor')
    assert block['attention']['out']['kernel'].sharding.spec == P(None, 'tensor', 'fsdp')
    assert block['mlp']['expand']['bias'].sharding.spec == P(None, ('fsdp', 'tensor'))
    # The head has 32 outputs, too few for 64 shards; its inputs are cut in their place.
    wide = of_preset(abstract_mesh(fsdp=64), 256, 'b')['params']['head']
    assert wide['output']['kernel'].sharding.spec == P(('fsdp', 'tensor'), None)
    assert wide['output']['bias'].sharding.is_fully_replicated
    # Moments and averages lie where their parameters lie.
    for tree in (held['opt'][1][0].mu, held['opt'][1][0].nu, held['ema']['0.9999']):
        same = jax.tree.map(lambda a, b: a.sharding == b.sharding, tree, held['params'])
        assert all(jax.tree.leaves(same))
    assert held['step'].sharding.is_fully_replicated


@pytest.mark.parametrize(
    ('settings', 'says'),
    [
        (dict(data=3), '3'),
        (dict(data=-1, tensor=3), 'do not make up 8 device'),
        (dict(data=-1, fsdp=-1), 'both'),
        (dict(tensor=0), 'mesh.tensor'),
        (dict(data=0), 'mesh.data'),
        (dict(slices=16), 'slices'),
    ],
)
def test_meshes_that_cannot_be(settings, says):
    with pytest.raises(UserError, match=says):
        sharding.make_mesh(sharding.MeshConfig(**settings))


def test_what_is_left_of_a_mesh():
    shape = lambda **s: dict(sharding.make_mesh(sharding.MeshConfig(**s)).shape)
    assert shape() == dict(slice=1, data=8, fsdp=1, tensor=1)
    assert shape(data=1, fsdp=-1, tensor=2) == dict(slice=1, data=1, fsdp=4, tensor=2)
    assert shape(slices=2, fsdp=2) == dict(slice=2, data=2, fsdp=2, tensor=1)


def test_a_batch_that_does_not_divide():
    mesh = sharding.make_mesh(sharding.MeshConfig())
    sharding.check_batch(mesh, 64, 2, 4)
    with pytest.raises(UserError, match='batch_size = 32 must be a multiple of 64'):
        sharding.check_batch(mesh, 32, 2, 4)


def test_rows_come_to_the_devices_that_hold_them():
    mesh = sharding.make_mesh(sharding.MeshConfig(data=2, fsdp=2, tensor=2))
    split = sharding.batch_sharding(mesh)
    rows = sharding.rows_here(split, 16)
    np.testing.assert_array_equal(rows, np.arange(16))
    made = sharding.place_rows(split, rows, 16, {'a': np.arange(32).reshape(16, 2)})['a']
    np.testing.assert_array_equal(made, np.arange(32).reshape(16, 2))
    assert {s.data.shape for s in made.addressable_shards} == {(4, 2)}


def test_nothing_is_constrained_without_a_mesh():
    x = np.ones((4, 4), np.float32)
    assert sharding.constrain(x, 'batch', None) is x
    assert sharding.unsharded_features(x) is x
    assert sharding.gathered_for_use({'kernel': x})['kernel'] is x


def built(model, devices, accumulate=1, **mesh):
    defaults = configs.Config()
    config = dataclasses.replace(
        defaults,
        model=model,
        loss=dataclasses.replace(defaults.loss, masking=MaskingConfig(groups=1)),
        training=dataclasses.replace(defaults.training, batch_size=BATCH, accumulate=accumulate),
    )
    mesh = sharding.make_mesh(sharding.MeshConfig(**mesh), jax.devices()[:devices])
    return program.build(config, mesh, 2, STEPS)


def run(model, devices, **settings):
    """Losses and gradient norms (STEPS, 2), final state on the host."""
    of = built(model, devices, **settings)
    rng = np.random.default_rng(0)
    host = Batch(
        labels=rng.integers(model.classes, size=BATCH).astype(np.int32),
        tokens=rng.standard_normal((BATCH, model.tokens, model.channels), np.float32),
    )
    batch = sharding.place_rows(sharding.batch_sharding(of.mesh), np.arange(BATCH), BATCH, host)
    current, values = of.create(), []
    for number in range(STEPS):
        current, found = of.step(current, batch, np.int32(number))
        values.append([float(found['loss']), float(found['gradient_norm'])])
    assert of.jitted._cache_size() == 1
    return np.array(values), jax.tree.map(np.asarray, current)


@pytest.fixture(scope='module')
def alone():
    """The same on one device."""
    return run(MODEL, 1, data=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    'sizes',
    [
        dict(),
        dict(data=2, fsdp=2, tensor=2),
        dict(data=2, fsdp=4),
        dict(slices=2, data=1, fsdp=4),
    ],
    ids=str,
)
def test_every_mesh_trains_alike(sizes, alone):
    found, cut = run(MODEL, 8, **sizes)
    expected, whole = alone
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    for name in ('params', 'ema'):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6),
            cut[name],
            whole[name],
        )


@pytest.mark.slow
@pytest.mark.parametrize('remat', ['none', 'full'])
def test_kernels_train_alike(remat, alone):
    """Interpreted, on every axis; what the backward pass is given is kept or made again."""
    model = dataclasses.replace(MODEL, kernels='pallas', remat=remat)
    found, _ = run(model, 8, data=2, fsdp=2, tensor=2)
    np.testing.assert_allclose(found, alone[0], rtol=1e-5)


@pytest.mark.slow
def test_accumulation_on_a_mesh(alone):
    found, _ = run(MODEL, 8, accumulate=2, data=1, fsdp=4, tensor=2)
    np.testing.assert_allclose(found, alone[0], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize('remat', ['none', 'full', 'dots'])
def test_no_step_holds_or_moves_the_whole_state(remat):
    """Layers travel one at a time, and none is kept whole: neither for the backward pass nor as a
    gradient."""
    model = dataclasses.replace(MODEL, width=128, heads=4, head_width=128, remat=remat)
    of = built(model, 8, data=1, fsdp=8)
    compiled = of.lower().compile()
    module = hlo.parse(compiled.as_text())
    size = lambda leaf: math.prod(leaf.shape) * 4
    stacks = {}  # whole kernels of a stack: shape, bytes of one layer
    for path, leaf in jax.tree_util.tree_leaves_with_path(of.state['params']):
        if leaf.ndim == 3:
            stacks[leaf.shape] = size(leaf) // leaf.shape[0], jax.tree_util.keystr(path)
    made = {shape.dims: step for step in hlo.executed(module) for shape in step.instruction.shapes}
    assert not {stacks[dims][1] for dims in made if dims in stacks}
    moved = [
        shape.bytes
        for step in hlo.executed(module)
        if step.instruction.opcode.removesuffix('-start') in collectives.SENT
        for shape in step.instruction.shapes
    ]
    layer = max(bytes_ for bytes_, _ in stacks.values())
    times = gaussian.TIMESTEPS * model.head_width * 4  # gradient of the embeddings of all times
    assert layer <= max(moved) <= max(layer, times)
    memory = compiled.memory_analysis()
    assert memory.argument_size_in_bytes < 1.1 * sum(map(size, jax.tree.leaves(of.state))) / 8

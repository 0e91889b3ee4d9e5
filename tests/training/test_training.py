"""Training: exact resume, accumulation, EMA, and a stop on non-finite loss."""

import dataclasses
import functools
import gc
import pathlib
import shutil
import sys
import types

import jax
import numpy as np
import pytest

from emigm_jax.checkpoints import runs, store
from emigm_jax.config import nested, settings
from emigm_jax.config.load import load_config
from emigm_jax.core import masking, randomness
from emigm_jax.data import datasets, pipeline, sizes
from emigm_jax.data.interface import Batch
from emigm_jax.errors import Damaged, UserError
from emigm_jax.io import files, paths
from emigm_jax.models import emigm
from emigm_jax.nn.functional import parameter_count
from emigm_jax.parallel import sharding
from emigm_jax.training import grids, loop, loss, metrics, program, state, step
from support import jax_settings

ROOT = pathlib.Path(__file__).parents[2]
SMOKE = f'{ROOT}/configs/digits.py:smoke'


def smoke(**training):
    # A constant rate: a cosine one depends on the total, which the tests change on resuming.
    # Grids of samples are drawn at once.
    flags = ['--config.optimizer.lr_schedule=constant', '--config.sampling.reveal.steps=1']
    config = load_config(SMOKE, flags)
    training = {
        'total': '8 steps',
        'checkpoint_every': '4 steps',
        'log_every': '2 steps',
        'sample_every': '0 steps',
        **training,
    }
    return dataclasses.replace(config, training=dataclasses.replace(config.training, **training))


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """(its folder, its last state) of a run of 8 steps, which nobody writes to."""
    folder = tmp_path_factory.mktemp('whole')
    return folder, loop.train(smoke(sample_every='8 steps'), folder)


def broken_off(at):
    """What loop.train takes to measure with: it ends the run at a step."""

    def evaluate(params, step):
        assert step == at
        raise UserError('the reference has gone')

    return lambda config, data: evaluate


def measured_every(steps, **training):
    config = smoke(**training)
    evaluation = dataclasses.replace(config.evaluation, every=f'{steps} steps')
    return dataclasses.replace(config, evaluation=evaluation)


def test_resume_is_bitwise_and_metrics_continue(whole, tmp_path, capsys):
    # An evaluation that fails loses no step.
    with pytest.raises(UserError, match='has gone'):
        loop.train(measured_every(4), tmp_path, broken_off(4))
    assert runs.require(tmp_path).step == 4
    capsys.readouterr()
    parts = loop.train(smoke(), tmp_path)
    assert 'resumed from step 4' in capsys.readouterr().out
    assert_same(whole[1], parts)
    lines = metrics.read(tmp_path)
    assert [line['step'] for line in lines] == [2, 4, 6, 8]
    assert {
        'loss',
        'mse',
        'vlb',
        'gradient_norm',
        'learning_rate',
        'images_per_second',
        'tflops_per_device',
        'seconds_left',
        'mask_ratio',
    } <= set(lines[0])
    again = loop.train(smoke(), tmp_path)  # nothing left to do
    assert_same(whole[1], again)
    assert list((tmp_path / 'tensorboard').iterdir())


def test_a_step_that_cannot_be_compiled_leaves_nothing_open(tmp_path, monkeypatch):
    def compile(built):
        raise MemoryError

    closed, close = [], metrics.Metrics.close
    monkeypatch.setattr(program.Program, 'compile', compile)
    monkeypatch.setattr(metrics.Metrics, 'close', lambda self: (closed.append(self), close(self)))
    with pytest.raises(MemoryError):
        loop.train(smoke(), tmp_path)
    assert len(closed) == 1


def test_a_checkpoint_is_self_describing(whole):
    folder, final = whole
    saved = runs.require(folder)
    assert (saved.step, saved.config) == (8, sizes.known(smoke(sample_every='8 steps')))
    ema, name = saved.load_params()
    assert name == '0.5'
    assert_same(ema, final['ema']['0.5'])
    raw, _ = runs.require(folder / 'checkpoints' / '8').load_params('params')
    assert_same(raw, final['params'])
    with pytest.raises(UserError, match=r"no weights '0\.7'"):
        saved.load_params('0.7')
    assert (folder / 'samples' / '00000008.png').stat().st_size > 500
    (events,) = (folder / 'tensorboard').iterdir()
    assert b'\x89PNG' in (written := events.read_bytes()) and b'"ema_decays"' in written
    about = files.read_json(folder / 'about.json')
    assert about and about['data'] == 'digits, 1797 examples of 4 tokens'
    assert about['parameters'] == f'{parameter_count(final["params"]):,}'


def test_another_config_is_refused(whole):
    config = smoke()
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, width=48))
    with pytest.raises(UserError, match=r'model.width 32 -> 48'):
        loop.train(config, whole[0])
    with pytest.raises(UserError, match='beyond'):
        loop.train(smoke(total='2 steps'), whole[0])


def test_a_damaged_checkpoint_is_named(whole, tmp_path):
    folder = tmp_path / 'run/checkpoints/8'
    shutil.copytree(whole[0] / 'checkpoints/8', folder)
    for file in folder.rglob('*'):
        if file.is_file() and file.parent.name == 'd':
            file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(UserError, match='damaged') as error:
        runs.require(tmp_path / 'run').load_params()
    assert str(folder) in str(error.value)
    assert '\n' not in str(error.value)


# As Orbax does: a read that is collected while it waits turns that into an error of its own.
READ = """
async def read(wait):
    try:
        await wait
    except BaseException as error:
        raise Exception('cannot be read') from error
"""


@pytest.mark.parametrize(('file', 'count'), [('site-packages/orbax/read.py', 0), ('own.py', 1)])
def test_reads_that_end_after_a_damaged_checkpoint_say_nothing(file, count, monkeypatch):
    told = []

    def hook(failure):
        # What other tests have left may be collected here, too.
        if getattr(failure.object, 'cr_code', None) is names['read'].__code__:
            told.append(failure.exc_type)

    monkeypatch.setattr(sys, 'unraisablehook', hook)
    with pytest.raises(Damaged, match=r'here.*\(KeyError: .inner.\)'), store.readable('here'):
        raise ValueError('outer') from KeyError('inner')
    names = {}
    exec(compile(READ, file, 'exec'), names)
    reading = names['read'](types.coroutine(lambda: (yield))())
    reading.send(None)
    del reading
    gc.collect()
    assert told == [Exception] * count


def test_non_finite_loss_stops_with_the_last_good_state(tmp_path, monkeypatch):
    read = datasets.Digits.read

    def poisoned(self, rows, mirrored):
        batch = read(self, rows, mirrored)
        if rows[0] == pipeline.indices(self.examples, 16, 0, 4)[0]:
            batch = {**batch, 'tokens': np.full_like(batch['tokens'], np.nan)}
        return batch

    monkeypatch.setattr(datasets.Digits, 'read', poisoned)
    with pytest.raises(loop.NonFinite, match='step 5 '):
        loop.train(smoke(checkpoint_every='2 steps'), tmp_path)
    saved = runs.require(tmp_path)
    assert saved.step == 4
    params, _ = saved.load_params('params')
    assert all(np.isfinite(p).all() for p in jax.tree.leaves(params))


def test_a_grid_that_is_not_finite_is_not_written(tmp_path, monkeypatch, capsys):
    config = smoke()
    monkeypatch.setattr(grids, 'sampler', lambda *_: lambda *_: np.full((20, 4, 16), np.nan))
    grids.draw(config, datasets.dataset(config), {}, paths.absolute(tmp_path), 7)
    assert 'no grid of step 7: 20 of 20 images are not finite' in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_steps_and_data_are_the_same_under_any_setting_of_jax():
    model = dict(width=8, heads=2, head_width=8, encoder_depth=1, attention_dropout=0.1)
    changes = [f'--config.model.{name}={value}' for name, value in model.items()]
    config = sizes.known(load_config(SMOKE, changes))
    mesh = sharding.make_mesh(config.mesh)

    def made():
        emigm.network.cache_clear()
        batch = next(pipeline.batches(datasets.dataset(config), 16, 7, 3, 4, mesh))
        return program.build(config, mesh, 1, 10).lower().as_text(), batch

    text, batch = made()
    with jax_settings.changed(**jax_settings.DECIDING):
        again, found = made()
    assert again == text
    assert 'f64' not in text
    assert_same(found, batch)
    assert [a.dtype for a in found] == [np.int32, np.float32]


MODEL = emigm.ModelConfig(
    grid=4,
    channels=3,
    classes=5,
    width=16,
    heads=2,
    encoder_depth=1,
    decoder_depth=2,
    buffer=2,
    head_width=16,
    head_depth=1,
    attention_dropout=0.0,
    projection_dropout=0.0,
)

TWO_GROUPS = masking.MaskingConfig(groups=2)


def stepper(loss_config, accumulate, optimizer=None, batch=16, model=MODEL):
    optimizer = optimizer or settings.OptimizerConfig(ema_decays=(0.9, 0.5))
    net = emigm.network(model)
    tx = state.optimizer(optimizer, state.learning_rate(optimizer, batch, 0, 10))
    first = jax.jit(functools.partial(state.create, net, optimizer, tx))(jax.random.key(0))
    run = step.TrainStep(net, model, loss_config, optimizer, tx, accumulate)
    words = randomness.words(0)
    return jax.jit(lambda *arguments: run(*arguments, words)), first, data(batch)


def test_seeds_share_what_is_compiled_and_nothing_else():
    known = sizes.known(load_config('digits:smoke'))
    mesh = sharding.make_mesh(sharding.MeshConfig(), jax.devices()[:1])
    seeds = [program.build(dataclasses.replace(known, seed=n), mesh, 1, 9) for n in (0, 1)]
    shapes = seeds[0].batch
    rows = Batch(np.zeros(shapes.labels.shape, np.int32), np.ones(shapes.tokens.shape, np.float32))
    starts = [built.create() for built in seeds]
    pairs = zip(*(jax.tree.leaves(one['params']) for one in starts), strict=True)
    assert any((np.asarray(a) != np.asarray(b)).any() for a, b in pairs)
    # Of the same weights, so that only what a step draws tells the seeds apart.
    begun = jax.tree.map(np.array, starts[0])
    losses = [float(built.step(begun, rows, np.int32(0))[1]['loss']) for built in seeds]
    assert losses[0] != losses[1]
    assert seeds[0].jitted is seeds[1].jitted and seeds[0].jitted._cache_size() == 1


def data(batch=16):
    rng = np.random.default_rng(1)
    return Batch(
        labels=rng.integers(5, size=batch, dtype=np.int32),
        tokens=rng.standard_normal((batch, MODEL.tokens, MODEL.channels), np.float32),
    )


@pytest.mark.slow
@pytest.mark.parametrize('normalize', ['image', 'batch'])
def test_accumulation_changes_nothing(normalize):
    config = settings.LossConfig(TWO_GROUPS, normalize=normalize)
    run, first, batch = stepper(config, 1)
    whole, whole_terms = run(first, batch)
    run, _, _ = stepper(config, 4)
    parts, parts_terms = run(first, batch)
    for name in ('loss', 'mse', 'vlb', 'mask_ratio', 'gradient_norm'):
        np.testing.assert_allclose(parts_terms[name], whole_terms[name], rtol=2e-5)
    moments = lambda s: s['opt'][1][0].mu
    close = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-7)
    jax.tree.map(close, moments(parts), moments(whole))


def test_loss_is_a_mean_over_each_images_masked_tokens():
    """Recomputes the first loss from its definition: at init the network says 0, so mse is
    the mean of squared noise over masked tokens and copies, then over images."""
    config = settings.LossConfig(TWO_GROUPS)
    batch, groups = 16, 2
    draw = jax.jit(loss.draw, static_argnums=(0, 1, 3, 4))
    draws = draw(MODEL, config, jax.random.key(5), batch, groups)
    net = emigm.network(MODEL)
    params = jax.jit(net.init)(jax.random.key(0))
    budgets = masking.budgets(config.masking, MODEL.tokens, groups)
    labels, tokens = jax.tree.map(jax.device_put, data(batch))
    value = lambda p, d: loss.loss(net.bind(p), config, budgets, tokens, labels, d)
    _, terms = jax.jit(value)(params, draws)
    noise = net.bind(params).head.draws(draws.key, config.copies, MODEL.tokens).noise
    per_image = [
        np.square(np.asarray(noise)[:, i, int(draws.visible[i]) :]).mean() for i in range(batch)
    ]
    np.testing.assert_allclose(terms.parts['mse'], np.mean(per_image), rtol=1e-5)


@pytest.mark.slow
def test_label_drop_and_single_encoder_train():
    config = settings.LossConfig(TWO_GROUPS, label_drop=0.5)
    draw = jax.jit(loss.draw, static_argnums=(0, 1, 3, 4))
    draws = draw(MODEL, config, jax.random.key(0), 512, 2)
    assert 0.4 < float(draws.null.mean()) < 0.6
    for model in (
        dataclasses.replace(MODEL, mae=False),
        dataclasses.replace(MODEL, shared_null=False),
    ):
        run, first, batch = stepper(config, 1, model=model)
        current = first
        values = []
        for _ in range(3):
            current, terms = run(current, batch)
            values.append(float(terms['loss']))
        assert np.isfinite(values).all()
        assert run._cache_size() == 1  # compiled once over steps


@pytest.mark.slow
def test_ema_covers_every_parameter():
    run, first, batch = stepper(
        settings.LossConfig(masking.MaskingConfig(groups=1)),
        1,
        settings.OptimizerConfig(base_learning_rate=0.1, ema_decays=(0.9, 0.5)),
    )
    one, _ = run(first, batch)
    two, _ = run(one, batch)
    first, one, two = jax.device_get((first, one, two))
    token = lambda tree: tree['mae']['mask_token']
    assert np.abs(token(two['params']) - token(first['params'])).max() > 0
    for decay in (0.9, 0.5):
        d, e = (min(decay, (1 + n) / (10 + n)) for n in (0, 1))  # the warm-up
        expected = jax.tree.map(
            lambda a, b, c, d=d, e=e: e * (d * a + (1 - d) * b) + (1 - e) * c,
            first['params'],
            one['params'],
            two['params'],
        )
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
            two['ema'][str(decay)],
            expected,
        )


def test_learning_rate():
    config = settings.OptimizerConfig()
    rate = state.learning_rate(config, 2048, 100, 1000)
    assert float(rate(0)) == 0.0
    assert float(rate(50)) == pytest.approx(4e-4)
    assert float(rate(100)) == float(rate(999)) == pytest.approx(8e-4)
    cosine = dataclasses.replace(config, lr_schedule='cosine', min_learning_rate=1e-5)
    rate = state.learning_rate(cosine, 256, 10, 110)
    assert float(rate(60)) == pytest.approx((1e-4 + 1e-5) / 2, rel=1e-3)
    assert float(rate(110)) == pytest.approx(1e-5, rel=1e-3)


def test_each_example_once_per_epoch():
    stream = np.concatenate([pipeline.indices(50, 16, 3, s) for s in range(25)])
    for epoch in range(8):
        assert sorted(stream[epoch * 50 : (epoch + 1) * 50]) == list(range(50))
    np.testing.assert_array_equal(stream[160:176], pipeline.indices(50, 16, 3, 10))
    assert not np.array_equal(stream[:50], stream[50:100])
    assert not np.array_equal(stream[:16], pipeline.indices(50, 16, 4, 0))


def test_published_durations():
    """Paper Tables 6 and 7: 500,000 steps and 62,500 of warmup at batch 2048; 1,000,800 at 1024."""
    config = load_config(f'{ROOT}/configs/imagenet256.py:size=l')
    assert config.steps('total', config.data.examples) == 500_000
    assert config.steps('warmup', config.data.examples) == 62_500
    config = load_config(f'{ROOT}/configs/imagenet512.py:size=xs')
    assert config.steps('total', config.data.examples) == 1_000_800
    assert nested.resolve(nested.as_dict(config)) == config


@pytest.mark.slow
@pytest.mark.parametrize('size', ['256.py:size=xs,tiny', '512.py:size=l,tiny'])
def test_imagenet_recipes_run(tmp_path, size):
    config = load_config(f'{ROOT}/configs/imagenet{size}')
    final = loop.train(config, tmp_path)
    assert int(final['step']) == 4

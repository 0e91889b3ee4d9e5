"""Where runs begin: at their newest checkpoint, with other settings, or with other weights."""

import dataclasses
import operator
import shutil

import jax
import numpy as np
import pytest

from emigm_jax.checkpoints import copy, inspect, runs, store
from emigm_jax.cli import main
from emigm_jax.config import liftings, nested, resuming
from emigm_jax.config.load import config_of, load_config
from emigm_jax.config.settings import Config, OptimizerConfig
from emigm_jax.data import datasets
from emigm_jax.errors import Damaged, UserError
from emigm_jax.io import paths
from emigm_jax.models import emigm
from emigm_jax.parallel import sharding
from emigm_jax.training import initial, program, schedules, start
from emigm_jax.training.state import averaged
from support.runs import SMOKE, run, state, write_run  # noqa: F401 (fixtures)

pytestmark = pytest.mark.filterwarnings('ignore:Sending a large body:ResourceWarning')


SHARDING = operator.attrgetter('sharding')


def same(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)


@pytest.fixture(scope='module')
def data():
    return datasets.dataset(Config())


@pytest.fixture(scope='module')
def built(state):
    """The programs of its config, with parameters sharded over two devices."""
    config = config_of(state[0], {'mesh.fsdp': -1, 'mesh.data': 1})
    return program.build(config, sharding.make_mesh(config.mesh, jax.devices()[:2]), 1, 12)


@pytest.fixture
def resumed(data, built):
    def resume(config, workdir, allowed=(), say=lambda line: None):
        return start.resumed(config, data, paths.absolute(workdir), built, allowed, say)

    return resume


def model(path, config, params, **source):
    runs.export(path, config, params, {}, source)
    return path


# --- Folders in which no run can be --------------------------------------------------------------


def refused(workdir, *says):
    with pytest.raises(UserError) as error:
        start.check_workdir(paths.absolute(workdir))
    assert '\n' not in str(error.value)
    for text in says:
        assert text in str(error.value)


def test_a_folder_that_is_a_checkpoint(state, run, tmp_path):
    config, _ = state
    params, new, init = {'a': np.ones(1)}, 'use another --workdir', '--config.training.init='
    path = model(tmp_path / 'converted', config, params, file='l.pth')
    refused(path, 'is a model converted from l.pth', new, f'{init}{path}')
    path = model(tmp_path / 'exported', config, params, step=900)
    refused(path, 'is a model exported from step 900 of a run', new, f'{init}{path}')
    (path / 'checkpoints').mkdir()
    refused(path, f'{path}/checkpoints holds what was trained in it so far')
    step = run / 'checkpoints/10'
    refused(step, 'is step 10 of a run', f'go on with its run by --workdir {run}')
    refused(step.parent, 'is no workdir', f'go on with the run by --workdir {run}')
    path = model(tmp_path / 'models/256', config, params)
    refused(path.parent, 'holds checkpoints beside each other', f'{init}{path}')
    start.check_workdir(paths.absolute(run))
    start.check_workdir(paths.absolute(tmp_path / 'new'))


@pytest.mark.parametrize(
    ('entry', 'what'),
    [
        ({'tokenizer': {'name': 'kl16'}}, 'the tokenizer kl16'),
        ({'inception': {}}, "FID's network"),
        ({}, 'no model, but another checkpoint'),
    ],
)
def test_a_folder_that_is_another_checkpoint(entry, what, tmp_path):
    store.save(tmp_path / 'it', {'params': {'a': np.ones(2)}}, entry)
    refused(tmp_path / 'it', f'is {what}, and nobody would see', 'use another --workdir')


def test_a_bucket_that_is_a_checkpoint(state, bucket, capsys):
    config, _ = state
    path = model(f'{bucket}/emigm', config, {'a': np.ones(1)}, file='l.pth')
    before = copy.listing(path).keys()
    assert main.main(['train', '--config', SMOKE, '--workdir', path]) == 2
    error = capsys.readouterr().err
    assert f'{path} is a model converted from l.pth' in error
    assert error.count('\n') == 1
    assert copy.listing(path).keys() == before


@pytest.mark.parametrize('make', ['model', 'tokenizer', 'step'])
def test_weights_among_the_steps_of_a_run(make, state, run, tmp_path, resumed):
    """They are named, and nobody is told to delete them."""
    config, _ = state
    place = tmp_path / 'checkpoints/0'
    if make == 'model':
        model(place, config, {'a': np.ones(1)}, file='l.pth')
        what = 'a model converted from l.pth'
    elif make == 'tokenizer':
        store.save(place, {'params': {'a': np.ones(2)}}, {'tokenizer': {'name': 'kl16'}})
        what = 'the tokenizer kl16'
    else:
        place.parent.mkdir()
        place.symlink_to(run / 'checkpoints/10')
        what = 'step 10 of a run'
    with pytest.raises(UserError) as error:
        resumed(config, tmp_path)
    assert f'{place} is {what}, not the step' in str(error.value)
    assert '--config.training.init=' in str(error.value)
    assert 'delete' not in str(error.value) and '\n' not in str(error.value)


# --- Other settings ------------------------------------------------------------------------------


def test_a_run_goes_on_with_other_settings(state, run, resumed):
    config, tree = state
    changes = {'training.batch_size': 32, 'optimizer.base_learning_rate': 0.004, 'loss.copies': 2}
    other = config_of(config, changes)
    hint = '--allow-changes loss.copies,optimizer.base_learning_rate,training.batch_size'
    with pytest.raises(UserError, match=hint):
        resumed(other, run)
    with pytest.raises(UserError, match=r'config \(loss.copies 4 -> 2\)'):
        resumed(other, run, ('training.batch_size', 'optimizer'))
    lines = []
    allowed = ('training.batch_size', 'optimizer', 'loss')
    same(resumed(other, run, allowed, lines.append)['params'], tree['params'])
    cells = [line.split() for line in lines[1:]]
    assert cells[0] == ['until', 'now', 'from', 'here']
    assert ['training.batch_size', '16', '32'] in cells
    assert ['the', 'data', 'go', 'on', 'at', 'epoch', '0.09', '0.18'] in cells


def test_nothing_is_told_where_nothing_differs():
    assert schedules.compared(Config(), config_of(Config(), {'training.keep': 9}), 9, 99) == []


def test_what_other_settings_do_to_the_schedule():
    config = config_of(
        Config(),
        {
            'training.batch_size': 256,
            'training.total': '100 epochs',
            'training.warmup': '10 epochs',
            'optimizer.base_learning_rate': 1e-3,
        },
    )
    other = config_of(config, {'training.batch_size': 512})
    rows = [line.rsplit(maxsplit=2) for line in schedules.compared(config, other, 600, 5120)]
    assert {name.strip(): (old, new) for name, old, new in rows[1:]} == {
        'training.batch_size': ('256', '512'),
        'steps in all': ('2,000', '1,000'),
        'warm-up ends at step': ('200', '100'),
        'learning rate at step 600': ('0.001', '0.002'),
        'the data go on at epoch': ('30.00', '60.00'),
    }


@pytest.mark.parametrize(
    ('names', 'says'),
    [
        ('training.batchsize', "no such setting (did you mean 'training.batch_size'?)"),
        ('optimiser', 'no such setting'),
        ('optim', 'no such setting'),  # a beginning is no group
        ('model.width', 'model.width: cannot change in a run that goes on'),
        ('optimizer.ema_decays', 'cannot change'),
        ('training.init', 'training.init: cannot change'),
        ('training.init_classes', 'cannot change'),
        ('training.batch_size,data.name', 'data.name: cannot change'),
    ],
)
def test_changes_that_cannot_be(names, says, tmp_path, capsys):
    command = ['train', '--config', SMOKE, '--workdir', str(tmp_path / 'run')]
    assert main.main([*command, '--allow-changes', names]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / 'run').exists()


def test_what_is_part_of_the_state_cannot_change():
    other = config_of(Config(), {'optimizer.ema_decays': (0.5,), 'optimizer.clip': 1.0})
    with pytest.raises(UserError, match='ema_decays cannot change in a run that goes on'):
        resuming.check(Config(), other, ('optimizer',), 'runs/a')
    with pytest.raises(UserError) as error:
        resuming.check(Config(), other, (), 'runs/a')
    assert '--allow-changes' not in str(error.value)


def test_a_run_keeps_what_is_newer_than_it(run):
    """The same command goes on as the run began, and says so."""
    requested = config_of(runs.require(run).config, {'optimizer.ema_warmup': True})
    lines = []
    kept = start.as_begun(requested, paths.absolute(run), (), lines.append)
    assert not kept.optimizer.ema_warmup
    assert lines == [
        'optimizer.ema_warmup stays False, as the run began; --allow-changes '
        'optimizer.ema_warmup changes it'
    ]
    assert start.as_begun(requested, paths.absolute(run), ('optimizer',), lines.append) == requested
    assert len(lines) == 1


@pytest.mark.parametrize('size', [0, 1000])
def test_a_description_that_is_cut_off_is_stepped_over(size, state, run, tmp_path, resumed):
    workdir = tmp_path / 'run'
    shutil.copytree(run, workdir)
    file = workdir / 'checkpoints/10' / store.MARK
    file.write_bytes(file.read_bytes()[:size])
    lines = []
    assert int(resumed(state[0], workdir, say=lines.append)['step']) == 5
    assert lines[0].startswith(f'{workdir}/checkpoints/10: the checkpoint is damaged')
    assert f'{store.MARK} is cut off or damaged, {size} characters' in lines[0]
    assert lines[0].endswith('going on from the checkpoint before it')
    with pytest.raises(Damaged, match='cut off'):
        runs.require(workdir)
    assert [(e.step, e.finished, e.damaged) for e in inspect.entries(workdir)] == [
        (5, True, False),
        (10, False, True),
    ]


def test_what_another_process_finds_damaged_is_stepped_over_by_all(
    state, run, monkeypatch, resumed
):
    def agreed(function):
        found = function()
        if found.step == 10:  # as the other process says
            raise Damaged('checkpoints/10: is damaged')
        return found

    monkeypatch.setattr(start.agreement, 'agreed', agreed)
    # Arrays that processes read for one another are not begun.
    restored, restore = [], runs.Saved.restore
    note = lambda saved, like: restored.append(saved.step) or restore(saved, like)
    monkeypatch.setattr(runs.Saved, 'restore', note)
    lines = []
    assert int(resumed(state[0], run, say=lines.append)['step']) == 5
    assert restored == [5] and lines[0].startswith('checkpoints/10: is damaged\n')


# --- Other weights -------------------------------------------------------------------------------


def test_a_run_begins_with_the_weights_of_another(state, run, built):
    config, tree = state
    for weights, expected in (
        ('', tree['ema']['0.9']),
        ('params', tree['params']),
    ):
        named = {'training.init': str(run), 'training.init_weights': weights}
        begins = config_of(config, named)
        first = initial.begun(
            begins, built, initial.origin(begins, runs.require(run)), lambda line: None
        )
        same(first['params'], expected)
        for average in first['ema'].values():
            same(average, expected)
        assert int(first['step']) == 0
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(first['opt']))
        assert jax.tree.map(SHARDING, first) == jax.tree.map(SHARDING, built.state)


def test_other_classes(state, built, bucket):
    """From a model in a bucket."""
    config, tree = state
    path = model(f'{bucket}/model', config, tree['params'], file='l.pth')
    begins = {'training.init': path, 'training.init_classes': '0=3,9=9'}
    config, lines = config_of(config, begins), []
    first = initial.begun(config, built, initial.origin(config, runs.require(path)), lines.append)[
        'params'
    ]
    old, new = tree['params']['mae']['class_embed'], first['mae']['class_embed']
    same(new[0], old[3])
    same(new[9], old[9])
    rest = np.asarray(new[1:9] - old.mean(0))
    assert np.std(rest) == pytest.approx(0.02, rel=0.2)
    same(first, {**tree['params'], 'mae': {**tree['params']['mae'], 'class_embed': new}})
    assert lines == [
        f'started from weights 0.9 of {path}, a model converted from l.pth',
        '  part                       parameters',
        '  head/                          19,392  taken',
        '  mae/class_embed                   320  copies 0=3,9=9; new: 8 classes, each the mean of '
        'the 10 there plus noise',
        '  mae/                           53,280  taken',
        '  optimizer, averages, step              new',
    ]


def test_other_classes_of_words(tmp_path):
    """MaskGIT's table holds codes, classes and the mask, each with a bias."""
    sizes = {'grid': 4, 'codes': 5, 'classes': 3, 'width': 8, 'heads': 2, 'buffer': 1}
    sizes |= {'trunk': 'bert', 'head': 'categorical', 'encoder_depth': 1, 'decoder_depth': 2}
    config = config_of(Config(), {f'model.{name}': value for name, value in sizes.items()})
    rng = np.random.default_rng(0)
    draw = lambda s: rng.normal(0.0, 1.0, s.shape).astype(s.dtype)
    params = jax.tree.map(draw, emigm.network(config.model).shapes())
    path = model(tmp_path / 'model', config, params, file='maskgit')
    changes = {'model.classes': 2, 'training.init': str(path), 'training.init_classes': '1=2'}
    config, lines = config_of(config, {**changes, 'training.batch_size': 32}), []
    built = program.build(config, sharding.make_mesh(config.mesh), 1, 12)
    begins = initial.origin(config, runs.require(path))
    first = initial.begun(config, built, begins, lines.append)['params']
    for old, new in (
        (params['bert']['token_embed']['words'], first['bert']['token_embed']['words']),
        (params['head']['bias'], first['head']['bias']),
    ):
        same(new[:5], old[:5])
        same(new[6:], old[7:])  # class 1 is the old class 2, and the mask comes last
        assert np.abs(new[5] - old[5:8].mean(0)).max() < 0.1
    told = {line.split()[0]: ' '.join(line.split()[1:]) for line in lines[2:]}
    copied = 'copies 1=2; new: 1 class, the mean of the 3 there plus noise'
    assert told['bert/token_embed/words'] == f'16 {copied}'
    assert told['head/bias'] == f'2 {copied}'
    assert told['head/'] == '6 taken'


def test_a_class_table_of_another_size():
    old = jax.numpy.array([[1.0, 2.0], [3.0, 6.0]])
    new = initial.class_table(old, (1, *[-1] * 4000), jax.random.key(0))
    same(new[0], old[1])
    np.testing.assert_allclose(new[1:].mean(0), old.mean(0), atol=0.002)
    np.testing.assert_allclose(new[1:].std(0), 0.02, rtol=0.05)


@pytest.fixture(scope='module')
def saved(run):
    return runs.require(run)


def rows(saved, names=(), **changes):
    """Which classes of `saved` a run with other settings and classes of these names takes."""
    dotted = {name.replace('__', '.'): value for name, value in changes.items()}
    config = config_of(saved.config, {'training.init': 'there', **dotted})
    return initial.origin(config, saved, names).rows


def test_as_many_classes_are_taken_unless_some_are_named(saved):
    assert rows(saved) is None
    assert rows(saved, training__init_classes='4=1') == (-1,) * 4 + (1,) + (-1,) * 5
    assert rows(saved, model__classes=2) == (-1, -1)
    many = dataclasses.replace(saved, config=config_of(saved.config, {'model.classes': 1000}))
    assert rows(many, model__classes=3, training__init_classes='0=otter, 2=7') == (360, -1, 7)
    named = dataclasses.replace(saved, class_names=tuple('abcdefghij'))
    assert rows(named, model__classes=2, training__init_classes='1=d') == (-1, 3)
    ours = ('cat', 'dog')
    assert rows(named, ours, model__classes=2, training__init_classes='dog=d,cat=4') == (4, 3)


@pytest.mark.parametrize(
    ('changes', 'says'),
    [
        ({'grid': 4}, 'on a grid of 2 x 2, those here on one of 4 x 4, and position embeddings'),
        ({'channels': 3}, 'its tokens are of 16 numbers, those here of 3'),
        ({'buffer': 8}, 'say --config.model.buffer=4'),
        (
            {'width': 64, 'heads': 8, 'mae': False, 'dtype': 'bfloat16'},
            'say --config.model.width=32 --config.model.heads=4 --config.model.mae=True',
        ),
    ],
)
def test_weights_that_mean_nothing_here(changes, says, saved):
    with pytest.raises(UserError) as error:
        rows(saved, **{f'model__{name}': value for name, value in changes.items()})
    assert str(error.value).startswith(f'training.init = {saved.path}: ')
    assert says in str(error.value)


@pytest.mark.parametrize(
    ('classes', 'says'),
    [
        ('10=0', 'no class 10 here, only 0 to 9'),
        ('0=10', 'no class 10 in training.init, only 0 to 9'),
        ('0=otter', 'in training.init: .* have no names'),
        ('cow=0', "here: no class is called 'cow'"),
        ('3=0,c=1', 'class 3 is there twice'),
    ],
)
def test_classes_that_are_not_there(classes, says, saved):
    with pytest.raises(UserError, match=says):
        rows(saved, tuple('zabcdefghi'), training__init_classes=classes)


def test_weights_that_are_not_there(state, run, built, tmp_path):
    config, tree = state

    def begun(path, **more):
        begins = config_of(config, {'training.init': str(path), **more})
        return initial.begun(begins, built, initial.origin(begins, runs.require(path)), print)

    with pytest.raises(UserError, match=r"has no weights '0\.7', but 0\.9, 0\.5, params"):
        begun(run, **{'training.init_weights': '0.7'})
    path = model(tmp_path / 'm', config, {'mae': tree['params']['mae']})
    with pytest.raises(UserError, match='its arrays are not those of its config'):
        begun(path)


def test_weights_that_are_not_finite(state, built, tmp_path):
    config, tree = state
    params = jax.tree.map(np.array, tree['params'])
    params['mae']['class_embed'][0, 0] = np.nan
    path = model(tmp_path / 'm', config, params)
    begins, saved = config_of(config, {'training.init': str(path)}), runs.require(path)
    with pytest.raises(UserError, match='mae/class_embed hold numbers that are not finite'):
        initial.begun(begins, built, initial.origin(begins, saved), print)


def test_a_file_is_no_checkpoint(tmp_path):
    (tmp_path / 'x.pth').touch()
    with pytest.raises(UserError, match=r'x\.pth: is a file, no checkpoint; `emigm convert`'):
        runs.require(tmp_path / 'x.pth')
    with pytest.raises(UserError, match=r'x\.pth: is a file, and --workdir names a folder'):
        start.check_workdir(paths.absolute(tmp_path / 'x.pth'))


@pytest.mark.parametrize(
    ('flags', 'says'),
    [
        (['init_weights=params'], 'training.init_weights goes with training.init'),
        (['init_classes=0=1'], 'training.init_classes goes with training.init'),
        (
            ['init=x', 'init_classes==1'],
            "training.init_classes must look like '0=207,cat=otter'",
        ),
        (['init=x', 'init_classes=1'], 'must look like'),
        (['init=x', 'init_classes=1='], 'must look like'),
        (['init=x', 'init_classes=1=2,1=3'], 'class 1 is there twice'),
    ],
)
def test_settings(flags, says):
    with pytest.raises(UserError, match=says):
        load_config(SMOKE, [f'--config.training.{flag}' for flag in flags])


# --- Averages and scores -------------------------------------------------------------------------


def test_averages_that_have_seen_nothing_are_told(state, tmp_path):
    config = config_of(state[0], {'optimizer.ema_decays': (0.999,), 'optimizer.ema_warmup': False})
    saved = runs.Saved(None, 300, config, {}, {})
    told = (
        'after 300 steps the average 0.999 is still 74% what the run began with: --weights params'
    )
    assert saved.remark('0.999').startswith(told)
    assert dataclasses.replace(saved, step=0, source={'step': 300}).remark('0.999').startswith(told)
    assert not saved.remark('params')
    of = lambda **changes: dataclasses.replace(saved, **changes).remark('0.999')
    assert not of(step=2400)  # 0.0906
    assert not of(step=0)  # a converted model, whose steps nobody knows
    assert not of(config=config_of(config, {'optimizer.ema_warmup': True}))


def test_averages_with_warm_up():
    """The first ones are those of the few steps that were made."""
    ema, expected = {'0.9': {'a': np.float32(1.0)}, '0.2': {'a': np.float32(1.0)}}, [1.0, 1.0]
    config = OptimizerConfig(ema_decays=(0.9, 0.2))
    for n in range(90):
        new = np.float32(np.sin(n))
        ema = averaged(ema, {'a': new}, config, jax.numpy.int32(n))
        decays = [min(d, (1 + n) / (10 + n)) for d in (0.9, 0.2)]
        expected = [d * e + (1 - d) * new for d, e in zip(decays, expected, strict=True)]
    np.testing.assert_allclose([ema['0.9']['a'], ema['0.2']['a']], expected, rtol=1e-5)
    plain = dataclasses.replace(config, ema_warmup=False)
    ema = averaged(ema, {'a': np.float32(0.0)}, plain, jax.numpy.int32(0))
    assert float(ema['0.9']['a']) == pytest.approx(0.9 * expected[0], rel=1e-4)


def test_who_averages_with_warm_up():
    assert Config().optimizer.ema_warmup
    assert nested.resolve({'optimizer': {'clip': 1.0}}).optimizer.ema_warmup
    for name in ('digits', 'digits:best', 'imagenet256:size=b', 'mar256:size=l'):
        assert not load_config(name).optimizer.ema_warmup
    assert not nested.resolve(liftings.lifted({}, 1)).optimizer.ema_warmup  # of older code


def test_the_best_score_is_kept_whatever_its_name(state, tmp_path):
    config = config_of(state[0], {'training.keep': 1})
    values = iter([4.0, 2.0, float('nan'), None])
    with runs.Writer(tmp_path, config) as writer:
        for step, value in enumerate(values, 1):
            writer.save({'step': jax.numpy.int32(step)})
            if value is not None:
                writer.score(step, {'accuracy': 0.5, 'frechet_distance': value})
    assert [p.name for p in runs.finished(tmp_path)] == ['4', '2']
    with runs.Writer(tmp_path, config) as writer:  # it knows the best one of the earlier process
        writer.save({'step': jax.numpy.int32(5)})
        writer.score(5, {'frechet_distance': 3.0})
        writer.save({'step': jax.numpy.int32(6)})
    assert [p.name for p in runs.finished(tmp_path)] == ['6', '2']

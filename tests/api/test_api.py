"""The Python API as its documentation says it: every example runs, every promise holds."""

import dataclasses
import doctest
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import emigm_jax as em
from emigm_jax.cli import main
from emigm_jax.data import class_names
from emigm_jax.tuning import lab
from support import jax_settings

ROOT = pathlib.Path(__file__).parents[2]
SMOKE = f'{ROOT}/configs/digits.py:smoke'


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp('api') / 'runs/digits'
    em.train(SMOKE, workdir, **{'training.total': '6 steps', 'sampling.reveal.steps': 2})
    return workdir


@pytest.fixture(scope='module')
def model(run):
    return em.load(run)


MODEL = em.Model
STEPS = MODEL.sample_steps, MODEL.edit_steps
TUNE = pytest.param(em.tune, marks=pytest.mark.slow)
EXAMPLES = (em.load, em.train, em.evaluate, TUNE, MODEL.sample, MODEL.edit, *STEPS)


@pytest.mark.parametrize('function', EXAMPLES, ids=lambda f: f.__name__)
def test_examples_run(function, run, model, monkeypatch, capsys):
    monkeypatch.chdir(run.parents[1])
    monkeypatch.setattr(lab, '_LEAST_SECONDS', 0.0)  # the time is not what is tested
    (configs := run.parents[1] / 'configs').exists() or configs.symlink_to(ROOT / 'configs')
    names = {'em': em, 'model': model, 'np': np}
    (example,) = doctest.DocTestFinder(recurse=False).find(function, globs=names)
    assert example.examples
    # What training prints on the way differs from run to run.
    quiet = doctest.OutputChecker()
    if function in (em.train, *STEPS):
        quiet.check_output = lambda *_: True
    report = []
    doctest.DocTestRunner(checker=quiet).run(example, out=report.append)
    assert not report, ''.join(report)
    assert {'Args:', 'Raises:'} <= set(function.__doc__.split()) or function in STEPS


def test_every_public_name_is_documented():
    assert set(em.__all__) <= set(dir(em))
    for name in em.__all__:
        assert getattr(em, name).__doc__
    with pytest.raises(AttributeError, match='no attribute'):
        em.sample  # noqa: B018


def test_import_is_quick_and_imports_nothing_heavy():
    code = (
        'import sys, time; start = time.perf_counter(); import emigm_jax\n'
        'print(time.perf_counter() - start, "jax" in sys.modules)'
    )
    runs = [subprocess.run([sys.executable, '-c', code], capture_output=True) for _ in range(3)]
    seconds, heavy = zip(*(run.stdout.split() for run in runs), strict=True)
    assert set(heavy) == {b'False'}
    assert min(map(float, seconds)) < 0.3


def test_sample(model):
    images = model.sample(classes=[3, None], seeds=[5, 9], steps=2)
    assert (images.shape, images.dtype) == ((4, 8, 8, 3), np.uint8)
    np.testing.assert_array_equal(images, model.sample([3, None], [5, 9], steps=2))
    # An image is that of its class and seed alone.
    np.testing.assert_array_equal(model.sample([None], [9], steps=2)[0], images[3])
    # What is given twice comes twice.
    np.testing.assert_array_equal(model.sample([3, 3], [5, 5], steps=2), images[[0] * 4])
    assert (model.sample([3], [5], steps=2, base_seed=1) != images[:1]).any()
    assert len(model.sample(seeds=[0], steps=1)) == len(model.sample('all', [0], steps=1)) == 10


@pytest.mark.parametrize('name', jax_settings.DECIDING)
def test_an_image_is_the_same_under_any_setting_of_jax(name, model):
    images = model.sample([3, None], [5, 2**32 - 1], steps=2)
    with jax_settings.changed(**{name: jax_settings.DECIDING[name]}):
        again = model.sample([3, None], [5, 2**32 - 1], steps=2)
    np.testing.assert_array_equal(again, images)


def test_sample_steps_end_in_what_sample_gives(model):
    steps = list(model.sample_steps([1, 2, 3], [0, 1]))
    assert [step.number for step in steps] == list(range(1, steps[0].steps + 1))
    np.testing.assert_array_equal(steps[-1].images, model.sample([1, 2, 3], [0, 1]))
    counts = [step.revealed.reshape(6, -1).sum(1) for step in steps]
    assert (np.diff(counts, axis=0) >= 0).all()
    assert (counts[-1] == 4).all()
    first = steps[0]
    hidden = np.repeat(np.repeat(~first.revealed, 4, 1), 4, 2)
    assert (first.images[hidden] == 128).all()
    np.testing.assert_array_equal(first.images[~hidden], steps[-1].images[~hidden])


def test_edit_steps_end_in_what_edit_gives(model):
    digits = model.sample([1, 2], [0])
    left = np.tile(np.arange(8) < 4, (8, 1))
    for mask in (left, [left, ~left], 0.5):
        steps = list(model.edit_steps(list(digits), mask, [3], [0, 1], guidance=1.0))
        assert [step.number for step in steps] == list(range(1, steps[0].steps + 1))
        images = model.edit(list(digits), mask, [3], [0, 1], guidance=1.0)
        np.testing.assert_array_equal(steps[-1].images, images)
        assert steps[-1].revealed.all()
        first = steps[0]
        assert first.revealed.reshape(4, -1).sum(1).tolist() == [3] * 4
        hidden = np.repeat(np.repeat(~first.revealed, 4, 1), 4, 2)
        assert (first.images[hidden] == 128).all()
    np.testing.assert_array_equal(
        model.edit(digits[0], np.ones((8, 8), bool), [3, None], [0, 1]),
        model.sample([3, None], [0, 1]),
    )


@pytest.mark.parametrize(
    ('arguments', 'says'),
    [
        (dict(images=[]), 'there is no picture'),
        (dict(mask=[]), 'there is no mask'),
        (dict(mask=[np.zeros((8, 8), bool)] * 2), 'there are 2 masks for 1 pictures'),
        (dict(mask=np.zeros((4, 8), bool)), 'the mask has 8 x 4 pixels: it must have 8 x 8 as its'),
        (dict(mask=np.zeros((8, 8))), r'a mask must be uint8 .* not float64 \(8, 8\)'),
        (dict(images=np.zeros((8, 8, 4), np.uint8)), r'a picture must be uint8 .* \(8, 8, 4\)'),
        (dict(images=np.zeros((0, 8), np.uint8)), r'a picture must be uint8 .* \(0, 8\)'),
        (dict(mask=-0.1), 'the share of tokens must be at least 0'),
        (dict(mask=float('nan')), 'the share of tokens must be a finite number'),
        (dict(blend='soft'), 'blend must be one of blurred, exact, none'),
        (dict(grow=-1), 'grow must be at least 0'),
        (dict(mask=0.5, grow=1), 'go with a mask, not with a share'),
        (dict(classes=[10]), 'no class 10'),
        (dict(gidance=2.0), "did you mean 'guidance'"),
        (dict(images='nowhere.png'), 'nowhere.png: No such file'),
    ],
)
def test_mistakes_of_edits_are_one_line(arguments, says, model):
    whole = dict(images=np.zeros((8, 8), np.uint8), mask=np.ones((8, 8), bool), classes=[3])
    with pytest.raises(em.UserError, match=says) as error:
        model.edit(**{**whole, **arguments})
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    ('arguments', 'says'),
    [
        (dict(classes=[10]), 'no class 10, the model knows 0 to 9'),
        (dict(classes=['tabby']), "no class is called 'tabby'"),
        (dict(classes='tabby'), "a list or 'all'"),
        (dict(classes=[1.5]), 'a whole number, not 1.5'),
        (dict(classes=[True]), 'a whole number, not True'),
        (dict(classes=[]), 'nothing to draw'),
        (dict(seeds=[2**32]), 'seeds lie between'),
        (dict(seeds=[-1]), 'seeds lie between'),
        (dict(preset='best'), 'has no presets'),
        (dict(gidance=2.0), "did you mean 'guidance'"),
        (dict(guidance='much'), 'guidance must be float'),
        (dict(guidance=float('nan')), 'guidance must be a finite number, not nan'),
        (dict(guidance=np.float32('inf')), 'guidance must be a finite number, not inf'),
        (dict(guidance=10**400), 'guidance must be float'),
        (dict(interval=(0.1, float('inf'))), 'interval must be a finite number, not inf'),
        (dict(steps=float('inf')), 'steps must be a finite number, not inf'),
        (dict(base_seed=-1), 'sampling.seed must be at least 0'),
        (dict(base_seed=2**32), 'sampling.seed must be at most'),
        (dict(seeds=5), 'seeds must be a list, not 5'),
        (dict(classes=3), 'classes must be a list, not 3'),
        (dict(seeds=[float('nan')]), 'a seed must be a whole number, not nan'),
        (dict(steps=2.5), 'steps must be int'),
        (dict(steps=True), 'steps must be int'),
        (dict(interval=3), 'interval must be 2 numbers'),
        (dict(steps=0), 'must be at least 1'),
    ],
)
def test_mistakes_are_one_line(arguments, says, model):
    with pytest.raises(em.UserError, match=says) as error:
        model.sample(**arguments)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_pictures_that_are_no_numbers_are_never_made(value, model, monkeypatch, tmp_path, capsys):
    make = model.generator
    params = jax.tree.map(lambda a: jnp.full_like(a, value), make.params)
    broken = em.Model(model.saved, dataclasses.replace(make, params=params))
    says = '10 of 10 images are not finite: the model drew tokens that are no numbers'
    with pytest.raises(em.UserError, match=says):
        broken.sample(seeds=[0])
    with pytest.raises(em.UserError, match='1 of 1 images are not finite'):
        next(broken.sample_steps([3], [0]))
    with pytest.raises(em.UserError, match='images are not finite'):
        em.evaluate(broken, num_images=20)

    monkeypatch.setattr('emigm_jax.api.model.opened', lambda *_, **__: broken)
    command = ['sample', '--checkpoint', str(model.saved.path), '--out', str(tmp_path / 'out')]
    assert main.main([*command, '--seeds', '0']) == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith('emigm:'))
    assert says in line
    assert not list(tmp_path.rglob('*.png'))


def test_names_of_classes():
    assert class_names.label('Golden Retriever', 1000) == 207
    with pytest.raises(em.UserError, match=r'no class is called .* \(did you mean .golden'):
        class_names.label('golden retreiver', 1000)
    with pytest.raises(em.UserError, match='2 classes are called'):
        class_names.label('cardigan', 1000)


def test_evaluate_refuses_what_it_cannot_measure(model, tmp_path):
    for what, more, says in (
        (model, dict(reference='x'), 'go together'),
        (model, dict(num_images=2), 'at least 4'),
        (model, dict(num_images=float('nan')), 'a whole number, not nan'),
        (model, dict(num_images=2**32 + 1), 'num_images must be at most'),
        (tmp_path, {}, 'against a reference'),
        (tmp_path / 'no', dict(reference='x', inception='y'), 'no such file|neither a folder'),
    ):
        with pytest.raises(em.UserError, match=says):
            em.evaluate(what, **more)


@pytest.mark.parametrize('size', [0, -1, 2.5, float('nan')])
def test_batch_sizes_are_whole_numbers(size, run):
    with pytest.raises(em.UserError, match='batch_size must be'):
        em.load(run, batch_size=size)
    with pytest.raises(em.UserError, match='batch_size must be'):
        em.Work(size)


def test_train_takes_settings_in_any_form(run, tmp_path):
    from emigm_jax.checkpoints import runs
    from emigm_jax.config.load import config_of, load_config

    config = load_config(SMOKE)
    assert config_of(SMOKE, {}) == config_of(config, {}) == config
    changed = config_of(config, {'training.total': '7 steps', 'optimizer.ema_decays': [0.9]})
    assert changed.training.total == '7 steps'
    assert changed.optimizer.ema_decays == (0.9,)
    with pytest.raises(em.UserError, match=r"did you mean 'training\.total'"):
        em.train(config, tmp_path / 'never', **{'training.totle': '7 steps'})
    assert not (tmp_path / 'never').exists()
    assert runs.require(run).config.training.total == '6 steps'


def test_the_module_runs_as_the_command():
    done = subprocess.run(
        [sys.executable, '-m', 'emigm_jax', '--version'], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == f'emigm_jax {em.__version__}'

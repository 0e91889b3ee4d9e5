"""Comparisons as one command: what is trained and drawn, that nothing is done twice, the tables."""

import csv
import dataclasses
import json
import pathlib

import numpy as np
import pytest

from emigm_jax.cli import main
from emigm_jax.cli import sweep as main_sweep
from emigm_jax.config import family, shipped
from emigm_jax.config.figures import Figure
from emigm_jax.config.load import load_config, load_sweep, varied
from emigm_jax.config.sweeps import Sweep
from emigm_jax.errors import UserError
from emigm_jax.evaluation.result import Result
from emigm_jax.sweep import run, table, tasks, write
from emigm_jax.training.loop import NonFinite

POINTS = {name: load_config(f'{name}:smoke') for name in ('emigm', 'mdm')}
DRAWS = {'order': ('random', 'confidence'), 'steps': (2, 4)}
SWEEP = Sweep(POINTS, DRAWS, seeds=(0, 5), num_images=20)


def test_every_way_that_goes_with_a_head():
    ways = {point: [tuple(way.values()) for way in SWEEP.ways(point)] for point in POINTS}
    assert ways['emigm'] == [('random', 2), ('random', 4)]
    assert ways['mdm'] == [*ways['emigm'], ('confidence', 2), ('confidence', 4)]
    assert {config.seed for config in SWEEP.runs().values()} == {0, 5}
    assert Sweep(POINTS).ways('mdm') == [{}]  # as it is


def test_shipped_sweeps():
    assert {'comparison', 'ablations'} <= {*shipped.names('sweeps')}
    assert 'ablations' not in shipped.names()  # which are for --config
    sweep = load_sweep('comparison')
    assert [*sweep.points][:4] == [*family.CHOICES]
    lengths = {(c.training.total, c.training.batch_size) for c in sweep.points.values()}
    assert len(lengths) == 1  # all are trained alike
    assert sweep.points['emigm-cosine'].loss.masking.schedule == 'cosine'
    smoke = load_sweep('comparison:smoke', ['--config.training.total=3 steps'])
    assert [*smoke.points] == [*family.CHOICES]
    assert {config.training.total for config in smoke.points.values()} == {'3 steps'}


def test_points_from_flags():
    vary = {'loss.masking.schedule': ['exp', 'cosine'], 'model.width': ['16', '32']}
    points = varied('digits:smoke', ['--config.seed=3'], vary)
    assert [*points] == [
        f'schedule={schedule}+width={width}' for schedule in ('exp', 'cosine') for width in (16, 32)
    ]
    last = points['schedule=cosine+width=32']
    assert (last.loss.masking.schedule, last.model.width, last.seed) == ('cosine', 32, 3)
    same = varied('digits', [], {'loss.masking.schedule': ['exp'], 'sampling.reveal.schedule': []})
    assert not same
    assert [*varied('digits:smoke', [], {})] == ['digits']
    both = {'loss.masking.schedule': ['exp'], 'sampling.reveal.schedule': ['exp']}
    assert [*varied('digits', [], both)] == [
        'loss.masking.schedule=exp+sampling.reveal.schedule=exp'
    ]


@pytest.mark.parametrize(
    ('changes', 'says'),
    [
        (dict(points={}), 'needs a point, a seed, and a value of each option'),
        (dict(draws={'steps': ()}), 'needs a point, a seed, and a value of each option'),
        (dict(points={'../up': POINTS['mdm']}), "'../up' names no point of a sweep"),
        (dict(draws={'step': (2,)}), r"no sampling option 'step' \(did you mean 'steps'\?\)"),
        (dict(seeds=(1, 1)), 'a seed comes twice: 1, 1'),
        (dict(num_images=2), 'num_images must be at least 4'),
        (dict(looks={}), 'looks of a sweep must name the same sampling options, one at least'),
        (dict(looks={'a': {'guidance': 1.0}, 'b': {}}), 'must name the same sampling options'),
        (dict(looks={'a': {'step': 1}}), r"no sampling option 'step' \(did you mean 'steps'"),
        (dict(figure=Figure('9', 'x', ('guidance',))), 'figure 9: nothing is drawn with several g'),
        (dict(draws={'steps': (0,)}), 'no point can be drawn from with steps=0: .* at least 1'),
        (dict(points={'emigm': POINTS['emigm']}), 'with order=confidence,steps=2: .*how probable'),
    ],
)
def test_a_sweep_that_makes_no_sense(changes, says):
    with pytest.raises(UserError, match=says):
        dataclasses.replace(SWEEP, **changes)


class Work:
    """Stands in for training and measuring, and counts."""

    def __init__(self, monkeypatch, stops_after=None):
        self.trained, self.measured, self.stops_after = [], [], stops_after
        monkeypatch.setattr(run, 'train', lambda config, folder: self.trained.append(folder.name))
        monkeypatch.setattr(run, 'load', lambda folder, batch_size: self.Model(folder.name))
        monkeypatch.setattr(run, 'evaluate', self.evaluate)

    @dataclasses.dataclass
    class Model:
        name: str

    def evaluate(self, model, num_images, work, **options):
        if len(self.measured) == self.stops_after:
            raise KeyboardInterrupt
        self.measured.append((model.name, *options.values()))
        accuracy = 0.1 * options['steps'] + (0.02 if model.name.endswith('5') else 0.0)
        return Result(
            {'accuracy': accuracy, 'frechet_distance': 1.0 / options['steps']},
            images=num_images,
            seconds_per_image=0.5 if model.name.endswith('0') else 0.25,
            settings={'nfe': 2 * options['steps']},
            real_halves={'accuracy': 0.99},
        )


def test_nothing_is_done_twice(tmp_path, monkeypatch):
    first = Work(monkeypatch, stops_after=3)
    with pytest.raises(KeyboardInterrupt):
        run.run(SWEEP, tmp_path)
    assert first.trained == ['emigm-0', 'emigm-5']
    assert run.scored(SWEEP, tmp_path)[1] == 12 - 3
    second = Work(monkeypatch)
    run.run(SWEEP, tmp_path)
    assert len(second.measured) == 12 - 3
    assert not {*first.measured} & {*second.measured}
    assert second.trained == ['emigm-5', 'mdm-0', 'mdm-5']  # what was trained returns at once
    third = Work(monkeypatch)
    run.run(SWEEP, tmp_path)
    assert not third.trained and not third.measured
    # Of other settings nothing is there.
    longer = load_sweep('comparison:smoke', ['--config.training.total=13 steps']).points['mdm']
    run.run(dataclasses.replace(SWEEP, points={**POINTS, 'mdm': longer}), tmp_path)
    assert third.trained == ['mdm-0', 'mdm-5']
    assert len(third.measured) == 8


def test_a_run_that_diverges_leaves_the_others(tmp_path, monkeypatch, capsys):
    work = Work(monkeypatch)

    def train(config, folder):
        if folder.name == 'emigm-5':
            raise NonFinite('the loss of step 3 is not finite')
        work.trained.append(folder.name)

    monkeypatch.setattr(run, 'train', train)
    monkeypatch.setattr(main_sweep, '_sweep', lambda *args: SWEEP)
    assert main.main(['sweep', '--config', 'digits:smoke', '--out', str(tmp_path)]) == 1
    assert work.trained == ['emigm-0', 'mdm-0', 'mdm-5']
    out, error = capsys.readouterr()
    assert out.count('emigm-5: the loss of step 3 is not finite') == error.count('emigm-5') == 1
    assert '2 measurements' in out  # are missing


def test_measurements_outlive_settings_that_are_added(monkeypatch):
    """A default decides no score, whenever it came; everything else does."""
    config = load_config('digits:smoke')
    identity = lambda config: tasks.Task('a', 0, config, {'steps': 2}).identity(20)
    before = identity(config)
    tasks._digest.cache_clear()
    flat = tasks.nested.flatten
    monkeypatch.setattr(tasks.nested, 'flatten', lambda tree: {**flat(tree), 'training.new': 'x'})
    assert identity(config) == before
    assert identity(dataclasses.replace(config, seed=1)) != before


def test_shares_make_up_the_whole(tmp_path, monkeypatch):
    for i in (1, 2, 3):
        work = Work(monkeypatch)
        run.run(SWEEP, tmp_path, share=(i, 3))
        assert len(work.trained) == (2 if i == 1 else 1)
        assert run.scored(SWEEP, tmp_path)[1] == {1: 6, 2: 4, 3: 0}[i]


def test_tables_and_pictures(tmp_path, monkeypatch):
    Work(monkeypatch)
    with pytest.raises(UserError, match='holds no measurement of this sweep'):
        write.write(SWEEP, tmp_path)
    run.run(SWEEP, tmp_path, share=(1, 2))
    assert '6 measurements of this sweep are not there yet' in write.write(SWEEP, tmp_path)
    run.run(SWEEP, tmp_path)
    shown = write.write(SWEEP, tmp_path)
    lines = (tmp_path / 'table.md').read_text().splitlines()
    assert lines[0] == '| **class accuracy (1-NN), more is better** | steps 2 | steps 4 |'
    # Two seeds 0.02 apart: the mean, and 0.02 / sqrt 2 / sqrt 2.
    assert '| mdm, confidence | 0.210 ± 0.010 | 0.410 ± 0.010 |' in lines
    assert '| real images, one half and the other | 0.990 |  |' in lines
    assert '| emigm, random | 4 | 8 |' in lines  # network evaluations
    assert '| emigm, random | 0.2500 | 0.2500 |' in lines  # seconds, without compilation
    assert shown.startswith(lines[0])
    with open(tmp_path / 'scores.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12
    assert rows[0] == {
        'point': 'emigm',
        'seed': '0',
        'order': 'random',
        'steps': '2',
        'accuracy': '0.2',
        'frechet_distance': '0.5',
        'nfe': '4.0',
        'seconds': '0.5',
    }
    for name in ('accuracy', 'frechet_distance'):
        assert (tmp_path / f'{name}.png').read_bytes()[1:4] == b'PNG'
    panels, names = table.panels(run.scored(SWEEP, tmp_path)[0])
    assert names == ['emigm, random', 'mdm, random', 'mdm, confidence']
    np.testing.assert_allclose(panels[0].curves[2].y, [0.21, 0.41])
    np.testing.assert_allclose(panels[0].curves[2].error, [0.01, 0.01])


def test_one_seed_has_no_error_and_words_no_curve(tmp_path, monkeypatch):
    Work(monkeypatch)
    sweep = Sweep({'mdm': POINTS['mdm']}, {'steps': (2,), 'order': ('random', 'halton')}, (0,), 20)
    run.run(sweep, tmp_path)
    write.write(sweep, tmp_path)
    assert '| mdm, 2 | 0.200 | 0.200 |' in (tmp_path / 'table.md').read_text()
    assert not [*tmp_path.glob('*.png')]


def test_a_score_that_some_lack(tmp_path, monkeypatch):
    work = Work(monkeypatch)
    measure = work.evaluate

    def evaluate(model, **options):
        result = measure(model, **options)
        if model.name.startswith('emigm'):
            del result.scores['frechet_distance']
        return result

    monkeypatch.setattr(run, 'evaluate', evaluate)
    run.run(SWEEP, tmp_path)
    write.write(SWEEP, tmp_path)
    assert '| emigm, random |  |  |' in (tmp_path / 'table.md').read_text()
    assert (tmp_path / 'frechet_distance.png').exists()


def test_a_foreign_file_among_the_scores(tmp_path, monkeypatch):
    Work(monkeypatch)
    run.run(SWEEP, tmp_path)
    file = tmp_path / 'scores/mdm-0/order=random,steps=2.json'
    value = json.loads(file.read_text())
    for wrong in ({**value, 'result': {}}, {**value, 'result': 3}, []):
        file.write_text(json.dumps(wrong))
        with pytest.raises(UserError, match=r'steps=2\.json: is no measurement of a sweep; remove'):
            run.scored(SWEEP, tmp_path)


@pytest.mark.parametrize(
    ('flags', 'says'),
    [
        (('comparisn',), "no sweep that comes with emigm_jax is called so (did you mean 'compar"),
        (('comparison:x',), "comparison:x: no variant 'x'; there are methods and smoke"),
        (('comparison', '--config', 'digits'), '--config goes without a file of a sweep'),
        (('comparison', '--config.training.totl=1'), 'training.totl: no such setting'),
        (('comparison', '--seeds', '1,1'), 'a seed comes twice: 1, 1'),
        (('comparison', '--num-images', '3'), 'num_images must be at least 4'),
        (('comparison', '--config.seed=3'), 'which seeds are trained, --seeds says'),
        (('--config', 'digits', '--vary', 'seed=1,2'), 'which seeds are trained, --seeds says'),
        ((), 'names neither a sweep nor a --config'),
        (
            ('--config', 'digits', '--vary', 'model.width'),
            "look like 'NAME=A,B', not 'model.width'",
        ),
        (('--config', 'digits', '--draw', 'order=confidence'), 'how probable what was drawn'),
        (('comparison', '--share', '3/2'), "--share must look like '1/2' or '2/2', not '3/2'"),
        (('ablations:figure=9',), "no variant 'figure=9'; there are figure=2a|2b|2c|2d|2e|3a|3b|"),
        (('ablations:figure=7,data=x',), '--config x: no such file'),
        (('comparison', '--commands', '--share', '1/2'), '--share is what --commands divides the'),
        (('comparison', '--table'), 'holds no measurement of this sweep'),
    ],
)
def test_what_makes_no_sense_is_one_line(flags, says, tmp_path, capsys):
    assert main.main(['sweep', *flags, '--out', str(tmp_path / 'out')]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count('\n') == 1
    assert not (tmp_path / 'out').exists()


def test_a_file_without_a_sweep(tmp_path, capsys):
    for text, says in (
        ('x = 1', f'{tmp_path}/mine.py: has no function get_sweep'),
        ('def get_sweep():\n    return 3', 'get_sweep returns no Sweep, but 3'),
        ('def get_sweep():\n    return 1 / 0', f'ZeroDivisionError: division by zero ({tmp_path}'),
    ):
        (tmp_path / 'mine.py').write_text(text)
        command = ['sweep', f'{tmp_path}/mine.py', '--out', f'{tmp_path}/out']
        assert main.main(command) == 2
        assert says in capsys.readouterr().err


@pytest.mark.slow
def test_trained_measured_and_tabled(tmp_path, capsys):
    out = tmp_path / 'out'
    command = ['sweep', '--config', 'digits:smoke', '--vary', 'loss.masking.schedule=exp,cosine']
    command += ['--draw', 'guidance=1,2', '--seeds', '0', '--num-images', '20', '--out', str(out)]
    command += ['--config.training.total=3 steps', '--config.training.warmup=1 step']
    assert main.main(command) == 0
    shown = capsys.readouterr().out
    assert '== schedule=cosine-0, run 2 of 2' in shown
    assert '| schedule=cosine | ' in (out / 'table.md').read_text()
    assert (out / 'recall.png').exists()
    assert len(list(pathlib.Path(out / 'scores').rglob('*.json'))) == 4
    assert main.main(command) == 0
    assert 'run 1' not in capsys.readouterr().out

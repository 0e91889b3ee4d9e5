"""The paper's figures as sweeps: what each trains and draws, shared runs, curves, claims."""

import csv
import dataclasses
import json
import types

import numpy as np
import pytest

from emigm_jax.checkpoints import runs
from emigm_jax.cli import main
from emigm_jax.config import stated
from emigm_jax.config.figures import Claim, Figure, Number
from emigm_jax.config.load import config_of, load_config, load_sweep
from emigm_jax.config.sweeps import Sweep
from emigm_jax.errors import UserError
from emigm_jax.evaluation.result import Result
from emigm_jax.sweep import figure, figure_text, run, tasks, write

SMOKE = config_of('digits:smoke', {'model.grid': 2, 'model.channels': 16})


def ablation(name, data='digits', *overrides):
    return load_sweep(f'ablations:figure={name},data={data}', overrides)


@pytest.mark.parametrize('name', stated.FIGURES)
def test_every_figure_of_every_data(name):
    for data in ('digits', 'digits64', 'digits:smoke', 'imagenet256:size=b', 'folder'):
        sweep = ablation(name, data)
        assert sweep.figure is not None
        assert sweep.figure.name == name
        for config in sweep.points.values():
            assert config.loss.masking.distribution == 'bernoulli'
        curves = {*sweep.points} | {*sweep.looks}
        for each in (*sweep.figure.claims, *sweep.figure.numbers):
            named = (each.better, each.worse) if isinstance(each, Claim) else (each.curve,)
            assert {*named} <= curves | {''}, each


def test_the_path_of_the_paper():
    """Each panel adopts what the one before found, so its first point is where that one ended."""
    ends = {name: [*ablation(name).points.values()] for name in ('2a', '2b', '2c', '2d', '2e', '7')}
    exp = ends['2b'][2]
    assert (exp.loss.masking.schedule, exp.loss.masking.weight) == ('exp', 'constant')
    assert (exp.model.mae, exp.model.shared_null, exp.loss.masking.t_min) == (False, False, 0.0)
    assert [c.loss.masking.weight for c in ends['2b'][4:]] == ['mdm'] * 3
    assert ends['2b'][4:] == ends['2a']
    assert ends['2c'] == [exp, ends['2d'][0]]
    assert ends['2d'][0].model.mae
    assert [c.loss.masking.t_min for c in ends['2d']] == [0.0, 0.2, 0.4]
    assert ends['2e'][0] == ends['2d'][1]
    assert ends['2e'][1] == ends['7'][0]
    assert (ends['7'][0].model.shared_null, ends['7'][0].loss.masking.t_min) == (True, 0.2)


def test_steps_scale_with_tokens():
    paper, ours = ablation('3b', 'imagenet256:size=b'), ablation('3b', 'digits64')
    assert paper.draws['steps'] == (8, 16, 32, 64, 128, 256)
    assert ours.draws['steps'] == (2, 4, 8, 16, 32, 64)
    assert ablation('8', 'imagenet256:size=b').draws['steps'] == (16,)
    assert (0.0, 1.0) in ablation('8').draws['interval']
    looks = ablation('3c').looks
    assert [looks[name]['interval'] for name in ('all steps', 'interval')] == [(0, 1), (0.1, 0.6)]


def test_runs_are_shared():
    own = {name: {*run.names(ablation(name))} for name in stated.FIGURES}
    assert own['3a'] == own['3b'] == own['3c'] == own['7'] == own['8'] < own['2e']
    assert len(own['2e'] & own['2d']) == 3
    assert own['2a'] < own['2b']
    assert own['7'] < own['4']
    for name in ('digits:best', 'imagenet256:size=b'):
        assert {*run.names(ablation('7', name))} < {*run.names(ablation('4', name))}
    assert not own['7'] & {*run.names(ablation('7', 'digits64'))}


def test_a_run_is_named_by_what_decides_its_weights():
    base = config_of(SMOKE, {'data.path': 'here'})
    name = lambda settings: (
        tasks.Task('a', base.seed, config_of(base, settings), {}, shared=True).run
    )
    for idle in (
        {'sampling.reveal.steps': 3},
        {'training.keep_every': '4 steps', 'training.log_every': '1 steps'},
        {'evaluation.num_images': 7},
    ):
        assert name(idle) == name({}), idle
    for other in (
        {'loss.masking.t_min': 0.3},
        {'training.total': '13 steps'},
        {'data.path': 'there'},
        {'model.mae': False},
    ):
        assert name(other) != name({}), other
    assert name({}).endswith('-0')


class Work:
    """Stands in for training and measuring, and counts."""

    def __init__(self, monkeypatch, value=lambda model, options: 1.0):
        self.trained, self.measured = [], 0
        self.value, self.places = value, {}
        for name in ('train', 'load', 'evaluate', 'checkpoint'):
            monkeypatch.setattr(run, name, getattr(self, name))
        monkeypatch.setattr(runs, 'finished', self.finished)

    def finished(self, folder):
        return [folder / '12'] if folder.name in self.places else []

    def train(self, config, folder):
        self.trained.append(folder.name)
        self.places[folder.name] = config

    def checkpoint(self, folder, share):
        return folder / str(round(12 * share))

    def load(self, place, batch_size):
        part = place.name.isdecimal()
        config = self.places[place.parent.name if part else place.name]
        step = int(place.name) if part else 12
        return types.SimpleNamespace(config=config, saved=types.SimpleNamespace(step=step))

    def evaluate(self, model, num_images, work, **options):
        self.measured += 1
        distance = self.value(model, options)
        return Result(
            {'accuracy': 0.5, 'frechet_distance': distance},
            images=num_images,
            seconds_per_image=0.5,
            settings={'nfe': 2 * options['steps']},
        )


def courses(**changes):
    """A sweep like Figure 2: two points along the training."""
    points = {
        name: config_of(SMOKE, {'loss.masking.t_min': t}) for name, t in (('a', 0), ('b', 0.2))
    }
    says = (
        Claim('b is better', 'Figure 0', 'b', 'a'),
        Claim('b is worse at first', 'Figure 0', 'a', 'b', place=0),
        Claim('it can be seen', 'Figure 0'),
    )
    numbers = (Number('b', 'epoch 400', 11.9, 'Table 0', 3),)
    drawn = Figure('0', 'Something', ('step', 'flops'), claims=says, numbers=numbers)
    return dataclasses.replace(
        Sweep(points, {'steps': (2, 4)}, seeds=(0, 1), num_images=20, figure=drawn), **changes
    )


def test_figures_share_runs_and_measurements(tmp_path, monkeypatch):
    work = Work(monkeypatch)
    run.run(courses(), tmp_path)
    assert len(work.trained) == 4
    assert work.measured == 2 * 2 * 4 * 2  # points, seeds, quarters, steps
    run.run(courses(), tmp_path)
    assert len(work.trained) == 4  # nothing is left to do
    last = courses(
        figure=Figure('1', 'Ends', ('steps',)), draws={'steps': (2, 4), 'order': ('random',)}
    )
    run.run(last, tmp_path)  # of runs that are there, drawn as they were, differently spelt
    assert len(work.trained) == 4
    guided = courses(figure=Figure('2', 'Guided', ('steps',)), looks={'': {'guidance': 3.0}})
    run.run(guided, tmp_path)  # a training would refuse where another process measures the run
    assert work.measured == 32 + 8
    assert len(work.trained) == 4
    assert run.scored(courses(), tmp_path)[1] == 0
    again = courses(num_images=24)
    assert run.scored(again, tmp_path)[1] == 32  # of more images nothing is there, and nothing lost


def test_points_of_the_same_settings_are_one_run(tmp_path, monkeypatch):
    """Or two shares of the work would train in one folder at the same time."""
    work = Work(monkeypatch)
    same = courses(points={'a': SMOKE, 'b': SMOKE})
    run.run(same, tmp_path, share=(1, 2))
    run.run(same, tmp_path, share=(2, 2))
    assert len(work.trained) == 2
    assert run.scored(same, tmp_path)[1] == 0


def test_curves_errors_and_verdicts(tmp_path, monkeypatch):
    def value(model, options):
        offset = 0.2 * model.config.seed  # of both points, so that differences have none
        better = model.config.loss.masking.t_min > 0.1 and model.saved.step > 6
        return 3.0 - model.saved.step / 12 + offset - 0.5 * better + options['steps']

    Work(monkeypatch, value)
    run.run(courses(), tmp_path)
    printed = write.write(courses(), tmp_path)
    scored = run.scored(courses(), tmp_path)[0]
    found = figure.curves(courses(), scored, 'step')
    assert [place.x for place in found['b']] == [3, 6, 9, 12]
    # Drawn the last way alone: 4 steps; the mean over two seeds, and 0.2 / sqrt 2 / sqrt 2.
    assert found['b'][-1].mean('frechet_distance') == pytest.approx((5.6, 0.1))
    # Whatever comes first, along anything but the training all of it is done.
    ends = figure.curves(courses(), scored[::-1], 'steps')['b']
    assert [place.mean('frechet_distance').value for place in ends] == pytest.approx([3.6, 5.6])
    flops = [place.x for place in figure.curves(courses(), scored, 'flops')['b']]
    np.testing.assert_allclose(np.array(flops) / flops[0], [1, 2, 3, 4])
    lines = (tmp_path / 'figure-0.md').read_text().splitlines()
    assert '| b | 6.850 ± 0.100 | 6.600 ± 0.100 | 5.850 ± 0.100 | 5.600 ± 0.100 |' in lines
    assert '| b | epoch 400 | 11.9 | 5.600 ± 0.100 at step 12 |' in lines
    assert '| b is better | Figure 0 | yes: better by 0.500 ± 0.000 |' in lines
    assert '| b is worse at first | Figure 0 | not told apart: better by 0.000 ± 0.000 |' in lines
    assert '| it can be seen | Figure 0 | see the curves |' in lines
    assert 'not there yet' not in printed
    with open(tmp_path / 'figure-0.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 32
    assert {row['run'] for row in rows} == {*run.names(courses())}
    assert [rows[0][name] for name in ('point', 'seed', 'steps', 'step')] == ['a', '0', '2', '3']
    for name in ('figure-0-step', 'figure-0-flops'):
        assert (tmp_path / f'{name}.png').read_bytes()[1:4] == b'PNG'
    panels, titles = figure.drawn(courses(), scored)
    assert titles == ['a', 'b']
    np.testing.assert_allclose(panels[0].curves[1].error, [0.1] * 4)


def test_what_lacks_is_said_and_pairs_are_of_the_same_seed(tmp_path, monkeypatch):
    Work(
        monkeypatch, lambda model, options: model.config.seed - 10 * model.config.loss.masking.t_min
    )
    run.run(courses(), tmp_path, share=(1, 4))  # a, seed 0
    run.run(courses(), tmp_path, share=(4, 4))  # b, seed 1
    write.write(courses(), tmp_path)
    text = (tmp_path / 'figure-0.md').read_text()
    assert 'no seed of both is there yet' in text
    assert '16 measurements of this sweep are not there yet' in text
    run.run(courses(), tmp_path, share=(3, 4))  # b, seed 0
    write.write(courses(), tmp_path)
    assert 'yes, by 2.000 (one seed)' in (tmp_path / 'figure-0.md').read_text()


def test_a_map_of_pairs(tmp_path, monkeypatch):
    pairs = ((0.0, 1.0), (0.1, 0.3), (0.1, 1.0))
    sweep = courses(
        points={'a': SMOKE},
        draws={'steps': (4,), 'interval': pairs},
        figure=Figure(
            '8',
            'Grid',
            ('interval',),
            both=True,
            numbers=(Number('a', 'all', 22.48, '8a', (0.0, 1.0)),),
        ),
    )
    Work(monkeypatch, lambda model, options: sum(options['interval']))
    run.run(sweep, tmp_path)
    write.write(sweep, tmp_path)
    lines = (tmp_path / 'figure-8.md').read_text().splitlines()
    assert '| a | 0.1-0.3 | 0.400 ± 0.000 |' in lines
    assert '| a | all | 22.48 | 1.000 ± 0.000 at interval 0-1 |' in lines
    for score in ('frechet_distance', 'accuracy'):
        assert (tmp_path / f'figure-8-{score}.png').read_bytes()[1:4] == b'PNG'
    (drawn, _), _ = figure.drawn(sweep, run.scored(sweep, tmp_path)[0])
    assert drawn.values[0.1, 1.0] == (1.1, 0.0)


def test_a_curve_for_each_look(tmp_path, monkeypatch):
    looks = {'few': {'solver_steps': 3}, 'many': {'solver_steps': 9}}
    sweep = courses(points={'a': SMOKE}, looks=looks, figure=Figure('3', 'Solver', ('nfe',)))
    Work(monkeypatch, lambda model, options: 1.0 / options['solver_steps'])
    run.run(sweep, tmp_path)
    found = figure.curves(sweep, run.scored(sweep, tmp_path)[0], 'nfe')
    assert {name: [p.x for p in places] for name, places in found.items()} == {
        'few': [4, 8],
        'many': [4, 8],
    }
    assert found['many'][0].mean('frechet_distance').value == pytest.approx(1 / 9)
    assert '| few | 4 | 0.333 ± 0.000 |' in figure_text.markdown(
        sweep, run.scored(sweep, tmp_path)[0]
    )


def test_a_quarter_is_a_checkpoint(tmp_path, monkeypatch):
    found = lambda *steps: monkeypatch.setattr(
        run.runs, 'finished', lambda folder: [tmp_path / str(step) for step in steps]
    )
    found(1000, 752, 500, 250)
    assert run.checkpoint(tmp_path, 0.75).name == '752'  # durations are rounded to steps
    for steps in ((1000,), ()):
        found(*steps)
        with pytest.raises(UserError, match=r'no checkpoint of step .* would have kept; remove it'):
            run.checkpoint(tmp_path, 0.25)


def test_quarters_are_kept(tmp_path, monkeypatch):
    work = Work(monkeypatch)
    for total, every, kept, saved in (
        ('800 epochs', '5 epochs', '200 epochs', '5 epochs'),
        ('12 steps', '6 steps', '3 steps', '3 steps'),
        ('12 steps', '0 steps', '3 steps', '3 steps'),
        ('12 epochs', '1 steps', '3 epochs', '3 epochs'),
    ):
        settings = {'training.total': total, 'training.checkpoint_every': every}
        sweep = courses(points={'a': config_of(SMOKE, settings)}, seeds=(0,))
        run.run(sweep, tmp_path)
        training = work.places[work.trained[-1]].training
        assert (training.keep_every, training.checkpoint_every) == (kept, saved)


def test_what_cannot_be_measured_is_not_trained(tmp_path, monkeypatch):
    work = Work(monkeypatch)
    with pytest.raises(UserError, match=r'is measured against evaluation.reference: say --config'):
        run.run(ablation('7', 'imagenet256:size=b,tiny'), tmp_path)
    assert not work.trained


def test_one_job_per_run(tmp_path, monkeypatch, capsys):
    out = str(tmp_path / 'my runs')
    command = ['sweep', 'ablations:figure=2e,data=digits:smoke', '--num-images', '20', '--out', out]
    flags = ['--seeds', '0', '--config.training.total=8 steps']
    assert main.main([*command, *flags, '--commands']) == 0
    first, second, last = capsys.readouterr().out.splitlines()
    start = "emigm sweep ablations:figure=2e,data=digits:smoke --num-images 20 --out '"
    assert first.startswith(start)
    assert first.endswith("--seeds 0 '--config.training.total=8 steps' --share 1/2")
    assert second.endswith(' --share 2/2')
    assert last.endswith(' --table')
    Work(monkeypatch)
    assert main.main([*command, *flags, '--share', '1/2']) == 0
    capsys.readouterr()
    assert main.main([*command, *flags, '--commands']) == 0
    assert [line[-11:] for line in capsys.readouterr().out.splitlines()[:-1]] == ['--share 2/2']


@pytest.mark.slow
def test_a_figure_trained_measured_and_drawn(tmp_path, capsys):
    sweep = courses(points={'a': load_config('digits:smoke')}, draws={'steps': (2,)}, seeds=(0,))
    run.run(sweep, tmp_path)
    write.write(sweep, tmp_path)
    assert 'step 3 | step 6 | step 9 | step 12 |' in (tmp_path / 'figure-0.md').read_text()
    assert (tmp_path / 'figure-0-flops.png').exists()
    files = [*(tmp_path / 'scores').rglob('*.json')]
    found = {json.loads(file.read_text())['costs']['step']: file for file in files}
    assert sorted(found) == [3, 6, 9, 12]
    flops = [json.loads(found[step].read_text())['costs']['flops'] for step in sorted(found)]
    assert flops == sorted(flops)
    capsys.readouterr()
    run.run(sweep, tmp_path)
    assert not capsys.readouterr().out  # nothing is left to do

"""Tuning a checkpoint: files that are found again, the preset in the copy, mistakes in one line.

Drawing and measuring are stood in for; a slow test and the example of `em.tune` draw.
"""

import csv
import dataclasses
import json
import math

import numpy as np
import pytest
from PIL import Image

import emigm_jax as em
from emigm_jax.checkpoints import runs
from emigm_jax.cli import main
from emigm_jax.config import recipes
from emigm_jax.evaluation import inception
from emigm_jax.evaluation.result import Result
from emigm_jax.tokenizers.codec import NonFinite
from emigm_jax.tuning import lab, show
from support import narrow_inception
from support.pictures import scene
from support.runs import run, state  # noqa: F401 (fixtures)

EFFORT = em.Effort(images=40, candidates=6, say=lambda line: None)
BUDGET = 0.1


@pytest.fixture(scope='module')
def model(run):
    return em.load(run)


class Work:
    """Stands in for drawing: a way takes as long as its NFE; it likes Halton, and guidance 3."""

    def __init__(self, monkeypatch, stops_after=None):
        self.timed, self.measured, self.folders, self.stops_after = [], [], [], stops_after
        monkeypatch.setattr(lab, '_seconds', self.seconds)
        monkeypatch.setattr(lab, '_evaluator', lambda *_: None)
        monkeypatch.setattr(lab.evaluator, 'measure', self.measure)

    def _did(self, what, where):
        if len(self.timed) + len(self.measured) == self.stops_after:
            raise KeyboardInterrupt
        where.append(what)

    def seconds(self, make, classes):
        self._did(make.sampler.program, self.timed)
        return 0.01 * make.nfe

    def measure(self, evaluator, images, work):
        sampling = work.about['sampling']
        if sampling['reveal']['guidance'] > 6:
            raise NonFinite('3 of 40 images are not finite')
        self._did((json.dumps(sampling), len(images)), self.measured)
        if work.folder is not None:
            (work.folder / 'part').mkdir(parents=True)
            self.folders.append(work.folder)
        reveal = sampling['reveal']
        away = abs(reveal['guidance'] - 3.0) + (reveal['order'] != 'halton')
        away += 0.01 * sampling['seed']
        scores = {'frechet_distance': 0.1 + away, 'fid': 5 + away}
        return Result(scores, len(images), 0.01, {'nfe': work.about['nfe']})


def test_the_best_becomes_a_preset_of_a_copy(run, model, tmp_path, monkeypatch):
    Work(monkeypatch)
    tuned = em.tune(model, tmp_path, BUDGET, effort=EFFORT)
    own, copy = runs.require(run), runs.require(tuned.checkpoint)
    assert copy.presets == {'tuned': tuned.preset}
    assert copy.sampling('tuned') == model.sampling(**tuned.options)
    assert copy.config.sampling == own.config.sampling != tuned.preset
    assert tuned.seconds <= BUDGET and tuned.score < 0.1 + 2.0  # that of its own
    place = tmp_path / 'tuned'
    assert (place / 'table.md').read_text() == tuned.table
    assert (place / 'front.png').read_bytes()[1:4] == b'PNG'
    (row,) = [line for line in tuned.table.splitlines() if line.startswith('| tuned |')]
    # The mean of three base seeds, 0.01 apart, and its error.
    assert f'| {tuned.score:.3f} | {tuned.score + 0.02:.3f} ± 0.006 |' in row
    with open(place / 'candidates.csv', newline='') as file:
        lines = {line['name']: line for line in csv.DictReader(file)}
    assert float(lines['tuned']['frechet_distance']) == tuned.score
    assert lines['tuned']['on_front'] == 'True'
    assert lines['own']['guidance'] == '2.0' and lines['own']['interval'] == '0.1-0.6'


def test_nothing_is_measured_twice(model, tmp_path, monkeypatch):
    whole = Work(monkeypatch)
    expected = em.tune(model, tmp_path / 'whole', BUDGET, effort=EFFORT)
    done = len(whole.timed) + len(whole.measured)
    assert len({*whole.timed}) == len(whole.timed)  # one program, one time
    assert len({*whole.measured}) == len(whole.measured)
    timed, measured = [], []
    for stops_after in (3, 8, None):
        work = Work(monkeypatch, stops_after)
        try:
            tuned = em.tune(model, tmp_path / 'killed', BUDGET, effort=EFFORT)
        except KeyboardInterrupt:
            assert not (tmp_path / 'killed/tuned').exists()
        timed, measured = timed + work.timed, measured + work.measured
    assert tuned[:5] == expected[:5]
    assert (timed, measured) == (whole.timed, whole.measured)
    again = Work(monkeypatch, stops_after=0)
    assert em.tune(model, tmp_path / 'killed', BUDGET, effort=EFFORT) == tuned
    # A larger search with another budget begins with what is there.
    more = dataclasses.replace(EFFORT, candidates=10)
    again.stops_after = None
    em.tune(model, tmp_path / 'killed', 2 * BUDGET, name='more', effort=more)
    assert 0 < len(again.timed) + len(again.measured) < done
    assert not {*again.measured} & {*measured}


def test_settings_of_one_program_take_equally_long(model, tmp_path, monkeypatch):
    work = Work(monkeypatch)
    at = lab.Lab(model, lab.Against(), tmp_path, EFFORT.say)
    seconds = {guidance: at.seconds(model.sampling(guidance=guidance)) for guidance in (2.0, 3.0)}
    assert seconds == {2.0: 0.06, 3.0: 0.06} and len(work.timed) == 1
    assert at.seconds(model.sampling(guidance=1.0)) == 0.04 and len(work.timed) == 2


def test_published_presets_stay(model, tmp_path, monkeypatch):
    """They are compared with, and go into the copy."""
    published = recipes.sampling('emigm', 256, 'b')
    monkeypatch.setattr(recipes, 'sampling_of', lambda model: published)
    Work(monkeypatch)
    tuned = em.tune(model, tmp_path, 1.0, effort=EFFORT)
    assert runs.require(tuned.checkpoint).presets == {**published, 'tuned': tuned.preset}
    assert '| fast |' in tuned.table and '| best |' in tuned.table
    with pytest.raises(em.UserError, match="has a preset 'fast' already"):
        em.tune(model, tmp_path, 1.0, name='fast', effort=EFFORT)


def test_an_interrupted_fid_goes_on_where_it_was(model, tmp_path, monkeypatch):
    """And what was saved on the way is gone when it is measured."""
    work = Work(monkeypatch)
    tuned = em.tune(
        model, tmp_path, BUDGET, reference='real.npz', inception='fid-inception', effort=EFFORT
    )
    assert tuned.score < 5 + 2.0
    assert len({*work.folders}) == len(work.measured)
    assert not any(folder.exists() for folder in work.folders)
    assert '| FID, 40 images |' in tuned.table


def test_own_settings_may_be_the_best(model, tmp_path, monkeypatch):
    work = Work(monkeypatch)
    monkeypatch.setattr(
        lab.evaluator,
        'measure',
        lambda evaluator, images, about: dataclasses.replace(
            work.measure(evaluator, images, about),
            scores={'frechet_distance': float(about.about['nfe'] != 6)},
        ),
    )
    monkeypatch.setattr(lab, '_seconds', lambda make, classes: 0.01 + 0.01 * (make.nfe != 6))
    tuned = em.tune(model, tmp_path, BUDGET, effort=dataclasses.replace(EFFORT, candidates=2))
    assert tuned.options == {} and '| tuned = own | 0.000 |' in tuned.table


def test_a_table_and_a_picture_of_one(model):
    """Nothing but one setting, and no other curve."""
    row = show.Row('tuned', show.Tried(model.config.sampling, 0.01, 2.0), 4, '', (2.0, 2.2))
    shown = show.Shown([row], 'fid', 40, 0.02)
    assert '| tuned | 2.000 | 2.100 ± 0.100 | 0.01 | 4 |' in show.markdown(shown)
    broken = shown._replace(rows=[row._replace(fresh=(2.0, math.inf))])
    assert '| tuned | 2.000 | not finite | 0.01 | 4 |' in show.markdown(broken)
    panel, _ = show.panel(shown)
    assert [curve.kind for curve in panel.curves] == ['joined', 'measured', 'usual']
    assert panel.curves[-1].x.tolist() == [20.0, 20.0] and panel.x.startswith('milliseconds')


@pytest.mark.parametrize(
    ('flags', 'says'),
    [
        (('RUN', '--budget', '1e-9'), 'nothing meets the budget of 1e-09 s per image: the fastest'),
        (('RUN', '--budget', 'soon'), "--budget must look like '0.05' or '50 ms per image'"),
        (('RUN', '--budget', '1', '--name', 'a/b'), "'a/b' is no name for a preset"),
        (('RUN', '--budget', '1', '--name', '..'), "'..' is no name for a preset"),
        (('RUN', '--budget', '1', '--name', 'measurements'), 'is no name for a preset'),
        (('RUN', '--budget', '1', '--reference', 'x.npz'), 'reference and inception go together'),
        (('RUN', '--budget', '1', '--out', 'RUN'), 'holds something else'),
        (('nowhere', '--budget', '1'), 'nowhere: no such checkpoint'),
        (('--budget', '1'), 'tune: names one CHECKPOINT'),
        (('RUN', '--checkpoint', 'RUN', '--budget', '1'), 'tune: names one CHECKPOINT'),
        (('RUN', '--budget', '1', '--candidates', '0'), '--candidates'),
    ],
)
def test_mistakes_are_one_line(flags, says, run, tmp_path, monkeypatch, capsys):
    Work(monkeypatch)
    monkeypatch.chdir(tmp_path)
    flags = [str(run) if flag == 'RUN' else flag for flag in flags]
    assert main.main(['tune', *flags]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count('\n') == 1
    assert not (tmp_path / 'tuning/tuned').exists()


def test_other_settings_in_the_same_folder(run, model, tmp_path, monkeypatch):
    Work(monkeypatch)
    em.tune(model, tmp_path, BUDGET, effort=EFFORT)
    with pytest.raises(em.UserError, match=r'budget = 0\.1, not 0\.2; choose another --name'):
        em.tune(model, tmp_path, 0.2, effort=EFFORT)
    with pytest.raises(em.UserError, match='a model with batch_size = 64, not 32'):
        em.tune(em.load(run, batch_size=32), tmp_path, BUDGET, effort=EFFORT)
    for other, says in (
        (em.load(run, weights='params'), 'EMA weights'),
        (em.load(run, guide=run), 'without a guide'),
    ):
        with pytest.raises(em.UserError, match=says):
            em.tune(other, tmp_path, BUDGET, effort=EFFORT)
    for file in (tmp_path / lab.MEASUREMENTS).glob('*.json'):
        file.write_text('{}')
    with pytest.raises(em.UserError, match=r'\.json: is no measurement of settings; remove it'):
        em.tune(model, tmp_path, BUDGET, effort=EFFORT)


def test_the_command(run, tmp_path, monkeypatch, capsys):
    Work(monkeypatch)
    flags = ['--budget', '100 ms per image', '--candidates', '2', '--images', '40']
    assert main.main(['tune', '--checkpoint', str(run), *flags, '--dry-run']) == 0
    assert 'steps: 1, 2, 3, 4\n' in capsys.readouterr().out
    assert main.main(['tune', str(run), *flags, '--out', str(tmp_path / 'out')]) == 0
    shown = capsys.readouterr().out
    assert '| own | ' in shown and f'{tmp_path}/out/tuned/checkpoint --preset tuned: 0.' in shown
    assert json.loads((tmp_path / 'out/tuned/settings.json').read_text())['budget'] == 0.1


def test_a_time_is_that_of_a_program_that_is_warm(monkeypatch):
    """The first batch, which is compiled, does not count; the fastest of the others does."""
    clock = iter([0.0, 0.1, *(t for i in range(8) for t in (200.0 + 2 * i, 201.0 + 2 * i - 0.1))])
    monkeypatch.setattr(lab.time, 'perf_counter', lambda: next(clock))

    class Make:
        batch_size, calls = 4, 0

        def batch(self, labels, seeds):
            self.calls += 1
            raise NonFinite('images are not finite')

    make = Make()
    assert lab._seconds(make, 3) == pytest.approx(0.9 / 4)
    assert make.calls == 1 + lab._LEAST_TIMES


@pytest.mark.slow
def test_fid_is_that_of_the_preset(run, tmp_path, monkeypatch, capsys):
    """Drawn and measured for real, against a folder of pictures."""
    narrow_inception.install(monkeypatch.setattr)
    monkeypatch.setattr(lab, '_LEAST_SECONDS', 0.0)
    network, pictures = tmp_path / 'fid', tmp_path / 'pictures'
    inception.save(network, narrow_inception.random_weights())
    pictures.mkdir()
    for i in range(12):
        Image.fromarray(scene(np.random.default_rng(i), 8, 8)).save(pictures / f'{i}.png')
    against = ['--reference', str(pictures), '--inception', str(network)]
    command = ['tune', str(run), '--budget', '100', '--candidates', '2', '--images', '24']
    assert main.main([*command, *against, '--out', str(tmp_path / 'out')]) == 0
    (row,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith('| tuned')]
    model = em.load(tmp_path / 'out/tuned/checkpoint')
    result = em.evaluate(
        model,
        reference=pictures,
        inception=network,
        metrics=('fid',),
        num_images=24,
        preset='tuned',
    )
    assert row.split(' | ')[1] == f'{result.scores["fid"]:.3f}'
    assert not [*(tmp_path / 'out/unfinished').glob('*')]

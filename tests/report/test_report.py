"""`emigm report`: what it reads, which numbers land in the pictures, and the page itself."""

import html.parser
import io
import json
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from emigm_jax.cli import main
from emigm_jax.config import curves, nested, published
from emigm_jax.config.load import load_config
from emigm_jax.errors import UserError
from emigm_jax.evaluation.score_table import SCORES
from emigm_jax.io.paths import absolute
from emigm_jax.report import gather, page, panels, plots, tables, write
from support import synthetic_runs as synthetic

AWKWARD = '$_x<td><script>alert(1)<script>"&amp;\''  # of a folder


def config_of(name):
    """config.json of a run of a shipped config of digits."""
    config = nested.as_dict(load_config(name))
    return {**config, 'model': {**config['model'], 'grid': 2, 'channels': 16, 'classes': 10}}


def only(paths):
    (run,) = gather.gather([paths])
    return run


@pytest.fixture
def undrawn(monkeypatch):
    """Pages whose figures are one pixel each, as drawing takes most of the time."""
    content = io.BytesIO()
    Image.new('L', (1, 1)).save(content, 'PNG')
    monkeypatch.setattr(plots, 'png', lambda *_: content.getvalue())


# Reading


def test_a_workdir(tmp_path):
    run = only(synthetic.workdir(tmp_path / 'a', fids={2000: 12.5, 1000: 30.0}, grids=[1000, 3000]))
    assert (run.name, run.step, run.total) == ('a', 3000, None)  # it is at its end
    steps, losses = run.column('loss')
    np.testing.assert_array_equal(steps, [1000, 2000, 3000])
    np.testing.assert_array_equal(losses, [1.5 + 300 / (s + 100) for s in steps])
    assert [(e.step, e.scores['fid']) for e in run.evaluations] == [(1000, 30.0), (2000, 12.5)]
    assert [e.image_size for e in run.evaluations] == [256, 256]
    assert run.settings['model.width'] == 768
    assert [(grid.step, grid.name) for grid in run.grids] == [
        (1000, '00001000.png'),
        (3000, '00003000.png'),
    ]
    assert run.notes == ()


def test_a_run_that_goes_on(tmp_path):
    run = only(synthetic.workdir(tmp_path / 'a', total=12_345))
    assert run.total == 12_345  # by the time left and the speed on the last line
    assert tables.overview([run]).rows[0][1] == '3,000 of 12,345: goes on, or was stopped'


def test_metrics_that_are_damaged():
    good = json.dumps(synthetic.training_line(10, 30))
    text = '\n'.join(
        [
            good,
            json.dumps(synthetic.training_line(20, 30, loss='nan', vlb='-inf')),
            '{"step": "x"}',
            '[1]',
            json.dumps(synthetic.training_line(10, 30, loss=7.0)),
            '{"step": 30, "loss": 3.0, "mse": NaN, "vlb": true}',
            '{"step": 40, "loss": 1.',
        ]
    )
    lines, evaluations, notes = gather.training(text)
    assert [line['step'] for line in lines] == [10, 20, 30]
    assert lines[0]['loss'] == 7.0  # of two lines of a step the last one
    assert np.isnan(lines[1]['loss']) and lines[1]['vlb'] == -np.inf
    assert 'vlb' not in lines[2]
    assert evaluations == []
    assert notes == [
        'the last line of metrics.jsonl is cut off and left out',
        '2 lines of metrics.jsonl cannot be read and are left out',
        'loss is not finite once at step 20',
        'vlb is not finite once at step 20',
        'mse is not finite once at step 30',
    ]
    assert gather.training(good + '\n' + '{"step"\n')[2] == [
        '1 line of metrics.jsonl cannot be read and is left out'
    ]
    assert gather.training('') == ([], [], ['no line of training metrics yet'])


def test_results_of_evaluate(tmp_path):
    folder = synthetic.evaluated(tmp_path / 'evaluation', 3.25)
    run = only(folder)
    assert only(folder / 'result.json') == run
    (folder / 'copy.json').write_text((folder / 'result.json').read_text())
    assert len(only(folder).measurements) == 1
    assert (run.name, run.trained) == ('evaluation', False)
    (e,) = run.measurements
    assert (e.scores['fid'], e.nfe, e.nfe_label, e.seconds) == (3.25, 19.2, '16x1.2', 0.5)
    assert (e.step, e.result.images, e.image_size) == (3000, 50_000, 256)
    assert e.sampling == 'K = 16, guidance 4.0 in (0.1, 0.3], dpm 8'
    value = json.loads((folder / 'result.json').read_text())
    value['settings']['guide'] = 'a fingerprint'
    (tmp_path / 'guided.json').write_text(json.dumps(value))
    assert (
        'guidance 4.0 by another model' in only(tmp_path / 'guided.json').measurements[0].sampling
    )
    assert tables.not_computed([run])[0].startswith('evaluation: no sfid, the reference has no mu')


def test_scores_of_digits(tmp_path):
    (tmp_path / 'scores.json').write_text(json.dumps(synthetic.pixel_scores()))
    run = only(tmp_path / 'scores.json')
    (e,) = run.measurements
    assert e.pixels and e.nfe == 6.0 and e.step == 900
    table = tables.scores([run])
    assert table.rows[0][:5] == ('scores', '0.9500', '0.250', '0.4500', '0.7000')
    assert table.rows[1][:5] == (
        'one half of the real images against the other',
        '0.9800',
        '0.060',
        '0.9000',
        '0.9100',
    )
    # Beside results of another kind: what a row has no value of stays empty.
    other = only(synthetic.evaluated(tmp_path / 'evaluation', 3.25))
    both = tables.scores([run, other])
    assert both.heads[:4] == (
        'images of',
        *map(tables.head, ('fid', 'inception_score', 'accuracy')),
    )
    assert both.rows[0][:4] == ('scores', tables.NONE, tables.NONE, '0.9500')
    assert both.rows[1][:4] == ('evaluation', '3.250 ± 0.050', '200.00 ± 2.50', tables.NONE)


def test_the_best_of_what_is_measured_alike_stands_out(tmp_path):
    few = {'images': 5000}
    for name, fid, changes in (('a', 3.0, {}), ('b', 2.0, {'recall': 0.4}), ('c', 1.0, few)):
        content = {**synthetic.result(1.0)['settings'], 'content': name}
        synthetic.evaluated(tmp_path / name, fid, settings=content, **changes)
    table = tables.scores(gather.gather([tmp_path]))
    best = {(table.rows[row][0], table.heads[column][:-2]) for row, column in table.best}
    # More recall is better; 5,000 images are another measurement; equal ones say nothing.
    assert best == {('b', 'FID'), ('a', 'recall (k=3)')}
    assert table.under[0].startswith('step 3,000, weights 0.9999, K = 16, guidance 4.0 in (0.1')
    assert [head[-1] for head in table.heads[1:4]] == ['↓', '↑', '↑']


def test_what_was_trained_where_and_how_long(tmp_path):
    synthetic.workdir(tmp_path / 'a')
    run = synthetic.workdir(tmp_path / 'b')
    about = {'parameters': '1,568,224', 'devices': '8 x cpu', 'command': 'emigm train <b>'}
    (run / 'about.json').write_text(json.dumps(about))
    # A second process went on from step 2000, and counted from 0.
    lines = [
        {**synthetic.training_line(s, 3), 'elapsed_seconds': t}
        for s, t in ((1000, 1800.0), (2000, 3600.0), (3000, 1260.0))
    ]
    (run / 'metrics.jsonl').write_text('\n'.join(map(json.dumps, lines)))
    runs = gather.gather([tmp_path])
    table = tables.made(runs)
    assert (table.heads, table.runs) == (('run', 'parameters', 'devices'), (1,))
    assert table.rows == (('b', '1,568,224', '8 x cpu'),)
    overview = tables.overview(runs)
    assert [row[overview.heads.index('time')] for row in overview.rows] == [tables.NONE, '1:21 h']
    assert tables.made(runs[:1]) is None


def test_scores_that_round_to_zero_have_no_sign(tmp_path):
    folder = synthetic.evaluated(tmp_path / 'a', -1e-7, kid=-1e-9, kid_std=1e-9)
    row = tables.scores([only(folder)]).rows[0]
    assert (row[1], row[-4]) == ('0.000 ± 0.050', '0.000000 ± 0.000000')
    assert SCORES['kid'].text(-2e-6) == '-0.000002'  # it may be below zero


def test_folders_of_folders(tmp_path):
    a = synthetic.workdir(tmp_path / 'runs/a')
    synthetic.workdir(tmp_path / 'runs/b')
    synthetic.evaluated(a / 'evaluation', 9.0)
    (a / 'scores.json').write_text(json.dumps(synthetic.pixel_scores()))
    (a / 'other.json').write_text('not JSON')
    (a / 'same.json').write_text((a / 'evaluation/result.json').read_text())  # as --json does
    # Two of the same weights, one of others, and something else with a config.json.
    for name, content in (('fast', 'w'), ('best', 'w'), ('other', 'v')):
        settings = {**synthetic.result(1.0)['settings'], 'content': content}
        synthetic.evaluated(tmp_path / 'runs' / name, 5.0, settings=settings)
    (tmp_path / 'runs/model').mkdir()
    (tmp_path / 'runs/model/config.json').write_text('{"architectures": []}')
    runs = gather.gather([tmp_path / 'runs', a])
    assert [run.name for run in runs] == ['a', 'b', 'best', 'other']
    assert [len(run.measurements) for run in runs] == [2, 0, 2, 1]
    assert {e.name for e in runs[0].measurements} == {'same', 'scores'}
    assert [e.name for e in runs[2].measurements] == ['best', 'fast']
    assert 'left out' in runs[0].notes[0] and 'other.json: is no JSON' in runs[0].notes[0]


def test_runs_come_in_the_order_of_their_numbers(tmp_path):
    for name in ('run-10', 'run-9', 'a'):
        synthetic.workdir(tmp_path / name)
    assert [run.name for run in gather.gather([tmp_path])] == ['a', 'run-9', 'run-10']


def test_names_differ(tmp_path):
    for path in ('x/run', 'y/run', 'z'):
        synthetic.workdir(tmp_path / path)
    runs = gather.gather([tmp_path / 'x/run', tmp_path / 'y/run', tmp_path / 'z'])
    assert [run.name for run in runs] == ['x/run', 'y/run', 'z']


def test_settings_that_differ(tmp_path):
    a = only(synthetic.workdir(tmp_path / 'a'))
    config = {**synthetic.IMAGENET, 'model': {'grid': 16, 'channels': 16, 'width': 1024}, 'seed': 1}
    b = only(synthetic.workdir(tmp_path / 'b', config=config))
    c = only(synthetic.workdir(tmp_path / 'c', config=None))
    differing, shared = tables.settings([a, b, c])
    assert differing.heads == ('setting', 'a', 'b')
    assert differing.rows == (('model.width', '768', '1024'), ('seed', tables.NONE, '1'))
    assert ('optimizer.ema_decays', '0.9999') in shared.rows
    assert tables.settings([a, a])[0] is None


def test_torn_pictures_are_left_out(tmp_path):
    run = synthetic.workdir(tmp_path / 'a', grids=[1000, 2000])
    torn = run / 'samples/00002000.png'
    torn.write_bytes(torn.read_bytes()[:-300])
    found = only(run)
    assert [grid.step for grid in found.grids] == [1000]
    assert found.notes == ('left out: samples/00002000.png is no whole PNG',)


def test_nothing_but_png_is_opened(tmp_path, monkeypatch):
    """Ghostscript would be started by a grid of samples that is EPS."""
    run = synthetic.workdir(tmp_path / 'a', grids=[1000])
    monkeypatch.setattr(EpsImagePlugin, 'Ghostscript', lambda *_, **__: pytest.fail('started'))
    Image.new('RGB', (8, 8)).save(run / 'samples/00001000.png', 'EPS')
    assert only(run).notes == ('left out: samples/00001000.png is no whole PNG',)


# What is drawn


def axes_of(panel, names):
    (axes,) = plots.figure(panel, names).axes
    return axes


def data(axes):
    return [line.get_xydata() for line in axes.lines]


def published_points(panel):
    return [
        (c.name, c.kind, x, y)
        for c in panel.curves
        if c.run is None
        for x, y in zip(c.x, c.y, strict=True)
    ]


def by_name(found):
    return {panel.name: panel for panel in found}


def test_curves_of_training(tmp_path):
    synthetic.workdir(tmp_path / 'a')
    synthetic.workdir(tmp_path / 'b', steps=[500, 1000], loss='nan')
    runs = gather.gather([tmp_path])
    found = by_name(panels.training(runs))
    assert list(found) == list(panels.TRAINING)
    loss = axes_of(found['loss'], ['a', 'b'])
    (line,) = [
        line for line in loss.lines if len(line.get_xdata()) == 3
    ]  # b never had a finite one
    np.testing.assert_allclose(line.get_xydata(), np.stack(runs[0].column('loss'), 1))
    assert line.get_color() == plots.COLOURS[0]
    rate = axes_of(found['learning_rate'], ['a', 'b'])
    assert [line.get_color() for line in rate.lines] == list(plots.COLOURS[:2])
    np.testing.assert_array_equal(data(rate)[1], [[500, 2e-4], [1000, 4e-4]])
    assert rate.get_ylim()[0] == 0
    assert (rate.get_xlabel(), rate.get_ylabel()) == ('training step', 'learning rate')


def test_the_loss_is_set_beside_what_is_usual(tmp_path):
    digits, other = (config_of(name) for name in ('digits', 'digits:best'))
    for name, config in (('a', digits), ('b', other), ('c', synthetic.IMAGENET)):
        synthetic.workdir(tmp_path / name, config=config)
    a, b, c = gather.gather([tmp_path])
    known = curves.reference(a.settings)
    loss = by_name(panels.training([a, b]))['loss']
    drawn = [xy for xy in data(axes_of(loss, ['a', 'b'])) if len(xy) == len(known.steps)]
    np.testing.assert_allclose(drawn[0], np.stack([known.steps, known.losses], 1))
    assert loss.caption == f'Usual, dashed grey: {known.origin}.'
    assert by_name(panels.training([b]))['loss'].caption == ''
    published_ones = by_name(panels.training([c, c]))['loss']
    assert published_ones.levels == (1.74, 0.25) and 'LTH14/mar#20' in published_ones.caption
    assert not by_name(panels.training([a]))['mse'].caption


def test_scales_of_curves(tmp_path):
    wide = synthetic.workdir(tmp_path / 'a')
    lines = [synthetic.training_line(s, 9, gradient_norm=n) for s, n in ((1, 500.0), (2, 0.5))]
    (wide / 'metrics.jsonl').write_text('\n'.join(map(json.dumps, lines)))
    found = by_name(panels.training([only(wide)]))
    assert axes_of(found['gradient_norm'], ['a']).get_yscale() == 'log'
    assert axes_of(found['loss'], ['a']).get_yscale() == 'linear'
    # A zero has no logarithm.
    lines.append(synthetic.training_line(3, 9, gradient_norm=0.0))
    (wide / 'metrics.jsonl').write_text('\n'.join(map(json.dumps, lines)))
    found = by_name(panels.training([only(wide)]))
    assert axes_of(found['gradient_norm'], ['a']).get_yscale() == 'linear'


def test_long_curves_are_smoothed_over_their_own_values():
    values = np.random.default_rng(0).standard_normal(1000) + 3.0
    smooth = plots.smoothed(values)
    np.testing.assert_allclose(smooth[500], values[490:511].mean())
    np.testing.assert_allclose(smooth[2], values[:5].mean())
    np.testing.assert_allclose(smooth[-1], values[-11:].mean())
    curve = panels.Curve(0, np.arange(1000.0), values)
    axes = axes_of(panels.Panel('p', 'P', 'x', 'y', (curve,)), ['a'])
    np.testing.assert_array_equal(data(axes)[0][:, 1], values)
    np.testing.assert_array_equal(data(axes)[1][:, 1], smooth)


def test_fid_over_steps(tmp_path):
    a = synthetic.workdir(tmp_path / 'a', fids={1000: 80.0, 2000: 40.0, 3000: 'inf'})
    synthetic.evaluated(a / 'evaluation', 5.0)
    b = synthetic.workdir(tmp_path / 'b', fids={500: 60.0})
    runs = gather.gather([a, b])
    assert 'fid is not finite once at step 3,000' in runs[0].notes
    found = by_name(panels.over_steps(runs))
    assert list(found) == ['fid_over_steps', 'inception_score_over_steps']
    axes = axes_of(found['fid_over_steps'], ['a', 'b'])
    curves = [xy.tolist() for xy in data(axes) if len(xy)]
    assert [[1000, 80], [2000, 40]] in curves
    assert [[3000, 5]] in curves  # of emigm evaluate
    assert [[500, 60]] in curves
    assert axes.get_yscale() == 'log'
    bar = axes.containers[0].lines[2][0].get_segments()[0]
    np.testing.assert_allclose(bar, [[3000, 4.95], [3000, 5.05]])  # the standard error
    assert tables.overview(runs).rows[0][-1] == '5.000 at 3,000'


def test_bits_over_steps_with_their_errors(tmp_path):
    for step, bits in ((500, 2.25), (600, 2.0)):
        scores = {'bits_per_dim': bits, 'bits_per_dim_error': 0.125, 'bits_per_dim_in_steps': 2.5}
        value = {**scores, 'images': 179, 'seconds_per_image': 0.1, 'step': step, 'draws': 32}
        (tmp_path / f'{step}.json').write_text(json.dumps(value))
    found = by_name(panels.over_steps([only(tmp_path)]))
    axes = axes_of(found['bits_per_dim_over_steps'], ['a'])
    assert [[500, 2.25], [600, 2.0]] in [xy.tolist() for xy in data(axes)]
    bars = axes.containers[0].lines[2][0].get_segments()
    np.testing.assert_allclose(bars[1], [[600, 1.875], [600, 2.125]])


def test_fid_against_nfe_and_seconds_beside_the_paper(tmp_path):
    for name, fid, nfe, seconds in (('fast', 4.0, '16x1.2', 0.1), ('best', 3.0, '128x1.4', 0.4)):
        synthetic.evaluated(tmp_path / 'mine' / name, fid, nfe, seconds)
    runs = gather.gather([tmp_path / 'mine'])
    found = by_name(panels.against_cost(runs))
    assert list(found) == ['fid_against_nfe_256', 'fid_against_seconds_256']
    axes = axes_of(found['fid_against_nfe_256'], ['mine'])
    drawn = data(axes)
    assert any(np.allclose(xy, [[19.2, 4.0], [179.2, 3.0]]) for xy in drawn if xy.shape == (2, 2))
    points = {(round(x, 6), y) for xy in drawn for x, y in xy}
    # Table 2: eMIGM-L with 16x1.2 and 128x1.4, MAR-H with 256x2, REPA with 250x1.7, MaskGIT.
    assert {(19.2, 2.22), (179.2, 1.72), (512, 1.55), (425, 1.42), (8, 6.18)} <= points
    assert (19.2, 2.19) not in points  # eMIGM-L at 512 pixels
    written = {text.get_text() for text in axes.texts}
    assert {f'eMIGM-{size}' for size in ('XS', 'S', 'B', 'L', 'H')} <= written
    assert (axes.get_xscale(), axes.get_yscale()) == ('log', 'log')
    seconds = axes_of(found['fid_against_seconds_256'], ['mine'])
    points = {tuple(p) for xy in data(seconds) for p in xy.tolist()}
    assert {(0.1, 4.0), (0.4, 3.0), (0.2, 1.8), (0.2, 2.3)} <= points
    assert seconds.get_xlabel() == 'seconds per image'


def test_names_of_points_cover_nothing(tmp_path):
    run = only(synthetic.evaluated(tmp_path / 'fast', 2.25))
    (panel, _) = panels.against_cost([run])
    figure = plots.figure(panel, ['fast'])
    (axes,) = figure.axes
    renderer = figure.canvas.get_renderer()
    boxes = [text.get_window_extent(renderer) for text in axes.texts]
    assert len(boxes) > 15
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:i])
        drawn = [xy for c in panel.curves for xy in zip(c.x, c.y, strict=True)]
        assert (19.2, 2.25) in drawn and len(drawn) == 35
        points = axes.transData.transform(drawn)
        assert not any(box.contains(*point) for point in points)


def test_at_512_pixels_it_is_table_3_and_10(tmp_path):
    reference = {'name': 'VIRTUAL_imagenet512.npz', 'fingerprint': 'f'}
    run = only(synthetic.evaluated(tmp_path / 'a', 2.5, reference=reference))
    nfe, seconds = panels.against_cost([run])
    assert (nfe.name, seconds.name) == ('fid_against_nfe_512', 'fid_against_seconds_512')
    assert ('eMIGM-L', 'ours', 80.0, 1.77) in published_points(nfe)
    assert {(name, x, y) for name, _, x, y in published_points(seconds)} == {
        ('eMIGM-L', 0.165, 1.77),
        ('EDM2-XXL', 0.552, 1.81),
        ('EDM2-XXL, interval', 0.481, 1.40),
    }


def test_the_paper_gives_parameters_of_all_its_rows():
    assert {key[:3] for key in published.ROWS} == published.PARAMETERS.keys()
    assert published.evaluations('128x1.35') == pytest.approx(172.8)
    for size in (256, 512):
        rows = tables.paper(size).rows
        best = next(row for row in rows if row[0] == 'eMIGM-L' and row[3] in ('1.72', '1.77'))
        assert best[1] == '478'
        assert len({len(row) for row in rows}) == 1


def test_digits_are_not_set_beside_the_paper(tmp_path, undrawn):
    folder = synthetic.workdir(
        tmp_path / 'digits',
        config={'data': {'name': 'digits'}, 'model': {}, 'training': {'batch_size': 100}},
    )
    for i, (step, nfe) in enumerate([(900, 6), (900, 4), (1800, 6)]):
        scores = synthetic.pixel_scores(step, nfe, 0.2 + 0.1 * i)
        (folder / f'scores{i}.json').write_text(json.dumps(scores))
    runs = [only(folder)]
    over = by_name(panels.over_steps(runs))
    others = [f'{name}_of_pixels_over_steps' for name in ('accuracy', 'precision', 'recall')]
    assert set(over) == {'frechet_distance_over_steps', *others}
    axes = axes_of(over['frechet_distance_over_steps'], ['digits'])
    points, across = data(axes)
    np.testing.assert_allclose(points, [[900, 0.2], [900, 0.3], [1800, 0.4]])
    assert across[:, 1].tolist() == [0.06, 0.06]  # real against real
    (nfe, seconds) = panels.against_cost(runs)
    assert published_points(nfe) == published_points(seconds) == []
    assert 'nothing to set beside the paper' in page.build(runs, 'now')[0]


def test_what_is_absent_is_said(tmp_path, undrawn):
    bare = only(synthetic.workdir(tmp_path / 'bare'))
    assert panels.over_steps([bare]) == panels.against_cost([bare]) == []
    text, files = page.build([bare], 'now')
    assert 'None of these runs has been evaluated.' in text
    assert 'None of these runs has pictures in samples/.' in text
    assert sorted(files) == sorted(f'{name}.png' for name in panels.TRAINING)
    begun = only(synthetic.workdir(tmp_path / 'begun', steps=()))
    assert begun.notes == ('no line of training metrics yet',)
    assert tables.overview([begun]).rows[0][1] == 'not begun'
    assert 'None of these runs has metrics of training.' in page.build([begun], 'now')[0]


def test_many_runs_with_long_names(tmp_path):
    curve = lambda i: panels.Curve(i, np.arange(3.0), np.arange(3.0) + i)
    panel = panels.Panel('p', 'P', 'x', 'y', tuple(map(curve, range(11))))
    names = [f'_{i}_{"long_" * 30}$x$' for i in range(11)]
    figure = plots.figure(panel, names)
    figure.draw_without_rendering()
    (axes,), (legend,) = figure.axes, figure.legends
    shown = [text.get_text() for text in legend.get_texts()]
    assert len(set(shown)) == 11
    assert not any(text.get_parse_math() for text in legend.get_texts())  # $ is no formula
    assert all(len(name) <= plots.NAME_LENGTH for name in shown)
    assert not legend.get_window_extent().overlaps(axes.get_tightbbox())
    width, _ = figure.get_size_inches() * figure.dpi
    box = legend.get_window_extent()
    assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width
    assert axes.get_window_extent().height > 0.5 * plots.HEIGHT * figure.dpi
    # The ninth run has the colour of the first one, but dashes.
    assert axes.lines[8].get_color() == axes.lines[0].get_color()
    assert (axes.lines[0].get_linestyle(), axes.lines[8].get_linestyle()) == ('-', '--')


def test_large_pictures_are_embedded_smaller():
    noise = np.random.default_rng(0).integers(0, 256, (900, 2400, 3), np.uint8)
    content = io.BytesIO()
    Image.fromarray(noise).save(content, 'PNG')
    embedded, kind, size = page.small(content.getvalue(), 1200)
    assert (kind, size) == ('jpeg', (1200, 450))
    assert len(embedded) < len(content.getvalue()) / 4
    with Image.open(io.BytesIO(embedded)) as picture:
        assert (picture.format, picture.size) == ('JPEG', size)
    assert gather.spaced(range(101)) == [0, 20, 40, 60, 80, 100]
    for few in range(7):
        assert gather.spaced(range(few)) == list(range(few))


# The page and the command


class Reader(html.parser.HTMLParser):
    """Collects tags, addresses and text, and that every tag is closed."""

    VOID = ('meta', 'img', 'source', 'wbr', 'br')

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.addresses, self.text = [], [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            assert not name.startswith('on')
            if name in ('src', 'href', 'srcset', 'data', 'action', 'poster'):
                self.addresses.append(value)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        self.text.append(text)


@pytest.fixture(scope='module')
def report(tmp_path_factory):
    """A report of two runs and an evaluation: its folder, and what the command printed."""
    root = tmp_path_factory.mktemp('report')
    a = synthetic.workdir(
        root / 'runs' / AWKWARD, fids={1000: 50.0, 2000: 30.0}, grids=[1000, 2000]
    )
    (a / 'metrics.jsonl').write_text((a / 'metrics.jsonl').read_text() + '{"step": 9')
    synthetic.workdir(root / 'runs/<em>b', config={**synthetic.IMAGENET, 'seed': '<i>3</i>'})
    synthetic.evaluated(root / 'evaluation', 3.5)
    code = (
        'import sys; from emigm_jax.cli.main import main\n'
        'code = main(["report", "runs", "evaluation", "--out", "report"])\n'
        'print(sorted(sys.modules.keys() & {"jax", "tensorflow", "orbax", "matplotlib.pyplot"}))\n'
        'sys.exit(code)'
    )
    path = os.pathsep.join([str(pathlib.Path(__file__).parents[2]), *sys.path])
    done = subprocess.run(
        [sys.executable, '-W', 'error', '-c', code],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, 'PYTHONPATH': path},
    )
    return root / 'report', done.stdout


def test_the_command(report):
    folder, printed = report
    assert '3 runs, 13 pictures -> report/report.html' in printed
    assert 'the last line of metrics.jsonl is cut off' in printed
    assert printed.strip().endswith('[]')  # nothing heavy was imported
    text = (folder / 'report.html').read_text()
    beside = {path.name for path in folder.iterdir()} - {'report.html'}
    assert len(beside) == 13
    assert {'fid_over_steps.png', 'fid_against_nfe_256.png', 'loss.png'} <= beside
    for name in beside:
        with Image.open(folder / name) as image:
            image.load()
        assert f'>{name}</span>' in text


def test_the_page_is_one_file_and_escapes_names(report):
    text = (report[0] / 'report.html').read_text()
    read = Reader(text)
    assert read.addresses and all(a.startswith('data:image/') for a in read.addresses)
    outside = re.sub(r'base64,[^"]*', '', text)
    assert not re.search(r'https?:|//|url\(|@import', outside)
    assert not {'script', 'link', 'i', 'em', 'iframe', 'a', 'object'} & set(read.tags)
    shown = ''.join(read.text)
    assert AWKWARD in shown
    assert '<i>3</i>' in shown
    # The figures, and the grids of samples. Figures are turned dark with the page, samples are not.
    assert read.tags.count('figure') == read.tags.count('img') == 13
    assert re.search(
        r'prefers-color-scheme: dark\) {[^@]*\.figures img, \.chip { filter: inv', outside
    )
    assert text.index('class="figures"') < text.index('class="strip"') < text.index('>Training<')
    assert 'eMIGM-XS' in shown
    # Samples from left to right; a narrow window shows the rows of tables as lists.
    assert outside.index('Step 1,000') < outside.index('Step 2,000')
    cells = re.findall(r'<td[^>]*>', outside)
    assert cells and all(' data-head="' in cell for cell in cells)
    assert 'content: attr(data-head)' in outside


def test_an_earlier_report_is_replaced_as_a_whole(report, tmp_path, capsys, undrawn):
    out = tmp_path / 'out'
    run = synthetic.workdir(tmp_path / 'a', steps=[1, 2])
    out.mkdir()
    for path in report[0].iterdir():
        (out / path.name).write_bytes(path.read_bytes())
    (out / 'notes.txt').write_text('mine')
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    # What fails leaves everything as it was.
    assert main.main(['report', str(tmp_path / 'no'), '--out', str(out)]) == 2
    (out / 'mse.png').rename(out / 'mine.png')
    with pytest.raises(UserError, match=r'has a mine\.png that is not of a report'):
        write.write(out, 'page', {'mine.png': b''})
    (out / 'mine.png').rename(out / 'mse.png')
    full = lambda *_: (_ for _ in ()).throw(OSError(28, 'No space left on device'))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, 'replace', full)
        assert main.main(['report', str(run), '--out', str(out)]) == 2
    assert 'No space left on device' in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    # What works leaves nothing of the earlier one.
    assert main.main(['report', str(run), '--out', str(out)]) == 0
    assert {path.name for path in out.iterdir()} == {
        'notes.txt',
        'report.html',
        *(f'{name}.png' for name in panels.TRAINING),
    }
    assert 'Report of a' in (out / 'report.html').read_text()


def test_reports_of_many_pictures_are_replaced_too(tmp_path):
    names = [f'samples_{i}_a-name-of-a-run_{i:08}.png' for i in range(300)]
    head = f'<meta name="{write.FILES}" content="{" ".join(names)}"><title>'
    write.write(tmp_path / 'out', head, dict.fromkeys(names, b''))
    write.write(tmp_path / 'out', head, dict.fromkeys(names[:7], b''))
    assert len(list((tmp_path / 'out').iterdir())) == 8


def test_a_report_in_a_bucket_is_replaced_too(bucket):
    entry = f'<meta name="{write.FILES}" content="a.png b.png"><title>'
    write.write(f'{bucket}/out', entry, {'a.png': b'1', 'b.png': b'2'})
    write.write(f'{bucket}/out', entry, {'a.png': b'3'})
    out = absolute(f'{bucket}/out')
    assert sorted(path.name for path in out.iterdir()) == ['a.png', 'report.html']
    assert (out / 'a.png').read_bytes() == b'3'


def test_one_measurement_with_an_error_bar_is_drawn_without_a_warning(tmp_path):
    run = only(synthetic.evaluated(tmp_path / 'a', 4.0, '16x1.2', 0.1))
    for panel in panels.against_cost([run]):
        assert plots.png(panel, ['a'])


def test_refusals(tmp_path, capsys, monkeypatch, undrawn):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'begun').mkdir()
    (tmp_path / 'begun/settings.json').write_text('{}')
    (tmp_path / 'broken').mkdir()
    (tmp_path / 'broken/result.json').write_text('{"fid": 3')
    (tmp_path / 'list').mkdir()
    (tmp_path / 'list/config.json').write_text('[]')
    (tmp_path / 'else.json').write_text('{"a": 1}')
    (tmp_path / 'text').write_text('hello')
    (tmp_path / 'theirs').mkdir()
    (tmp_path / 'theirs/report.html').write_text('<html>another</html>')
    synthetic.workdir(tmp_path / 'good')
    held = sorted(tmp_path.rglob('*'))
    for command, says in [
        ((), 'required: RUN'),
        (('nowhere',), 'nowhere: no such file or folder; a run is a workdir'),
        (('empty',), 'empty: holds no run; a run is'),
        (('begun',), 'has no result.json yet'),
        (('broken',), 'broken/result.json: is no JSON'),
        (('list',), 'list/config.json: is no JSON object'),
        (('else.json',), 'else.json: holds no scores'),
        (('text',), 'text: is no JSON'),
        (('good', 'nowhere'), 'nowhere: no such'),
        (('good', '--out', 'text'), 'text: is a file'),
        (('good', '--out', 'theirs'), 'is not of emigm report'),
        (('good', '--out', '/proc/x'), '/proc/x: '),
    ]:
        assert main.main(['report', *command]) == 2
        message = capsys.readouterr().err.strip().splitlines()[-1]
        assert message.startswith('emigm: ')
        assert says in message
        assert sorted(tmp_path.rglob('*')) == held


@pytest.mark.parametrize(
    'library, says', [('matplotlib', 'drawing needs matplotlib'), ('jinja2', 'a page needs jinja2')]
)
def test_without_its_libraries(tmp_path, library, says):
    synthetic.workdir(tmp_path / 'a')
    code = (
        f'import sys; sys.modules[{library!r}] = None\n'
        'from emigm_jax.cli.main import main\n'
        f'sys.exit(main(["report", {str(tmp_path / "a")!r}, "--out", {str(tmp_path / "out")!r}]))'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == f"emigm: {says}: pip install 'emigm_jax[report]'\n"
    assert not (tmp_path / 'out').exists()

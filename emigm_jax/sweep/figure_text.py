"""A figure as text: tables of its curves, what the paper says beside them, a line a measurement."""

import csv
import io
import math
from collections.abc import Sequence

from emigm_jax.config import figures, sweeps
from emigm_jax.config.sweeps import Sweep
from emigm_jax.evaluation.score_table import SCORES
from emigm_jax.sweep import figure as drawing
from emigm_jax.sweep.run import Scored
from emigm_jax.sweep.table import Mean, mean, names

_MANY = 1e4  # beyond which a place on an axis is written as a power of ten
_SURE = 2.0  # standard errors, beyond which a difference is called one
# Axes on which each curve has places of its own, so that its table goes down, not across.
_OWN = ('nfe', 'seconds', 'flops', 'interval')


def markdown(sweep: Sweep, scored: Sequence[Scored]) -> str:
    """The curves as tables, and beside them what the paper states."""
    figure = sweep.figure
    assert figure is not None
    parts = [f'## Figure {figure.name}. {figure.title}']
    for across in figure.across:
        found = drawing.curves(sweep, scored, across)
        for score in drawing.shown(scored, figure.both) if found else ():
            parts.append(_table(across, score, found))
    found, score = drawing.curves(sweep, scored, figure.across[0]), drawing.shown(scored, False)[0]
    if figure.numbers:
        parts.append(_stated(figure, found, score))
    if figure.claims:
        parts.append(_claims(figure, found, score))
    return '\n\n'.join(parts) + '\n'


def _table(across, score, found):
    entry = SCORES[score]
    head = f'**{entry.title}**, {"less" if entry.less else "more"} is better'
    if across in _OWN:
        rows = [[head, across, '']]
        for name, places in found.items():
            rows += [[name, _x(p.x), _text(p.mean(score))] for p in places]
        return _rows(rows)
    values = sorted({place.x for places in found.values() for place in places})
    rows = [[head, *(f'{across} {_x(x)}' for x in values)]]
    for name, places in found.items():
        cells = {place.x: _text(place.mean(score)) for place in places}
        rows.append([name, *(cells.get(x, '') for x in values)])
    return _rows(rows)


def _x(value):
    if isinstance(value, tuple):
        return '-'.join(f'{each:g}' for each in value)
    return f'{value:.2e}' if value >= _MANY else f'{value:.3g}' if value < 1 else f'{value:g}'


def _text(value: Mean):
    text = f'{value.value:.3f}'
    return text if math.isnan(value.error) else f'{text} ± {value.error:.3f}'


def _rows(rows):
    lines = [rows[0], ['---', *['---:'] * (len(rows[0]) - 1)], *rows[1:]]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def _stated(figure, found, score):
    title = f'FID of the paper, ImageNet | ours, {SCORES[score].title}'
    rows = [f'| curve | the paper, {figure.numbers[0].source} | {title} |', '|---|---|---:|---:|']
    for number in figure.numbers:
        place = _at(found, number.curve, number.place)
        ours = ''
        if place is not None and score in place.scores:
            ours = f'{_text(place.mean(score))} at {figure.across[0]} {_x(place.x)}'
        rows.append(f'| {number.curve} | {number.condition} | {number.value:g} | {ours} |')
    return '\n'.join(rows)


def _at(found, curve, place):
    """The `Place` of a curve at a position on the axis that all share, or at a pair; or None."""
    axis = sorted({each.x for places in found.values() for each in places})
    if not isinstance(place, tuple):
        place = axis[place] if place < len(axis) else None
    return next((each for each in found.get(curve, []) if each.x == place), None)


def _claims(figure, found, score):
    rows = ['| what the paper says | where | here |', '|---|---|---|']
    for claim in figure.claims:
        pair = [_at(found, name, claim.place) for name in (claim.better, claim.worse)]
        better, worse = (each.scores.get(score) if each else None for each in pair)
        here = _verdict(better, worse, score) if better and worse else 'see the curves'
        rows.append(f'| {claim.says} | {claim.source} | {here} |')
    return '\n'.join(rows)


def _verdict(better, worse, score):
    """Of values by seed: 'yes', 'no' or 'not told apart', by their differences, seed by seed."""
    seeds = better.keys() & worse.keys()
    if not seeds:
        return 'no seed of both is there yet'
    sign = 1.0 if SCORES[score].less else -1.0
    by = mean([sign * (worse[seed] - better[seed]) for seed in sorted(seeds)])
    if math.isnan(by.error):
        return f'{"yes" if by.value > 0 else "no"}, by {abs(by.value):.3f} (one seed)'
    if abs(by.value) <= _SURE * by.error:
        return f'not told apart: better by {by.value:.3f} ± {by.error:.3f}'
    return f'{"yes" if by.value > 0 else "no"}: better by {by.value:.3f} ± {by.error:.3f}'


def table(scored: Sequence[Scored]) -> str:
    """CSV: a line for each measurement."""
    buffer, options = io.StringIO(), [*scored[0].options]
    scores, costs = names(scored), [*figures.COSTS]
    writer = csv.writer(buffer, lineterminator='\n')
    writer.writerow(['point', 'look', 'seed', *options, *scores, *costs, 'run'])
    for each in scored:
        chosen = [sweeps.shown(each.options[name]) for name in options]
        numbers = [each.result.scores.get(name) for name in scores]
        spent = [drawing.value(each, name) for name in costs]
        writer.writerow([each.point, each.look, each.seed, *chosen, *numbers, *spent, each.run])
    return buffer.getvalue()

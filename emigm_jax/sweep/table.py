"""The measurements of a sweep as text, as CSV and as curves: means over seeds, standard errors."""

import csv
import io
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from emigm_jax.config import sweeps
from emigm_jax.evaluation.score_table import SCORES
from emigm_jax.report.panels import Curve, Panel
from emigm_jax.sweep.run import Scored

_COSTS = {'nfe': 'network evaluations', 'seconds': 'seconds per image, of the quickest seed'}


class Mean(NamedTuple):
    """Of several seeds."""

    value: float
    error: float  # standard error; nan of one seed


class Row(NamedTuple):
    """The measurements of a point, in ways that differ in the option across alone."""

    title: str
    cells: dict[Any, dict[str, Mean]]  # value of that option: score or cost: its mean


def across(scored: Sequence[Scored]) -> str:
    """The option that goes across; '' of sweeps that vary none."""
    return [*scored[0].options][-1] if scored[0].options else ''


def rows(scored: Sequence[Scored]) -> list[Row]:
    """Means by point and options, in the order of the sweep."""
    last, found = across(scored), {}
    for each in scored:
        others = {name: value for name, value in each.options.items() if name != last}
        title = ', '.join([each.point, *map(str, others.values())])
        cell = found.setdefault(title, {}).setdefault(_key(each.options.get(last)), [])
        cell.append(_numbers(each))
    return [
        Row(title, {value: _means(cell) for value, cell in cells.items()})
        for title, cells in found.items()
    ]


def _key(value):
    return tuple(value) if isinstance(value, list) else value


def _numbers(each):
    settings = each.result.settings
    return {
        **each.result.scores,
        'nfe': float(settings['nfe']),
        'seconds': each.result.seconds_per_image,
    }


def _means(cell):
    """Means over seeds; of seconds the least, as the first of a kind is compiled."""
    common = set.intersection(*map(set, cell))  # some may not have been computed
    means = {name: mean([each[name] for each in cell]) for name in common - {'seconds'}}
    seconds = [each['seconds'] for each in cell if each['seconds'] is not None]
    return {**means, 'seconds': Mean(min(seconds, default=math.nan), math.nan)}


def mean(values: Sequence[float]) -> Mean:
    """Of the values of several seeds."""
    numbers = np.array(values, float)
    error = numbers.std(ddof=1) / math.sqrt(len(numbers)) if len(numbers) > 1 else math.nan
    return Mean(float(numbers.mean()), float(error))


def names(scored: Sequence[Scored]) -> list[str]:
    """Scores that were measured, in the order of `SCORES`, without deviations."""
    measured = {name for each in scored for name in each.result.scores}
    return [name for name, score in SCORES.items() if name in measured and not score.of]


def markdown(scored: Sequence[Scored]) -> str:
    """A table for each score and each cost, the last option across."""
    found, last = rows(scored), across(scored)
    values = list(dict.fromkeys(value for row in found for value in row.cells))
    parts = []
    for name in [*names(scored), *_COSTS]:
        title, digits = _COSTS.get(name), 3
        if title is None:
            score = SCORES[name]
            title = f'{score.title}, {"less" if score.less else "more"} is better'
            digits = score.digits if score.digits > 4 else 3
        head = [
            f'**{title}**',
            *(f'{last} {sweeps.shown(value)}' if last else '' for value in values),
        ]
        lines = [head, ['---', *['---:'] * len(values)]]
        for row in found:
            cells = [_cell(row.cells.get(value, {}).get(name), digits, name) for value in values]
            lines.append([row.title, *cells])
        halves = scored[0].result.real_halves
        if halves and name in halves:
            lines.append(['real images, one half and the other', f'{halves[name]:.3f}'])
            lines[-1] += [''] * (len(values) - 1)
        parts.append('\n'.join(f'| {" | ".join(line)} |' for line in lines))
    return '\n\n'.join(parts) + '\n'


def _cell(mean, digits, name):
    if mean is None or math.isnan(mean.value):
        return ''
    if name == 'nfe':
        return f'{mean.value:g}'
    if name == 'seconds':
        return f'{mean.value:.4f}'
    text = f'{mean.value:z.{digits}f}'
    return text if math.isnan(mean.error) else f'{text} ± {mean.error:.{digits}f}'


def table(scored: Sequence[Scored]) -> str:
    """CSV: a line for each measurement."""
    buffer, options = io.StringIO(), [*scored[0].options]
    columns = [*names(scored), *_COSTS]
    writer = csv.writer(buffer, lineterminator='\n')
    writer.writerow(['point', 'seed', *options, *columns])
    for each in scored:
        numbers, chosen = _numbers(each), [sweeps.shown(each.options[name]) for name in options]
        writer.writerow([each.point, each.seed, *chosen, *(numbers.get(n) for n in columns)])
    return buffer.getvalue()


def panels(scored: Sequence[Scored]) -> tuple[list[Panel], list[str]]:
    """A picture for each score, if the last option is a number, and the names of its curves."""
    found, last = rows(scored), across(scored)
    values = {value for row in found for value in row.cells}
    if len(values) < 2 or not all(isinstance(value, (int, float)) for value in values):
        return [], []
    log_x = min(values) > 0 and max(values) >= 8 * min(values)
    drawn = []
    for name in names(scored):
        curves = []
        for number, row in enumerate(found):
            x = sorted(value for value, cell in row.cells.items() if name in cell)
            if not x:
                continue
            means = [row.cells[value][name] for value in x]
            error = np.array([mean.error for mean in means])
            curves.append(
                Curve(
                    number,
                    np.array(x, float),
                    np.array([mean.value for mean in means]),
                    error=None if np.isnan(error).any() else error,
                )
            )
        title = SCORES[name].title
        log_y = name == 'frechet_distance' and min(float(min(c.y)) for c in curves) > 0
        drawn.append(Panel(name, title, _label(last), title, curves, log_x=log_x, log_y=log_y))
    return drawn, [row.title for row in found]


def _label(option):
    return sweeps.OPTIONS[option].meaning

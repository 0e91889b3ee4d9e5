"""What people see of a search: a table, CSV, and quality against time as a picture."""

import csv
import io
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from emigm_jax.config import sweeps
from emigm_jax.config.settings import SamplingConfig
from emigm_jax.evaluation.score_table import SCORES
from emigm_jax.report.panels import Curve, Panel
from emigm_jax.tuning import space
from emigm_jax.tuning.search import Tried, front

OWN = 'own'  # what the checkpoint's own settings are called


class Row(NamedTuple):
    """Settings that got to the last rung."""

    name: str  # '' of those that have none
    tried: Tried[SamplingConfig]
    nfe: int  # network evaluations per image
    changes: str  # options that are not the checkpoint's own
    fresh: tuple[float, ...]  # scores of images of seeds that the search did not use; () of most


class Shown(NamedTuple):
    """A finished search."""

    rows: Sequence[Row]
    score: str  # a key of `SCORES`
    images: int  # of each in the last rung
    budget: float  # seconds per image


def rows(
    tried: Sequence[Tried[SamplingConfig]],
    names: dict[SamplingConfig, str],
    own: SamplingConfig,
    nfe: dict[SamplingConfig, int],
    fresh: dict[SamplingConfig, tuple[float, ...]],
) -> list[Row]:
    """The fastest first."""
    return [
        Row(
            names.get(each.way, ''),
            each,
            nfe[each.way],
            '' if each.way == own else sweeps.text(space.differences(each.way, own)),
            fresh.get(each.way, ()),
        )
        for each in sorted(tried, key=lambda each: each.seconds)
    ]


def markdown(shown: Shown) -> str:
    """The front, and whatever has a name."""
    score = SCORES[shown.score]
    head = ['', f'{score.title}, {shown.images:,} images', 'fresh seeds', 'seconds per image']
    head += ['network evaluations', 'other than own']
    lines, best = [head, ['---', *['---:'] * 4, '---']], front([row.tried for row in shown.rows])
    for row in shown.rows:
        if row.name or row.tried in best:
            value = score.text(row.tried.score)
            seconds = f'{row.tried.seconds:.3g}'
            lines.append([row.name, value, _fresh(row, score), seconds, str(row.nfe), row.changes])
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines) + '\n'


def _fresh(row, score):
    """Mean and standard error."""
    if not row.fresh:
        return ''
    values = np.array(row.fresh)
    if not np.isfinite(values).all():
        return 'not finite'
    error = values.std(ddof=1) / math.sqrt(len(values))
    return f'{score.text(float(values.mean()))} ± {error:.{score.digits}f}'


def table(shown: Shown) -> str:
    """CSV: a line for each of the last rung."""
    buffer, options = io.StringIO(), [name for name in sweeps.OPTIONS if name != 'positions']
    writer = csv.writer(buffer, lineterminator='\n')
    writer.writerow(['name', shown.score, 'fresh', 'seconds', 'nfe', 'on_front', *options])
    best = front([row.tried for row in shown.rows])
    for row in shown.rows:
        way, seconds, score = row.tried
        chosen = [sweeps.text({name: space.value(way, name)}) for name in options]
        values = [text.partition('=')[2] for text in chosen]
        fresh = ' '.join(map(str, row.fresh))
        writer.writerow([row.name, score, fresh, seconds, row.nfe, row.tried in best, *values])
    return buffer.getvalue()


def panel(shown: Shown) -> tuple[Panel, list[str]]:
    """The picture, and the names of its curves."""
    finite = [row for row in shown.rows if math.isfinite(row.tried.score)]
    best = front([row.tried for row in finite])
    others = [row.tried for row in finite if row.tried not in best]
    times = [row.tried.seconds for row in finite] + [shown.budget]
    unit, factor = ('milliseconds', 1e3) if max(times) < 1.0 else ('seconds', 1.0)

    def curve(run, tried, kind, name=''):
        x, y = [factor * each.seconds for each in tried], [each.score for each in tried]
        return Curve(run, np.array(x), np.array(y), kind, name=name)

    curves = [curve(1, others, 'other')] * bool(others) + [curve(0, best, 'joined')]
    for row in finite:
        run = 0 if row.tried in best else None
        curves += [curve(run, [row.tried], 'measured', row.name)] * bool(row.name)
    scores = [row.tried.score for row in finite]
    ends = np.array([min(scores), max(scores)])
    curves.append(Curve(None, np.full(2, factor * shown.budget), ends, 'usual'))
    title = SCORES[shown.score].title
    drawn = Panel(
        'front',
        f'{title} of {shown.images:,} images against time',
        f'{unit} per image (dashed: the budget)',
        title,
        curves,
        log_x=max(times) > 3 * min(times),
        log_y=min(scores) > 0 and max(scores) > 3 * min(scores),
    )
    return drawn, ['none is faster and better', 'others of the last rung']

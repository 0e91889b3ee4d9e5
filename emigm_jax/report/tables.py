"""Tables of a report as rows of text: runs, scores, settings that differ, the paper's figures."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from emigm_jax.config import published
from emigm_jax.evaluation.score_table import DEVIATIONS, SCORES
from emigm_jax.report.runs import Evaluation, Run

NONE = '\N{EN DASH}'  # a cell without a value
HALVES = 'one half of the real images against the other'


class Table(NamedTuple):
    """Text by rows."""

    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]  # each as long as `heads`
    runs: tuple[int | None, ...] = ()  # by row: the position of its run
    numbers: tuple[int, ...] = ()  # columns that are set flush right
    best: frozenset[tuple[int, int]] = frozenset()  # (row, column) of what stands out
    under: tuple[str, ...] = ()  # by row: in small letters below its name


# column: what it says of a thing, '' if nothing; whether it is set flush right
Columns = Mapping[str, tuple[Callable[[Any], str], bool]]


def head(name: str) -> str:
    """The title of a score with the direction in which it is better."""
    return f'{SCORES[name].title}\N{NO-BREAK SPACE}{"↓" if SCORES[name].less else "↑"}'


def _table(title: str, names: Sequence[str], things: Sequence[Any], columns: Columns) -> Table:
    """A row per thing, whose name comes first; columns without a value go."""
    shown = {k: column for k, column in columns.items() if any(map(column[0], things))}
    rows = [
        (name, *(text(thing) or NONE for text, _ in shown.values()))
        for name, thing in zip(names, things, strict=True)
    ]
    numbers = tuple(i for i, (_, right) in enumerate(shown.values(), 1) if right)
    return Table((title, *shown), tuple(rows), tuple(range(len(rows))), numbers)


def overview(runs: list[Run]) -> Table:
    """One row per run: how far it is, its loss and speed, its best scores."""
    columns: Columns = {
        'steps': (_progress, False),
        'last loss': (lambda run: _of(run, 'loss', lambda loss: f'{loss[-1]:.4f}'), True),
        'images/s (median)': (
            lambda run: _of(run, 'images_per_second', lambda rate: f'{np.median(rate):,.4g}'),
            True,
        ),
        'time': (lambda run: _of(run, 'elapsed_seconds', _time), True),
        **{
            f'best {head(name)}': (lambda run, name=name: _best(run, name), True)
            for name in ('fid', 'frechet_distance')
        },
    }
    if any(run.class_names for run in runs):
        columns['classes'] = (lambda run: _classes(run.class_names), False)
    return _table('run', [run.name for run in runs], runs, columns)


def _classes(names, most=6):
    shown = ', '.join(names[:most]) + ', ...' * (len(names) > most)
    return f'{len(names):,}: {shown}' if names else ''


def made(runs: list[Run]) -> Table | None:
    """One row per run: what was trained, on what and where; None if no run tells it."""
    described = [(i, run) for i, run in enumerate(runs) if run.about]
    columns: Columns = {
        name: (lambda run, name=name: str(run.about.get(name) or ''), False)
        for name in ('parameters', 'data', 'devices', 'version', 'began')
    }
    table = _table(
        'run', [run.name for _, run in described], [run for _, run in described], columns
    )
    return table._replace(runs=tuple(i for i, _ in described)) if described else None


def _best(run, name):
    """The best of a score of a run, in training or of `emigm evaluate`, and its step."""
    scored = [e for e in run.scored if name in e.scores]
    if not scored:
        return ''
    best = min(scored, key=lambda e: e.scores[name] * (1 if SCORES[name].less else -1))
    return SCORES[name].text(best.scores[name]) + (f' at {best.step:,}' if best.step else '')


def _progress(run):
    if not run.trained:
        return 'evaluation only'
    if run.step is None:
        return 'not begun'
    goes_on = f' of {run.total:,}: goes on, or was stopped' if run.total else ''
    return f'{run.step:,}{goes_on}'


def _of(run, name, text):
    """What `text` makes of the values of a training metric, '' if there are none."""
    values = run.column(name)[1]
    return text(values) if len(values) else ''


def _time(seconds):
    """Of all processes that trained it one after the other: each counts its seconds from 0."""
    minutes = round(seconds[np.append(np.diff(seconds) < 0, True)].sum() / 60)
    return f'{minutes // 60}:{minutes % 60:02} h'


_FACTS: Columns = {
    'NFE': (lambda e: e.nfe_label, True),
    's per image': (lambda e: f'{e.seconds:.3g}' if e.seconds else '', True),
    'images': (lambda e: f'{e.result.images:,}' if e.result.images else '', True),
}


def _circumstances(evaluation):
    """What else a result depends on, in a few words."""
    weights, against = evaluation.result.settings.get('weights'), evaluation.against
    words = [
        f'step {evaluation.step:,}' if evaluation.step else '',
        f'weights {weights}' if weights else '',
        evaluation.sampling,
        f'against {against}' if against else '',
    ]
    return ', '.join(filter(None, words))


def scores(runs: list[Run]) -> Table | None:
    """One row per result of `emigm evaluate`, one column per score that any has; None if no row.

    The best values of results that are measured alike stand out.
    """
    results = [(i, run, e) for i, run in enumerate(runs) for e in run.measurements]
    if not results:
        return None
    evaluations = [e for *_, e in results]
    names = [name for name in SCORES if not SCORES[name].of]
    of_scores: Columns = {head(n): (lambda e, n=n: _score(e.scores, n), True) for n in names}
    titles = [_title(run, e) for _, run, e in results]
    table = _table('images of', titles, evaluations, {**of_scores, **_FACTS})
    # Mostly the same for all results, since they are of the same real images.
    halves = [e.result.real_halves for e in evaluations if e.result.real_halves]
    shown = [name for name in names if head(name) in table.heads]
    real = dict.fromkeys(tuple(_score(half, n) or NONE for n in shown) for half in halves)
    empty = (NONE,) * (len(table.heads) - 1 - len(shown))
    return table._replace(
        rows=table.rows + tuple((HALVES, *cells, *empty) for cells in real),
        runs=tuple(i for i, *_ in results) + (None,) * len(real),
        best=frozenset(_leaders(evaluations, shown)),
        under=(*map(_circumstances, evaluations), *[''] * len(real)),
    )


def _leaders(evaluations: Sequence[Evaluation], names: Sequence[str]) -> Iterable[tuple[int, int]]:
    """(row, column) of the best of each score among several results that are measured alike."""
    for column, name in enumerate(names, 1):
        alike = {}
        for row, e in enumerate(evaluations):
            if name in e.scores:
                group = alike.setdefault((e.against, e.result.images, e.image_size), {})
                group[row] = e.scores[name] * (1 if SCORES[name].less else -1)
        for group in alike.values():
            least = min(group.values())
            if least < max(group.values()):
                yield from ((row, column) for row, value in group.items() if value == least)


def _title(run, evaluation):
    own = evaluation.name in ('', run.name)
    return run.name if own else f'{run.name}: {evaluation.name}'


def _score(scores, name):
    """A score with one standard error or deviation, '' if there is none."""
    error = scores.get(DEVIATIONS.get(name))
    spread = '' if error is None else f' ± {SCORES[name].text(error)}'
    return f'{SCORES[name].text(scores[name])}{spread}' if name in scores else ''


def not_computed(runs: list[Run]) -> list[str]:
    """Sentences on metrics that `emigm evaluate` could not compute."""
    return [
        f'{_title(run, e)}: no {metric}, {why}'
        for run in runs
        for e in run.measurements
        for metric, why in e.result.missing.items()
    ]


def settings(runs: list[Run]) -> tuple[Table | None, Table | None]:
    """(Table of the settings that differ, Table of those that all runs share); None for no rows."""
    described = [run for run in runs if run.settings]
    names = dict.fromkeys(name for run in described for name in run.settings)
    rows = [(name, *(_value(run.settings.get(name)) for run in described)) for name in names]
    shared = tuple(row[:2] for row in rows if len(set(row[1:])) == 1)
    differing = tuple(row for row in rows if len(set(row[1:])) > 1)
    heads = ('setting', *(run.name for run in described))
    return (
        Table(heads, differing) if differing else None,
        Table(('setting', 'value'), shared) if shared else None,
    )


def _value(value):
    if isinstance(value, list):
        return ', '.join(map(_value, value)) or '()'
    return NONE if value is None else str(value) or "''"


def paper(size: int) -> Table:
    """The published scores at an image size, a key of `published.OTHERS`."""
    heads = ('model', 'parameters (millions)', 'NFE', 'FID')
    heads += ('sFID', 'Inception Score', 'precision', 'recall')
    forms = ('', ',', '', '.2f', 'g', 'g', 'g', 'g')
    rows = tuple(
        tuple(NONE if x is None else f'{x:{form}}' for x, form in zip(row, forms, strict=True))
        for row in published.table(size)
    )
    return Table(heads, rows, numbers=tuple(range(1, len(heads))))

"""Tables of a report as rows of text: runs, scores, settings that differ, the paper's figures."""

from typing import NamedTuple

import numpy as np

from emigm_jax.report.panels import published_rows
from emigm_jax.report.runs import SCORES, Run

NONE = '\N{EN DASH}'  # a cell without a value


class Table(NamedTuple):
    """Text by rows."""

    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]  # each as long as `heads`
    runs: tuple[int | None, ...] = ()  # by row: the position of its run
    numbers: tuple[int, ...] = ()  # columns that are set flush right


def overview(runs: list[Run]) -> Table:
    """One row per run: how far it is, its loss and speed, its best score."""
    best = {name: [_best(run, name) for run in runs] for name in ('fid', 'frechet_distance')}
    best = {name: cells for name, cells in best.items() if any(cells)}
    heads = ('run', 'steps', 'last loss', 'images/s (median)')
    heads += tuple(f'best {SCORES[name].label}' for name in best)
    numbers = tuple(range(2, len(heads)))
    named = any(run.class_names for run in runs)
    heads += ('classes',) * named
    rows = []
    for i, run in enumerate(runs):
        loss, speed = run.column('loss')[1], run.column('images_per_second')[1]
        cells = [
            f'{loss[-1]:.4f}' if len(loss) else '',
            f'{np.median(speed):,.4g}' if len(speed) else '',
            *(cells[i] for cells in best.values()),
        ]
        cells += [_classes(run.class_names)] * named
        rows.append((run.name, _progress(run), *(cell or NONE for cell in cells)))
    return Table(heads, tuple(rows), tuple(range(len(runs))), numbers)


def _classes(names, most=6):
    shown = ', '.join(names[:most]) + ', ...' * (len(names) > most)
    return f'{len(names):,}: {shown}' if names else ''


def _best(run, name):
    """The least of a score of a run, in training or of `emigm evaluate`, and its step."""
    scored = [e for e in (*run.measurements, *run.evaluations) if name in e.scores]
    if not scored:
        return ''
    best = min(scored, key=lambda e: e.scores[name])
    return f'{best.scores[name]:.{SCORES[name].digits}f}' + f' at {best.step:,}' * bool(best.step)


def _progress(run):
    if not run.trained:
        return 'evaluation only'
    if run.step is None:
        return 'not begun'
    goes_on = f' of {run.total:,}: goes on, or was stopped' if run.total else ''
    return f'{run.step:,}{goes_on}'


# column: (its text for an evaluation, '' if it has none; whether it is set flush right)
_FACTS = {
    'step': (lambda e: f'{e.step:,}' if e.step else '', True),
    'weights': (lambda e: e.weights, False),
    'sampling': (lambda e: e.sampling, False),
    'images': (lambda e: f'{e.images:,}' if e.images else '', True),
    'against': (lambda e: e.reference or ('real pictures' if e.pixels else ''), False),
    'NFE': (lambda e: e.nfe_label, False),
    's per image': (lambda e: f'{e.seconds:.3g}' if e.seconds else '', True),
}


def scores(runs: list[Run]) -> Table | None:
    """One row per result of `emigm evaluate`, one column per score that any has; None if no row."""
    results = [(i, run, e) for i, run in enumerate(runs) for e in run.measurements]
    if not results:
        return None
    names = [name for name in SCORES if any(name in e.scores for *_, e in results)]
    facts = {k: f for k, (f, _) in _FACTS.items() if any(f(e) for *_, e in results)}
    rows = [
        (_title(run, e), *_scores(e.scores, names), *(f(e) or NONE for f in facts.values()))
        for _, run, e in results
    ]
    # Mostly the same for all results, since they are of the same real images.
    real = dict.fromkeys(_scores(e.real, names) for *_, e in results if e.real)
    half = 'one half of the real images against the other'
    rows += [(half, *cells, *[NONE] * len(facts)) for cells in real]
    heads = ('images of', *(SCORES[name].label for name in names), *facts)
    numbers = [k for k, head in enumerate(heads) if k and _FACTS.get(head, (None, True))[1]]
    marks = [i for i, *_ in results] + [None] * len(real)
    return Table(heads, tuple(rows), tuple(marks), tuple(numbers))


def _title(run, evaluation):
    own = evaluation.name in ('', run.name)
    return run.name if own else f'{run.name}: {evaluation.name}'


def _scores(scores, names):
    """Cells of scores with one standard error or deviation."""
    cells = []
    for name in names:
        digits = SCORES[name].digits
        error = scores.get('fid_standard_error' if name == 'fid' else f'{name}_std')
        spread = '' if error is None else f' ± {error:.{digits}f}'
        cells.append(f'{scores[name]:.{digits}f}{spread}' if name in scores else NONE)
    return tuple(cells)


def not_computed(runs: list[Run]) -> list[str]:
    """Sentences on metrics that `emigm evaluate` could not compute."""
    return [
        f'{_title(run, e)}: no {metric}, {why}'
        for run in runs
        for e in run.measurements
        for metric, why in e.missing.items()
    ]


def settings(runs: list[Run]) -> tuple[Table | None, Table | None]:
    """(Table of the settings that differ, Table of those that all runs share); None for no rows."""
    described = [run for run in runs if run.settings]
    rows = {}
    for name in dict.fromkeys(name for run in described for name in run.settings):
        rows[name] = tuple(_value(run.settings.get(name)) for run in described)
    shared = tuple((name, cells[0]) for name, cells in rows.items() if len(set(cells)) == 1)
    differing = tuple((name, *cells) for name, cells in rows.items() if len(set(cells)) > 1)
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
        for row in published_rows(size)
    )
    return Table(heads, rows, numbers=tuple(range(1, len(heads))))

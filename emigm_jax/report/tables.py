"""Tables of a report as rows of text: runs, scores, settings that differ, the paper's figures."""

import dataclasses

import numpy as np

from emigm_jax.config import published
from emigm_jax.report.runs import SCORES, best, different

NONE = '\N{EN DASH}'  # a cell without a value


@dataclasses.dataclass(frozen=True)
class Table:
    """Text by rows."""

    heads: tuple
    rows: tuple  # of tuples as long as `heads`
    runs: tuple = ()  # by row: the position of its run, or None
    numbers: tuple = ()  # columns that are set flush right


def overview(runs):
    """One row per run: how far it is, its loss and speed, its best score."""
    scores = [name for name in ('fid', 'frechet_distance') if any(_best(r, name) for r in runs)]
    rows = []
    for run in runs:
        found = [_best(run, name) for name in scores]
        shown = [
            NONE if pair is None else f'{pair[0]:.{SCORES[name].digits}f}{_at(pair[1])}'
            for name, pair in zip(scores, found, strict=True)
        ]
        loss, speed = run.column('loss')[1], run.column('images_per_second')[1]
        rows.append(
            (
                run.name,
                _progress(run),
                f'{loss[-1]:.4f}' if len(loss) else NONE,
                f'{np.median(speed):,.4g}' if len(speed) else NONE,
                *shown,
            )
        )
    heads = (
        'run',
        'steps',
        'last loss',
        'images/s (median)',
        *(f'best {SCORES[name].label}' for name in scores),
    )
    return Table(heads, tuple(rows), tuple(range(len(runs))), tuple(range(2, len(heads))))


def _best(run, name):
    """(value, step or None) of the best score of a run, in training or of `emigm evaluate`."""
    found = [(e.scores[name], e.step) for e in run.measurements if name in e.scores]
    pair = best(run, name)
    return min(found + ([pair] if pair else []), key=lambda p: p[0], default=None)


def _at(step):
    return f' at {step:,}' if step else ''


def _progress(run):
    if not run.trained:
        return 'evaluation only'
    if run.step is None:
        return 'not begun'
    if run.unfinished:
        return f'{run.step:,} of {run.total:,}: goes on, or was stopped'
    return f'{run.step:,}'


def scores(runs):
    """One row per result of `emigm evaluate`, one column per score that any has; None if no row."""
    found = [(i, run, e) for i, run in enumerate(runs) for e in run.measurements]
    if not found:
        return None
    names = [name for name in SCORES if any(name in e.scores for _, _, e in found)]
    facts = {
        'step': lambda e: f'{e.step:,}' if e.step else NONE,
        'weights': lambda e: e.weights,
        'sampling': lambda e: e.sampling,
        'images': lambda e: f'{e.images:,}' if e.images else NONE,
        'against': lambda e: e.reference or ('real digits' if e.pixels else ''),
        'NFE': lambda e: e.nfe_label,
        's per image': lambda e: NONE if e.seconds is None else f'{e.seconds:.3g}',
    }
    kept = {k: f for k, f in facts.items() if any(f(e) not in ('', NONE) for _, _, e in found)}
    rows, marks = [], []
    for i, run, e in found:
        name = run.name if e.name in ('', run.name) else f'{run.name}: {e.name}'
        values = [_score(e.scores, n) for n in names]
        rows.append((name, *values, *(f(e) or NONE for f in kept.values())))
        marks.append(i)
    # Mostly the same for all results, since they are of the same real images.
    for values in dict.fromkeys(
        tuple(_score(e.real, n) for n in names) for *_, e in found if e.real
    ):
        rows.append(('one half of the real images against the other', *values, *[NONE] * len(kept)))
        marks.append(None)
    heads = ('images of', *(SCORES[name].label for name in names), *kept)
    numbers = [1 + i for i in range(len(names))]
    numbers += [heads.index(name) for name in ('step', 'images', 's per image') if name in heads]
    return Table(heads, tuple(rows), tuple(marks), tuple(numbers))


def _score(scores, name):
    if name not in scores:
        return NONE
    text = f'{scores[name]:.{SCORES[name].digits}f}'
    error = scores.get('fid_standard_error' if name == 'fid' else f'{name}_std')
    return text if error is None else f'{text} ± {error:.{SCORES[name].digits}f}'


def not_computed(runs):
    """Sentences on metrics that `emigm evaluate` could not compute."""
    return [
        f'{run.name if e.name in ("", run.name) else f"{run.name}: {e.name}"}: no {metric}, {why}'
        for run in runs
        for e in run.measurements
        for metric, why in e.missing.items()
    ]


def settings(runs):
    """(Table of the settings that differ, Table of those that all runs share); None for no rows."""
    known = [(i, run) for i, run in enumerate(runs) if run.settings]
    differing, shared = different(runs)
    text = lambda value: NONE if value is None else _value(value)
    rows = tuple((name, *map(text, values)) for name, values in differing.items())
    heads = ('setting', *(run.name for _, run in known))
    same = tuple((name, _value(value)) for name, value in shared.items())
    return (
        Table(heads, rows) if rows else None,
        Table(('setting', 'value'), same) if same else None,
    )


def _value(value):
    if isinstance(value, str):
        return value or "''"
    if isinstance(value, list):
        return ', '.join(map(_value, value)) or '()'
    return str(value)


def paper(size):
    """The published scores at an image size."""
    method = {'emigm': 'eMIGM', 'mar': 'MAR'}
    number = lambda value: NONE if value is None else f'{value:g}'
    rows = []
    for (kind, image_size, name, _), row in published.ROWS.items():
        if image_size == size:
            millions = published.PARAMETERS[kind, size, name]
            rows.append(
                (
                    f'{method[kind]}-{name.upper()}',
                    f'{millions:,}',
                    row.nfe,
                    f'{row.fid:.2f}',
                    *map(number, row[2:]),
                )
            )
    for row in published.OTHERS[size]:
        millions = NONE if row.parameters is None else f'{row.parameters:,}'
        rows.append((row.name, millions, row.nfe, f'{row.fid:.2f}', *[NONE] * 4))
    heads = (
        'model',
        'parameters (millions)',
        'NFE',
        'FID',
        'sFID',
        'Inception Score',
        'precision',
        'recall',
    )
    return Table(heads, tuple(rows), numbers=tuple(range(1, len(heads))))

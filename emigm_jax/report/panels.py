"""Which pictures a report has and what is in them, as data; `plots` draws them.

A panel exists only where there is something to see.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

from emigm_jax.config import curves, published
from emigm_jax.evaluation.score_table import SCORES
from emigm_jax.report.runs import Run


class Curve(NamedTuple):
    """Points of one run, or published ones of one model."""

    run: int | None  # its position in the report, which decides its colour; None: published
    x: np.ndarray  # (n,)
    y: np.ndarray  # (n,)
    kind: str = 'line'  # a key of `plots.KINDS`
    error: np.ndarray | None = None  # (n,) one standard error of y
    name: str = ''  # written beside published points


@dataclasses.dataclass(frozen=True)
class Panel:
    """One picture."""

    name: str  # of its file, without .png
    title: str
    x: str  # axis labels, with units
    y: str
    curves: list[Curve]
    levels: tuple[float, ...] = ()  # values of y, drawn as lines across
    log_x: bool = False
    log_y: bool = False
    from_zero: bool = False  # the y axis starts at 0
    caption: str = ''


@dataclasses.dataclass(frozen=True)
class Map:
    """One picture of values at pairs of numbers: a table whose cells have colours."""

    name: str  # of its file, without .png
    title: str
    axes: tuple[str, str]  # of the first and the second of a pair: down, across
    score: str
    values: dict[tuple[float, float], tuple[float, float]]  # pair: value, standard error or nan
    less: bool  # whether less is better


# name in metrics.jsonl: (title, y axis, logarithmic where the values span a decade, starts at 0)
TRAINING = {
    'loss': ('Loss', 'loss (mse + vlb)', True, False),
    'mse': ('Error of the predicted noise', 'mse (mean square)', True, False),
    'vlb': ('Variational bound', 'vlb (bits per dimension)', True, False),
    'gradient_norm': ('Gradient norm, before clipping', 'global norm', True, False),
    'learning_rate': ('Learning rate', 'learning rate', False, True),
    'images_per_second': ('Speed of training', 'images per second', False, True),
    'mfu': ("Share of the devices' peak", 'MFU (matrix products by the formula)', False, True),
}
STEPS = 'training step'
_ERRORS = {'fid': 'fid_standard_error', 'bits_per_dim': 'bits_per_dim_error'}  # score: of its bars
# attribute of an evaluation: (title, x axis, caption, {image size: where the paper has points})
_COSTS = {
    'nfe': (
        'NFE',
        'NFE (network evaluations per image)',
        'A guided step counts twice, as in the paper; its diffusion head is not counted.',
        {256: 'Table 2', 512: 'Table 3'},
    ),
    'seconds': (
        'time per image',
        'seconds per image',
        'Ours: the whole command, with compilation and measuring, on its own device.',
        {
            256: 'text on Figure 4c ("about"; one A100, batches of 256)',
            512: 'Table 10 (one A100, batches of 256)',
        },
    ),
}


def training(runs: list[Run]) -> list[Panel]:
    """Panels of the curves of training; beside the loss what is usual for a recipe."""
    panels = []
    for name, (title, label, log, from_zero) in TRAINING.items():
        found = [Curve(i, *run.column(name)) for i, run in enumerate(runs)]
        found = [curve for curve in found if len(curve.x)]
        log_y = log and _spans(found, 10)
        panel = Panel(name, title, STEPS, label, found, log_y=log_y, from_zero=from_zero)
        panels += [panel] * bool(found)
    return [_with_usual(panel, runs) if panel.name == 'loss' else panel for panel in panels]


def _with_usual(panel, runs):
    known = [curves.reference(runs[curve.run].settings) for curve in panel.curves]
    known = {usual.origin: usual for usual in known if usual}
    lines = [np.array([u.steps, u.losses], np.float64) for u in known.values() if u.steps]
    return dataclasses.replace(
        panel,
        curves=panel.curves + [Curve(None, x, y, 'usual') for x, y in lines],
        levels=tuple(level for usual in known.values() for level in usual.levels),
        caption=' '.join(f'Usual, dashed grey: {origin}.' for origin in known),
    )


def _spans(drawn, factor, axis='y'):
    """Whether values need a logarithm and have one; the FID of a set to itself may be -1e-6."""
    values = [value for curve in drawn for value in getattr(curve, axis)] or [1.0]
    return bool(min(values) > 0 and max(values) > factor * min(values))


def _has_a_course(panel):
    """Whether a run has values at several x."""
    points = {(curve.run, x) for curve in panel.curves for x in curve.x if curve.run is not None}
    return len(points) > len({run for run, _ in points})


def _curves(run, evaluations, name, attribute, kind):
    """The curve of a score over an attribute, as a list: empty without evaluations."""
    group = sorted(evaluations, key=lambda e: getattr(e, attribute))
    x = np.array([getattr(e, attribute) for e in group], np.float64)
    y = np.array([e.scores[name] for e in group])
    errors = [e.scores.get(_ERRORS.get(name, ''), 0.0) for e in group]
    return [Curve(run, x, y, kind, np.array(errors) if any(errors) else None)] * bool(group)


def over_steps(runs: list[Run]) -> list[Panel]:
    """Panels of scores over training steps: in training, and diamonds of `emigm evaluate`."""
    names = [name for name, score in SCORES.items() if not score.of]
    panels = [_over_steps(runs, name, pixels) for name in names for pixels in (False, True)]
    return [panel for panel in panels if _has_a_course(panel)]


def _over_steps(runs, name, pixels):
    drawn, levels, score = [], {}, SCORES[name]
    for i, run in enumerate(runs):
        for evaluations, kind in ((run.evaluations, 'line'), (run.measurements, 'measured')):
            kept = [e for e in evaluations if e.pixels == pixels and e.step and name in e.scores]
            drawn += _curves(i, kept, name, 'step', kind)
            halves = [e.result.real_halves or {} for e in kept]
            levels |= {score.text(half[name]): half[name] for half in halves if name in half}
    kinds = {curve.kind for curve in drawn}
    few = ' (FID of few images lies above that of many)' * (name == 'fid')
    sentences = {
        f'{"Less" if score.less else "More"} is better.': True,
        f'Lines: while training{few}.': 'line' in kinds,
        'Diamonds: emigm evaluate.': 'measured' in kinds,
        'Dashed: one half of the real images against the other.': levels,
    }
    of_pixels = pixels and name != 'frechet_distance'
    return Panel(
        f'{name}{"_of_pixels" * of_pixels}_over_steps',
        f'{score.title}{" of pixels" * of_pixels} over training',
        STEPS,
        score.title,
        drawn,
        levels=tuple(levels.values()),
        log_y=score.less and min(levels.values(), default=1) > 0 and _spans(drawn, 10),
        caption=' '.join(sentence for sentence, holds in sentences.items() if holds),
    )


def against_cost(runs: list[Run]) -> list[Panel]:
    """Panels of FID (of pixels: Frechet distance) against NFE and against seconds per image."""
    panels = []
    for score, attribute in ((s, a) for s in ('fid', 'frechet_distance') for a in _COSTS):
        has = lambda e, score=score, name=attribute: score in e.scores and getattr(e, name)
        by_run = [list(filter(has, run.measurements)) for run in runs]
        sizes = {e.image_size for own in by_run for e in own}
        for size in sorted(sizes, key=lambda size: size or 0):
            of_size = [[e for e in own if e.image_size == size] for own in by_run]
            panels.append(_against_cost(of_size, score, attribute, size))
    return [panel for panel in panels if any(c.name for c in panel.curves) or _has_a_course(panel)]


def _against_cost(by_run, score, attribute, size):
    drawn, fid = [], score == 'fid'
    for run, evaluations in enumerate(by_run):
        groups = {}  # of the same weights, joined by a line; those of unknown weights stand alone
        for number, e in enumerate(evaluations):
            content, weights = (str(e.result.settings.get(n) or '') for n in ('content', 'weights'))
            key = (content, weights, e.result.images, e.against) if content else number
            groups.setdefault(key, []).append(e)
        for group in groups.values():
            kind = 'joined' if len(group) > 1 else 'measured'
            drawn += _curves(run, group, score, attribute, kind)
    paper = published_curves(attribute, size) if fid and size is not None else []
    drawn += paper
    title, label, caption, origins = _COSTS[attribute]
    if paper and size is not None:
        caption += (
            f' Grey: as arXiv 2503.07197, {origins[size]}, gives them; crosses: other methods.'
        )
    elif fid and size is None:
        caption += ' The image size is not known, so there is nothing of the paper beside it.'
    return Panel(
        f'{score}_against_{attribute}{f"_{size}" if size else ""}',
        f'{SCORES[score].title} against {title}{f" at {size} pixels" if size and fid else ""}',
        label,
        SCORES[score].title,
        drawn,
        log_x=_spans(drawn, 1 if paper else 3, 'x'),
        log_y=bool(paper) and _spans(drawn, 1),
        caption=caption,
    )


def published_curves(attribute: str, size: int) -> list[Curve]:
    """The paper's FID against `attribute` ('nfe' or 'seconds') at an image size, by model."""
    rows = [(row.name, row.seconds, row.fid) for row in published.SPEEDS.get(size, ())]
    if attribute == 'nfe':
        rows = [(row[0], published.evaluations(row[2]), row[3]) for row in published.table(size)]
    kind = lambda name: 'ours' if name.startswith(('eMIGM', 'MAR')) else 'other'
    models = {}
    for name, *point in rows:
        models.setdefault(name, []).append(point)
    points = {name: np.array(several, np.float64) for name, several in models.items()}
    return [Curve(None, xy[:, 0], xy[:, 1], kind(name), name=name) for name, xy in points.items()]

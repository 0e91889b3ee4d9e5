"""Which pictures a report has and what is in them, as data; `plots` draws them.

A panel exists only where there is something to see. Where a part has none, a sentence says why.
"""

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from emigm_jax.config import published
from emigm_jax.report.runs import SCORES, Run


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


# name in metrics.jsonl: (title, y axis, logarithmic where the values span a decade, starts at 0)
TRAINING = {
    'loss': ('Loss', 'loss (mse + vlb)', True, False),
    'mse': ('Error of the predicted noise', 'mse (mean square)', True, False),
    'vlb': ('Variational bound', 'vlb (bits per dimension)', True, False),
    'gradient_norm': ('Gradient norm, before clipping', 'global norm', True, False),
    'learning_rate': ('Learning rate', 'learning rate', False, True),
    'images_per_second': ('Speed of training', 'images per second', False, True),
}
STEPS = 'training step'
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
    """Panels of the curves of training."""
    panels = []
    for name, (title, label, log, from_zero) in TRAINING.items():
        curves = [Curve(i, *run.column(name)) for i, run in enumerate(runs)]
        curves = [curve for curve in curves if len(curve.x)]
        log_y = log and _spans(curves, 10)
        if curves:
            panels.append(
                Panel(name, title, STEPS, label, curves, log_y=log_y, from_zero=from_zero)
            )
    return panels


def _spans(curves, factor, axis='y'):
    """Whether values need a logarithm and have one; the FID of a set to itself may be -1e-6."""
    values = [value for curve in curves for value in getattr(curve, axis)] or [1.0]
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
    errors = [e.scores.get('fid_standard_error', 0.0) for e in group if name == 'fid']
    return [Curve(run, x, y, kind, np.array(errors) if any(errors) else None)] * bool(group)


def over_steps(runs: list[Run]) -> list[Panel]:
    """Panels of scores over training steps: in training, and diamonds of `emigm evaluate`."""
    panels = [_over_steps(runs, name, pixels) for name in SCORES for pixels in (False, True)]
    return [panel for panel in panels if _has_a_course(panel)]


def _over_steps(runs, name, pixels):
    curves, levels, score = [], {}, SCORES[name]
    for i, run in enumerate(runs):
        for evaluations, kind in ((run.evaluations, 'line'), (run.measurements, 'measured')):
            kept = [e for e in evaluations if e.pixels == pixels and e.step and name in e.scores]
            curves += _curves(i, kept, name, 'step', kind)
            levels |= {f'{e.real[name]:.6g}': e.real[name] for e in kept if name in e.real}
    few = ' (FID of few images lies above that of many)' * (name == 'fid')
    kinds = {curve.kind for curve in curves}
    sentences = (
        (True, f'{"Less" if score.less else "More"} is better.'),
        ('line' in kinds, f'Lines: while training{few}.'),
        ('measured' in kinds, 'Diamonds: emigm evaluate.'),
        (levels, 'Dashed: one half of the real images against the other.'),
    )
    of_pixels = pixels and name != 'frechet_distance'
    return Panel(
        f'{name}{"_of_pixels" * of_pixels}_over_steps',
        f'{score.title}{" of pixels" * of_pixels} over training',
        STEPS,
        score.label,
        curves,
        levels=tuple(levels.values()),
        log_y=score.less and min(levels.values(), default=1) > 0 and _spans(curves, 10),
        caption=' '.join(sentence for holds, sentence in sentences if holds),
    )


def against_cost(runs: list[Run]) -> list[Panel]:
    """Panels of FID (of pixels: Fréchet distance) against NFE and against seconds per image."""
    panels = []
    for score in ('fid', 'frechet_distance'):
        for attribute in _COSTS:
            shown = lambda e, has=(score, attribute): has[0] in e.scores and getattr(e, has[1])
            by_run = [list(filter(shown, run.measurements)) for run in runs]
            sizes = {e.image_size for own in by_run for e in own}
            for size in sorted(sizes, key=lambda size: size or 0):
                of_size = [[e for e in own if e.image_size == size] for own in by_run]
                panels.append(_against_cost(of_size, score, attribute, size))
    return [panel for panel in panels if any(c.name for c in panel.curves) or _has_a_course(panel)]


def _against_cost(by_run, score, attribute, size):
    curves, fid = [], score == 'fid'
    for run, evaluations in enumerate(by_run):
        groups = {}  # of the same weights, joined by a line; those of unknown weights stand alone
        for number, e in enumerate(evaluations):
            key = (e.content, e.weights, e.images, e.reference) if e.content else number
            groups.setdefault(key, []).append(e)
        for group in groups.values():
            kind = 'joined' if len(group) > 1 else 'measured'
            curves += _curves(run, group, score, attribute, kind)
    paper = published_curves(attribute, size) if fid and size is not None else []
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
        SCORES[score].label,
        curves + paper,
        log_x=_spans(curves + paper, 1 if paper else 3, 'x'),
        log_y=bool(paper) and _spans(curves + paper, 1),
        caption=caption,
    )


def published_rows(size: int) -> list[tuple[Any, ...]]:
    """What the paper's tables have at an image size, our methods first; None where they have none.

    Returns:
      [(model, millions of parameters, NFE label, FID, sFID, Inception Score, precision, recall)].
    """
    titles = {'emigm': 'eMIGM', 'mar': 'MAR'}
    ours = [
        (f'{titles[method]}-{name.upper()}', published.PARAMETERS[method, size, name], *row)
        for (method, image_size, name, _), row in published.ROWS.items()
        if image_size == size
    ]
    others = published.OTHERS.get(size, ())
    return ours + [(row.name, row.parameters, row.nfe, row.fid, *[None] * 4) for row in others]


def published_curves(attribute: str, size: int) -> list[Curve]:
    """The paper's FID against `attribute` ('nfe' or 'seconds') at an image size, by model."""
    rows = [(row.name, row.seconds, row.fid) for row in published.SPEEDS.get(size, ())]
    if attribute == 'nfe':
        rows = [(row[0], published.evaluations(row[2]), row[3]) for row in published_rows(size)]
    models = {}
    for name, x, y in rows:
        models.setdefault(name, []).append((x, y))
    kind = lambda name: 'ours' if name.startswith(('eMIGM', 'MAR')) else 'other'
    return [
        Curve(None, xy[:, 0], xy[:, 1], kind(name), name=name)
        for name, xy in ((name, np.array(points)) for name, points in models.items())
    ]


_ABSENT = {
    'training': 'None of these runs has metrics of training.',
    'samples': 'None of these runs has pictures in samples/.',
    'scores': 'None of these runs has been evaluated. emigm evaluate --checkpoint WORKDIR measures '
    'one; put its results (--out or --json) into the workdir, or name them here as well.',
    'steps': 'No run has been evaluated at several steps, so no score over training steps.',
    'fid': 'No FID has been computed, so there is nothing to set beside the paper.',
    'cost': 'No FID of emigm evaluate is here, so no curve against NFE or seconds per image.',
}


def absent(runs: list[Run]) -> dict[str, str]:
    """{part: sentence} of what a report of these runs cannot show, and why."""
    measured = [e for run in runs for e in run.measurements]
    evaluated = measured + [e for run in runs for e in run.evaluations]
    fid, measured_fid = (any('fid' in e.scores for e in some) for some in (evaluated, measured))
    holds = {
        'training': not any(run.lines for run in runs),
        'samples': not any(run.grids for run in runs),
        'scores': not evaluated,
        'steps': evaluated and not over_steps(runs),
        'fid': evaluated and not fid,
        'cost': fid and not measured_fid,
    }
    return {part: sentence for part, sentence in _ABSENT.items() if holds[part]}

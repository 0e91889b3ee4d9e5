"""Which pictures a report has and what is in them, as data; `plots` draws them.

A panel exists only where there is something to see. Where a part has none, a sentence says why.
"""

import dataclasses

import numpy as np

from emigm_jax.config import published
from emigm_jax.report.runs import SCORES


@dataclasses.dataclass(frozen=True)
class Curve:
    """Numbers of one run."""

    run: int  # its position in the report, which decides its colour
    x: np.ndarray
    y: np.ndarray
    kind: str = 'line'  # line; measured: diamonds; joined: diamonds on a line
    error: np.ndarray | None = None  # of y, one standard error


@dataclasses.dataclass(frozen=True)
class Mark:
    """A published point."""

    name: str
    x: float
    y: float
    ours: bool  # a model that this package trains, or another method


@dataclasses.dataclass(frozen=True)
class Panel:
    """One picture."""

    name: str  # of its file, without .png
    title: str
    x: str  # axis labels, with units
    y: str
    curves: tuple  # Curve
    marks: tuple = ()  # Mark
    levels: tuple = ()  # values of y, drawn as lines across
    log_x: bool = False
    log_y: bool = False
    whole: bool = False  # the y axis starts at 0
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
_NFE = 'NFE (network evaluations per image)'
_SECONDS = 'seconds per image'
_SIZES = {'xs': 'XS', 's': 'S', 'b': 'B', 'l': 'L', 'h': 'H'}
_METHODS = {'emigm': 'eMIGM', 'mar': 'MAR'}


def training(runs):
    """Panels of the curves of training."""
    panels = []
    for name, (title, label, logarithmic, whole) in TRAINING.items():
        columns = [run.column(name) for run in runs]
        curves = tuple(Curve(i, x, y) for i, (x, y) in enumerate(columns) if len(x))
        if curves:
            panels.append(
                Panel(
                    name,
                    title,
                    STEPS,
                    label,
                    curves,
                    log_y=logarithmic and _spans_a_decade(curves),
                    whole=whole,
                )
            )
    return panels


def _spans_a_decade(curves):
    values = np.concatenate([curve.y for curve in curves])
    return _positive(curves) and bool(values.max() > 10 * values.min())


def _positive(curves):
    """Whether all values have a logarithm; the FID of a set to itself may be -1e-6."""
    return all((curve.y > 0).all() for curve in curves)


def over_steps(runs):
    """Panels of scores over training steps: in training, and diamonds of `emigm evaluate`."""
    panels = []
    for name in SCORES:
        for pixels in (False, True):
            found = _score_panel(runs, name, pixels)
            if found is not None:
                panels.append(found)
    return panels


def _score_panel(runs, name, pixels):
    curves, levels = [], {}
    of_kind = lambda evaluations: [
        e for e in evaluations if e.pixels == pixels and e.step and name in e.scores
    ]
    for i, run in enumerate(runs):
        for evaluations, kind in ((run.evaluations, 'line'), (run.measurements, 'measured')):
            kept = sorted(of_kind(evaluations), key=lambda e: e.step)
            if kept:
                curves.append(_curve(i, kept, name, [e.step for e in kept], kind))
            for e in kept:
                if name in e.real:
                    levels[f'{e.real[name]:.6g}'] = e.real[name]
    if not _grows(runs, curves):
        return None
    score = SCORES[name]
    of_pixels = pixels and name != 'frechet_distance'
    caption = f'{"Less" if score.less else "More"} is better.'
    kinds = {curve.kind for curve in curves}
    if 'line' in kinds:
        few = ' (FID of few images lies above that of many)' if name == 'fid' else ''
        caption += f' Lines: while training{few}.'
    if 'measured' in kinds:
        caption += ' Diamonds: emigm evaluate.'
    if levels:
        caption += ' Dashed: one half of the real images against the other.'
    return Panel(
        f'{name}_of_pixels_over_steps' if of_pixels else f'{name}_over_steps',
        f'{score.title}{" of pixels" if of_pixels else ""} over training',
        STEPS,
        score.label,
        tuple(curves),
        levels=tuple(levels.values()),
        log_y=score.less and _spans_a_decade(curves),
        caption=caption,
    )


def _grows(runs, curves):
    """Whether a run has values at several x, so that there is a course to see."""
    seen = [{x for c in curves if c.run == i for x in c.x} for i in range(len(runs))]
    return any(len(xs) > 1 for xs in seen)


def _curve(run, evaluations, name, x, kind):
    error = [e.scores.get('fid_standard_error', 0.0) if name == 'fid' else 0.0 for e in evaluations]
    return Curve(
        run,
        np.array(x, np.float64),
        np.array([e.scores[name] for e in evaluations]),
        kind,
        np.array(error) if any(error) else None,
    )


def against_cost(runs):
    """Panels of FID (of pixels: Fréchet distance) against NFE and against seconds per image."""
    panels = []
    for score in ('fid', 'frechet_distance'):
        for attribute, label, marks in (
            ('nfe', _NFE, marks_by_nfe),
            ('seconds', _SECONDS, marks_by_seconds),
        ):
            panels += _cost_panels(runs, score, attribute, label, marks)
    return panels


def _cost_panels(runs, score, attribute, label, marks):
    known = lambda e: getattr(e, attribute) is not None and score in e.scores
    sizes = {e.image_size for run in runs for e in run.measurements if known(e)}
    short = {'nfe': 'NFE', 'seconds': 'time per image'}[attribute]
    panels = []
    for size in sorted(sizes, key=lambda size: size or 0):
        curves = tuple(
            curve
            for i, run in enumerate(runs)
            for curve in _cost_curves(i, run, size, known, score, attribute)
        )
        beside = marks(size) if score == 'fid' else ()
        values = [x for curve in curves for x in curve.x]
        if not beside and not _grows(runs, curves):
            continue
        pixels = f' at {size} pixels' if size and score == 'fid' else ''
        panels.append(
            Panel(
                f'{score}_against_{attribute}' + (f'_{size}' if size else ''),
                f'{SCORES[score].title} against {short}{pixels}',
                label,
                SCORES[score].label,
                curves,
                marks=beside,
                log_x=len(beside) > 0 or max(values) > 3 * min(values),
                log_y=len(beside) > 0 and _positive(curves),
                caption=_cost_caption(attribute, beside, size, score),
            )
        )
    return panels


def _cost_curves(index, run, size, known, score, attribute):
    """Measurements of the same weights are joined, others stand alone."""
    groups = {}
    for number, e in enumerate(run.measurements):
        if known(e) and e.image_size == size:
            key = (e.content, e.weights, e.images, e.reference) if e.content else number
            groups.setdefault(key, []).append(e)
    for found in groups.values():
        found.sort(key=lambda e: getattr(e, attribute))
        x = [getattr(e, attribute) for e in found]
        yield _curve(index, found, score, x, 'joined' if len(found) > 1 else 'measured')


def _cost_caption(attribute, marks, size, score):
    if attribute == 'nfe':
        caption = 'A guided step counts twice, as in the paper; its diffusion head is not counted.'
    else:
        caption = 'Ours: the whole command, with compilation and measuring, on its own device.'
        if marks:
            caption += ' The paper: one A100, batches of 256.'
    if marks:
        where = {256: 'Table 2', 512: 'Table 3'}[size]
        if attribute == 'seconds':
            where = {256: 'the text on Figure 4c ("about")', 512: 'Table 10'}[size]
        caption += f' Grey: as arXiv 2503.07197, {where}, gives them; crosses: other methods.'
    elif score == 'fid':
        caption += ' The image size is not known, so there is nothing of the paper beside it.'
    return caption


def marks_by_nfe(size):
    """The paper's points (NFE, FID) at an image size: eMIGM and MAR, then the others."""
    ours = tuple(
        Mark(f'{_METHODS[method]}-{_SIZES[name]}', published.evaluations(row.nfe), row.fid, True)
        for (method, image_size, name, _), row in published.ROWS.items()
        if image_size == size
    )
    others = published.OTHERS.get(size, ())
    return ours + tuple(
        Mark(row.name, published.evaluations(row.nfe), row.fid, False) for row in others
    )


def marks_by_seconds(size):
    """The paper's points (seconds per image, FID) at an image size."""
    return tuple(
        Mark(row.name, row.seconds, row.fid, row.name.startswith('eMIGM'))
        for row in published.SPEEDS.get(size, ())
    )


def absent(runs):
    """{part: sentence} of what a report of these runs cannot show, and why."""
    measured = [e for run in runs for e in run.measurements]
    trained = [e for run in runs for e in run.evaluations]
    said = {}
    if not any(run.lines for run in runs):
        said['training'] = 'None of these runs has metrics of training.'
    if not any(run.grids for run in runs):
        said['samples'] = 'None of these runs has pictures in samples/.'
    if not measured and not trained:
        said['scores'] = (
            'None of these runs has been evaluated. emigm evaluate --checkpoint WORKDIR measures '
            'one; put its results (--out or --json) into the workdir, or name them here as well.'
        )
        return said
    if not over_steps(runs):
        said['steps'] = (
            'No run has been evaluated at several steps, so no score over training steps.'
        )
    if not any('fid' in e.scores for e in measured + trained):
        said['fid'] = 'No FID has been computed, so there is nothing to set beside the paper.'
    elif not any('fid' in e.scores for e in measured):
        said['fid'] = (
            'No FID of emigm evaluate is here, so no curve against NFE or seconds per image.'
        )
    return said

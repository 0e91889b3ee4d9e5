"""The measurements of a figure as curves with error bars, and as pictures of them."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from emigm_jax.config import figures, sweeps
from emigm_jax.config.sweeps import Sweep
from emigm_jax.evaluation.score_table import SCORES
from emigm_jax.report.panels import Curve, Map, Panel
from emigm_jax.sweep.run import Scored
from emigm_jax.sweep.table import Mean, mean, names

# Of each pair of scores the first that was measured: of networks, or of pixels in its place.
_FIRST, _SECOND = ('fid', 'frechet_distance'), ('inception_score', 'accuracy')


class Place(NamedTuple):
    """A point of a curve: means over seeds."""

    x: Any  # a number, or a pair
    scores: dict[str, dict[int, float]]  # by name, the value of each seed

    def mean(self, score: str) -> Mean:
        """Over seeds."""
        return mean([*self.scores[score].values()])


def curves(sweep: Sweep, scored: Sequence[Scored], across: str) -> dict[str, list[Place]]:
    """By name, the places of each curve along an axis, from low to high.

    Along the training all is drawn in one way, the last; along anything else after all of it.
    """
    training = across in figures.OVER_TRAINING
    last = {point: (sweep.ways(point) or [{}])[-1] for point in sweep.points}
    found: dict[str, dict[Any, list[Scored]]] = {}
    for each in scored:
        if each.options == last[each.point] if training else each.share == 1.0:
            name = figures.curve(each.point, each.look, sweep.points, sweep.looks)
            key = each.costs['step'] if training else tuple(each.options.items())
            found.setdefault(name, {}).setdefault(key, []).append(each)
    return {
        name: sorted((_place(group, across) for group in groups.values()), key=lambda p: p.x)
        for name, groups in found.items()
    }


def _place(group, across):
    values = [value(each, across) for each in group]
    x = values[0] if isinstance(values[0], tuple) else float(np.median(values))
    common = set.intersection(*(set(each.result.scores) for each in group))
    by_seed = lambda name: {each.seed: each.result.scores[name] for each in group}
    return Place(x, {name: by_seed(name) for name in common})


def value(each: Scored, name: str) -> Any:
    """Where a measurement stands on an axis: a number, a pair, or a word."""
    if name == 'nfe':
        return each.result.settings['nfe']
    if name == 'seconds':
        return each.result.seconds_per_image or math.nan
    if name in figures.COSTS:
        return each.costs[name]
    chosen = each.options[name]
    return tuple(chosen) if isinstance(chosen, (list, tuple)) else chosen


def shown(scored: Sequence[Scored], both: bool) -> list[str]:
    """The scores that a figure shows."""
    measured = names(scored)
    pairs = [_FIRST, _SECOND] if both else [_FIRST]
    found = [next((name for name in pair if name in measured), '') for pair in pairs]
    return [name for name in found if name]


def drawn(sweep: Sweep, scored: Sequence[Scored]) -> tuple[list[Panel | Map], list[str]]:
    """Its pictures, and the names of its curves."""
    figure, pictures, titles = sweep.figure, [], []
    assert figure is not None
    for across in figure.across:
        found = curves(sweep, scored, across)
        titles = titles or [*found]
        for score in shown(scored, figure.both) if found else ():
            name = f'figure-{figure.name}'
            name += f'-{across}' * (len(figure.across) > 1)
            name += f'-{score}' * figure.both
            title = f'Figure {figure.name}. {figure.title}'
            pair = any(isinstance(p.x, tuple) for places in found.values() for p in places)
            make = _map if pair else _panel
            pictures.append(make(name, title, across, score, found))
    return pictures, titles


def label(across: str) -> str:
    """What is written at an axis."""
    return figures.COSTS.get(across) or sweeps.OPTIONS[across].meaning


def _panel(name, title, across, score, found):
    lines = []
    for number, places in enumerate(found.values()):
        kept = [place for place in places if score in place.scores]
        means = [place.mean(score) for place in kept]
        error = np.array([each.error for each in means])
        x, y = np.array([place.x for place in kept]), np.array([each.value for each in means])
        lines.append(Curve(number, x, y, error=None if np.isnan(error).any() else error))
    wide = lambda values, times: bool(values.min() > 0 and values.max() >= times * values.min())
    xs, ys = (np.concatenate(values) for values in zip(*((c.x, c.y) for c in lines), strict=True))
    log_x, log_y = wide(xs, 8), SCORES[score].less and wide(ys, 3)
    return Panel(name, title, label(across), SCORES[score].title, lines, log_x=log_x, log_y=log_y)


def _map(name, title, across, score, found):
    (places,) = found.values()
    values = {place.x: place.mean(score) for place in places}
    return Map(name, title, ('FROM', 'TO'), SCORES[score].title, values, SCORES[score].less)

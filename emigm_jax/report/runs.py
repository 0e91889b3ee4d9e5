"""What a report knows of a run: settings, curves, scores, grids of samples. No files here."""

import dataclasses
from typing import NamedTuple

import numpy as np


class Score(NamedTuple):
    """How a score is told."""

    title: str
    label: str  # of an axis or a column
    digits: int  # after the point
    less: bool  # whether less is better


SCORES = {
    'fid': Score('FID', 'FID', 2, True),
    'fid_infinite': Score('FID at infinitely many images', 'FID (infinite images)', 2, True),
    'sfid': Score('sFID', 'sFID', 2, True),
    'inception_score': Score('Inception Score', 'Inception Score', 1, False),
    'kid': Score('KID', 'KID', 5, True),
    'frechet_distance': Score('Pixel Fréchet distance', 'Fréchet distance (pixels)', 3, True),
    'accuracy': Score('Class accuracy', 'class accuracy (1-NN)', 3, False),
    'precision': Score('Precision', 'precision (k = 3)', 3, False),
    'recall': Score('Recall', 'recall (k = 3)', 3, False),
}


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Scores of generated images: a line of training, or a result of `emigm evaluate`."""

    scores: dict  # {name of SCORES, NAME_std or fid_standard_error: finite float}
    step: int | None = None  # of training
    name: str = ''  # its folder or file; '' for a line of metrics.jsonl
    nfe: float | None = None  # transformer evaluations per image, as the paper counts if known
    nfe_label: str = ''  # '16x1.2'
    seconds: float | None = None  # per image
    images: int | None = None
    reference: str = ''
    weights: str = ''
    sampling: str = ''  # settings in a few words
    content: str = ''  # fingerprint of the network's weights
    image_size: int | None = None  # pixels per side, as far as it can be told
    real: dict = dataclasses.field(default_factory=dict)  # scores of real images against real ones
    missing: dict = dataclasses.field(default_factory=dict)  # {metric: why it was not computed}

    @property
    def pixels(self):
        """Whether the scores are those of pixels and not of Inception's features."""
        return bool(self.scores.keys() & {'frechet_distance', 'accuracy'})


@dataclasses.dataclass(frozen=True)
class Grid:
    """A picture of samples as it lies in a run."""

    step: int
    name: str  # of its file
    content: bytes  # PNG


@dataclasses.dataclass(frozen=True)
class Run:
    """A training run, or results of `emigm evaluate` on one model."""

    name: str  # unique in a report
    path: str
    trained: bool = True  # False: evaluations only
    settings: dict = dataclasses.field(default_factory=dict)  # {dotted name: value}
    lines: tuple = ()  # of training, by step: {name: float, NaN and infinity included}
    evaluations: tuple = ()  # in training, by step
    measurements: tuple = ()  # of `emigm evaluate`
    grids: tuple = ()  # by step, some of all
    grid_count: int = 0  # all
    notes: tuple = ()  # what is missing or was left out, a sentence each

    def column(self, name):
        """(steps, values) of a training metric, float64, without NaN and infinity."""
        pairs = [(line['step'], line[name]) for line in self.lines if name in line]
        steps, values = np.array(pairs, np.float64).reshape(-1, 2).T
        finite = np.isfinite(values)
        return steps[finite], values[finite]

    def scores(self, name):
        """(steps, values) of a score during training."""
        found = [(e.step, e.scores[name]) for e in self.evaluations if name in e.scores]
        steps, values = np.array(found, np.float64).reshape(-1, 2).T
        return steps, values

    @property
    def step(self):
        """The last step that anything is known of, or None."""
        known = [*(line['step'] for line in self.lines), *(e.step for e in self.evaluations)]
        return max(known, default=None)

    @property
    def total(self):
        """Steps the run is meant to have, as its last line of training tells; None if unknown.

        That line has the seconds left at its rate, so that their product is images left.
        """
        batch = self.settings.get('training.batch_size')
        last = self.lines[-1] if self.lines else {}
        rate, left = last.get('images_per_second'), last.get('seconds_left')
        if not isinstance(batch, int) or batch < 1 or rate is None or left is None:
            return None
        steps = last['step'] + rate * left / batch
        return round(steps) if np.isfinite(steps) else None

    @property
    def unfinished(self):
        """Whether the last line of training is not the run's last."""
        return self.total is not None and self.total > self.lines[-1]['step']


def best(run, name):
    """(value, step) of the best score in training, or None."""
    steps, values = run.scores(name)
    if not len(values):
        return None
    at = np.argmin(values) if SCORES[name].less else np.argmax(values)
    return float(values[at]), int(steps[at])


def different(runs):
    """Settings of several runs.

    Returns:
      ({name: [value or None if the run lacks it, by run]} of those that differ, {name: value} of
      the others), of the runs that have settings.
    """
    known = [run.settings for run in runs if run.settings]
    names = list(dict.fromkeys(name for settings in known for name in settings))
    differing, shared = {}, {}
    for name in names:
        values = [settings.get(name) for settings in known]
        if all(value == values[0] and type(value) is type(values[0]) for value in values):
            shared[name] = values[0]
        else:
            differing[name] = values
    return differing, shared

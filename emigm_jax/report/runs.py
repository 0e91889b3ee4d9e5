"""What a report knows of a run: settings, curves, scores, grids of samples. No files here."""

import dataclasses
from typing import Any, NamedTuple

import numpy as np


class Score(NamedTuple):
    """How a score is presented."""

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

    scores: dict[str, float]  # {name of SCORES, NAME_std or fid_standard_error: finite float}
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
    image_size: int | None = None  # pixels per side, if known
    # Scores of real images against real ones.
    real: dict[str, float] = dataclasses.field(default_factory=dict)
    # {metric: why it was not computed}
    missing: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def pixels(self) -> bool:
        """Whether the scores are those of pixels and not of Inception's features."""
        return bool(self.scores.keys() & {'frechet_distance', 'accuracy'})


class Grid(NamedTuple):
    """A picture of samples in a run."""

    step: int
    name: str  # of its file
    content: bytes  # PNG


@dataclasses.dataclass(frozen=True)
class Run:
    """A training run, or results of `emigm evaluate` on one model."""

    name: str  # unique in a report
    path: str
    trained: bool = True  # False: evaluations only
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)  # {dotted name: value}
    lines: tuple[dict[str, float], ...] = ()  # of training, by step; NaN and infinity included
    evaluations: tuple[Evaluation, ...] = ()  # in training, by step
    measurements: tuple[Evaluation, ...] = ()  # of `emigm evaluate`
    grids: tuple[Grid, ...] = ()  # by step, some of all
    grid_count: int = 0  # all
    class_names: tuple[str, ...] = ()  # in label order, as people read them
    notes: tuple[str, ...] = ()  # what is missing or was left out, a sentence each

    def column(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """(steps, values) of a training metric, float64 (n,) each, without NaN and infinity."""
        pairs = [(line['step'], line[name]) for line in self.lines if name in line]
        steps, values = np.array(pairs, np.float64).reshape(-1, 2).T
        finite = np.isfinite(values)
        return steps[finite], values[finite]

    @property
    def step(self) -> int | None:
        """The last step that anything is known of."""
        steps = [int(line['step']) for line in self.lines]
        steps += [e.step for e in self.evaluations if e.step is not None]
        return max(steps, default=None)

    @property
    def total(self) -> int | None:
        """Steps the run is meant to have if its last line of training is not its last one.

        That line has the seconds left at its rate, so that their product is images left.
        """
        last, batch = (self.lines or [{}])[-1], self.settings.get('training.batch_size')
        images = last.get('images_per_second', 0) * last.get('seconds_left', 0)
        if not isinstance(batch, int) or batch < 1 or not 0 < images < np.inf:
            return None
        return round(last['step'] + images / batch)

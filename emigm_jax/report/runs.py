"""What a report knows of a run: settings, curves, scores, grids of samples. No files here."""

import dataclasses
import math
import re
from typing import Any, NamedTuple

import numpy as np

from emigm_jax.config import published
from emigm_jax.evaluation.result import Result

# Channels of the tokens that published models at 256 and 512 pixels have (KL-16, DC-AE).
_SIZES = {16: 256, 32: 512}


class Evaluation(NamedTuple):
    """A line of training with scores, or a result of `emigm evaluate`, seen from a report."""

    result: Result
    name: str  # its folder or file; '' for a line of training
    scores: dict[str, float]  # those that are finite
    step: int | None  # of training, if known
    pixels: bool  # whether the scores are those of pixels and not of Inception's features
    against: str  # the name of what the images were compared with
    image_size: int | None  # pixels per side, if known
    nfe: float | None  # transformer evaluations per image, as the paper counts if known
    nfe_label: str  # '16x1.2'
    sampling: str  # settings in a few words
    seconds: float | None  # per image; None where all were there before


def evaluation(result: Result, name: str = '') -> Evaluation:
    """What a report takes from a result of that name."""
    facts = result.settings
    scores = {k: float(v) for k, v in result.scores.items() if math.isfinite(v)}
    pixels = bool(scores.keys() & {'frechet_distance', 'accuracy'})
    against = str((result.reference or {}).get('name') or 'real pictures' * pixels)
    # As in VIRTUAL_imagenet256_labeled.npz.
    sizes = set(re.findall(r'(?<!\d)(256|512)(?!\d)', against))
    size = int(sizes.pop()) if len(sizes) == 1 else None
    label = str(facts.get('nfe_as_the_paper_counts') or facts.get('nfe') or '')
    try:
        nfe = published.evaluations(label)
    except ValueError:
        nfe = None
    step = facts['step'] if type(facts.get('step')) is int else None
    sampling, seconds = _sampling(facts), result.seconds_per_image or None
    shown = (step, pixels, against, size, nfe, label, sampling, seconds)
    return Evaluation(result, name, scores, *shown)


def _sampling(facts):
    sampling = _group(facts, 'sampling')
    reveal, solver = _group(sampling, 'reveal'), _group(sampling, 'solver')
    words = [f'K = {reveal.get("steps")}'] if reveal else []
    if (guidance := reveal.get('guidance')) is not None:
        interval = f'({reveal.get("guidance_from")}, {reveal.get("guidance_to")}]'
        by = ' by another model' if 'guide' in facts else ''
        words += ['no guidance' if guidance == 1 else f'guidance {guidance}{by} in {interval}']
    return ', '.join(words + [f'{solver.get("name")} {solver.get("steps")}'] * bool(solver))


def _group(values, name):
    """The settings of a group, {} if a file has something else there."""
    return values[name] if isinstance(values.get(name), dict) else {}


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
    about: dict[str, Any] = dataclasses.field(default_factory=dict)  # of `training.about`
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
    def scored(self) -> tuple[Evaluation, ...]:
        """All that is known of scores, that of `emigm evaluate` first."""
        return self.measurements + self.evaluations

    @property
    def step(self) -> int | None:
        """The last step that anything is known of."""
        steps = [int(line['step']) for line in self.lines]
        return max(steps + [e.step for e in self.evaluations if e.step is not None], default=None)

    @property
    def total(self) -> int | None:
        """Steps the run is meant to have if its last line of training is not its last one.

        That line has the seconds left at its rate, so that their product is images left.
        """
        last, batch = (self.lines or [{}])[-1], self.settings.get('training.batch_size')
        images = last.get('images_per_second', 0) * last.get('seconds_left', 0)
        if not isinstance(batch, int) or batch < 1 or not 0 < images < math.inf:
            return None
        return round(last['step'] + images / batch)


def flat(tree: dict[str, Any], prefix: str = '') -> dict[str, Any]:
    """Nested settings as {dotted name: value}."""
    pairs = {}
    for name, value in tree.items():
        nested = isinstance(value, dict)
        pairs |= flat(value, f'{prefix}{name}.') if nested else {f'{prefix}{name}': value}
    return pairs


def image_size(settings: dict[str, Any]) -> int | None:
    """Pixels per side of the pictures of a run with these flat settings; None if unknown."""
    source = settings.get('data.name')
    number = lambda name: size if type(size := settings.get(name)) is int else None
    if source in ('folder', 'tfds'):
        return number('data.image_size')
    encoded = source in ('latents', 'synthetic') and number('model.grid') == 16
    return _SIZES.get(number('model.channels') or 0) if encoded else None

"""The best sampling settings of a checkpoint within a time per image, as a preset."""

import dataclasses
import functools
import os
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from emigm_jax.api.model import Model, load
from emigm_jax.checkpoints import inspect, runs, store
from emigm_jax.config import sweeps
from emigm_jax.config.settings import SamplingConfig
from emigm_jax.core import randomness
from emigm_jax.errors import UserError, check_range, whole
from emigm_jax.io import access, files, paths
from emigm_jax.tuning import lab as labs
from emigm_jax.tuning import search, show, space
from emigm_jax.tuning.show import OWN

CHECKPOINT = 'checkpoint'  # in OUT/NAME: the copy with the preset
FRESH = 3  # base seeds of images that the search did not see
_IN_PIXELS, _WITH_INCEPTION = 2000, 10_000  # images of the last rung
_NAME = re.compile(r'\w[\w.+-]*')


@dataclasses.dataclass(frozen=True)
class Effort:
    """How far a search goes."""

    # Of each of the settings that get to the last rung; None: 2,000 in pixels, else 10,000.
    images: int | None = None
    candidates: int = 32  # settings that are proposed and measured
    say: Callable[[str], object] = functools.partial(print, flush=True)  # gets lines for the user

    def __post_init__(self):
        whole('images', 4 if self.images is None else self.images, low=4)
        whole('candidates', self.candidates, low=1)


class Tuned(NamedTuple):
    """What was found."""

    preset: SamplingConfig
    options: dict[str, Any]  # of it that are not the checkpoint's own
    seconds: float  # per image
    score: float  # less is better
    table: str  # the Pareto front, as Markdown
    checkpoint: str  # the copy with the preset


def tune(
    what: Model | os.PathLike | str,
    out: os.PathLike | str,
    budget: float,
    *,
    name: str = 'tuned',
    reference: os.PathLike | str | None = None,
    inception: os.PathLike | str | None = None,
    effort: Effort | None = None,
) -> Tuned:
    """Searches the sampling settings of the best FID within a time per image (Frechet distance in
    pixels where there is no reference).

    Proposals near the known settings and far from them are measured with common seeds, by
    successive halving: many with few images, the better half with twice as many, and so on; then
    others near to the best ones. A call that was killed goes on where it was.

    Args:
      what: a checkpoint, or a `Model` that is loaded, with its tokenizer and batch size.
      out: folder of measurements, of OUT/NAME/table.md, candidates.csv, front.png, and of
        OUT/NAME/checkpoint: the EMA weights with all presets and the new one.
      budget: seconds per image, on this machine, in batches, when all is compiled.
      name: of the preset.
      reference, inception: as in `evaluate`; None: as the evaluation settings of the run say.
      effort: how many settings and images.

    Returns:
      the preset and what was measured of it.

    Raises:
      UserError: nothing meets the budget, there is no reference, the name or the folder is taken,
        or the checkpoint cannot be read.

    Example:
      >>> quiet = em.Effort(images=20, candidates=2, say=lambda line: None)
      >>> tuned = em.tune('runs/digits', 'runs/tuning', budget=10.0, effort=quiet)
      >>> em.load(tuned.checkpoint).sample(classes=[3], seeds=[0], preset='tuned').shape
      (1, 8, 8, 3)
    """
    effort = effort or Effort()
    check_range('budget', budget, 0.0)
    model = what if isinstance(what, Model) else load(what)
    starts = _starts(model, name)
    compared = labs.against(model, reference, inception)
    images = effort.images or (_WITH_INCEPTION if compared.reference else _IN_PIXELS)
    access.probe(out)
    lab, place = labs.Lab(model, compared, out, effort.say), paths.absolute(out) / name
    plan = search.Plan(budget, images, effort.candidates)
    claim = functools.partial(
        files.claim,
        place,
        dataclasses.asdict(plan),
        'a tuning',
        remedy='choose another --name, or delete it',
    )
    claim(write=False)
    propose = lambda rng, parent, near: space.propose(rng, model.config, parent, near)
    tried = search.search([*starts], propose, plan, lab)
    best = search.best(tried, budget)
    assert best is not None  # or the search would have raised
    shown = _shown(tried, best, starts, lab, show.Shown([], compared.score, images, budget), name)
    claim()
    _write(shown, place, effort.say)
    _export(model, place / CHECKPOINT, name, best.way)
    text, own = show.markdown(shown), model.config.sampling
    options = space.differences(best.way, own)
    return Tuned(best.way, options, best.seconds, best.score, text, str(place / CHECKPOINT))


def _starts(model, name) -> dict[SamplingConfig, str]:
    """The known settings of a model and their names; UserError where it cannot be tuned."""
    if model.generator.sampler.guide is not None:
        raise UserError('a model is tuned without a guide: no preset would name it')
    if model.generator.weights == 'params':
        raise UserError('a model is tuned with EMA weights, which go into the copy of it')
    if not _NAME.fullmatch(name) or name in (*labs.FILES, OWN):
        raise UserError(f'{name!r} is no name for a preset: letters, digits and ._+- make one')
    presets = model.saved.all_presets
    if name in presets:
        raise UserError(
            f'{model.saved.path}: has a preset {name!r} already; --name chooses another'
        )
    known = {config: title for title, config in presets.items()}
    return {model.config.sampling: OWN, **known}


def _shown(tried, best, starts, lab, shown, name):
    """With what is known of fresh seeds: of the best, and of what it is compared with."""
    names = {**starts, best.way: name}
    ways = [each.way for each in tried]
    if best.way in starts:
        names[best.way] = f'{name} = {starts[best.way]}'
    fresh = {way: _fresh(way, lab, shown.images) for way in ways if way in names}
    own = next(iter(starts))
    rows = show.rows(tried, names, own, {way: lab.nfe(way) for way in ways}, fresh)
    return shown._replace(rows=rows)


def _fresh(way, lab, images):
    seeds = [(way.seed + i) % (randomness.LAST_SEED + 1) for i in range(1, FRESH + 1)]
    return tuple(lab.scores([dataclasses.replace(way, seed=seed) for seed in seeds], images))


def _write(shown, place, say):
    files.write_text(place / 'table.md', show.markdown(shown))
    files.write_text(place / 'candidates.csv', show.table(shown))
    try:
        from emigm_jax.report import plots
    except UserError as error:  # matplotlib is an extra
        say(f'no picture: {error}')
        return
    with files.replacing(place / 'front.png') as file:
        file.write(plots.png(*show.panel(shown)))


def _export(model, target, name, way):
    """The copy, unless it is there."""
    if store.is_checkpoint(target) and runs.require(target).presets.get(name) == way:
        return
    inspect.export(model.saved.path, target, model.generator.weights, {name: way})


def described(model: Model, effort: Effort) -> list[str]:
    """What `tune` would try, a line for each option."""
    lines = [
        f'{name}: {", ".join(sweeps.text({name: v}).partition("=")[2] for v in axis.values)}'
        for name, axis in space.axes(model.config).items()
    ]
    return [*lines, f'{effort.candidates} of these, in {search.ROUNDS} rounds']

"""What a visitor of the page chooses, and what a model has to choose from."""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Iterable
from typing import Any, cast, final

import numpy as np

from emigm_jax.api.model import Model
from emigm_jax.config import ranges, recipes
from emigm_jax.config.options import SamplingOptions
from emigm_jax.config.settings import SamplingConfig
from emigm_jax.core import orders
from emigm_jax.data import class_names
from emigm_jax.errors import UserError

NULL = -1  # the label of the null class


@final
@dataclasses.dataclass(frozen=True)
class Settings:
    """All that a visitor can set."""

    classes: tuple[int, ...]  # labels that are drawn; -1: the null class
    edited: tuple[int, ...]  # those for which a painted picture is completed
    seeds: str  # as in `emigm sample --seeds`
    preset: str  # '': the checkpoint's own settings
    steps: int
    guidance: float
    interval: tuple[float, float]  # guided while FROM < s <= TO
    order: str


@final
@dataclasses.dataclass(frozen=True)
class Offer:
    """A model and what can be set of it."""

    model: Model
    most: int  # pictures at a time, all in programs of this one shape
    preset: str = ''  # that the page begins with
    given: SamplingOptions = dataclasses.field(default_factory=SamplingOptions)  # and options

    @functools.cached_property
    def classes(self) -> list[tuple[str, int]]:
        """Titles and labels."""
        null = [NULL] if self.model.config.loss.label_drop else []
        labels, names = [*range(self.model.classes), *null], self.model.saved.class_names
        titles = class_names.titles(labels, self.model.classes, names)
        return list(zip(titles, labels, strict=True))

    @property
    def guided(self) -> bool:
        """Whether there is something to guide by."""
        sampler = self.model.generator.sampler
        return bool(self.model.config.loss.label_drop) or sampler.guide is not None

    @functools.cached_property
    def presets(self) -> list[str]:
        """Names of settings, '' those of the checkpoint."""
        saved = self.model.saved
        return ['', *(saved.presets or recipes.sampling_of(saved.config.model))]

    @functools.cached_property
    def orders(self) -> list[str]:
        """Those in which this model can draw."""
        own = self.own(self.preset).reveal.order
        return [name for name in orders.ORDERS if name == own or self._draws(name)]

    def _draws(self, order):
        with contextlib.suppress(UserError):
            self.model.with_sampling(self.model.sampling(self.preset or None, order=order))
            return True
        return False

    def own(self, preset: str) -> SamplingConfig:
        """The settings of a preset with the options that the page was begun with."""
        return self.model.sampling(preset or None, **self.given)

    def start(self, preset: str) -> Settings:
        """What is set before a visitor changes something."""
        reveal, side = self.own(preset).reveal, math.isqrt(self.most)
        labels = self.model.labels(None)
        return Settings(
            classes=tuple(labels[:side]),
            edited=tuple(labels[:1]),
            seeds=f'0-{side - 1}' if side > 1 else '0',
            preset=preset,
            steps=reveal.steps,
            guidance=reveal.guidance,
            interval=(reveal.guidance_from, reveal.guidance_to),
            order=reveal.order,
        )

    def options(self, settings: Settings) -> SamplingOptions:
        """What differs from the preset, by the names of `config.options.OPTIONS`."""
        start = self.start(settings.preset)
        names = ('steps', 'guidance', 'interval', 'order')
        values = {name: getattr(settings, name) for name in names}
        changes = {n: value for n, value in values.items() if value != getattr(start, n)}
        given: dict[str, Any] = dict(self.given)
        if 'order' in changes:
            given.pop('positions', None)  # of another order
        return cast(SamplingOptions, given | changes)

    def sampling(self, settings: Settings) -> SamplingConfig:
        """Whole sampling settings.

        Raises:
          UserError: one of them makes no sense.
        """
        return self.model.sampling(settings.preset or None, **self.options(settings))

    def pairs(self, labels: Iterable[int], seeds: str) -> tuple[np.ndarray, np.ndarray]:
        """Labels and seeds of the pictures, each class with each seed and none twice.

        Raises:
          UserError: there are none or too many, or an unknown class.
        """
        numbers = [*dict.fromkeys(ranges.numbers('seeds', seeds))]
        named = [None if label == NULL else label for label in dict.fromkeys(labels)]
        if len(named) * len(numbers) > self.most:
            raise UserError(
                f'{len(named)} classes with {len(numbers)} seeds are '
                f'{len(named) * len(numbers)} pictures, {self.most} at most go at a time '
                '(--batch-size)'
            )
        return self.model.pairs(named, numbers)

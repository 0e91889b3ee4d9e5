"""What a sweep trains and draws: runs that differ in named settings, and images of each of them."""

import contextlib
import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any, final

from emigm_jax.config.figures import Figure
from emigm_jax.config.options import OPTIONS, changed
from emigm_jax.config.settings import Config
from emigm_jax.errors import UserError, near, whole

_NAME = re.compile(r'[\w.=+-][\w.=+ -]*')  # of a point: it names a folder, too


@final
@dataclasses.dataclass(frozen=True)
class Sweep:
    """Points that are trained with several seeds each, and drawn from in several ways."""

    points: Mapping[str, Config]  # name: settings, but for their seed
    # Sampling options and the values that each takes: all their combinations are drawn that a
    # model can be drawn with. The last option goes across tables and pictures.
    draws: Mapping[str, Sequence[Any]] = dataclasses.field(default_factory=dict)
    seeds: tuple[int, ...] = (0, 1, 2)  # of training; `Config.seed`
    num_images: int = 1000  # of each model in each way: class by class, image i from seed i
    # Named options that are drawn with, one after the other, whatever `draws` say beside.
    looks: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=lambda: {'': {}})
    # What is drawn of them in place of a table. Its runs lie in folders named by their settings, so
    # that figures share them.
    figure: Figure | None = None

    def __post_init__(self):
        if not self.points or not self.seeds or not all(self.draws.values()):
            raise UserError('a sweep needs a point, a seed, and a value of each option at least')
        for name in self.points:
            if not _NAME.fullmatch(name):
                raise UserError(
                    f'{name!r} names no point of a sweep: letters, digits and ._=+- make a folder'
                )
        for name in itertools.chain(self.draws, *self.looks.values()):
            if name not in OPTIONS:
                raise UserError(f'no sampling option {name!r}{near(name, OPTIONS)}')
        if len({tuple(look) for look in self.looks.values()}) != 1:
            raise UserError(
                'the looks of a sweep must name the same sampling options, one at least'
            )
        if self.figure:
            self.figure.check(self.draws)
        for seed in self.seeds:
            whole('a seed', seed, low=0)
        if len({*self.seeds}) < len(self.seeds):
            raise UserError(f'a seed comes twice: {", ".join(map(str, self.seeds))}')
        whole('num_images', self.num_images, low=4)
        for _, options in self._combinations():
            self._check(options)

    def _combinations(self):
        values = [*itertools.product(*self.draws.values())]
        return [
            (name, {**look, **dict(zip(self.draws, each, strict=True))})
            for name, look in self.looks.items()
            for each in values
        ]

    def _check(self, options):
        """Raises UserError where no point can be drawn from in a way, with the reason of one."""
        reasons = []
        for config in self.points.values():
            try:
                with_options(config, options)
                return
            except UserError as error:
                reasons.append(str(error))
        raise UserError(f'no point can be drawn from with {text(options)}: {reasons[0]}')

    def ways(self, point: str) -> list[dict[str, Any]]:
        """The sampling options with which a point is drawn from."""
        return [options for _, options in self.looked(point)]

    def looked(self, point: str) -> list[tuple[str, dict[str, Any]]]:
        """The same, each with the name of its look."""
        found = []
        for look, options in self._combinations():
            with contextlib.suppress(UserError):
                with_options(self.points[point], options)
                found.append((look, options))
        return found

    def runs(self) -> dict[tuple[str, int], Config]:
        """{(point, seed): the whole settings}."""
        return {
            (point, seed): dataclasses.replace(config, seed=seed)
            for point, config in self.points.items()
            for seed in self.seeds
        }


def with_options(config: Config, options: Mapping[str, Any]) -> Config:
    """Settings whose sampling has these options.

    Raises:
      UserError: they make no sense for the model.
    """
    sampling = changed(config.sampling, options, config)  # pyright: ignore[reportArgumentType]
    return dataclasses.replace(config, sampling=sampling)


def text(options: Mapping[str, Any]) -> str:
    """'order=random,steps=8'; of no options 'own'."""
    return ','.join(f'{name}={shown(value)}' for name, value in options.items()) or 'own'


def shown(value: Any) -> str:
    """The value of an option: a list as '0.1-0.3'."""
    return '-'.join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)

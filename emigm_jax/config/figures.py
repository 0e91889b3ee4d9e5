"""A figure of a paper: what is drawn over what, and what the paper says about it."""

import dataclasses
from collections.abc import Collection
from typing import NamedTuple, final

from emigm_jax.errors import UserError

# What goes across beside sampling options.
COSTS = {
    'step': 'training step',
    'flops': 'training FLOPs (matrix products by the formula)',
    'nfe': 'network evaluations per image',
    'seconds': 'seconds per image',
}
OVER_TRAINING = ('step', 'flops')


class Claim(NamedTuple):
    """A sentence of the paper; with two curves, of which one is said to be better."""

    says: str
    source: str
    better: str = ''  # names of curves
    worse: str = ''
    place: int = -1  # position on the axis at which they are compared


class Number(NamedTuple):
    """A number of the paper, and where on our axis it has its counterpart."""

    curve: str
    condition: str  # as the paper has it
    value: float  # FID of ImageNet at 256 pixels
    source: str
    place: int | tuple[float, float]  # position on the axis; on a map the pair itself


@final
@dataclasses.dataclass(frozen=True)
class Figure:
    """How the measurements of a sweep are drawn. Curves are its points, or its looks."""

    name: str  # as the paper numbers it
    title: str
    # Across: a key of COSTS, or a sampling option; a pair, as interval, makes a map.
    across: tuple[str, ...]
    both: bool = False  # whether the second score has pictures, too
    claims: tuple[Claim, ...] = ()
    numbers: tuple[Number, ...] = ()

    def check(self, drawn: Collection[str]) -> None:
        """Raises UserError unless what goes across is a cost or one of the options `drawn`."""
        for name in self.across:
            if name not in COSTS and name not in drawn:
                raise UserError(f'figure {self.name}: nothing is drawn with several {name}')

    def shares(self) -> tuple[float, ...]:
        """Of the training, after which runs are measured: each quarter, or the whole."""
        return (0.25, 0.5, 0.75, 1.0) if {*self.across} & {*OVER_TRAINING} else (1.0,)


def curve(point: str, look: str, points: Collection[str], looks: Collection[str]) -> str:
    """The name of the curve of a point and a look, of all that there are."""
    return point if len(looks) == 1 else look if len(points) == 1 else f'{point}, {look}'

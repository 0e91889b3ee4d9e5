"""The search: proposals, rungs of ever more images, survivors. It knows no model, clock or file.

Whatever it learns comes from a `Lab`; the same answers give the same search, so one that was killed
goes through what was measured once more and goes on.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, Protocol, TypeVar

import numpy as np

from emigm_jax.errors import UserError

ROUNDS = 2  # the second proposes from what is best in the first
RUNGS = 3  # in a round: each has half of the candidates of the one before, and twice the images
FAR = 4.0  # budgets that settings which are not proposed, but compared with, may take
_FEWEST = 4  # images of which there are scores
_LOOKED_AT = 6  # proposals for each candidate that is wanted
# A proposal is timed if it would meet the budget at so many times the best rate (FLOP/s) so far:
# to time what is far beyond it may take hours.
_RATE = 3.0

Way = TypeVar('Way')  # settings; hashable
_Asked = TypeVar('_Asked', contravariant=True)


class Lab(Protocol[_Asked]):
    """Answers what the search asks, always the same."""

    def cost(self, way: _Asked) -> float:
        """FLOPs per image, known without running anything."""
        ...

    def seconds(self, way: _Asked) -> float:
        """Per image."""
        ...

    def scores(self, ways: Sequence[_Asked], images: int) -> list[float]:
        """Of so many images of each, less is better; inf where there are none."""
        ...


@dataclasses.dataclass(frozen=True)
class Plan:
    """How far a search goes."""

    budget: float  # seconds per image
    images: int  # of the last rung
    candidates: int  # proposals that are measured, in all rounds
    seed: int = 0  # of the proposals


class Tried(NamedTuple, Generic[Way]):
    """What got to the last rung."""

    way: Way
    seconds: float  # per image
    score: float


def search(
    starts: Sequence[Way],
    propose: Callable[[np.random.Generator, Way, bool], Way],
    plan: Plan,
    lab: Lab[Way],
) -> list[Tried[Way]]:
    """All that got to the last rung, `starts` that are not far beyond the budget first.

    Args:
      starts: known settings, compared with and proposed from.
      propose: (rng, settings, near) -> other settings, near to them or anywhere.
      plan: how far it goes.
      lab: measures.

    Raises:
      UserError: nothing that was found meets the budget.
    """
    rng, seen = np.random.default_rng(plan.seed), set(starts)
    timed: dict[Way, float] = {}
    rates: list[float] = []  # FLOP/s

    def seconds(way):
        timed[way] = lab.seconds(way)
        rates.append(lab.cost(way) / timed[way])
        return timed[way]

    def new(parents):
        """Proposals that meet the budget."""
        dear = {}
        for number in range(_LOOKED_AT * wanted):
            way = propose(rng, parents[number % len(parents)], number % 3 > 0)
            if way in seen:
                continue
            seen.add(way)
            if (cost := lab.cost(way)) > _RATE * max(rates) * plan.budget:
                dear[way] = cost
            elif seconds(way) <= plan.budget:
                yield way
        if dear and min(timed.values()) > plan.budget:
            seconds(min(dear, key=lambda way: dear[way]))  # to tell how long the quickest one takes

    known = [way for way in starts if seconds(way) <= FAR * plan.budget]
    tried: list[Tried[Way]] = []
    parents, wanted = list(starts), math.ceil(plan.candidates / ROUNDS)
    for _ in range(ROUNDS):
        alive, points = list(itertools.islice(new(parents), wanted)), []
        if (least := min(timed.values())) > plan.budget:
            raise UserError(
                f'nothing meets the budget of {plan.budget:g} s per image: the fastest of '
                f'{len(timed)} settings takes {least:.3g} s'
            )
        if not tried:
            tried += _tried(known, timed, lab.scores(known, plan.images))
        for rung in reversed(range(RUNGS)):
            scores = lab.scores(alive, max(_FEWEST, plan.images >> rung))
            points = _tried(alive, timed, scores)
            alive = [each.way for each in ranked(points)[: math.ceil(len(points) / 2)]]
        tried += points
        parents = [each.way for each in front(tried)] or parents
    if best(tried, plan.budget) is None:
        raise UserError('no settings within the budget give images that are finite numbers')
    return tried


def _tried(ways, timed, scores):
    return [Tried(way, timed[way], score) for way, score in zip(ways, scores, strict=True)]


def front(tried: Sequence[Tried[Way]]) -> list[Tried[Way]]:
    """Those that none of the others beats in time and score, the fastest first."""
    kept = []
    for each in sorted(tried, key=lambda each: (each.seconds, each.score)):
        if math.isfinite(each.score) and (not kept or each.score < kept[-1].score):
            kept.append(each)
    return kept


def ranked(tried: Sequence[Tried[Way]]) -> list[Tried[Way]]:
    """By fronts: that of all, that of the others, and so on; in each the best score first."""
    left, order = list(tried), []
    while layer := front(left):
        order += sorted(layer, key=lambda each: each.score)
        left = [each for each in left if each not in layer]
    return order + left  # those without a score


def best(tried: Sequence[Tried[Way]], budget: float) -> Tried[Way] | None:
    """The best score within the budget; None if nothing meets it."""
    within = [each for each in front(tried) if each.seconds <= budget]
    return within[-1] if within else None

"""The search replayed without a model: what is measured, what survives, what is found."""

import math

import numpy as np
import pytest

from emigm_jax.errors import UserError
from emigm_jax.tuning import search
from emigm_jax.tuning.search import Plan, Tried

PLAN = Plan(budget=0.008, images=400, candidates=24)
START = (4, 5.0)  # steps, guidance


def propose(rng, parent, near):
    steps, guidance = parent
    if near:
        return max(1, steps + int(rng.integers(-2, 3))), guidance + float(rng.normal())
    return int(rng.integers(1, 30)), float(rng.uniform(0, 10))


class Toy:
    """A millisecond a step; best at guidance 2 and many steps, with less noise of more images."""

    def __init__(self, stops_after=math.inf, known=None):
        self.known, self.asked, self.stops_after = known or {}, [], stops_after
        self.rungs = []

    def cost(self, way):
        return 10.0 * way[0]

    def _answer(self, question, answer):
        if question not in self.known:
            if len(self.asked) == self.stops_after:
                raise KeyboardInterrupt
            self.asked.append(question)
            self.known[question] = answer
        return self.known[question]

    def seconds(self, way):
        return self._answer(way, 1e-3 * way[0])

    def scores(self, ways, images):
        self.rungs.append((len(ways), images))
        noise = lambda way: np.random.default_rng(int(1e6 * way[1]) + images).normal() / images
        score = lambda steps, guidance: 1 / steps + (guidance - 2.0) ** 2
        return [self._answer((way, images), score(*way) + noise(way)) for way in ways]


def run(lab, plan=PLAN):
    return search.search([START], propose, plan, lab)


def test_halving():
    lab = Toy()
    tried = run(lab)
    assert lab.rungs == [(1, 400), *[(12, 100), (6, 200), (3, 400)] * 2]
    assert [each.way for each in tried[:1]] == [START] and len(tried) == 7
    measured = {way for way, images in (a for a in lab.asked if isinstance(a[0], tuple))}
    assert all(steps <= 8 for steps, _ in measured)  # the budget
    best = search.best(tried, PLAN.budget)
    assert best and best.score < tried[0].score / 2


def test_what_is_far_beyond_the_budget_is_not_timed():
    lab = Toy()
    run(lab)
    timed = [steps for steps, second in lab.asked if not isinstance(steps, tuple)]
    assert 8 < max(timed) <= 3 * 8  # the rate is the same for all, and a third of it is allowed for


@pytest.mark.parametrize('stops_after', [0, 1, 7, 20, 40])
def test_a_search_that_was_killed_goes_on(stops_after):
    whole = Toy()
    expected = run(whole)
    first = Toy(stops_after)
    with pytest.raises(KeyboardInterrupt):
        run(first)
    second = Toy(known=first.known)
    assert run(second) == expected
    assert first.asked + second.asked == whole.asked
    third = Toy(known=second.known)
    assert run(third) == expected and not third.asked


def test_nothing_is_measured_for_the_second_time():
    lab = Toy()
    tried = search.search([START], lambda rng, parent, near: parent, PLAN, lab)
    assert [each.way for each in tried] == [START]
    assert lab.asked == [START, (START, 400)]


def test_starts_far_beyond_the_budget_are_not_measured():
    lab = Toy()
    tried = search.search([START, (500, 2.0)], propose, PLAN, lab)
    assert lab.rungs[0] == (1, 400)
    assert (500, 2.0) not in [each.way for each in tried]


def test_a_budget_that_nothing_meets():
    lab = Toy()
    with pytest.raises(UserError, match=r'budget of 1e-05 s per image: the fastest of 2 .* 0\.001'):
        run(lab, Plan(1e-5, 400, 16))
    assert not lab.rungs  # found out before anything is drawn


def test_nothing_but_broken_images():
    lab = Toy()
    lab.scores = lambda ways, images: [math.inf] * len(ways)
    with pytest.raises(UserError, match='no settings within the budget give images that are fin'):
        run(lab)


def test_fronts():
    a, b, c = Tried('a', 1.0, 5.0), Tried('b', 2.0, 3.0), Tried('c', 4.0, 1.0)
    slower, worse, broken = Tried('s', 2.5, 3.0), Tried('w', 1.0, 6.0), Tried('x', 0.5, math.inf)
    every = [broken, worse, c, slower, a, b]
    assert search.front(every) == [a, b, c]
    assert search.ranked(every) == [c, b, a, slower, worse, broken]
    assert search.best(every, 4.0) == c
    assert search.best(every, 3.9) == b
    assert search.best(every, 0.9) is None

"""Reveal plans of images of which some tokens are given: the others are drawn after them."""

import functools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Array, Bool, Int

from emigm_jax.core import reveal, schedules
from emigm_jax.core.reveal import GRIDS, Plan, RevealConfig

GROUPS = 8  # of numbers of masked tokens that share static shapes


def alike(masked: int, tokens: int) -> range:
    """How many of N tokens may be masked in images that run in one program with `masked` of them.

    N / `GROUPS` numbers each, so that masks of any form need few programs.
    """
    width = max(1, tokens // GROUPS)
    first = (masked - 1) // width * width + 1
    return range(first, min(first + width, tokens + 1))


def guided_steps(
    config: RevealConfig, masked: int, tokens: int
) -> Bool[np.ndarray, ' {config.steps}']:
    """Steps run with guidance where `masked` of N tokens are drawn.

    The interval tests the time s' at which generation of all tokens has as many masked as there are
    at the end of a step: gamma(s') = gamma(s) masked / N.
    """
    gamma = lambda time: schedules.SCHEDULES[config.schedule](np.clip(time, 0.0, 1.0))
    low, high = (gamma(np.float64(time)) for time in (config.guidance_from, config.guidance_to))
    left = masked / tokens * gamma(GRIDS[config.times](config.steps)[1:])
    return (low < left) & (left <= high) & (config.guidance != 1.0)


def plan(
    config: RevealConfig,
    tokens: int,
    masked: Int[np.ndarray, ' B'],
    seeds: Int[Array | np.ndarray, ' B'] | Sequence[int],
) -> Plan:
    """The plan of images of which `masked` of N tokens are drawn.

    An image has the counts that `reveal.plan` draws for as many tokens, and guidance by the share
    of all N that is revealed. Budgets hold for all numbers that are `alike`, as those of a call
    are, and so do not depend on what else is in it.
    """
    seeds, sizes = np.asarray(seeds), alike(int(masked[0]), tokens)
    counts = np.empty((len(masked), config.steps), np.int32)
    guided = np.empty(counts.shape, bool)
    for n in np.unique(masked).tolist():
        assert n in sizes
        counts[masked == n] = reveal.plan(config, n, seeds[masked == n]).counts
        guided[masked == n] = guided_steps(config, n, tokens)
    scale = reveal.guidance(config, counts, tokens, guided)
    return Plan(counts, scale, *_shapes(config, tokens, sizes))


@functools.cache
def _shapes(config, tokens, sizes):
    """What is static of a `Plan`."""
    plans = {n: reveal.plan(config, n, [0]) for n in sizes}
    most = lambda of: np.max([of(n, plan) for n, plan in plans.items()], axis=0)
    return (
        most(lambda n, _: guided_steps(config, n, tokens)),
        # Where an image has nothing left to reveal, nothing is read of it.
        most(lambda n, p: np.where(p.reveal_budget, p.visible_budget + tokens - n, 0)),
        most(lambda _, p: p.reveal_budget),
        most(lambda _, p: p.read_budget),
    )

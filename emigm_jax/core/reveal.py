"""Reveal plans: which step of generation reveals how many tokens (paper Eq. 6, App. B.2).

How many tokens a step reveals never depends on the network, so a plan is drawn on the host before
anything runs. `segments` then cuts it into runs of steps that share static shapes.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from jaxtyping import Array, Bool, Float32, Float64, Int

from emigm_jax.core import binomial, orders, schedules
from emigm_jax.core.setting import setting, validate
from emigm_jax.errors import UserError, check_range

_Either = TypeVar('_Either', Array, np.ndarray)

END_TIME = 1e-5  # timesteps = linspace(1, 1e-5, K + 1), official models/emigm.py:348
TAIL = 1e-6  # probability that a per-image count exceeds its static budget and is limited to it

# f(r) in guidance = 1 + (cfg - 1) f(r); r is the fraction revealed after the step.
GUIDANCE_SCHEDULES = {
    'constant': lambda r: np.ones_like(r),
    'linear': lambda r: r,
    'power': lambda r: r**2,
    'cubic': lambda r: r**3,
    'exp': lambda r: -np.expm1(-5.0 * r),
    'cosine': lambda r: np.cos(np.pi / 2 * (1.0 - r)),
}
# Times of K steps: t_0 = 1 > t_1 > ... > t_K = END_TIME.
GRIDS = {
    'uniform': lambda steps: np.linspace(1.0, END_TIME, steps + 1),
    # MD4's other one (arXiv 2406.04329, md4/models/diffusion/md4.py).
    'cosine': lambda steps: np.maximum(np.cos(np.pi / 2 * np.arange(steps + 1) / steps), END_TIME),
}
RULES = ('bernoulli', 'ancestral', 'fixed')
COUNTS = ('shared', 'per_image')


@dataclasses.dataclass(frozen=True)
class RevealConfig:
    """How generation reveals tokens and when it is guided."""

    steps: int = setting(16, 'K, transformer steps', low=1)
    schedule: str = setting(
        'exp', 'gamma(t), the chance of being masked at time t', choices=schedules.SCHEDULES
    )
    rule: str = setting(
        'bernoulli',
        'how many tokens a step reveals: bernoulli, by chance, but one at least (Eq. 6; eMIGM); '
        'ancestral, by chance alone (MDM); fixed, all but floor(N gamma) (MaskGIT, MAR)',
        choices=RULES,
    )
    times: str = setting(
        'uniform',
        'times of the steps, of bernoulli and ancestral: evenly spaced, or more of them near the '
        'start',
        choices=GRIDS,
    )
    order: str = setting(
        'random',
        'which positions come first: by chance, evenly spread, row by row, from the centre, as '
        '`positions` say, or those that the network is sure of (codes only)',
        choices=orders.ORDERS,
    )
    positions: tuple[int, ...] = setting(
        (), 'order given: all positions, numbered row by row, the first to come first', low=0
    )
    choice_temperature: float = setting(
        4.5,
        'order confidence: noise added to log p of a code, at first; none in the last step '
        '(MaskGIT)',
        low=0.0,
    )
    counts: str = setting(
        'shared',
        'one draw of counts for all images (exact shapes), or one per image',
        choices=COUNTS,
    )
    # numpy's Philox takes 64 bits.
    plan_seed: int = setting(0, 'seed of the counts', low=0, high=2**64 - 1)
    guidance: float = setting(4.0, 'classifier-free guidance; 1 switches it off', low=0.0)
    guidance_schedule: str = setting(
        'constant',
        'how guidance grows from 1 with the fraction that is revealed',
        choices=GUIDANCE_SCHEDULES,
    )
    guidance_from: float = setting(
        0.1, 'guided while guidance_from < s <= guidance_to, s the time at the end of a step'
    )
    guidance_to: float = setting(0.3, 'see guidance_from, which it must not be below')

    def __post_init__(self):
        validate(self, 'sampling.reveal')
        check_range('sampling.reveal.guidance_to', self.guidance_to, self.guidance_from)
        if bool(self.positions) != (self.order == 'given'):
            raise UserError("sampling.reveal.positions and order = 'given' go together")


class Plan(NamedTuple):
    """Counts and guidance of B images over K steps (B = 1: shared by all)."""

    counts: Int[np.ndarray, 'B K']  # rows sum to N
    guidance: Float32[np.ndarray, 'B K']
    guided: Bool[np.ndarray, ' K']  # does the step need the null condition?
    visible_budget: Int[np.ndarray, ' K']  # most tokens visible before the step, over all plans
    reveal_budget: Int[np.ndarray, ' K']  # most tokens revealed in the step; 0: it never runs
    read_budget: Int[np.ndarray, ' K']  # most tokens drawn in it, of which it reveals some


class Segment(NamedTuple):
    """Steps compiled as one loop with these static sizes."""

    steps: tuple[int, ...]  # in order
    visible: int
    read: int
    guided: bool


def reveal_probabilities(config: RevealConfig) -> Float64[np.ndarray, ' {config.steps}']:
    """Probability that a masked token is revealed in each step; 1 in the last."""
    t = GRIDS[config.times](config.steps)
    p = schedules.reveal_probability(config.schedule, t[:-1], t[1:])
    p[-1] = 1.0
    return p


def guided_steps(config: RevealConfig) -> Bool[np.ndarray, ' {config.steps}']:
    """Steps run with guidance: the interval is half open and tests s, not t."""
    s = GRIDS[config.times](config.steps)[1:]
    inside = (config.guidance_from < s) & (s <= config.guidance_to)
    return inside & (config.guidance != 1.0)


def _bernoulli_counts(config, tokens, seed):
    rng = np.random.Generator(np.random.Philox(key=seed))
    counts, masked = np.zeros(config.steps, np.int32), tokens
    # A step that would reveal nothing is forced to reveal one token (official :429-437); without
    # this rule 43 % of 128 steps would be empty.
    least = _least(config)
    for k, p in enumerate(reveal_probabilities(config)):
        drawn = int(np.count_nonzero(rng.random(masked) < p))
        counts[k] = min(max(drawn, least), masked)
        masked -= counts[k]
    return counts


def _least(config):
    """The least that a step reveals while there is something to reveal."""
    return int(config.rule != 'ancestral')


def _fixed_counts(config, tokens):
    counts, masked = np.zeros(config.steps, np.int32), tokens
    t = np.linspace(1.0, 0.0, config.steps + 1)[1:]
    for k, gamma in enumerate(schedules.SCHEDULES[config.schedule](t)):
        last = k == config.steps - 1
        keep = 0 if last else min(max(math.floor(tokens * gamma), 1), masked - 1)
        counts[k] = masked - max(keep, 0)
        masked -= counts[k]
    return counts


def guidance(
    config: RevealConfig,
    counts: Int[np.ndarray, 'B K'],
    tokens: int,
    guided: Bool[np.ndarray, '*#B K'],
) -> Float32[np.ndarray, 'B K']:
    """The scale of each step, by the share of N tokens that is revealed after it."""
    revealed = (visible_before(counts, tokens) + counts) / tokens
    if config.rule == 'fixed':
        # MAR keeps "at least one token masked" in this ratio even when the last one goes.
        revealed = np.minimum(revealed, (tokens - 1) / tokens)
    scale = GUIDANCE_SCHEDULES[config.guidance_schedule](revealed)
    value = 1.0 + (config.guidance - 1.0) * scale
    return np.where(guided, value, 1.0).astype(np.float32)


def _quantile_budgets(config, tokens):
    """Per-step (K,) bounds of visible and revealed tokens that hold for every seed but ~1e-6."""
    forced = np.arange(config.steps) * _least(config)
    t = GRIDS[config.times](config.steps)
    gamma = schedules.SCHEDULES[config.schedule](t[:-1]) / schedules.SCHEDULES[config.schedule](
        t[0]
    )
    # The forced reveals add at most one token per step.
    visible = np.minimum(binomial.exceeded(TAIL, tokens, 1.0 - gamma) + forced, tokens - 1)
    chance = gamma * reveal_probabilities(config)
    reveal = np.maximum(binomial.exceeded(TAIL, tokens, chance), 1)
    return visible.astype(int), np.minimum(reveal, tokens).astype(int)


def _limited_to(counts, reveal_budget, tokens):
    """Moves what exceeds a step's budget to the steps after it; the last step takes the rest."""
    counts, masked = counts.copy(), tokens
    for k in range(len(counts) - 1):
        later = int(reveal_budget[k + 1 :].sum())
        counts[k] = min(max(int(counts[k]), masked - later), int(reveal_budget[k]), masked)
        masked -= counts[k]
    counts[-1] = masked
    return counts


def plan(
    config: RevealConfig,
    tokens: int,
    seeds: Int[Array | np.ndarray, ' B'] | Sequence[int] = (),
) -> Plan:
    """Draws the reveal plan of images with `seeds` (only read when counts='per_image').

    Shared counts give budgets that are exact; counts per image get budgets from the quantiles of
    the schedule, so that the shapes are the same for every batch.
    """
    if config.rule == 'fixed':
        return plan_of_counts(config, _fixed_counts(config, tokens)[None], tokens)
    if config.counts == 'shared':
        counts = _bernoulli_counts(config, tokens, [config.plan_seed, 0])[None]
        return plan_of_counts(config, counts, tokens)
    visible, reveal = _quantile_budgets(config, tokens)
    draws = [_bernoulli_counts(config, tokens, [config.plan_seed, int(i)]) for i in seeds]
    counts = np.stack([_limited_to(c, reveal, tokens) for c in draws])
    return _plan(config, counts, tokens, visible, reveal, np.arange(config.steps) * _least(config))


def plan_of_counts(config: RevealConfig, counts: Int[np.ndarray, 'B K'], tokens: int) -> Plan:
    """The plan of given counts, e.g. recorded ones; its budgets are exact.

    Rows that sum to less than N are of images of which the other tokens are there at the start.
    """
    visible = visible_before(counts, tokens)
    return _plan(config, counts, tokens, visible.max(0), counts.max(0), visible.min(0))


def visible_before(counts: Int[_Either, 'B K'], tokens: int) -> Int[_Either, 'B K']:
    """How many tokens are visible before each step."""
    return tokens - counts[:, ::-1].cumsum(axis=1)[:, ::-1]


def _plan(config, counts, tokens, most_visible, reveal, least_visible):
    adaptive = isinstance(orders.order(config), orders.Adaptive)
    read = np.minimum(tokens - least_visible, tokens) if adaptive else reveal
    guided = guided_steps(config)
    scale = guidance(config, counts, tokens, guided)
    return Plan(counts, scale, guided, most_visible, reveal, read)


def segments(
    plan: Plan,
    step_cost: Callable[[int, int, bool], float],
    most: int = 12,
    slack: float = 0.03,
) -> tuple[Segment, ...]:
    """Cuts a plan into at most `most` segments, as few as keep the padded cost within `slack`.

    `step_cost(visible, read, guided)` prices one step in FLOPs. Dynamic programming over the
    cuts; a segment's steps are all guided or all not, and empty steps are dropped.
    """
    numbers = np.flatnonzero(plan.reveal_budget)
    steps, guided = len(numbers), plan.guided[numbers]
    visible, read = plan.visible_budget[numbers], plan.read_budget[numbers]
    each = zip(visible, read, guided, strict=True)
    ideal = sum(step_cost(int(v), int(r), bool(g)) for v, r, g in each)

    def cost(i, j):
        if guided[i:j].any() != guided[i:j].all():
            return math.inf
        one = step_cost(int(visible[i:j].max()), int(read[i:j].max()), bool(guided[i]))
        return one * (j - i)

    costs = {(i, j): cost(i, j) for i in range(steps) for j in range(i + 1, steps + 1)}
    best: dict[tuple[int, int], tuple[float, tuple[int, ...]]] = {(0, 0): (0.0, ())}
    limit = max(most, _switches(guided))
    for count in range(1, limit + 1):
        for j in range(1, steps + 1):
            options = [
                (best[count - 1, i][0] + costs[i, j], (*best[count - 1, i][1], i))
                for i in range(j)
                if (count - 1, i) in best
            ]
            if options:
                best[count, j] = min(options)
        total, cuts = best.get((count, steps), (math.inf, ()))
        if total <= (1.0 + slack) * ideal:
            break
    else:
        total, cuts = min(best[c, steps] for c in range(1, limit + 1) if (c, steps) in best)
    edges = zip(cuts, (*cuts[1:], steps), strict=True)
    return tuple(
        Segment(
            tuple(map(int, numbers[i:j])),
            int(visible[i:j].max()),
            int(read[i:j].max()),
            bool(guided[i]),
        )
        for i, j in edges
    )


def alike(
    segments: Sequence[Segment],
    step_cost: Callable[[int, int, bool], float],
    slack: float = 0.1,
) -> tuple[Segment, ...]:
    """The same segments with fewer shapes among them, as few as keep the cost within `slack`.

    `step_cost` is that of `segments`. What has the same shape can be one program, wherever in a
    plan it is: here the first steps and the last ones, between which there is guidance.
    """
    shape = lambda s: (s.visible, s.read, s.guided)
    one = lambda s: len(s.steps) * step_cost(s.visible, s.read, s.guided)
    most = (1.0 + slack) * sum(map(one, segments))
    while True:
        joined = []
        for a, b in itertools.combinations(dict.fromkeys(map(shape, segments)), 2):
            if a[2] == b[2]:
                wide = dict(visible=max(a[0], b[0]), read=max(a[1], b[1]))
                made = tuple(s._replace(**wide) if shape(s) in (a, b) else s for s in segments)
                joined.append((sum(map(one, made)), made))
        total, made = min(joined, default=(math.inf, ()))
        if total > most:
            return tuple(segments)
        segments = made


def _switches(guided):
    """Number of runs of equal flags."""
    return 1 + int(np.count_nonzero(guided[1:] != guided[:-1]))

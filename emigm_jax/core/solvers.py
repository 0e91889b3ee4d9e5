"""Samplers of the per-token diffusion as tables: one row, one network call, one `lax.scan`.

Every solver here is a recurrence on the data prediction m = (x - sigma epsilon) / alpha:

    base <- x   and   m_0 <- m          when the row starts an outer step
    x    <- c_base base + c_first m_0 + c_now m   (+ noise, for DDPM)

DPM-Solver++ (arXiv 2211.01095, singlestep), DDIM and DDPM differ only in the rows. Tables are made
on the host in float64.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64

from emigm_jax.core import gaussian
from emigm_jax.core.setting import setting, validate
from emigm_jax.errors import UserError

# Steps with half log-SNR below this are not in the grid: 996 of 1000 remain for the cosine betas
# (official models/dpm_solver.py; the released samplers depend on it).
LAMBDA_FLOOR = -5.1
SOLVERS = ('dpm', 'ddim', 'ddpm')


@dataclasses.dataclass(frozen=True)
class SolverConfig:
    """The per-token diffusion sampler."""

    name: str = setting(
        'dpm', 'DPM-Solver++ (singlestep), DDIM, or ancestral sampling (DDPM)', choices=SOLVERS
    )
    steps: int = setting(8, 'network calls per token', low=1, high=gaussian.TIMESTEPS)
    order: int = setting(3, 'order of dpm', low=1, high=3)
    temperature: float = setting(
        1.0, 'scales the noise of ddpm; the other solvers draw none on the way', low=0.0
    )

    def __post_init__(self):
        validate(self, 'sampling.solver')
        if self.temperature != 1.0 and self.name != 'ddpm':
            raise UserError(
                f'sampling.solver.temperature = {self.temperature} has no effect with '
                f'{self.name}: only ddpm draws noise on the way'
            )


class Table(NamedTuple):
    """Rows of a solver."""

    t: Float64[np.ndarray, ' R']  # the network's time, 0..999, fractional for DPM-Solver
    alpha: Float64[np.ndarray, ' R']
    sigma: Float64[np.ndarray, ' R']
    start: Float64[np.ndarray, ' R']  # 1 where an outer step begins
    base: Float64[np.ndarray, ' R']
    first: Float64[np.ndarray, ' R']
    now: Float64[np.ndarray, ' R']
    log_variance_low: Float64[np.ndarray, ' R']  # DDPM: the network's v interpolates between them
    log_variance_high: Float64[np.ndarray, ' R']
    noise: Float64[np.ndarray, ' R']  # DDPM: 1, and 0 in the last row; temperature goes in here


class Grid(NamedTuple):
    """The clipped log-SNR grid: continuous time, log alpha, half log-SNR; ascending in time."""

    t: Float64[np.ndarray, ' T']
    log_alpha: Float64[np.ndarray, ' T']
    lam: Float64[np.ndarray, ' T']


@functools.cache
def grid() -> Grid:
    """996 entries at t = (k+1)/996 that keep lambda >= -5.1."""
    log_alpha = 0.5 * np.log(gaussian.tables().alpha_bar)
    lam = log_alpha - 0.5 * np.log(-np.expm1(2.0 * log_alpha))
    kept = log_alpha[lam >= LAMBDA_FLOOR]
    t = np.arange(1, len(kept) + 1) / len(kept)
    return Grid(t, kept, lam[lam >= LAMBDA_FLOOR])


def _time_of(lam):
    """Time at which the piecewise-linear log alpha has half log-SNR `lam`."""
    log_alpha = -0.5 * np.logaddexp(0.0, -2.0 * lam)
    g = grid()
    return np.interp(log_alpha, g.log_alpha[::-1], g.t[::-1])


def _network_time(t):
    """The official wrapper tells the network (t - 1/996) 1000, so 0 .. 998.996."""
    return (t - 1.0 / len(grid().t)) * gaussian.TIMESTEPS


def _outer_orders(steps, order):
    """Orders of the singlestep outer steps; their sum is the number of network calls.

    A remainder becomes one step of lower order. Order 3 without a remainder ends in 2 + 1 instead
    of 3, as the official solver does.
    """
    full, rest = divmod(steps, order)
    if order == 3 and rest == 0:
        return [3] * (full - 1) + [2, 1]
    return [order] * full + [rest] * (rest > 0)


def dpm_table(steps: int, order: int = 3) -> Table:
    """DPM-Solver++ singlestep of `order` <= 3, uniform in log-SNR, `steps` network calls."""
    orders = _outer_orders(steps, order)
    g = grid()
    edges = np.linspace(g.lam[-1], g.lam[0], len(orders) + 1)  # lambda grows as time falls
    rows = []
    for p, low, high in zip(orders, edges[:-1], edges[1:], strict=True):
        rows += _outer_step(p, low, high)
    return _stack(rows)


# Where an outer step of each order evaluates the network, as fractions of its lambda interval.
_KNOTS = {1: (0.0,), 2: (0.0, 1 / 2), 3: (0.0, 1 / 3, 2 / 3)}
# (order, row): weight of the difference m_now - m_0 in units of alpha, from
# phi1 = e^-k - 1 and phi2 = phi1/k + 1 (1/(2 r1) phi1; r2/r1 phi2; 1/r2 phi2). Rows not listed
# are first-order.
_CORRECTIONS = {
    (2, 1): lambda phi1, phi2: -phi1,
    (3, 1): lambda phi1, phi2: 2.0 * phi2,
    (3, 2): lambda phi1, phi2: 1.5 * phi2,
}


def _outer_step(order, low, high):
    """Rows of one singlestep update from half log-SNR `low` to `high` (Algorithms 1, 2, App. B)."""
    alpha = lambda lam: math.sqrt(1.0 / (1.0 + math.exp(-2.0 * lam)))
    sigma = lambda lam: math.sqrt(1.0 / (1.0 + math.exp(2.0 * lam)))
    knots = [low + r * (high - low) for r in _KNOTS[order]]
    rows = []
    for j, (here, target) in enumerate(zip(knots, [*knots[1:], high], strict=True)):
        k = target - low
        phi1 = math.expm1(-k)
        phi2 = phi1 / k + 1.0
        correction = _CORRECTIONS.get((order, j), lambda *_: 0.0)
        weight = correction(phi1, phi2)
        a = alpha(target)
        rows.append(
            dict(
                t=float(_network_time(_time_of(here))),
                alpha=alpha(here),
                sigma=sigma(here),
                start=float(j == 0),
                base=sigma(target) / sigma(low),
                first=a * (-phi1 - weight),
                now=a * weight,
            )
        )
    return rows


def ddim_table(steps: int) -> Table:
    """DDIM (eta = 0) on the respaced process, `steps` network calls."""
    table = gaussian.respaced(steps)
    rows = []
    for t, a2, p2 in zip(table.timesteps, table.alpha_bar, table.alpha_bar_prev, strict=True):
        alpha, sigma = math.sqrt(a2), math.sqrt(1.0 - a2)
        keep = math.sqrt(1.0 - p2) / sigma
        rows.append(
            dict(
                t=float(t),
                alpha=alpha,
                sigma=sigma,
                start=1.0,
                base=keep,
                first=math.sqrt(p2) - keep * alpha,
                now=0.0,
            )
        )
    return _stack(rows[::-1])


def ddpm_table(steps: int, temperature: float = 1.0) -> Table:
    """Ancestral sampling on the respaced process with the learned variance."""
    table = gaussian.respaced(steps)
    rows = []
    for i in range(steps):
        rows.append(
            dict(
                t=float(table.timesteps[i]),
                alpha=math.sqrt(table.alpha_bar[i]),
                sigma=math.sqrt(1.0 - table.alpha_bar[i]),
                start=1.0,
                base=table.posterior_mean_xt[i],
                first=table.posterior_mean_x0[i],
                now=0.0,
                log_variance_low=table.posterior_log_variance[i],
                log_variance_high=math.log(table.betas[i]),
                noise=temperature * float(i > 0),
            )
        )
    return _stack(rows[::-1])


def _stack(rows):
    column = lambda name: np.array([row.get(name, 0.0) for row in rows], np.float64)
    return Table(*(column(name) for name in Table._fields))


def table(config: SolverConfig) -> Table:
    """The rows of the configured solver."""
    return {
        'dpm': lambda: dpm_table(config.steps, config.order),
        'ddim': lambda: ddim_table(config.steps),
        'ddpm': lambda: ddpm_table(config.steps, config.temperature),
    }[config.name]()


def solve(
    table: Table,
    network: Callable[[Array, Array], tuple[Array, Array]],
    x: Float[Array, '*B C'],
    noise: Callable[[Array], Array] | None = None,
) -> Float[Array, '*B C']:
    """Runs a solver from x ~ N(0, 1) to a sample.

    Args:
      table: rows of the solver.
      network: (x, t) -> (epsilon, v), each like x; t is a scalar on the 0..999 scale.
      x: initial noise.
      noise: row index -> noise like x; needed by tables with noise (DDPM).
    """
    stochastic = bool(np.any(table.noise))

    def row_step(carry, row):
        x, base, first = carry
        index, row = row
        epsilon, v = network(x, row.t)
        m = (x - row.sigma * epsilon) / row.alpha
        base = jnp.where(row.start > 0, x, base)
        first = jnp.where(row.start > 0, m, first)
        x = row.base * base + row.first * first + row.now * m
        if stochastic:
            assert noise is not None
            fraction = (v + 1.0) / 2.0
            high, low = row.log_variance_high, row.log_variance_low
            log_variance = fraction * high + (1.0 - fraction) * low
            x = x + row.noise * jnp.exp(0.5 * log_variance) * noise(index)
        return (x, base, first), None

    rows = jax.tree.map(lambda a: jnp.asarray(a, x.dtype), table)
    indices = jnp.arange(len(table.t))
    (x, _, _), _ = jax.lax.scan(row_step, (x, x, x), (indices, rows))
    return x

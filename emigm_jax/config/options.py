"""Sampling settings by one flat name each: keywords of the Python API, flags of commands."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict

from emigm_jax.errors import UserError, check_range, near

if TYPE_CHECKING:  # commands read the table before they know whether they need jax
    from emigm_jax.config.settings import SamplingConfig


class SamplingOptions(TypedDict, total=False):
    """What can be changed when images are drawn; whatever is left out stays as the model says."""

    steps: int
    schedule: str
    rule: str
    order: str
    guidance: float
    guidance_schedule: str
    interval: tuple[float, float]
    plan_seed: int
    counts: str
    solver: str
    solver_steps: int
    solver_order: int
    temperature: float
    base_seed: int


class Option(NamedTuple):
    """One setting."""

    group: str  # of SamplingConfig; '' for its own
    fields: tuple[str, ...]
    kind: type
    meaning: str
    choices: tuple[str, ...] = ()


# What the declarations say, which import jax; a test compares them.
_SCHEDULES = ('linear', 'cosine', 'exp', 'log-exp', 'poly-0.5')
_RULES = ('bernoulli', 'fixed')
_ORDERS = ('random', 'halton', 'raster')
_COUNTS = ('shared', 'per_image')
_GUIDANCE_SCHEDULES = ('constant', 'linear', 'power', 'cubic', 'exp', 'cosine')
_SOLVERS = ('dpm', 'ddim', 'ddpm')

OPTIONS = {
    'steps': Option('reveal', ('steps',), int, 'transformer steps K'),
    'schedule': Option('reveal', ('schedule',), str, 'mask schedule gamma(t)', _SCHEDULES),
    'rule': Option('reveal', ('rule',), str, 'counts by chance, or by schedule', _RULES),
    'order': Option('reveal', ('order',), str, 'which positions come first', _ORDERS),
    'guidance': Option('reveal', ('guidance',), float, 'guidance scale; 1 switches it off'),
    'guidance_schedule': Option(
        'reveal', ('guidance_schedule',), str, 'course of guidance', _GUIDANCE_SCHEDULES
    ),
    'interval': Option(
        'reveal', ('guidance_from', 'guidance_to'), float, 'guided while FROM < s <= TO'
    ),
    'plan_seed': Option('reveal', ('plan_seed',), int, 'seed of the reveal counts'),
    'counts': Option(
        'reveal', ('counts',), str, 'reveal counts: the same for all images, or not', _COUNTS
    ),
    'solver': Option('solver', ('name',), str, 'what draws a token', _SOLVERS),
    'solver_steps': Option('solver', ('steps',), int, 'network calls per token'),
    'solver_order': Option('solver', ('order',), int, 'order of dpm, 1 to 3'),
    'temperature': Option('solver', ('temperature',), float, 'noise scale of ddpm'),
    'base_seed': Option('', ('seed',), int, 'image i uses fold_in(base seed, i)'),
}


def changed(config: SamplingConfig, options: SamplingOptions) -> SamplingConfig:
    """Settings with options put in.

    Raises:
      UserError: an unknown name, a value of another kind, or one that makes no sense.
    """
    groups: dict[str, dict[str, Any]] = {'reveal': {}, 'solver': {}, '': {}}
    for name, value in options.items():
        if name not in OPTIONS:
            raise UserError(f'no sampling option {name!r}{near(name, OPTIONS)}')
        option = OPTIONS[name]
        values = value if len(option.fields) > 1 else (value,)
        if not isinstance(values, (tuple, list)) or len(values) != len(option.fields):
            raise UserError(f'{name} must be {len(option.fields)} numbers, not {value!r}')
        for field, each in zip(option.fields, values, strict=True):
            groups[option.group][field] = _of_kind(name, each, option.kind)
    return dataclasses.replace(
        config,
        reveal=dataclasses.replace(config.reveal, **groups['reveal']),
        solver=dataclasses.replace(config.solver, **groups['solver']),
        **groups[''],
    )


def _of_kind(name, value, kind):
    check_range(name, value)  # for int() has words of its own for what is not finite
    try:
        fits = not isinstance(value, bool) and kind(value) == value
    except (TypeError, ValueError, OverflowError):
        fits = False
    if not fits:
        raise UserError(f'{name} must be {kind.__name__}, not {value!r}')
    return kind(value)

"""Sampling settings by one flat name each: keywords of the Python API, flags of commands."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict

from emigm_jax.errors import UserError, check_range, near

if TYPE_CHECKING:  # commands read the table before they know whether they need jax
    from emigm_jax.config.settings import Config, SamplingConfig


class SamplingOptions(TypedDict, total=False):
    """What can be changed when images are drawn; whatever is left out stays as the model says."""

    steps: int
    schedule: str
    rule: str
    times: str
    order: str
    positions: Sequence[int]
    choice_temperature: float
    guidance: float
    guidance_schedule: str
    interval: tuple[float, float]
    plan_seed: int
    counts: str
    solver: str
    solver_steps: int
    solver_order: int
    temperature: float
    code_temperature: float
    top_k: int
    nucleus: float
    base_seed: int


class EditOptions(SamplingOptions, total=False):
    """What can be said of an edit beside."""

    blend: str
    grow: int


class Option(NamedTuple):
    """One setting."""

    group: str  # of SamplingConfig; '' for its own
    fields: tuple[str, ...]
    kind: type
    meaning: str
    choices: tuple[str, ...] = ()
    head: str = ''  # of models that it means something for; '': all
    several: bool = False  # whether it is any number of values


# What the declarations say, which import jax; a test compares them.
_SCHEDULES = ('linear', 'cosine', 'exp', 'log-exp', 'poly-0.5')
_RULES = ('bernoulli', 'ancestral', 'fixed')
_TIMES = ('uniform', 'cosine')
_ORDERS = ('random', 'halton', 'raster', 'spiral', 'given', 'confidence')
_COUNTS = ('shared', 'per_image')
_GUIDANCE_SCHEDULES = ('constant', 'linear', 'power', 'cubic', 'exp', 'cosine')
_SOLVERS = ('dpm', 'ddim', 'ddpm')

OPTIONS = {
    'steps': Option('reveal', ('steps',), int, 'transformer steps K'),
    'schedule': Option('reveal', ('schedule',), str, 'mask schedule gamma(t)', _SCHEDULES),
    'rule': Option('reveal', ('rule',), str, 'counts by chance, or by schedule', _RULES),
    'times': Option('reveal', ('times',), str, 'times of the steps', _TIMES),
    'order': Option('reveal', ('order',), str, 'which positions come first', _ORDERS),
    'positions': Option(
        'reveal', ('positions',), int, 'order given: all positions, row by row', several=True
    ),
    'choice_temperature': Option(
        'reveal',
        ('choice_temperature',),
        float,
        'noise of order confidence',
        head='categorical',
    ),
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
    'solver': Option('solver', ('name',), str, 'what draws a token', _SOLVERS, 'diffusion'),
    'solver_steps': Option('solver', ('steps',), int, 'network calls per token', head='diffusion'),
    'solver_order': Option('solver', ('order',), int, 'order of dpm, 1 to 3', head='diffusion'),
    'temperature': Option(
        'solver', ('temperature',), float, 'noise scale of ddpm', head='diffusion'
    ),
    'code_temperature': Option(
        'codes', ('temperature',), float, 'temperature of codes', head='categorical'
    ),
    'top_k': Option('codes', ('top_k',), int, 'most probable codes; 0: all', head='categorical'),
    'nucleus': Option(
        'codes', ('nucleus',), float, 'probability that they make up', head='categorical'
    ),
    'base_seed': Option('', ('seed',), int, 'image i uses fold_in(base seed, i)'),
}


def changed(
    config: SamplingConfig, options: SamplingOptions, trained: Config, has_guide: bool = False
) -> SamplingConfig:
    """Settings with options put in.

    Args:
      config: the settings.
      options: of which `positions` make the order that is given.
      trained: the settings that the model which draws was trained with.
      has_guide: whether another model guides it, so that no null class is needed.

    Raises:
      UserError: an unknown name, a value of another kind, or one that makes no sense.
    """
    from emigm_jax.config import together

    head = trained.model.head
    groups: dict[str, dict[str, Any]] = {'reveal': {}, 'solver': {}, 'codes': {}, '': {}}
    if 'positions' in options:
        options = {'order': 'given', **options}
    elif options.get('order', 'given') != 'given':
        groups['reveal']['positions'] = ()  # of another order
    for name, value in options.items():
        if name not in OPTIONS:
            raise UserError(f'no sampling option {name!r}{near(name, OPTIONS)}')
        option = OPTIONS[name]
        if option.head not in ('', head):
            raise UserError(
                f'{name} goes with models of head {option.head!r}, this one is {head!r}'
            )
        groups[option.group] |= _fields(name, option, value)
    new = dataclasses.replace(
        config,
        reveal=dataclasses.replace(config.reveal, **groups['reveal']),
        solver=dataclasses.replace(config.solver, **groups['solver']),
        codes=dataclasses.replace(config.codes, **groups['codes']),
        **groups[''],
    )
    if not has_guide:
        together.check_guidance(trained.loss.label_drop, new.reveal)
    return new


def _fields(name, option, value):
    """{field: value} of an option."""
    if not option.several and len(option.fields) == 1:
        return {option.fields[0]: _of_kind(name, value, option.kind)}
    wanted = 'a list of' if option.several else f'{len(option.fields)}'
    listed = isinstance(value, Iterable) and not isinstance(value, str)
    values = tuple(_of_kind(name, each, option.kind) for each in value) if listed else ()
    if not values or not (option.several or len(values) == len(option.fields)):
        raise UserError(f'{name} must be {wanted} numbers, not {value!r}')
    return dict(zip(option.fields, [values] if option.several else values, strict=True))


def _of_kind(name, value, kind):
    check_range(name, value)  # for int() has words of its own for what is not finite
    try:
        fits = not isinstance(value, bool) and kind(value) == value
    except (TypeError, ValueError, OverflowError):
        fits = False
    if not fits:
        raise UserError(f'{name} must be {kind.__name__}, not {value!r}')
    return kind(value)

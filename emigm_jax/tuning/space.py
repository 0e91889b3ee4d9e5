"""Which sampling settings are tried of a model, and how new ones are proposed."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from emigm_jax.config.options import OPTIONS, SamplingOptions, changed
from emigm_jax.config.settings import Config, SamplingConfig
from emigm_jax.models.config import TELLS_PROBABILITY

NEAR = 0.35  # chance that a proposal near another one differs in an option


class Axis(NamedTuple):
    """The values of an option."""

    values: tuple[Any, ...]
    ordered: bool = False  # whether those beside a value are like it


class _Idle(NamedTuple):
    """When an option decides nothing, and its value then: like images have like settings."""

    when: Callable[[Mapping[str, Any]], bool]  # of the options before it
    value: Any


_EDGES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5), (0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
# By the name of the option; those come first that decide whether others matter. What is left out
# is no matter of quality (seeds, positions), there to be compared with (raster, spiral), or a part
# of the method (rule, times, counts).
_AXES = {
    'steps': Axis((1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256), True),
    'schedule': Axis(OPTIONS['schedule'].choices),
    'order': Axis(('random', 'halton', 'confidence')),
    'choice_temperature': Axis((1.0, 2.0, 3.0, 4.5, 6.0, 9.0, 13.0), True),
    'guidance': Axis((1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.5), True),
    'guidance_schedule': Axis(OPTIONS['guidance_schedule'].choices),
    'interval': Axis(tuple((low, high) for low in _EDGES[0] for high in _EDGES[1] if low < high)),
    'solver': Axis(OPTIONS['solver'].choices),
    'solver_steps': Axis((2, 3, 4, 6, 8, 11, 14, 20, 28, 40, 60, 100), True),
    'solver_order': Axis((1, 2, 3), True),
    'temperature': Axis((0.85, 0.9, 0.95, 1.0, 1.05), True),
    'code_temperature': Axis((0.7, 0.8, 0.9, 1.0, 1.1, 1.2), True),
    'nucleus': Axis((0.9, 0.95, 0.98, 1.0), True),
}
_IDLE = {
    'choice_temperature': _Idle(lambda now: now['order'] != 'confidence', 4.5),
    'guidance_schedule': _Idle(lambda now: now['guidance'] == 1.0, 'constant'),
    'interval': _Idle(lambda now: now['guidance'] == 1.0, (0.0, 1.0)),
    'solver_order': _Idle(lambda now: now['solver'] != 'dpm', 3),
    'temperature': _Idle(lambda now: now['solver'] != 'ddpm', 1.0),
}


def axes(config: Config) -> dict[str, Axis]:
    """What is tried of a model: the options of its head, and guidance if it knows a null class."""
    model, found = config.model, {}
    for name, axis in _AXES.items():
        if OPTIONS[name].head not in ('', model.head):
            continue
        if name in ('guidance', 'guidance_schedule', 'interval') and not config.loss.label_drop:
            continue
        found[name] = axis
    sensible = lambda k: k <= model.tokens
    found['steps'] = Axis(tuple(filter(sensible, _AXES['steps'].values)), True)
    if model.head not in TELLS_PROBABILITY:
        found['order'] = Axis(tuple(o for o in _AXES['order'].values if o != 'confidence'))
    return found


def value(config: SamplingConfig, name: str) -> Any:
    """What an option is in settings; of several fields a tuple."""
    option = OPTIONS[name]
    group = getattr(config, option.group) if option.group else config
    values = tuple(getattr(group, field) for field in option.fields)
    return values[0] if len(values) == 1 else values


def differences(config: SamplingConfig, other: SamplingConfig) -> dict[str, Any]:
    """The options of `config` that are not those of `other`."""
    return {
        name: value(config, name) for name in OPTIONS if value(config, name) != value(other, name)
    }


def propose(
    rng: np.random.Generator, trained: Config, parent: SamplingConfig, near: bool
) -> SamplingConfig:
    """Other settings for a model.

    Args:
      rng: draws them.
      trained: the settings of the model.
      parent: settings that they are near to, and from which they have what is not tried.
      near: whether they are near: a few options differ, in order by one or two values.
    """
    tried = axes(trained)
    now = {name: value(parent, name) for name in tried}
    for name, axis in tried.items():
        if name in _IDLE and _IDLE[name].when(now):
            now[name] = _IDLE[name].value
        elif not near:
            now[name] = _any_of(rng, axis.values)
        elif rng.random() < NEAR:
            now[name] = _any_of(rng, _beside(axis, now[name]))
    options: SamplingOptions = now  # pyright: ignore[reportAssignmentType]
    return changed(parent, options, trained)


def _any_of(rng, values):
    return values[rng.integers(len(values))]


def _beside(axis, now):
    """Two values on each side, or all others where there is no order."""
    if not axis.ordered:
        return [each for each in axis.values if each != now] or [now]
    below, above = (
        [each for each in axis.values if each < now],
        [each for each in axis.values if each > now],
    )
    return below[-2:] + above[:2] or [now]

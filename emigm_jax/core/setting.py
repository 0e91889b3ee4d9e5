"""A setting declares its default, what it means and which values make sense, all in one place.

The checks of the settings classes, `emigm settings` and `--help` follow from the declarations.
"""

import dataclasses
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from emigm_jax.errors import Reasons, check_choice, check_range

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_T = TypeVar('_T')
_KEY = 'setting'  # of a field's metadata


class Form(NamedTuple):
    """What a text must look like."""

    word: str  # for it
    check: Callable[[str, str], object]  # (name of the setting, text); raises UserError


class Setting(NamedTuple):
    """What a field of a settings class declares beside its name, type and default."""

    meaning: str
    # The least value, of each element if there are several; whatever it is, numbers are finite.
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    beside: tuple[Any, ...] = ()  # values out of the range that mean something of their own
    form: Form | None = None

    def validate(self, name: str, value: Any) -> None:
        """Raises UserError unless `value` makes sense for the setting of this dotted name."""
        if self.choices:
            check_choice(name, value, self.choices)
        if self.form is not None:
            self.form.check(name, value)
        for each in value if isinstance(value, tuple) else (value,):
            if each not in self.beside:
                check_range(name, each, self.low, self.high)


def setting(
    default: _T,
    meaning: str,
    low: float | None = None,
    high: float | None = None,
    choices: Collection[str] = (),
    beside: tuple[Any, ...] = (),
    form: Form | None = None,
) -> _T:
    """A field of a frozen dataclass of settings; see `Setting` for the arguments."""
    declared = Setting(meaning, low, high, tuple(choices), beside, form)
    # Type checkers see the default, as in any dataclass.
    field: Any = dataclasses.field(default=default, metadata={_KEY: declared})
    return field


def declared(field: dataclasses.Field) -> Setting | None:
    """The declaration of a field; None for a group of settings."""
    return field.metadata.get(_KEY)


def validate(settings: 'DataclassInstance', group: str = '') -> None:
    """Raises UserError, with all reasons, unless every value of settings obeys its declaration.

    Args:
      settings: the object, in its `__post_init__`.
      group: dotted name of the group that it is, for messages.
    """
    reasons = Reasons()
    for field in dataclasses.fields(settings):
        if (known := declared(field)) is not None:
            name = f'{group}.{field.name}' if group else field.name
            with reasons.checking():
                known.validate(name, getattr(settings, field.name))
    reasons.check()

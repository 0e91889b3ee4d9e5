"""The one exception that a user sees as a single line, and the checks that raise it."""

import difflib
from collections.abc import Collection, Iterable


class UserError(Exception):
    """A mistake the user can mend: what is wrong, where, and what to do, in one line."""


class Damaged(UserError):
    """Something on disk that was written whole once and cannot be read now."""


def check_choice(name: str, value: object, choices: Collection[str]) -> None:
    """Raises UserError unless `value` is one of `choices`; suggests the nearest."""
    if value not in choices:
        raise UserError(
            f'{name} must be one of {", ".join(choices)}, not {value!r}{near(value, choices)}'
        )


def check_range(
    name: str, value: float, low: float | None = None, high: float | None = None
) -> None:
    """Raises UserError unless low <= value <= high (None: unbounded)."""
    if low is not None and not value >= low:  # nor NaN
        raise UserError(f'{name} must be at least {low}, not {value}')
    if high is not None and not value <= high:
        raise UserError(f'{name} must be at most {high}, not {value}')


def near(value: object, names: Iterable[str]) -> str:
    """' (did you mean ...?)' if one of `names` resembles `value`, else ''."""
    matches = difflib.get_close_matches(str(value), list(names), n=1)
    return f' (did you mean {matches[0]!r}?)' if matches else ''


def printable(text: str) -> str:
    """A name of any bytes, as a file may have, on one line that every terminal takes."""
    text = text.encode('utf-8', 'surrogateescape').decode('utf-8', 'backslashreplace')
    escaped = lambda c: c.encode('unicode_escape').decode()
    return ''.join(c if c.isprintable() else escaped(c) for c in text)

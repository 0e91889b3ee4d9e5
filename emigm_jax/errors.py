"""The one exception that a user sees as a single line, and the checks that raise it."""

import difflib


class UserError(Exception):
    """A mistake the user can mend: what is wrong, where, and what to do, in one line."""


class Damaged(UserError):
    """Something on disk that was written whole once and cannot be read now."""


def check_choice(name, value, known):
    """Raises UserError unless `value` is one of `known`; suggests the nearest."""
    if value not in known:
        raise UserError(
            f'{name} must be one of {", ".join(known)}, not {value!r}{near(value, known)}'
        )


def check_range(name, value, low=None, high=None):
    """Raises UserError unless low <= value <= high (None: unbounded)."""
    if low is not None and value < low:
        raise UserError(f'{name} must be at least {low}, not {value}')
    if high is not None and not value <= high:
        raise UserError(f'{name} must be at most {high}, not {value}')


def near(value, known):
    """' (did you mean ...?)' if a known name resembles `value`, else ''."""
    found = difflib.get_close_matches(str(value), list(known), n=1)
    return f' (did you mean {found[0]!r}?)' if found else ''

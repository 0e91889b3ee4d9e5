"""The one exception that a user sees as a single line, and the checks that raise it."""

import contextlib
import difflib
import math
import operator
from collections.abc import Collection, Iterable, Iterator

LONGEST = 2000  # characters of the line of a UserError


class UserError(Exception):
    """A mistake the user can mend: what is wrong, where, and what to do, in one line.

    What files say may be in it: whatever that is, the line is printable and bounded.
    """

    def __init__(self, line: object = ''):
        super().__init__(printable(str(line), LONGEST))

    code = 2  # what the command exits with


class Unavailable(UserError):
    """What did not answer for as long as it was asked; the same command may succeed later."""

    code = 75  # EX_TEMPFAIL, on which launchers start the same command again


class Damaged(UserError):
    """Something on disk that was written whole once and cannot be read now."""


class Reasons:
    """Runs several checks, so that whoever made several mistakes hears of all of them at once."""

    def __init__(self):
        self._found: list[str] = []

    @contextlib.contextmanager
    def checking(self) -> Iterator[None]:
        """Around one check: takes the line of its UserError."""
        try:
            yield
        except UserError as error:
            self.add(str(error))

    def add(self, reason: str) -> None:
        """Takes what a check has found."""
        self._found.append(reason)

    def check(self) -> None:
        """Raises UserError with all that was found, if anything was."""
        if self._found:
            raise UserError('; '.join(self._found))


def check_choice(name: str, value: object, choices: Collection[str]) -> None:
    """Raises UserError unless `value` is one of `choices`; suggests the nearest."""
    if value not in choices:
        raise UserError(
            f'{name} must be one of {", ".join(choices)}, not {value!r}{near(value, choices)}'
        )


def check_range(
    name: str, value: float, low: float | None = None, high: float | None = None
) -> None:
    """Raises UserError unless `value` is finite and low <= value <= high (None: unbounded).

    What is no number, as the text of a setting, has no bounds and passes.
    """
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f'{name} must be a finite number, not {value}')
    if low is not None and value < low:
        raise UserError(f'{name} must be at least {low}, not {value}')
    if high is not None and value > high:
        raise UserError(f'{name} must be at most {high}, not {value}')


def whole(name: str, value: object, low: int | None = None, high: int | None = None) -> int:
    """`value` as an int; raises UserError unless it is a whole number in the range."""
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)  # pyright: ignore[reportArgumentType]
    except TypeError:
        raise UserError(f'{name} must be a whole number, not {value!r}') from None
    check_range(name, number, low, high)
    return number


def near(value: object, names: Iterable[str]) -> str:
    """' (did you mean ...?)' if one of `names` resembles `value`, else ''."""
    matches = difflib.get_close_matches(str(value), list(names), n=1)
    return f' (did you mean {matches[0]!r}?)' if matches else ''


def printable(text: str, most: int = 500) -> str:
    """A name of any bytes, as a file may have, on one line that every terminal takes.

    Args:
      text: as it is in a file, or is called there.
      most: characters; of a longer one the middle is left out.
    """
    shown = ''.join(map(_shown, _cut(text, most)))
    return _cut(shown, most)


def _cut(text, most):
    end = most // 4
    return text if len(text) <= most else f'{text[: most - end - 5]} ... {text[-end:]}'


def _shown(character):
    if character.isprintable():
        return character
    if '\udc80' <= character <= '\udcff':  # a byte of a file's name that is no UTF-8
        return f'\\x{ord(character) - 0xDC00:02x}'
    return character.encode('unicode_escape').decode()

"""Lists of numbers as people type them."""

import re

from emigm_jax.errors import UserError

MOST_NUMBERS = 1_000_000  # in a list; the images of a command are held in memory


def numbers(what: str, text: str) -> list[int]:
    """Numbers of '3', '1,5,9', '0-15' or a mix of them, in the order given.

    Raises:
      UserError: the text, which is `what`, looks otherwise, or there are too many.
    """
    values = []
    for part in text.split(','):
        match = re.fullmatch(r'0*([0-9]+)(?:-0*([0-9]+))?', part.strip())
        if not match:
            raise UserError(f"{what} must look like '3', '1,5' or '0-15', not {text!r}")
        ends = [match[1], match[2] or match[1]]
        if any(len(end) > 10 or int(end) >= 2**32 for end in ends):  # what a key can be folded with
            raise UserError(f'{what}: numbers end at {2**32 - 1}, {part} does not')
        low, high = map(int, ends)
        if high < low:
            raise UserError(f'{what}: the range {part} is reversed')
        if len(values) + high - low >= MOST_NUMBERS:
            raise UserError(f'{what}: {part} are too many; {MOST_NUMBERS} at most go at a time')
        values += range(low, high + 1)
    return values

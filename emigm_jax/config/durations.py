"""Durations as people write them: '500 steps', '80 epochs', '1e6 examples'."""

import re

from emigm_jax.core.setting import Form, setting
from emigm_jax.errors import UserError, check_range


def parse_duration(name: str, text: str) -> tuple[float, str]:
    """'100 epochs' -> (100.0, 'epoch')."""
    number = r'(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e\+?[0-9]+)?'
    match = re.fullmatch(rf'\s*({number})\s*(step|epoch|example)s?\s*', str(text))
    if not match:
        raise UserError(
            f"{name} must look like '500 steps', '80 epochs' or '1e6 examples', not {text!r}"
        )
    check_range(name, amount := float(match[1]))
    return amount, match[2]


def duration(default: str, meaning: str) -> str:
    """A setting that is a duration."""
    return setting(default, meaning, form=Form('duration', parse_duration))


def parse_span(name: str, text: str) -> range:
    """'steps 50 to 55' -> the steps 50, ..., 55."""
    match = re.fullmatch(r'\s*steps\s+([0-9]{1,15})\s+to\s+([0-9]{1,15})\s*', str(text))
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise UserError(f"{name} must look like 'steps 50 to 55', not {text!r}")
    return range(int(match[1]), int(match[2]) + 1)


def span(default: str, meaning: str) -> str:
    """A setting that is a span of steps, or ''."""
    check = lambda name, text: text == '' or parse_span(name, text)
    return setting(default, meaning, form=Form('span of steps', check))

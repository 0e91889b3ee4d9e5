"""The lines of metrics.jsonl, also of a run that goes on or was killed while it wrote one."""

import os
from typing import Any, NamedTuple

from emigm_jax.io import bounded, files, paths

FILE = 'metrics.jsonl'


class Records(NamedTuple):
    """What a metrics.jsonl says."""

    lines: list[dict[str, Any]]  # {'step': int, name: float}, NaN and infinity included
    broken: int  # lines that cannot be read
    torn: bool  # whether the last line, which is cut off, is one more


def record(line: str) -> dict[str, Any] | None:
    """The step and the numbers of a line, 'nan' and 'inf' among them; None if it is damaged."""
    try:
        values = bounded.parsed(line)
    except ValueError:
        return None
    if not isinstance(values, dict) or type(values.get('step')) is not int:
        return None
    numbers = {name: _number(value) for name, value in values.items() if name != 'step'}
    return {'step': values['step'], **{k: v for k, v in numbers.items() if v is not None}}


def _number(value):
    """A float of a JSON value, None if it is none: what is not finite is written as text."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        return float(value)
    except ValueError:
        return None


def parse(text: str) -> Records:
    """The lines of a file's text, in its order."""
    lines = [record(line) for line in text.split('\n') if line.strip()]
    torn = bool(lines) and lines[-1] is None and not text.endswith('\n')
    return Records([line for line in lines if line], lines.count(None) - torn, torn)


def text(workdir: os.PathLike | str) -> str:
    """The file of a workdir, local or gs://; '' if there is none."""
    return (files.content(paths.absolute(workdir) / FILE) or b'').decode('utf-8', 'replace')


def read(workdir: os.PathLike | str) -> list[dict[str, Any]]:
    """All metrics of a run, line by line; its workdir is local or gs://."""
    return parse(text(workdir)).lines

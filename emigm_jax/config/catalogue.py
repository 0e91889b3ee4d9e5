"""Every setting with its default, what it may be and what it means: `emigm settings`."""

import dataclasses
import fnmatch
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from emigm_jax.config import nested
from emigm_jax.config.nested import near_setting
from emigm_jax.config.settings import Config
from emigm_jax.core.setting import Setting, declared
from emigm_jax.errors import UserError

_NARROWEST = 28  # columns of the meaning, however narrow the terminal
_TIE = '\N{NO-BREAK SPACE}'
_CUT = 24  # characters of a value that are shown


class Row(NamedTuple):
    """One setting."""

    name: str  # dotted
    default: Any
    allowed: str  # 'int >= 1', 'dpm | ddim | ddpm', ...
    meaning: str

    @property
    def group(self) -> str:
        """Dotted name of its group, '' at the top."""
        return self.name.rpartition('.')[0]


def rows() -> list[Row]:
    """All settings, in the order of their declaration."""
    return [
        Row(f'{prefix}{field.name}', field.default, _allowed(field.default, known), known.meaning)
        for _, prefix, field in _walk(Config(), '')
        if (known := declared(field)) is not None
    ]


def groups() -> dict[str, str]:
    """{dotted name: first line of what its class says} of all groups; '' is the top."""
    return {
        prefix.removesuffix('.'): (group.__doc__ or '').split('\n', 1)[0]
        for group, prefix, _ in _walk(Config(), '')
    }


def _walk(settings: Any, prefix: str) -> Iterator[tuple[type, str, dataclasses.Field]]:
    """(class, dotted prefix, field) of all fields that are no groups."""
    for field in dataclasses.fields(settings):
        if dataclasses.is_dataclass(field.default):
            yield from _walk(field.default, f'{prefix}{field.name}.')
        else:
            yield type(settings), prefix, field


def _allowed(default: Any, known: Setting) -> str:
    if known.choices:
        return ' | '.join(known.choices)
    if known.form:
        return known.form.word
    if isinstance(default, bool):
        return 'True | False'
    several = isinstance(default, tuple)
    one = (*default, 0)[0] if several else default  # of none, as `nested` reads it
    kind = 'text' if type(default) is str else type(one).__name__
    words = f'{kind}s' if several else kind
    if known.low is not None and known.high is not None:
        words += f' {_number(known.low)} to {_number(known.high)}'
    elif known.low is not None:
        words += f' >= {_number(known.low)}'
    return words + ''.join(f', or {value}' for value in known.beside)


def _number(value):
    return int(value) if value == int(value) else value


def matching(pattern: str) -> list[Row]:
    """The settings that a user looks for.

    Args:
      pattern: a glob of dotted names ('model.*_depth'), or words: parts of the name of a setting,
        of what it means or of what it may be; '' is all of them. Case does not matter.

    Raises:
      UserError: there are none.
    """
    everything = rows()
    matches = [row for row in everything if _matches(row, pattern.lower())]
    if not matches:
        nearest = near_setting(pattern, [row.name for row in everything])
        raise UserError(f'no setting matches {pattern!r}{nearest}; `emigm settings` lists them all')
    return matches


def _matches(row, pattern):
    if set(pattern) & set('*?['):
        return fnmatch.fnmatchcase(row.name, pattern)
    text = f'{row.name} {row.meaning} {row.allowed}'.lower()
    return all(word in text for word in pattern.split())


def table(shown: Sequence[Row], width: int, config: Config | None = None) -> list[str]:
    """Lines of an aligned table of settings, group by group.

    Args:
      shown: of `matching`.
      width: of the terminal, in characters.
      config: whose values are shown, with the default beside them where it is another.
    """
    heads = ['setting', 'default', 'meaning [what it may be]']
    if config is None:
        cells = [[row.name, _shown(row.default)] for row in shown]
    else:
        heads.insert(1, 'value')
        values = nested.flatten(nested.as_dict(config))
        cells = [[row.name, *_beside(values, row)] for row in shown]
    texts = [f'{row.meaning} [{_unbroken(row.allowed)}]' for row in shown]
    widths = [max(map(len, column)) for column in zip(heads[:-1], *cells, strict=True)]
    left = sum(widths) + 2 * len(widths)
    fill = textwrap.TextWrapper(
        max(width - left, _NARROWEST), break_long_words=False, break_on_hyphens=False
    )
    lines = _aligned(heads[:-1], widths, heads[-1:])
    titles, group = groups(), None
    for row, cell, text in zip(shown, cells, texts, strict=True):
        if row.group != group:
            group = row.group
            title = f'{group}: {titles[group]}' if group else titles[group]
            lines += ['', *textwrap.wrap(title, max(width, left))]
        lines += _aligned(cell, widths, fill.wrap(text))
    return [line.replace(_TIE, ' ') for line in lines]


def _unbroken(text):
    return text.replace(' ', _TIE) if len(text) < _NARROWEST else text


def _beside(values: Mapping[str, Any], row: Row) -> tuple[str, str]:
    value = values[row.name]
    return _shown(value), '' if value == row.default else _shown(row.default)


def _shown(value):
    text = repr(value) if value in ('', ()) or not isinstance(value, str) else value
    return text if len(text) <= _CUT else f'{text[: _CUT - 3]}...'


def _aligned(cells, widths, texts):
    """Lines of one row: cells in their columns, the last column over several lines."""
    head = ''.join(f'{cell:<{width}}  ' for cell, width in zip(cells, widths, strict=True))
    return [f'{start}{text}'.rstrip() for start, text in zip(_starts(head), texts, strict=False)]


def _starts(head):
    yield head
    while True:
        yield ' ' * len(head)

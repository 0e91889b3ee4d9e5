"""What a benchmark has found: as a table, as a JSON file, and compared with an earlier one."""

import dataclasses
import math
import os
from collections.abc import Sequence

import jax

import emigm_jax
from emigm_jax.errors import UserError, printable
from emigm_jax.io import files


@dataclasses.dataclass(frozen=True)
class Row:
    """The figures of one subject and one batch size."""

    name: str  # of the subject: a config, a tokenizer
    batch_size: int  # images
    settings: dict[str, str]  # that decide how long it takes
    figures: dict[str, float]  # of `timing.measure`, or others by name


@dataclasses.dataclass(frozen=True)
class Record:
    """What one command has found."""

    command: str  # train, sample, ...
    rows: tuple[Row, ...]
    device: str  # its kind
    devices: int
    jax: str  # version
    emigm_jax: str  # version

    def save(self, path: os.PathLike | str) -> None:
        """Writes it as JSON."""
        files.write_json(path, dataclasses.asdict(self))


def record(command: str, rows: Sequence[Row]) -> Record:
    """A `Record` of this process."""
    device, count = jax.devices()[0], jax.device_count()
    kind = f'{device.device_kind} ({device.platform})'
    return Record(command, tuple(rows), kind, count, jax.__version__, emigm_jax.__version__)


_TEXTS, _NUMBERS = (str,), (int, float)


def load(path: os.PathLike | str) -> Record:
    """What `Record.save` wrote.

    Raises:
      UserError: there is no such file, or it is no record.
    """
    value = files.read_json(path)
    if value is None:
        raise UserError(f'{path}: no such file')
    try:
        value['rows'] = tuple(_row(each) for each in value['rows'])
        found = Record(**value)
        texts = (found.command, found.device, found.jax, found.emigm_jax)
        if not all(map(_is(_TEXTS), texts)) or type(found.devices) is not int:
            raise TypeError
    except (KeyError, TypeError, AttributeError):
        raise UserError(
            f'{path}: is no record of a benchmark; `emigm benchmark ... --json FILE` writes one'
        ) from None
    return found


def _row(value):
    row = Row(**value)
    good = _is(_TEXTS)(row.name) and type(row.batch_size) is int
    good = good and all(map(_is(_TEXTS), row.settings.values()))
    if not good or not all(map(_is(_NUMBERS), row.figures.values())):
        raise TypeError
    return row


def _is(kinds):
    return lambda value: type(value) in kinds and (kinds is _TEXTS or math.isfinite(value))


# --- Tables --------------------------------------------------------------------------------------

# Head of a column: the figure in it, and how many of its unit are one of the column's.
_COLUMNS = {
    'images/s': ('images_per_second', 1.0),
    's': ('seconds_per_step', 1.0),
    'fastest': ('fastest_step', 1.0),
    'slowest': ('slowest_step', 1.0),
    'GFLOP/image': ('flops_per_image', 1e9),
    'TFLOP/s': ('tflops_per_second', 1.0),
    'of peak': ('of_matmul_peak', 1.0),
    'memory GB': ('program_memory_gb', 1.0),
    'compile s': ('compile_seconds', 1.0),
    'official s': ('official_seconds_per_step', 1.0),
    'times as fast': ('times_as_fast', 1.0),
    'rows/s': ('rows_per_second', 1.0),
    'rows/s on device': ('rows_per_second_on_device', 1.0),
    'waiting': ('share_waiting_for_data', 1.0),
}


def table(rows: Sequence[Row]) -> list[str]:
    """Aligned lines: a head, then a line per row, with the columns that a row has figures for."""
    columns = {
        head: each for head, each in _COLUMNS.items() if any(each[0] in row.figures for row in rows)
    }
    cells = [['', 'batch', *columns]]
    for row in rows:
        values = (
            f'{row.figures[name] / unit:.4g}' if name in row.figures else ''
            for name, unit in columns.values()
        )
        cells.append([printable(row.name), str(row.batch_size), *values])
    return aligned(cells)


def aligned(cells: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table whose first column starts, and whose others end, at the same place."""
    first, *others = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        '  '.join(
            (line[0].ljust(first), *(c.rjust(n) for c, n in zip(line[1:], others, strict=True)))
        ).rstrip()
        for line in cells
    ]


# --- Comparison ----------------------------------------------------------------------------------

# Figures that are compared, and whether a step's spread says how far to trust them.
_COMPARED = {
    'images_per_second': True,
    'of_matmul_peak': False,
    'program_memory_gb': False,
    'compile_seconds': False,
    'times_as_fast': False,
    'rows_per_second': False,
    'rows_per_second_on_device': False,
}


def comparison(old: Record, new: Record) -> list[str]:
    """Lines: what differs in how two records were made, then the ratios of their figures.

    Images per second are within the spread where the slowest and the fastest steps of one record
    overlap those of the other.

    Raises:
      UserError: they have no row in common.
    """
    if old.command != new.command:
        raise UserError(
            f'one record is of {printable(old.command)}, the other of {printable(new.command)}'
        )
    before = {(row.name, row.batch_size): row for row in old.rows}
    pairs = [
        (before[key], row) for row in new.rows if (key := (row.name, row.batch_size)) in before
    ]
    if not pairs:
        raise UserError('the records have no config and batch size in common')
    lines = [
        f'{name}: {printable(str(a))} -> {printable(str(b))}'
        for name in ('device', 'devices', 'jax', 'emigm_jax')
        if (a := getattr(old, name)) != (b := getattr(new, name))
    ]
    cells = [['', 'batch', 'figure', 'old', 'new', 'new / old', '']]
    for a, b in pairs:
        lines += _settings(a, b)
        cells += _compared(a, b)
    alone = len(old.rows) + len(new.rows) - 2 * len(pairs)
    return [*lines, *aligned(cells), *[f'rows in one record only: {alone}'] * bool(alone)]


def _settings(a, b):
    names = sorted(a.settings.keys() | b.settings.keys())
    pairs = [(name, a.settings.get(name, 'unset'), b.settings.get(name, 'unset')) for name in names]
    return [
        printable(f'{a.name}, batch {a.batch_size}: {name} {old} -> {new}')
        for name, old, new in pairs
        if old != new
    ]


def _compared(a, b):
    start = [printable(a.name), str(a.batch_size)]
    for name, spread in _COMPARED.items():
        old, new = a.figures.get(name), b.figures.get(name)
        if old and new is not None:
            said = _verdict(a.figures, b.figures) if spread else ''
            yield [*start, name, f'{old:.4g}', f'{new:.4g}', f'{new / old:.3f}', said]


def _verdict(old, new):
    (old_low, old_high), (new_low, new_high) = (
        [figures.get(name, math.nan) for name in ('fastest_step', 'slowest_step')]
        for figures in (old, new)
    )
    if not (old_low < old_high and new_low < new_high):  # a single step, or not in the record
        return 'spread unknown'
    if new_low > old_high:
        return 'slower'
    return 'faster' if new_high < old_low else 'within the spread'

"""Several processes as one: who makes which images, and that all stop when one cannot go on.

Every process makes its own part of every batch, and nobody waits for the others before they put
together what they have. A single process passes through here untouched.
"""

import json
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

import jax
import numpy as np
from jax.experimental import multihost_utils

from emigm_jax.errors import Damaged, Unavailable, UserError
from emigm_jax.io import files
from emigm_jax.parallel import processes

_T = TypeVar('_T')

_LINE = 4096  # bytes of a message on its way to the other processes
# Before the message of an error, which may be empty: its kind.
_FAILED = {UserError: b'\1', Unavailable: b'\2', Damaged: b'\3'}

first = processes.is_first  # whether this process writes the files and speaks to the user


def padded(rows: int) -> int:
    """`rows` rounded up to a multiple of all devices of all processes."""
    return -(-rows // jax.device_count()) * jax.device_count()


def share(size: int) -> int:
    """A process's part of a batch of `size`, which is as `padded` makes it."""
    return size // jax.process_count()


class Piece(NamedTuple):
    """What one process makes of one batch: images start <= i < stop, at least one."""

    start: int
    stop: int
    counts: bool  # False: the batch ends before, and the piece is only there to be one
    first: int  # the whole batch
    last: int  # beyond it


def pieces(start: int, count: int, size: int) -> list[Piece]:
    """This process's `Piece` of every batch of `size` from image `start` to image `count`.

    Pieces follow one another in order of the processes, and only the last ones of the last batch
    are shorter than `share(size)`.
    """
    parts = []
    for at in range(start, count, size):
        last = min(at + size, count)
        mine = at + jax.process_index() * share(size)
        low = min(mine, last - 1)
        parts.append(Piece(low, max(low + 1, min(mine + share(size), last)), mine < last, at, last))
    return parts


def gather(rows: np.ndarray | jax.Array) -> np.ndarray:
    """Arrays (B, ...) of every process, in order of the processes: (P * B, ...) on each.

    All processes call it, with arrays of the same shape and dtype.
    """
    rows = np.asarray(rows)
    if jax.process_count() == 1:
        return rows
    return np.asarray(multihost_utils.process_allgather(rows)).reshape(-1, *rows.shape[1:])


def from_first(value: Any) -> Any:
    """What the first process gives, JSON-like and of a few kilobytes, on all."""
    if jax.process_count() == 1:
        return value
    text = json.dumps(value if first() else None).encode()
    return json.loads(gather(_padded(text))[0].tobytes().rstrip(b'\0'))


def agreed(function: Callable[[], _T]) -> _T:
    """function() on every process, which waits for none; all fail if one does.

    Raises:
      UserError: that of the first process that has one. So nobody waits for a process that left.
    """
    if jax.process_count() == 1:
        return function()
    result, line = None, b''
    try:
        result = function()
    except UserError as error:
        kind = next(kind for kind in reversed(_FAILED) if isinstance(error, kind))
        line = _FAILED[kind] + str(error).encode()[: _LINE - 1]
    for row in gather(_padded(line)):
        message = row.tobytes().rstrip(b'\0')
        for kind, mark in _FAILED.items():
            if message.startswith(mark):
                raise kind(message.removeprefix(mark).decode(errors='replace'))
    return cast(_T, result)


def _padded(text):
    if len(text) > _LINE:
        raise ValueError(f'a message of {len(text)} bytes; processes exchange {_LINE} at most')
    return np.frombuffer(text.ljust(_LINE, b'\0'), np.uint8)[None]


def by_first(function: Callable[[], _T]) -> _T | None:
    """function() on the first process, None on the others; all fail if it does (`agreed`)."""
    return agreed(lambda: function() if first() else None)


def check_same(what: str, value: Any) -> None:
    """Raises UserError, on all processes, unless they all have the same JSON-like `value`."""
    mine = files.text_hash([json.dumps(value, sort_keys=True)])
    theirs = from_first(mine)

    def check():
        if mine != theirs:
            raise UserError(
                f'{what} of process {jax.process_index()} are not those of process 0: '
                'all need the same flags and the same files'
            )

    agreed(check)


def leave() -> None:
    """Ends the work in common: what follows may take one process as long as it likes."""
    if jax.process_count() > 1:
        processes.leave()
        jax.distributed.shutdown()

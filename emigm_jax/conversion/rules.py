"""The conversion engine: tables of entries turn official state dicts into our parameters and back.

An `Entry` says which official tensors make one of our parameters: one tensor, or one per layer for
a scanned stack; or several that are joined where another project keeps them apart. The same table
runs in both directions.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from emigm_jax.errors import UserError

Tensors = dict[str, Any]  # by official name: arrays, or what a file has in their place
Problem = tuple[str, str, str]  # what it is, official name, detail


class Operation(NamedTuple):
    """How the layouts of a tensor differ."""

    ours: Callable[[np.ndarray], np.ndarray]  # official -> ours
    official: Callable[[np.ndarray], np.ndarray]  # and back
    axis: int = 0  # of the official layout, along which the parts of one of ours are joined


OPERATIONS = {
    'copy': Operation(lambda a: a, lambda a: a),
    'row': Operation(lambda a: a[0], lambda a: a[None]),
    'row_of_batch': Operation(lambda a: a[0, 0], lambda a: a[None, None]),
    'transpose': Operation(lambda a: a.T, lambda a: a.T),
    # PyTorch: (out, in, rows, columns), `in` being 1 for depthwise; ours (rows, columns, in, out).
    'conv': Operation(lambda a: a.transpose(2, 3, 1, 0), lambda a: a.transpose(3, 2, 0, 1)),
    # A linear layer of PyTorch (out, in) in the place of a convolution of one pixel.
    'pixel': Operation(lambda a: a.T[None, None], lambda a: a[0, 0].T),
}


def of_heads(size: int) -> dict[str, Operation]:
    """Operations on Flax's attention, which has an axis of its own for heads of this size.

    Ours has one after the other: its q, k and v each (D, H, size) are (D, 3 D) here.
    """
    return {
        'to_heads': Operation(
            lambda a: a.reshape(a.shape[0], -1), lambda a: a.reshape(a.shape[0], -1, size), axis=1
        ),
        'from_heads': Operation(
            lambda a: a.reshape(-1, a.shape[-1]), lambda a: a.reshape(-1, size, a.shape[-1])
        ),
        'bias': Operation(lambda a: a.reshape(-1), lambda a: a.reshape(-1, size)),
    }


class Misfit(UserError):
    """Official tensors that do not fit the model; `rows` are (problem, official name, detail)."""

    def __init__(self, origin: str, rows: list[Problem], what: str = 'does not fit the model'):
        self.rows = rows
        shown = '; '.join(' '.join(filter(None, row)) for row in rows[:3])
        more = f'; and {len(rows) - 3} more' * (len(rows) > 3)
        super().__init__(f'{origin}: {what}: {shown}{more}')


class NonFinite(Misfit):
    """Official tensors with numbers that are not finite."""

    def __init__(self, origin: str, rows: list[Problem]):
        super().__init__(
            origin, rows, 'is broken (--allow-non-finite takes it all the same, to look into it)'
        )


class Entry(NamedTuple):
    """One of our parameters and where it comes from."""

    path: str  # ours, joined by '/'
    sources: tuple[str, ...]  # official names, `parts` per layer if stacked, else `parts`
    operation: str | Operation = 'copy'  # a key of OPERATIONS, or one of its own
    stacked: bool = False
    parts: int = 1  # official tensors that are joined, along `axis` of the operation

    @property
    def change(self) -> Operation:
        """The operation itself."""
        operation = self.operation
        return OPERATIONS[operation] if isinstance(operation, str) else operation

    def layers(self) -> Iterator[tuple[str, ...]]:
        """The official names of each layer."""
        parts = [iter(self.sources)] * self.parts
        return zip(*parts, strict=True)


def to_params(
    entries: list[Entry],
    tensors: Tensors,
    shapes: dict[str, Any],
    origin: str,
    allow_non_finite: bool = False,
) -> dict[str, Any]:
    """Official tensors -> nested dict of float32 arrays.

    Args:
      entries: the table.
      tensors: by official name.
      shapes: our parameters as a nested dict of anything with a `.shape`.
      origin: file name for messages.
      allow_non_finite: take numbers that are not finite as they are.

    Raises:
      Misfit: entries are missing, unexpected or misshapen; all of them are listed.
      NonFinite: they fit, but hold NaN or infinity; likewise.
    """
    wanted: dict[str, Any] = traverse_util.flatten_dict(shapes, sep='/')
    broken: list[Problem] = []
    used = {name for entry in entries for name in entry.sources}
    problems = [('missing', name, '') for name in sorted(used - tensors.keys())]
    problems += [('unexpected', name, '') for name in tensors if name not in used]
    params = {}
    for entry in entries:
        shape = wanted[entry.path].shape
        layer = shape[1:] if entry.stacked else shape
        expected = _official_shape(entry, layer)
        have = [name for name in entry.sources if name in tensors]
        bad = [n for n in have if getattr(tensors[n], 'shape', None) != expected]
        problems += [
            ('misshapen', n, f'is {_form(tensors[n])} where {entry.path} needs {expected}')
            for n in bad
        ]
        coarse = [n for n in have if n not in bad and not _is_float(tensors[n])]
        problems += [
            (
                'no floats',
                n,
                f'is {tensors[n].dtype}, and quantised weights mean nothing here',
            )
            for n in coarse
        ]
        if bad or coarse or len(have) < len(entry.sources):
            continue
        # Filled in place: one copy of a parameter, however many layers it stacks.
        params[entry.path] = target = np.empty(shape, np.float32)
        change = entry.change
        for i, names in enumerate(entry.layers()):
            joined = [np.asarray(tensors[name]) for name in names]
            official = joined[0] if entry.parts == 1 else np.concatenate(joined, change.axis)
            place = target[i, ...] if entry.stacked else target
            with np.errstate(over='ignore'):  # of float64: it is told below
                place[...] = change.ours(official)
            broken += non_finite(', '.join(names), place)
    if problems:
        raise Misfit(origin, problems)
    if broken and not allow_non_finite:
        raise NonFinite(origin, broken)
    return traverse_util.unflatten_dict(params, sep='/')


def non_finite(name: str, array: np.ndarray) -> list[Problem]:
    """What there is to say of an array that is not finite, in one row; [] if it is."""
    bad = array.size - np.count_nonzero(np.isfinite(array))
    return [('not finite', name, f'{bad:,} of {array.size:,} numbers')] if bad else []


def _official_shape(entry, shape):
    """Shape of each of the official tensors that become one of ours."""
    hollow = entry.change.official(np.broadcast_to(np.float32(0), shape))
    return np.split(hollow, entry.parts, entry.change.axis)[0].shape if hollow.ndim else ()


def _is_float(array):
    return jnp.issubdtype(array.dtype, jnp.floating)  # which knows bfloat16 and float8


def _form(value):
    return tuple(value.shape) if hasattr(value, 'shape') else f'a {type(value).__name__}'


def to_official(entries: list[Entry], params: dict[str, Any]) -> dict[str, np.ndarray]:
    """Our parameters -> tensors by official name, the inverse of `to_params`, bit for bit."""
    flat, tensors = traverse_util.flatten_dict(params, sep='/'), {}
    for entry in entries:
        change, ours = entry.change, np.asarray(flat[entry.path])
        for i, names in enumerate(entry.layers()):
            official = change.official(ours[i] if entry.stacked else ours)
            parts = np.split(official, entry.parts, change.axis) if entry.parts > 1 else [official]
            tensors.update(zip(names, parts, strict=True))
    return tensors

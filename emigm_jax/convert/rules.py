"""The conversion engine: tables of entries turn official state dicts into our parameters and back.

An `Entry` says which official tensors make one of our parameters: one tensor, or one per layer for
a scanned stack. The same table runs in both directions.
"""

from typing import NamedTuple

import numpy as np

from emigm_jax.errors import UserError

# name: (official -> ours, ours -> official given the official shape)
OPERATIONS = {
    'copy': (lambda a: a, lambda a, shape: a.reshape(shape)),
    'flat': (lambda a: a.reshape(a.shape[-1:]), lambda a, shape: a.reshape(shape)),
    'drop_batch': (lambda a: a[0], lambda a, shape: a.reshape(shape)),
    'transpose': (lambda a: a.T, lambda a, shape: a.T.reshape(shape)),
    # PyTorch: (out, in, rows, columns), `in` being 1 for depthwise; ours (rows, columns, in, out).
    'conv': (lambda a: a.transpose(2, 3, 1, 0), lambda a, shape: a.transpose(3, 2, 0, 1)),
}


class Entry(NamedTuple):
    """One of our parameters and where it comes from."""

    path: str  # ours, joined by '/'
    sources: tuple  # official names, one per layer if stacked, else one
    operation: str = 'copy'  # a key of OPERATIONS
    stacked: bool = False


def to_params(entries, tensors, shapes, origin):
    """Official tensors -> nested dict of float32 arrays.

    Args:
      entries: the table.
      tensors: {official name: array}.
      shapes: our parameters as a nested dict of anything with a `.shape`.
      origin: file name for messages.

    Raises:
      UserError: entries are missing, unexpected or misshapen; all of them are named.
    """
    wanted = flatten(shapes)
    problems = [f'missing {s}' for e in entries for s in e.sources if s not in tensors]
    used = {s for e in entries for s in e.sources}
    problems += [f'unexpected {name}' for name in tensors if name not in used]
    found = {}
    for entry in entries:
        if any(s not in tensors for s in entry.sources):
            continue
        change = OPERATIONS[entry.operation][0]
        parts = [change(np.asarray(tensors[s], np.float32)) for s in entry.sources]
        target = wanted[entry.path].shape
        layer = target[1:] if entry.stacked else target
        bad = [
            f'{name} has shape {tuple(tensors[name].shape)} where {entry.path} is {layer}'
            for name, part in zip(entry.sources, parts, strict=True)
            if part.shape != layer
        ]
        problems += bad
        if not bad:
            found[entry.path] = np.stack(parts) if entry.stacked else np.ascontiguousarray(parts[0])
    if problems:
        shown = '; '.join(problems[:8]) + (f'; and {len(problems) - 8} more' * (len(problems) > 8))
        raise UserError(f'{origin}: does not fit the model: {shown}')
    return unflatten(found)


def flatten(tree, prefix=''):
    """Nested dict -> {'a/b/c': leaf}."""
    flat = {}
    for name, value in tree.items():
        path = f'{prefix}{name}'
        flat.update(flatten(value, path + '/') if isinstance(value, dict) else {path: value})
    return flat


def unflatten(flat):
    """{'a/b/c': leaf} -> nested dict."""
    tree = {}
    for path, value in flat.items():
        *parents, leaf = path.split('/')
        node = tree
        for name in parents:
            node = node.setdefault(name, {})
        node[leaf] = value
    return tree

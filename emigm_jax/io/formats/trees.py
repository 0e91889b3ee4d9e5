"""Trees that checkpoint files are read as: what comes after goes through all of their names."""

from typing import Any

MAX_NAME = 1000  # characters of a tensor's name, with those of all that it lies in
MAX_DEPTH = 50
# Characters of all names together. A megabyte of a file can hold one long name for each byte, if
# they begin alike; of real files the longest names are of optimizers, a megabyte of them.
MAX_NAMES = 2**25


def checked(tree: Any) -> Any:
    """The tree itself; ValueError if its names are longer, or it is deeper, than any of a model."""
    total, level = 0, [(0, tree)]
    for _ in range(MAX_DEPTH):
        below = []
        for length, group in level:
            if isinstance(group, dict):
                longer = [(length + 1 + _length(key), value) for key, value in group.items()]
                total += sum(each for each, _ in longer)
            elif isinstance(group, (list, tuple)):
                longer = [(length, value) for value in group]
            else:
                continue
            below += longer
            if total > MAX_NAMES or any(each > MAX_NAME for each, _ in longer):
                raise ValueError('its names are longer than those of any model')
        if not below:
            return tree
        level = below
    raise ValueError(f'it is nested deeper than {MAX_DEPTH} levels')


def _length(key):
    return len(key) if isinstance(key, str) else len(str(key))

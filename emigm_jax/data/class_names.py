"""Names of classes for people to read."""

import functools
import importlib.resources
from collections.abc import Iterable

from emigm_jax.errors import UserError, near

IMAGENET = 1000  # classes


@functools.cache
def imagenet() -> tuple[str, ...]:
    """Short English names of ImageNet's 1000 classes, in the order of their labels."""
    text = importlib.resources.files('emigm_jax.data').joinpath('imagenet_classes.txt').read_text()
    return tuple(text.splitlines())


def label(name: str, classes: int) -> int:
    """The label of one of ImageNet's classes, by its name in any case.

    Args:
      name: e.g. 'golden retriever'.
      classes: that the model knows.

    Raises:
      UserError: no class, or several, have this name; the model's classes have no names.
    """
    if classes != IMAGENET:
        raise UserError(
            f'{name!r}: the classes of this model have no names, only 0 to {classes - 1}'
        )
    names = [title.lower() for title in imagenet()]
    labels = [i for i, title in enumerate(names) if title == name.lower().strip()]
    if not labels:
        raise UserError(f'no class is called {name!r}{near(name.lower(), names)}')
    if len(labels) > 1:
        raise UserError(f'{len(labels)} classes are called {name!r}: {", ".join(map(str, labels))}')
    return labels[0]


def titles(labels: Iterable[int], classes: int) -> list[str]:
    """Titles of labels (-1: the null class) of a model that knows so many classes."""
    names = imagenet() if classes == IMAGENET else None
    title = lambda label: f'{label} {names[label]}' if names else str(label)
    return ['no class' if label < 0 else title(label) for label in labels]

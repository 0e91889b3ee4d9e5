"""Names of classes for people to read."""

import functools
import importlib.resources

IMAGENET = 1000  # classes


@functools.cache
def imagenet():
    """Short English names of ImageNet's 1000 classes, in the order of their labels."""
    text = importlib.resources.files('emigm_jax.data').joinpath('imagenet_classes.txt').read_text()
    return tuple(text.splitlines())


def titles(labels, classes):
    """Titles of labels (-1: the null class) of a model that knows so many classes."""
    names = imagenet() if classes == IMAGENET else None
    title = lambda label: f'{label} {names[label]}' if names else str(label)
    return ['no class' if label < 0 else title(label) for label in labels]

"""Where pictures come from, addressed by index."""

import abc
import types
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from PIL import Image


class Example(NamedTuple):
    """One labelled picture."""

    image: 'Image.Image'  # in mode RGB, of any size
    label: int
    name: str


class Unreadable(Exception):
    """A picture that cannot be decoded."""

    def __init__(self, name: str, reason: str):
        super().__init__(name, reason)
        self.name, self.reason = name, reason


class Source(abc.ABC):
    """A labelled set of pictures; may be read by many threads."""

    kind: str  # of place, as caches name it
    class_names: tuple[str, ...]  # in label order
    # Files beside the pictures, which are left out: {kind: how many}.
    passed_over: Mapping[str, int] = types.MappingProxyType({})
    class_counts: Sequence[int] | None = None  # pictures of each class; None: it takes reading them

    @abc.abstractmethod
    def __len__(self) -> int:
        """How many pictures there are."""

    @abc.abstractmethod
    def name(self, i: int) -> str:
        """Name of picture i."""

    @abc.abstractmethod
    def example(self, i: int) -> Example:
        """`Example` i; raises `Unreadable`."""

    @abc.abstractmethod
    def fingerprint(self) -> str:
        """Short digest of what decides order and content."""


class Images(NamedTuple):
    """A labelled set of images of one size, in memory."""

    images: np.ndarray  # (M, H, W, colours) uint8
    labels: np.ndarray  # (M,) int32
    class_names: tuple[str, ...]
    levels: int  # distinct grey levels of the data


DIGITS = (8, 10)  # pixels per side, classes


def digits() -> Images:
    """scikit-learn's 1,797 real 8 x 8 handwritten digits with 17 grey levels (UCI optdigits)."""
    # The file that load_digits reads; to import it takes as long as to import jax.
    file = metadata.distribution('scikit-learn').locate_file('sklearn/datasets/data/digits.csv.gz')
    table = np.loadtxt(str(file), delimiter=',')
    pixels, labels = table[:, :-1].reshape(-1, 8, 8, 1), table[:, -1].astype(np.int32)
    images = np.round(pixels / 16.0 * 255.0).astype(np.uint8)
    return Images(images, labels, tuple(map(str, range(DIGITS[1]))), levels=17)

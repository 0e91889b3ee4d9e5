"""Where pictures come from, addressed by index."""

from typing import NamedTuple, Protocol

import numpy as np


class Example(NamedTuple):
    """One labelled picture."""

    image: object  # PIL.Image in mode RGB, of any size
    label: int
    name: str


class Unreadable(Exception):
    """A picture that cannot be decoded."""

    def __init__(self, name, reason):
        super().__init__(name, reason)
        self.name, self.reason = name, reason


class Source(Protocol):
    """A labelled set of pictures; may be read by many threads."""

    class_names: tuple  # in label order

    def __len__(self):
        """How many pictures there are."""

    def name(self, i):
        """Name of picture i."""

    def example(self, i):
        """`Example` i; raises `Unreadable`."""

    def fingerprint(self):
        """Short digest of what decides order and content."""


class Images(NamedTuple):
    """A labelled set of images of one size, in memory."""

    images: np.ndarray  # (M, H, W, colours) uint8
    labels: np.ndarray  # (M,) int32
    class_names: tuple
    levels: int  # distinct grey levels of the data


def digits():
    """scikit-learn's 1,797 real 8 x 8 handwritten digits with 17 grey levels (UCI optdigits)."""
    from sklearn import datasets  # slow to import

    data = datasets.load_digits()
    images = np.round(data.images / 16.0 * 255.0).astype(np.uint8)[..., None]
    return Images(images, data.target.astype(np.int32), tuple(map(str, range(10))), levels=17)

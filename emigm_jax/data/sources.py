"""Where training examples come from: arrays in memory, addressed by index."""

from typing import NamedTuple

import numpy as np


class Images(NamedTuple):
    """A labelled set of images."""

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

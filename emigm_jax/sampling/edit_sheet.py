"""Edits of a picture beside it, on one sheet to look at."""

from collections.abc import Sequence

import numpy as np
import scipy  # whose parts are imported when they are used
from jaxtyping import Bool, UInt8

from emigm_jax.io import png
from emigm_jax.sampling import edit_masks
from emigm_jax.sampling.editing import Edit

EDGE = (255, 48, 48)  # colour of a mask's edge


def outlined(
    image: UInt8[np.ndarray, 'S S 3'], masked: Bool[np.ndarray, 'g g']
) -> UInt8[np.ndarray, 'S S 3']:
    """An image with the edge of a mask of tokens, which runs inside of it."""
    side = len(image)
    inside = edit_masks.to_pixels(masked[None], side)[0]
    inner = scipy.ndimage.binary_erosion(inside, np.ones((3, 3)), max(1, side // 64))
    return np.where((inside & ~inner)[..., None], np.array(EDGE, np.uint8), image)


def sheet(
    edit: Edit, images: UInt8[np.ndarray, 'M S S colours'], titles: Sequence[str]
) -> UInt8[np.ndarray, 'height width 3']:
    """A row per class: the picture, the same with its mask's edge in tokens, an image per seed.

    Args:
      edit: of one picture. Where each seed chooses what is masked, the first one's is shown.
      images: every class with every seed, class by class.
      titles: of the rows.
    """
    small = np.concatenate([edit.pictures[:1], images])
    large = png.upscaled(np.broadcast_to(small, (*small.shape[:3], 3)))
    grid = edit.given.masked.shape[1] ** 0.5
    masked = np.asarray(edit.given.masked)[0].reshape(round(grid), -1)
    before = np.stack([large[0], outlined(large[0], masked)])
    of_classes = large[1:].reshape(len(titles), -1, *large.shape[1:])
    rows = [np.concatenate([before, row]) for row in of_classes]
    return png.labelled(png.grid(np.concatenate(rows), len(rows[0])), titles)

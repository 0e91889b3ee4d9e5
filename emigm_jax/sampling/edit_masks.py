"""Masks of pictures that are edited: of pixels, of tokens, and how much of the picture stays.

White, or True, is what is drawn anew.
"""

from collections.abc import Callable

import numpy as np
import scipy  # whose parts are imported when they are used
from jaxtyping import Bool, Float32, UInt8
from PIL import Image, ImageFilter

from emigm_jax.errors import UserError, check_range


def box(side: int, edges: tuple[float, float, float, float]) -> Bool[np.ndarray, '{side} {side}']:
    """Pixels that a rectangle touches; `edges` left, top, right, bottom as shares of `side`.

    Raises:
      UserError: there is nothing between its edges, or they lie outside.
    """
    left, top, right, bottom = edges
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        raise UserError(
            'a box is LEFT,TOP,RIGHT,BOTTOM with 0 <= LEFT < RIGHT <= 1 and 0 <= TOP < BOTTOM <= 1,'
            f' not {",".join(f"{edge:g}" for edge in edges)}'
        )
    begin, end = np.arange(side) / side, np.arange(1, side + 1) / side
    rows, columns = (top < end) & (begin < bottom), (left < end) & (begin < right)
    return rows[:, None] & columns


def margin(side: int, share: float) -> int:
    """Pixels of a margin on each side of a picture, `share` of its side.

    Raises:
      UserError: it would leave nothing, or is none.
    """
    check_range('the margin', share, 0.0, 0.5)
    if not 0 < (pixels := round(side * share)) < side / 2:
        raise UserError(f'a margin of {share:g} is {pixels} of {side} pixels on each side')
    return pixels


def to_tokens(
    pixels: Bool[np.ndarray, 'M S S'], grid: int, grow: int
) -> Bool[np.ndarray, 'M {grid} {grid}']:
    """Tokens of which a pixel is white, and `grow` more on each side."""
    size = pixels.shape[1] // grid
    tokens = pixels.reshape(-1, grid, size, grid, size).any((2, 4))
    around = 2 * grow + 1
    return scipy.ndimage.maximum_filter(tokens, (1, around, around), mode='constant')


def to_pixels(tokens: Bool[np.ndarray, 'M g g'], side: int) -> Bool[np.ndarray, 'M {side} {side}']:
    """All pixels of tokens."""
    size = side // tokens.shape[1]
    return tokens.repeat(size, 1).repeat(size, 2)


def blur(side: int) -> int:
    """Radius in pixels of the mask's blur (MaskGIT, its demo): none below 32 pixels."""
    return max(0, side // 16 - 1)


def _blurred(pixels, tokens):
    radius = ImageFilter.GaussianBlur(blur(pixels.shape[1]))
    whole = to_pixels(tokens, pixels.shape[1]).astype(np.uint8) * 255
    soft = [np.asarray(Image.fromarray(mask).filter(radius)) for mask in whole]
    return np.stack(soft).astype(np.float32) / 255.0


# How much of what is drawn is shown where; the rest is the picture's own.
BLENDS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    'blurred': _blurred,
    'exact': lambda pixels, tokens: pixels.astype(np.float32),
    'none': lambda pixels, tokens: np.ones(pixels.shape, np.float32),
}


def weights(
    pixels: Bool[np.ndarray, 'M S S'], tokens: Bool[np.ndarray, 'M g g'], blend: str
) -> Float32[np.ndarray, 'M S S']:
    """The share of what is decoded in each pixel, 1 everywhere where no token is drawn.

    Args:
      pixels: the mask as it was given.
      tokens: what `to_tokens` makes of it.
      blend: a key of `BLENDS`.
    """
    return np.where(tokens.any((1, 2), keepdims=True), BLENDS[blend](pixels, tokens), 1.0)


def blended(
    picture: UInt8[np.ndarray, 'M S S colours'],
    image: UInt8[np.ndarray, 'M S S colours'],
    weights: Float32[np.ndarray, 'M S S'],
) -> UInt8[np.ndarray, 'M S S colours']:
    """The image where the weight is 1, the picture where it is 0, both bit for bit."""
    share = weights[..., None]
    return np.round(share * image + (1.0 - share) * picture).astype(np.uint8)

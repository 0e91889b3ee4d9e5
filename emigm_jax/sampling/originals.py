"""Pictures that are edited and masks on them, as somebody gives them: files, arrays, images."""

import os
from collections.abc import Sequence
from typing import Any, TypeAlias, cast

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from emigm_jax.data import pictures
from emigm_jax.data.sources import Unreadable
from emigm_jax.errors import UserError
from emigm_jax.io import files, paths

# A file of any size and mode; an array (H, W), (H, W, 1) or (H, W, 3) of uint8, masks also of bool.
Picture: TypeAlias = os.PathLike | str | Image.Image | np.ndarray

WHITE = 128  # the least grey of a mask that counts as white


def several(given: Picture | Sequence[Picture], what: str) -> list[Picture]:
    """One picture or a list of them, or an array (M, H, W, colours), as a list.

    Raises:
      UserError: there is none.
    """
    listed = isinstance(given, list | tuple) or getattr(given, 'ndim', 0) == 4
    each: list[Any] = list(cast(Sequence, given)) if listed else [given]
    if not each:
        raise UserError(f'there is no {what}')
    return each


def opened(given: Picture, what: str) -> Image.Image:
    """A picture in mode RGB, upright; transparency is not heeded.

    Raises:
      UserError: it cannot be read, or is no picture.
    """
    if isinstance(given, Image.Image):
        return given.convert('RGB')
    if not isinstance(given, os.PathLike | str):
        return _of_array(np.asarray(given), what)
    path = paths.absolute(given)
    with files.reported(path):
        data = path.read_bytes()
    try:
        return pictures.decode(data, os.fspath(given))
    except Unreadable as error:
        raise UserError(f'{error.name}: {error.reason}') from error


def _of_array(array, what):
    flat = array.ndim == 3 and array.shape[2] == 1
    grey = array[..., 0] if flat else array
    if grey.dtype == bool:
        grey = grey.astype(np.uint8) * 255
    colours = grey.ndim == 3 and grey.shape[2] == 3
    if grey.dtype != np.uint8 or not (grey.ndim == 2 or colours) or not grey.size:
        raise UserError(
            f'{what} must be uint8 (H, W), (H, W, 1) or (H, W, 3), not {array.dtype} {array.shape}'
        )
    return Image.fromarray(grey).convert('RGB')


def cropped(
    image: Image.Image, side: int, colours: int
) -> UInt8[np.ndarray, '{side} {side} {colours}']:
    """The middle of a picture in mode RGB as training sees it: ADM's centre crop."""
    pixels = pictures.center_crop(image, side)
    if colours == 1:
        return np.asarray(Image.fromarray(pixels).convert('L'))[..., None]
    return pixels


def described(image: Image.Image, side: int) -> str:
    """What `cropped` does to a picture, in words."""
    shorter = min(image.size)
    return (
        f'{image.width} x {image.height} pixels'
        + f', cropped to the middle {shorter} x {shorter}' * (image.width != image.height)
        + f', made {side} x {side}' * (shorter != side)
    )


def has_greys(mask: Image.Image) -> bool:
    """Whether something in it is neither black nor white."""
    return not np.isin(np.asarray(mask), (0, 255)).all()


def as_mask(
    mask: Image.Image, picture: tuple[int, int], side: int, grid: int
) -> Bool[np.ndarray, '{side} {side}']:
    """What is white in a mask, of the pixels that `cropped` gives.

    Args:
      mask: greys below `WHITE` are black.
      picture: width and height of the picture that it is for, with which it is cropped.
      side: pixels per side of what the model makes; a mask may be as large.
      grid: tokens per side; a mask may have a pixel for each.

    Raises:
      UserError: it has another size.
    """
    white = np.asarray(mask.convert('L')) >= WHITE
    if mask.size == picture:
        return pictures.center_crop(Image.fromarray(white.astype(np.uint8) * 255), side) >= WHITE
    if mask.size == (side, side):
        return white
    if mask.size == (grid, grid):
        return white.repeat(side // grid, 0).repeat(side // grid, 1)
    raise UserError(
        f'the mask has {mask.width} x {mask.height} pixels: it must have '
        f'{picture[0]} x {picture[1]} as its picture, {side} x {side} as what the model makes, or '
        f'{grid} x {grid}, one for each token'
    )


def framed(
    image: Image.Image, side: int, margin: int
) -> tuple[UInt8[np.ndarray, '{side} {side} 3'], Bool[np.ndarray, '{side} {side}']]:
    """A picture made smaller in the middle of a larger one, and the mask of what is around it.

    Args:
      image: in mode RGB.
      side: pixels of the larger one.
      margin: pixels on each side; they repeat the picture's edge.
    """
    inner = pictures.center_crop(image, side - 2 * margin)
    around = (margin, margin), (margin, margin)
    inside = np.zeros(inner.shape[:2], bool)
    return np.pad(inner, (*around, (0, 0)), 'edge'), np.pad(inside, around, constant_values=True)

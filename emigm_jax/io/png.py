"""Pictures: PNG files and labelled grids of uint8 images."""

import io
import os
import unicodedata
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw, ImageFont

from emigm_jax.io import files


def upscaled(images: ArrayLike, least: int = 64) -> np.ndarray:
    """Enlarges (B, H, W, colours) to `least` pixels or more, smoothly, to be looked at."""
    images = np.asarray(images)
    _, height, width, colours = images.shape
    factor = max(1, least // height)
    if factor == 1:
        return images
    size = (width * factor, height * factor)
    large = [np.asarray(_picture(i).resize(size, Image.Resampling.BICUBIC)) for i in images]
    return np.stack(large).reshape(-1, *size[::-1], colours)


def _picture(image):
    """A PIL image of one uint8 array (H, W, 1 or 3)."""
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def save(path: os.PathLike | str, image: ArrayLike) -> None:
    """Writes one uint8 image (H, W, 1 or 3) as PNG to `path`, local or gs://."""
    content = io.BytesIO()
    _picture(np.asarray(image)).save(content, 'PNG')
    files.write(path, [content.getvalue()])


def grid(images: ArrayLike, columns: int, gap: int = 2, background: int = 96) -> np.ndarray:
    """uint8 images (B, H, W, colours) -> one image, `columns` to a row, row by row."""
    images = np.asarray(images)
    count, height, width, colours = images.shape
    rows = -(-count // columns)
    shape = (rows * (height + gap) + gap, columns * (width + gap) + gap, colours)
    canvas = np.full(shape, background, np.uint8)
    for i, image in enumerate(images):
        y, x = gap + i // columns * (height + gap), gap + i % columns * (width + gap)
        canvas[y : y + height, x : x + width] = image
    return canvas


def _in_ascii(title):
    """What the font that comes with Pillow can draw: letters without their accents."""
    letters = unicodedata.normalize('NFKD', title)
    bare = ''.join(c for c in letters if not unicodedata.combining(c))
    return bare.encode('ascii', 'replace').decode()


def labelled(
    grid: np.ndarray, titles: Sequence[str], gap: int = 2, background: int = 96
) -> np.ndarray:
    """Puts a column of row titles left of a grid (H, W, 1 or 3) whose rows are equally high."""
    height = (len(grid) - gap) / len(titles)
    titles = list(map(_in_ascii, titles))
    font = ImageFont.load_default(max(10, min(20, round(height / 5))))
    width = 2 * gap + max(round(font.getlength(title)) for title in titles)
    column = Image.new('L', (width, len(grid)), background)
    pen = ImageDraw.Draw(column)
    for row, title in enumerate(titles):
        pen.text((gap, gap + (row + 0.5) * height), title, fill=255, font=font, anchor='lm')
    column = np.asarray(column)[..., None]
    return np.concatenate([np.broadcast_to(column, (*column.shape[:2], grid.shape[-1])), grid], 1)

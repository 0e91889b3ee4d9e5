"""Pictures for an editor to paint on, and what was painted there."""

import io
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from emigm_jax.errors import UserError

LEAST = 256  # pixels per side of what is shown: nobody paints on 8 x 8
OPAQUE = 128  # the least alpha of paint that counts


class Painted(NamedTuple):
    """What `emigm edit` takes."""

    picture: Image.Image  # in mode RGB
    mask: Image.Image  # in mode L, white where something was painted


def enlarged(image: UInt8[np.ndarray, 'H W *colours']) -> UInt8[np.ndarray, '_ _ *colours']:
    """A picture of `LEAST` pixels per side or more, every pixel a square.

    The factor is a power of two, so that the crop of training gives the picture back, bit for bit.
    """
    factor = 1
    while factor * image.shape[0] < LEAST:
        factor *= 2
    return image.repeat(factor, 0).repeat(factor, 1)


def painted(value: Mapping[str, Any] | None) -> Painted:
    """What an editor says: a background and layers of paint, images in mode RGBA.

    Raises:
      UserError: there is no picture, or nothing is painted on it.
    """
    background: Image.Image | None = value['background'] if value else None
    if value is None or background is None:
        raise UserError('there is no picture: click one of those that were drawn, or drop a file')
    picture = Image.alpha_composite(
        Image.new('RGBA', background.size, 'white'), background.convert('RGBA')
    )
    mask = np.zeros(background.size[::-1], bool)
    for layer in value['layers']:
        alpha = (
            layer.convert('RGBA').getchannel('A').resize(background.size, Image.Resampling.NEAREST)
        )
        mask |= np.asarray(alpha) >= OPAQUE
    if not mask.any():
        raise UserError('nothing is painted: paint over what is to be drawn anew')
    return Painted(picture.convert('RGB'), Image.fromarray(mask.astype(np.uint8) * 255))


def png(image: Image.Image) -> bytes:
    """A file of it."""
    content = io.BytesIO()
    image.save(content, 'PNG')
    return content.getvalue()

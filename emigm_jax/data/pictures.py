"""From a picture file to the pixels that a tokenizer sees."""

import functools
import io
import logging
import math
import os
import warnings

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from emigm_jax.data.sources import Unreadable
from emigm_jax.errors import printable

# What is opened, and by which ending it goes. Nothing else that Pillow knows is ever tried: EPS
# starts Ghostscript, and PDF, WMF and the formats of instruments are no pictures of a data set.
FORMATS = {
    'JPEG': ('.jpg', '.jpeg', '.jpe', '.jfif'),
    'PNG': ('.png', '.apng'),
    'WEBP': ('.webp',),
    'GIF': ('.gif',),
    'BMP': ('.bmp',),
    'TIFF': ('.tif', '.tiff'),
    'PPM': ('.ppm', '.pgm', '.pbm', '.pnm', '.pfm'),
    'JPEG2000': ('.jp2', '.j2k', '.j2c', '.jpc', '.jpf', '.jpx'),
    'AVIF': ('.avif', '.avifs'),
    'ICO': ('.ico',),
    'PSD': ('.psd',),
    'QOI': ('.qoi',),
    'DDS': ('.dds',),
    'SGI': ('.sgi', '.rgb', '.rgba', '.bw'),
    'DIB': ('.dib',),
    'PCX': ('.pcx',),
    'TGA': ('.tga',),
}
ENDINGS = tuple(ending for endings in FORMATS.values() for ending in endings)
# These are told by their ending alone: how they begin says little or nothing.
_UNMARKED = ('DIB', 'PCX', 'TGA')
# A file of any name that begins like these is one of them. (TIFF is what cameras' raw files look
# like, which hold a small preview.)
_MARKED = ('JPEG', 'PNG', 'WEBP', 'GIF', 'JPEG2000', 'AVIF', 'QOI', 'PSD')
_SHORT_MARKED = ('BMP', 'PPM')  # two letters; the header must make sense, too
HEAD = 64  # bytes from which `begins_as_picture` tells

LARGEST = 2**30  # bytes; what Pillow opens without a warning is smaller, even uncompressed
# 16-bit grey, which convert('RGB') would clip at 255 instead of scaling.
_DEEP = ('I;16', 'I;16B', 'I;16L', 'I;16N', 'I')
_SIXTEEN_BITS = ('PNG', 'PPM')  # formats whose mode I has 16 bits
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF
_AT_ONCE = 2**20  # pixels of deep grey that are looked up
_MOST = 2**24  # pixels of an enlarged picture before it is cropped


def ending(name: str) -> str:
    """'.jpg' of 'PATH/a.JPG'; '' if there is none."""
    return os.path.splitext(name)[1].lower()


def begins_as_picture(head: bytes, name: str) -> bool:
    """Whether a file of an unknown ending is a picture, by its first `HEAD` bytes."""
    Image.init()
    marked = _MARKED + ('TIFF',) * (not ending(name))
    accepts = (Image.OPEN[kind][1] for kind in marked if kind in Image.OPEN)
    return any(accept is not None and accept(head) for accept in accepts) or _opens(head)


def _opens(head):
    try:
        Image.open(io.BytesIO(head), formats=_SHORT_MARKED).close()
    except Exception:  # decoders have many
        return False
    return True


def decode(data: bytes, name: str) -> Image.Image:
    """A picture file's content as an image in mode RGB, upright.

    The first frame of an animation; transparency is dropped and CMYK converted as `convert('RGB')`
    does it, which is what the official loader does, and a turned camera (EXIF) is turned back.
    16 bits per colour become 8.

    Args:
      data: of a file.
      name: for messages, and for formats that only the ending tells.

    Raises:
      Unreadable: truncated, no picture, one whose numbers have no agreed range, or one so large
        that it looks like an attack.
    """
    if not data:
        raise Unreadable(name, 'is empty')
    _quiet()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # e.g. of odd EXIF; what matters raises
            warnings.simplefilter('error', Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=_formats(name)) as image:
                if ImageFile.LOAD_TRUNCATED_IMAGES:  # another library's choice, not ours
                    raise Unreadable(name, 'PIL.ImageFile.LOAD_TRUNCATED_IMAGES is set')
                image.load()
                if reason := _no_range(image):
                    raise Unreadable(name, reason)
                return _eight_bits(image).convert('RGB')
    except Unreadable:
        raise
    except UnidentifiedImageError as error:  # its message has an address, new each time
        raise Unreadable(name, 'no picture of a known kind') from error
    except Exception as error:  # decoders have many
        reason = f'{type(error).__name__}: {" ".join(str(error).split())[:120]}'
        raise Unreadable(name, printable(reason)) from error


@functools.cache  # once
def _quiet():
    """Pillow logs lines on damaged TIFF of which the reason says enough."""
    logging.getLogger('PIL').setLevel(logging.CRITICAL)


def _formats(name):
    """What a file of this name may be, of what this Pillow can open."""
    Image.init()
    of_name = lambda kind: kind not in _UNMARKED or ending(name) in FORMATS[kind]
    return [kind for kind in FORMATS if kind in Image.OPEN and of_name(kind)]


def _no_range(image):
    """Why nobody can say which grey a number of the image is; '' if it is clear."""
    signed = 2 in np.atleast_1d(_tag(image, _SAMPLE_FORMAT))
    if image.mode == 'F':
        return 'floating-point pixels have no agreed range; save it with 8 or 16 bits'
    if signed or (image.mode == 'I' and image.format not in _SIXTEEN_BITS):
        return 'signed and 32-bit pixels have no agreed range; save it with 8 or 16 bits'
    return ''


def _tag(image, number, missing=1):
    return getattr(image, 'tag_v2', {}).get(number, missing)


def _eight_bits(image):
    """The image itself, upright, or deep grey scaled to 8 bits."""
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode not in _DEEP:
        return image
    # Only TIFF's numbers may have fewer bits than 16; Pillow scales those of other formats.
    most = 2 ** min(int(np.max(_tag(image, _BITS, 16))), 16) - 1
    scaled = ((np.arange(most + 1) * 255 + most // 2) // most).astype(np.uint8)
    deep = np.asarray(image)
    grey = np.empty(deep.shape, np.uint8)
    for rows in np.array_split(np.arange(len(deep)), -(-deep.size // _AT_ONCE)):
        grey[rows] = scaled[np.clip(deep[rows], 0, most)]
    # Pillow heeds "0 is white" of 8 bits alone.
    return Image.fromarray(grey if _tag(image, _PHOTOMETRIC) else 255 - grey)


def center_crop(image: Image.Image, size: int) -> np.ndarray:
    """The centre crop of ADM (guided-diffusion, `center_crop_arr`): uint8 (size, size, 3).

    Halved by box filter while the shorter side is at least twice `size`, then resized so that it
    is `size` (bicubic), then cropped. A strip whose enlargement would not fit into memory is
    cropped first.
    """
    while min(image.size) >= 2 * size:
        half = (image.width // 2, image.height // 2)
        image = image.resize(half, resample=Image.Resampling.BOX)
    scale = size / min(image.size)
    resized = (round(image.width * scale), round(image.height * scale))
    if math.prod(resized) > _MOST:
        return np.asarray(_strip(image, resized, size))
    pixels = np.asarray(image.resize(resized, resample=Image.Resampling.BICUBIC))
    top, left = ((side - size) // 2 for side in pixels.shape[:2])
    return pixels[top : top + size, left : left + size]


def _strip(image, resized, size, margin=4):
    """As cropping the image of size `resized`, of which only the middle is made.

    Equal up to rounding. `margin`: pixels beside the crop that the filter reaches.
    """
    begins, ends = [], []
    for side, larger in zip(image.size, resized, strict=True):
        first = (larger - size) // 2
        begins.append(first * side / larger)
        ends.append((first + size) * side / larger)
    corner = [max(0, math.floor(begin) - margin) for begin in begins]
    stop = [min(s, math.ceil(end) + margin) for s, end in zip(image.size, ends, strict=True)]
    inside = [place - c for place, c in zip(begins + ends, corner * 2, strict=True)]
    part = image.crop((*corner, *stop))
    return part.resize((size, size), Image.Resampling.BICUBIC, box=tuple(inside))


def shrunk(images: np.ndarray, most: int = 8) -> np.ndarray:
    """uint8 (B, S, S, colours), by box filter, of at most `most` pixels per side.

    8 is the size of the digits; with more, covariances of a few hundred images mean little.
    """
    if images.shape[1] <= most:
        return images
    flat = images.shape[-1] == 1
    small = [
        np.asarray(
            Image.fromarray(image[..., 0] if flat else image).resize(
                (most, most), Image.Resampling.BOX
            )
        )
        for image in images
    ]
    return np.stack(small).reshape(len(images), most, most, -1)

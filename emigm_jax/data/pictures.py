"""From a picture file to the pixels that a tokenizer sees."""

import io
import warnings

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from emigm_jax.data.sources import Unreadable

# 16- and 32-bit grey, which convert('RGB') would clip at 255 instead of scaling.
_DEEP = ('I;16', 'I;16B', 'I;16L', 'I;16N', 'I')


def decode(data: bytes, name: str) -> Image.Image:
    """A picture file's content as an image in mode RGB, upright.

    The first frame of an animation; transparency is dropped and CMYK converted as `convert('RGB')`
    does it, which is what the official loader does, and a turned camera (EXIF) is turned back.

    Args:
      data: of a file.
      name: for messages.

    Raises:
      Unreadable: truncated, no picture, or one so large that it looks like an attack.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # e.g. of odd EXIF; what matters raises
            warnings.simplefilter('error', Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data)) as image:
                if ImageFile.LOAD_TRUNCATED_IMAGES:  # another library's choice, not ours
                    raise Unreadable(name, 'PIL.ImageFile.LOAD_TRUNCATED_IMAGES is set')
                image.load()
                upright = ImageOps.exif_transpose(image)
                if upright.mode in _DEEP:
                    grey = np.asarray(upright).astype(np.int64)
                    upright = Image.fromarray((np.clip(grey, 0, 65535) // 257).astype(np.uint8))
                return upright.convert('RGB')
    except Unreadable:
        raise
    except UnidentifiedImageError as error:  # its message has an address, new each time
        raise Unreadable(name, 'no picture of a known kind') from error
    except Exception as error:  # decoders have many
        reason = f'{type(error).__name__}: {" ".join(str(error).split())[:120]}'
        raise Unreadable(name, reason) from error


def center_crop(image: Image.Image, size: int) -> np.ndarray:
    """The centre crop of ADM (guided-diffusion, `center_crop_arr`): uint8 (size, size, 3).

    Halved by box filter while the shorter side is at least twice `size`, then resized so that it
    is `size` (bicubic), then cropped.
    """
    while min(image.size) >= 2 * size:
        half = (image.width // 2, image.height // 2)
        image = image.resize(half, resample=Image.Resampling.BOX)
    scale = size / min(image.size)
    resized = (round(image.width * scale), round(image.height * scale))
    pixels = np.asarray(image.resize(resized, resample=Image.Resampling.BICUBIC))
    top, left = ((side - size) // 2 for side in pixels.shape[:2])
    return pixels[top : top + size, left : left + size]

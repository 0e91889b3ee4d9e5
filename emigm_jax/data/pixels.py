"""Which tokenizer of pixels the settings of data ask for."""

from emigm_jax.config.settings import DataConfig
from emigm_jax.tokenizers.pixel_codes import PixelCodes
from emigm_jax.tokenizers.pixels import Pixels


def of(data: DataConfig, image_size: int, colours: int, levels: int = 256) -> Pixels | PixelCodes:
    """Patches of pixels as numbers, or as codes where `data.levels` says so.

    Args:
      data: patch, and levels or scale.
      image_size: pixels per side.
      colours: channels of an image.
      levels: grey levels of the images; those that are drawn as numbers are rounded to them.

    Raises:
      UserError: `data.patch` or `data.levels` does not fit.
    """
    if data.levels:
        return PixelCodes(image_size, data.patch, colours, data.levels)
    return Pixels(image_size, data.patch, colours, levels, data.scale)

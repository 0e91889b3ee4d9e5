"""The sizes of a model that follow from its data, for configs that leave them out."""

import dataclasses
from collections.abc import Callable, Mapping

from emigm_jax.config.settings import Config, DataConfig
from emigm_jax.data import latents, sources
from emigm_jax.data.interface import Dataset
from emigm_jax.errors import UserError
from emigm_jax.io import files
from emigm_jax.models.config import OF_DATA, ModelConfig
from emigm_jax.tokenizers.pixels import Pixels


def fitted(config: Config, data: Dataset) -> Config:
    """A config with all sizes, those that it leaves out from its data.

    Raises:
      UserError: a size is left out that the data do not have either.
    """
    model = _filled(config.model, {name: getattr(data, name) for name in OF_DATA})
    model.check_sizes()
    return dataclasses.replace(config, model=model, data=data.settings or config.data)


def known(config: Config) -> Config:
    """A config with the sizes that are known without opening its data; the rest stays left out.

    Raises:
      UserError: the settings of the data contradict each other.
    """
    sizes = _KNOWN[config.data.name](config.data)
    return dataclasses.replace(config, model=_filled(config.model, sizes))


def without_data(config: Config) -> Config:
    """`known`, for programs that are built for their speed or memory and need no data.

    Raises:
      UserError: a size is left out that only the data have.
    """
    config = known(config)
    config.model.check_sizes()
    return config


def _filled(model: ModelConfig, sizes: Mapping[str, int]) -> ModelConfig:
    left_out = {name: size for name, size in sizes.items() if not getattr(model, name)}
    return dataclasses.replace(model, **left_out)


def _of_pixels(pixels: Pixels) -> dict[str, int]:
    return {'grid': pixels.grid, 'channels': pixels.spec.channels}


def _of_digits(data: DataConfig) -> dict[str, int]:
    side, classes = sources.DIGITS
    return {**_of_pixels(Pixels(side, data.patch, 1)), 'classes': classes}


def _of_cache(data: DataConfig) -> dict[str, int]:
    if files.remote(data.path):  # no network for what may only be a --dry-run
        return {}
    try:
        manifest = latents.read_manifest(data.path)
    except UserError:  # said by who needs it
        return {}
    channels = manifest.contents.tokenizer.channels
    return {
        'grid': manifest.shape[0],
        'channels': channels,
        'classes': len(manifest.class_names),
    }


def _of_pictures(data: DataConfig) -> dict[str, int]:
    if data.tokenizer or not (data.image_size and data.patch):
        return {}
    return _of_pixels(Pixels(data.image_size, data.patch, 3))


# data.name: the sizes that are known from its settings, or nearly so.
_KNOWN: dict[str, Callable[[DataConfig], dict[str, int]]] = {
    'digits': _of_digits,
    'synthetic': lambda data: {},
    'latents': _of_cache,
    'folder': _of_pictures,
    'tfds': _of_pictures,
}

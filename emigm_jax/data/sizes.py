"""The sizes of a model that follow from its data, for configs that leave them out."""

import dataclasses
from collections.abc import Callable, Mapping

from emigm_jax.config.settings import Config, DataConfig
from emigm_jax.data import latents, pixels, sources
from emigm_jax.data.interface import Dataset
from emigm_jax.errors import UserError
from emigm_jax.io import files
from emigm_jax.models.config import OF_DATA, ModelConfig

_TOKENS = {'diffusion': 'channels', 'categorical': 'codes'}  # head: the size of its tokens


def fitted(config: Config, data: Dataset) -> Config:
    """A config with all sizes, those that it leaves out from its data.

    Raises:
      UserError: a size is left out that the data do not have either.
    """
    model = _filled(config.model, of(data))
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
      UserError: a size is left out that only the data have, or the head does not fit them.
    """
    sizes = _KNOWN[config.data.name](config.data)
    model = _filled(config.model, sizes)
    try:
        model.check_sizes()
    except UserError:
        # What is missing is missing because the data have tokens of the other kind.
        wrong = misfits(model, sizes)
        if 'model.head' in wrong:
            flags = ' '.join(f'--config.{name}={value}' for name, value in wrong.items())
            raise UserError(
                f'model.head = {model.head} does not fit the data: say {flags}'
            ) from None
        raise
    return dataclasses.replace(config, model=model)


def of(data: Dataset) -> dict[str, int]:
    """The sizes that data have, 0 where they have none."""
    return {name: getattr(data, name) for names in OF_DATA.values() for name in names}


def misfits(model: ModelConfig, sizes: Mapping[str, int]) -> dict[str, int | str]:
    """Settings of a model that do not fit data of these sizes, and values that do."""
    found, head = {}, model.head
    kinds = [kind for kind, size in _TOKENS.items() if sizes.get(size)]
    if kinds and head not in kinds:
        (head,) = kinds
        found['head'] = head
        if (model.trunk, head) == ('bert', 'diffusion'):
            found['trunk'] = 'mae'
    # A size that goes with the other head has to be left out again.
    wanted = {name: size if name in OF_DATA[head] else 0 for name, size in sizes.items()}
    found |= {n: size for n, size in wanted.items() if getattr(model, n) not in (0, size)}
    return {f'model.{name}': value for name, value in found.items()}


def _filled(model: ModelConfig, sizes: Mapping[str, int]) -> ModelConfig:
    left_out = {
        name: size
        for name, size in sizes.items()
        if name in model.of_data and not getattr(model, name)
    }
    return dataclasses.replace(model, **left_out)


def _of_pixels(data: DataConfig, image_size: int, colours: int) -> dict[str, int]:
    tokenizer = pixels.of(data, image_size, colours)
    spec = tokenizer.spec
    return {'grid': tokenizer.grid, 'channels': spec.channels, 'codes': spec.codes}


def _of_digits(data: DataConfig) -> dict[str, int]:
    side, classes = sources.DIGITS
    return {**_of_pixels(data, side, 1), 'classes': classes}


def _of_cache(data: DataConfig) -> dict[str, int]:
    if files.remote(data.path):  # no network for what may only be a --dry-run
        return {}
    try:
        manifest = latents.read_manifest(data.path)
    except UserError:  # said by who needs it
        return {}
    maker = manifest.contents.tokenizer
    return {
        'grid': manifest.shape[0],
        'channels': maker.channels,
        'codes': maker.codes,
        'classes': len(manifest.class_names),
    }


def _of_pictures(data: DataConfig) -> dict[str, int]:
    if data.tokenizer or not (data.image_size and data.patch):
        return {}
    return _of_pixels(data, data.image_size, 3)


# data.name: the sizes that are known from its settings, or nearly so.
_KNOWN: dict[str, Callable[[DataConfig], dict[str, int]]] = {
    'digits': _of_digits,
    'synthetic': lambda data: {},
    'latents': _of_cache,
    'folder': _of_pictures,
    'tfds': _of_pictures,
}

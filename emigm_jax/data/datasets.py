"""Training data by name: each reads host rows by index and makes tokens of them on the devices."""

import dataclasses
import functools
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np

from emigm_jax.config import nested
from emigm_jax.config.settings import Config, DataConfig
from emigm_jax.data import blocks, copies, latents, parts, pixels, sizes, sources, survey
from emigm_jax.data.interface import Batch, Dataset
from emigm_jax.errors import UserError, printable
from emigm_jax.io import files
from emigm_jax.io.progress import Bar
from emigm_jax.models.config import ModelConfig
from emigm_jax.parallel import batches, shards
from emigm_jax.tokenizers import codec as codecs
from emigm_jax.tokenizers import learned
from emigm_jax.tokenizers.codec import Codec
from emigm_jax.tokenizers.interface import Tokenizer
from emigm_jax.tokenizers.pixels import Pixels

# data.name: flags that make codes of pixels; without a loss of digits, which have 17 levels.
_AS_CODES = {
    'digits': '--config.data.levels=17 --config.data.patch=1',
    '': '--config.data.levels=8 --config.data.patch=1',
}
_PLACED = ('latents', 'folder', 'tfds')  # data.name: with a path
LEFT_TO_PICTURES = ('image_size', 'patch', 'scale')  # of data, where they are 0


def _as_they_are(rows):
    return Batch(labels=rows['labels'], tokens=rows['tokens'])


def _tokens(tokenizer: Tokenizer, raw: jax.Array, key: jax.Array) -> jax.Array:
    """Tokens (B, N, C) float32 or codes (B, N) int32 of raw in whatever dtype it is held."""
    dtype = jnp.int32 if tokenizer.spec.codes else jnp.float32
    return tokenizer.to_tokens(raw.astype(dtype), key)


@final
class Digits(Dataset):
    """The digits as tokens, held in memory; a mirrored digit is none, so none is."""

    def __init__(self, config: DataConfig):
        self.source = sources.digits()
        self.codec, self.params = codec(config), {}
        assert self.codec is not None  # digits always have pixels
        # Operation by operation: compiled as one they would round otherwise.
        raw = self.codec.tokenizer.encode({}, jnp.asarray(self.source.images))
        spec = self.codec.spec
        self.grid, self.channels, self.codes = raw.shape[1], spec.channels, spec.codes
        self.class_names = self.source.class_names
        self.classes = len(self.class_names)
        self.examples = len(self.source.labels)
        self.fingerprint = 'digits'
        self._tokens = np.asarray(self.codec.to_tokens(raw))

    def read(self, indices: np.ndarray, mirrored: np.ndarray) -> dict[str, np.ndarray]:
        """See `Dataset`."""
        return {'tokens': self._tokens[indices], 'labels': self.source.labels[indices]}

    def to_batch(self, params: dict[str, Any], rows: dict[str, jax.Array], key: jax.Array) -> Batch:
        """See `Dataset`."""
        return _as_they_are(rows)


@final
class Synthetic(Dataset):
    """Standard normal latents, or random codes, with random classes: recipes run without data.

    Example i is a function of i alone, as a real example would be.
    """

    def __init__(self, config: DataConfig, model: ModelConfig):
        self.examples, self.classes = config.examples, model.classes
        self.grid, self.channels, self.codes = model.grid, model.channels, model.codes
        self.fingerprint, self.codec, self.params = 'synthetic', None, {}

    def read(self, indices: np.ndarray, mirrored: np.ndarray) -> dict[str, np.ndarray]:
        """See `Dataset`."""
        count = self.grid**2
        rngs = [np.random.Generator(np.random.Philox(key=int(i))) for i in indices]
        labels = np.array([rng.integers(self.classes) for rng in rngs], np.int32)
        if self.codes:
            drawn = [rng.integers(self.codes, size=count, dtype=np.int32) for rng in rngs]
        else:
            drawn = [rng.standard_normal((count, self.channels), np.float32) for rng in rngs]
        tokens = np.stack(drawn)
        return {'tokens': tokens, 'labels': labels}

    def to_batch(self, params: dict[str, Any], rows: dict[str, jax.Array], key: jax.Array) -> Batch:
        """See `Dataset`."""
        return _as_they_are(rows)


def _shards(what):
    """Progress through the shards of a cache."""
    return functools.partial(Bar, unit=' shards', desc=what, quiet=jax.process_index() > 0)


@final
class Latents(Dataset):
    """A cache of raw latents or codes; moments are sampled afresh, and scaled, on the devices."""

    def __init__(self, config: DataConfig):
        path = config.path
        if config.local_copy:
            print(f'copying {path} to {config.local_copy}', flush=True)
            path = copies.copied(path, config.local_copy, _shards('copying'))
        self.cache, self.flip = latents.Cache(path), config.flip
        if config.verify:
            self.cache.verify(_shards('comparing checksums'))
        manifest = self.cache.manifest
        self.fingerprint = files.text_hash(shard.sha256 for shard in manifest.shards)
        self.examples, self.classes = len(self.cache), len(manifest.class_names)
        self.class_names = manifest.class_names
        self.codec, self.params = codec(config), {}
        maker = manifest.contents.tokenizer
        if self.codec and self.codec.fingerprint != maker.fingerprint:
            raise UserError(
                f'{config.path}: was made with another tokenizer ({maker.name} '
                f'{maker.fingerprint}) than data.tokenizer = {config.tokenizer}'
            )
        self.read_near, self.remarks = blocks.far(self.cache, config.order)
        # What it does to raw takes no weights.
        self._tokenizer = learned.published(maker.name, config.latent_scale)
        self.grid, self.channels, self.codes = self.cache.shape[0], maker.channels, maker.codes

    def read(self, indices: np.ndarray, mirrored: np.ndarray) -> dict[str, np.ndarray]:
        """See `Dataset`: raw (B, h, w, ...) as cached."""
        return {'raw': self.cache.take(indices, mirrored), 'labels': self.cache.labels[indices]}

    def to_batch(self, params: dict[str, Any], rows: dict[str, jax.Array], key: jax.Array) -> Batch:
        """See `Dataset`."""
        return Batch(rows['labels'], _tokens(self._tokenizer, rows['raw'], key))


@final
class Pictures(Dataset):
    """Pictures that are read, cropped and encoded while training, for those who have no cache."""

    one_by_one = True  # decoding takes the time

    def __init__(self, source: sources.Source, config: DataConfig):
        self.source, self.flip, self._held_back = source, config.flip, config.held_back
        self.examples, self.classes = len(source), len(source.class_names)
        self.class_names = source.class_names
        self.fingerprint = source.fingerprint()
        seen = survey.look(source)
        learned_codec = codec(config) if config.tokenizer else None
        self.settings = self._filled(config, seen, learned_codec)
        stride = learned_codec.spec.stride if learned_codec else self.settings.patch
        self._size = survey.fitting(self.settings.image_size, stride)
        if self._size != self.settings.image_size:
            self.misfits = {'data.image_size': self._size}
        fits = dataclasses.replace(self.settings, image_size=self._size)
        self.codec = learned_codec or codec(fits)
        assert self.codec is not None  # pictures always have pixels
        self.params = self.codec.params
        spec = self.codec.spec
        self.grid, self.channels, self.codes = self._size // stride, spec.channels, spec.codes

    def _filled(self, config, seen, learned_codec):
        """The settings with all that was left to the pictures; says what was found."""
        spec = learned_codec and learned_codec.spec
        largest = learned.KINDS[spec.kind].image_size if spec else 0
        new = survey.filled(config, seen, spec, largest)
        lines = survey.found(self.source, seen)
        lines += survey.enlarged(seen, new.image_size, '--config.data.image_size=')
        self.enlarges = bool((seen.shorter < new.image_size).mean() > 0.5)
        if not spec and not config.levels:  # codes have no scale
            spread = survey.deviation(self.source, new.image_size)
            scale = config.scale or survey.suggested_scale(spread)
            new = dataclasses.replace(new, scale=scale)
            lines += survey.scaled(spread, scale)
        taken = [
            f'--config.data.{name}={getattr(new, name)}'
            for name in LEFT_TO_PICTURES
            if getattr(new, name) != getattr(config, name)
        ]
        lines += [f'taken, as they suggest: {" ".join(taken)}'] if taken else []
        if config.flip:
            lines.append('every other picture is mirrored, by chance: --config.data.flip=False')
        self.remarks = lines
        return new

    def read(self, indices: np.ndarray, mirrored: np.ndarray) -> dict[str, np.ndarray]:
        """See `Dataset`: images (B, S, S, 3) uint8."""
        read = [self._picture(int(i), bool(m)) for i, m in zip(indices, mirrored, strict=True)]
        images, labels = zip(*read, strict=True)
        return {'images': np.stack(images), 'labels': np.array(labels, np.int32)}

    def _picture(self, index, mirrored):
        """(image, label) of an index.

        The next readable picture of its part stands in for one that cannot be read, so that a run
        of days does not end at a damaged file and is the same each time.
        """
        from emigm_jax.data.pictures import center_crop

        for stand_in in parts.stand_ins(index, self.examples, self._held_back):
            try:
                example = self.source.example(stand_in)
                image = center_crop(example.image, self._size)
                return image[:, ::-1] if mirrored else image, example.label
            except sources.Unreadable as error:
                _warn(error.name, error.reason)
        raise UserError('not one picture of the data can be read')

    def to_batch(self, params: dict[str, Any], rows: dict[str, jax.Array], key: jax.Array) -> Batch:
        """See `Dataset`; a device encodes a few pictures at a time."""
        assert self.codec is not None
        tokenizer, batch = self.codec.tokenizer, self.codec.batch

        def encode(params, images):
            return batches.in_chunks(functools.partial(tokenizer.encode, params), images, batch)

        raw = shards.mapped(encode, (shards.REPLICATED, shards.BATCH), shards.BATCH)(
            params, rows['images']
        )
        return Batch(rows['labels'], _tokens(tokenizer, raw, key))


@functools.cache  # once per file
def _warn(name, reason):
    line = f'cannot read {printable(name)} ({reason}); the next one stands in for it\n'
    print(line, end='', flush=True)  # in one piece, as several threads read


def codec(config: DataConfig) -> Codec | None:
    """What turns the tokens of a `DataConfig` into pictures; None if there is nothing."""
    if config.name == 'digits':
        source = sources.digits()
        size = source.images.shape[1]
        return Codec(pixels.of(config, size, 1, source.levels))
    if config.name == 'synthetic':
        return None
    if config.tokenizer:
        return codecs.load(config.tokenizer).with_scale(config.latent_scale)
    if config.name == 'latents':
        return None
    return Codec(pixels.of(config, config.image_size, 3))


def source(config: DataConfig) -> sources.Source:
    """The `Source` of a `DataConfig` whose data are pictures."""
    if config.name == 'folder':
        from emigm_jax.data.folder import ImageFolder

        if not config.path:
            raise UserError("data.name = 'folder' needs data.path: say --config.data.path=FOLDER")
        return ImageFolder(config.path)
    from emigm_jax.data.tfds_source import TFDS

    return TFDS(config.dataset, config.split, config.path or None)


# data.name: how its `Dataset` is made of a `Config`.
DATASETS = {
    'digits': lambda config: Digits(config.data),
    'synthetic': lambda config: Synthetic(config.data, config.model),
    'latents': lambda config: Latents(config.data),
    'folder': lambda config: Pictures(source(config.data), config.data),
    'tfds': lambda config: Pictures(source(config.data), config.data),
}


def dataset(config: Config) -> Dataset:
    """The training data of a `Config`, checked against the sizes that its model sets.

    Raises:
      UserError: they are not there, are damaged, too few, or do not fit the model.
    """
    data = DATASETS[config.data.name](config)
    misfits, why = _misfits(config, data), _described(config.data)
    if misfits and data.enlarges:
        # Whoever has to change settings may as well take those that suit the pictures.
        free = dataclasses.replace(config.data, image_size=0, patch=0, scale=0.0)
        config = dataclasses.replace(config, data=free)
        suited = DATASETS[config.data.name](config)
        taken = {f'data.{name}': getattr(suited.settings, name) for name in LEFT_TO_PICTURES}
        misfits = {n: v for n, v in taken.items() if v} | _misfits(config, suited)
        why += '; most pictures are smaller and would be enlarged'
    if misfits:
        known = _known(config, data)
        named = ', '.join(f'{name} = {known[name]}' for name in misfits)
        flags = ' '.join(f'--config.{name}={value}' for name, value in misfits.items())
        verb = 'does' if len(misfits) == 1 else 'do'
        if misfits.get('model.head') == 'diffusion' and _of_pixels(data):
            flags += f', or, for codes, {_AS_CODES.get(config.data.name, _AS_CODES[""])}'
        raise UserError(f'{named} {verb} not fit the data ({why}): say {flags}')
    return parts.trained(data, config.data.held_back)


def held_back(config: Config, path: str = '', trained_on: str = '') -> Dataset:
    """Data that a run has not been trained on, which are never mirrored.

    Args:
      config: of the run, with what it took from its training data.
      path: of other data, all of which are taken; '': what `data.held_back` held back.
      trained_on: fingerprint of what the run was trained on; '': nobody saved it.

    Raises:
      UserError: nothing was held back, the training data have changed since, or as `dataset`.
    """
    n = 0 if path else config.data.held_back
    if not (path or n):
        raise UserError(
            'nothing was held back from training: train with --config.data.held_back=10, or name '
            'other data with --data'
        )
    if path and config.data.name not in _PLACED:
        raise UserError(f'--data goes with {", ".join(_PLACED)}, not with {config.data.name}')
    settings = dataclasses.replace(config.data, path=path or config.data.path, held_back=n)
    # What is done before training, on its hosts, is not done again.
    settings = dataclasses.replace(settings, local_copy='', verify=False, flip=False)
    data = DATASETS[settings.name](dataclasses.replace(config, data=settings))
    if misfits := _misfits(config, data):
        known = _known(config, data)
        named = ', '.join(f'{name} = {value}, not {known[name]}' for name, value in misfits.items())
        raise UserError(f'{settings.path or settings.name}: needs {named}')
    return parts.held_back(data, n, trained_on) if n else data


def _known(config, data):
    """{dotted name: value} of all settings, with what was left to the data filled in."""
    settings = data.settings or config.data
    return nested.flatten(nested.as_dict(dataclasses.replace(config, data=settings)))


def _misfits(config, data):
    """Settings that do not fit the data, with values that do."""
    return {**data.misfits, **sizes.misfits(config.model, sizes.of(data))}


def _of_pixels(data):
    return data.codec is not None and isinstance(data.codec.tokenizer, Pixels)


def _described(data):
    shown = {'digits': ('name', 'patch'), 'latents': ('name', 'path')}
    names = shown.get(data.name, ('name', 'path', 'image_size', 'tokenizer', 'patch'))
    if data.levels and data.name not in ('latents', 'synthetic'):
        names += ('levels',)
    return ', '.join(f'data.{name} = {getattr(data, name)!r}' for name in names)

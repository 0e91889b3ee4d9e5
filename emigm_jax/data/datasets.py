"""Training data by name: each reads host rows by index and makes tokens of them on the devices."""

import dataclasses
import functools
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np

from emigm_jax.config import nested
from emigm_jax.config.settings import Config, DataConfig
from emigm_jax.data import latents, sources, survey
from emigm_jax.data.interface import Batch, Dataset
from emigm_jax.errors import UserError, printable
from emigm_jax.io import files
from emigm_jax.io.progress import Bar
from emigm_jax.models.config import OF_DATA, ModelConfig
from emigm_jax.parallel import batches, sharding
from emigm_jax.tokenizers import codec as codecs
from emigm_jax.tokenizers import learned
from emigm_jax.tokenizers.codec import Codec
from emigm_jax.tokenizers.pixels import Pixels

LEFT_TO_PICTURES = ('image_size', 'patch', 'scale')  # of data, where they are 0


def _as_they_are(rows):
    return Batch(labels=rows['labels'], tokens=rows['tokens'])


@final
class Digits(Dataset):
    """The digits as tokens, held in memory; a mirrored digit is none, so none is."""

    def __init__(self, config: DataConfig):
        self.source = sources.digits()
        self.codec, self.params = codec(config), {}
        assert self.codec is not None  # digits always have pixels
        # Operation by operation: compiled as one they would round otherwise.
        raw = self.codec.tokenizer.encode({}, jnp.asarray(self.source.images))
        self.grid, self.channels = raw.shape[1], self.codec.spec.channels
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
    """Standard normal latents with random classes: makes latent-space recipes run without data.

    Example i is a function of i alone, as a real example would be.
    """

    def __init__(self, config: DataConfig, model: ModelConfig):
        self.examples, self.classes = config.examples, model.classes
        self.grid, self.channels = model.grid, model.channels
        self.fingerprint, self.codec, self.params = 'synthetic', None, {}

    def read(self, indices: np.ndarray, mirrored: np.ndarray) -> dict[str, np.ndarray]:
        """See `Dataset`."""
        shape = (self.grid**2, self.channels)
        rngs = [np.random.Generator(np.random.Philox(key=int(i))) for i in indices]
        labels = np.array([rng.integers(self.classes) for rng in rngs], np.int32)
        tokens = np.stack([rng.standard_normal(shape, np.float32) for rng in rngs])
        return {'tokens': tokens, 'labels': labels}

    def to_batch(self, params: dict[str, Any], rows: dict[str, jax.Array], key: jax.Array) -> Batch:
        """See `Dataset`."""
        return _as_they_are(rows)


def _shards(what):
    """Progress through the shards of a cache."""
    return functools.partial(Bar, unit=' shards', desc=what, quiet=jax.process_index() > 0)


@final
class Latents(Dataset):
    """A cache of raw latents; moments are sampled afresh, and scaled, on the devices."""

    def __init__(self, config: DataConfig):
        path = config.path
        if config.local_copy:
            print(f'copying {path} to {config.local_copy}', flush=True)
            path = latents.copied(path, config.local_copy, _shards('copying'))
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
        # What it does to raw takes no weights.
        self._tokenizer = learned.published(maker.name, config.latent_scale)
        self.grid, self.channels = self.cache.shape[0], maker.channels

    def read(self, indices: np.ndarray, mirrored: np.ndarray) -> dict[str, np.ndarray]:
        """See `Dataset`: raw (B, h, w, c) as cached."""
        return {'raw': self.cache.take(indices, mirrored), 'labels': self.cache.labels[indices]}

    def to_batch(self, params: dict[str, Any], rows: dict[str, jax.Array], key: jax.Array) -> Batch:
        """See `Dataset`."""
        tokens = self._tokenizer.to_tokens(rows['raw'].astype(jnp.float32), key)
        return Batch(rows['labels'], tokens)


@final
class Pictures(Dataset):
    """Pictures that are read, cropped and encoded while training, for those who have no cache."""

    one_by_one = True  # decoding takes the time

    def __init__(self, source: sources.Source, config: DataConfig):
        self.source, self.flip = source, config.flip
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
        self.grid, self.channels = self._size // stride, self.codec.spec.channels

    def _filled(self, config, seen, learned_codec):
        """The settings with all that was left to the pictures; says what was found."""
        spec = learned_codec and learned_codec.spec
        if spec and spec.codes:
            raise UserError(
                f'data.tokenizer: {spec.title} makes codes, which nothing here is '
                'trained on; use KL-16 or DC-AE'
            )
        largest = learned.KINDS[spec.kind].image_size if spec else 0
        new = survey.filled(config, seen, spec, largest)
        lines = survey.found(self.source, seen)
        lines += survey.enlarged(seen, new.image_size, '--config.data.image_size=')
        self.enlarges = bool((seen.shorter < new.image_size).mean() > 0.5)
        if not spec:
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

        The next readable picture stands in for one that cannot be read, so that a run of days
        does not end at a damaged file and is the same each time.
        """
        from emigm_jax.data.pictures import center_crop

        for stand_in in range(index, index + self.examples):
            try:
                example = self.source.example(stand_in % self.examples)
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

        raw = sharding.per_shard(encode)(params, rows['images'])
        return Batch(rows['labels'], tokenizer.to_tokens(raw.astype(jnp.float32), key))


@functools.cache  # once per file
def _warn(name, reason):
    line = f'cannot read {printable(name)} ({reason}); the next one stands in for it\n'
    print(line, end='', flush=True)  # in one piece, as several threads read


def codec(config: DataConfig) -> Codec | None:
    """What turns the tokens of a `DataConfig` into pictures; None if there is nothing."""
    if config.name == 'digits':
        source = sources.digits()
        size = source.images.shape[1]
        return Codec(Pixels(size, config.patch, 1, source.levels, config.scale))
    if config.name == 'synthetic':
        return None
    if config.tokenizer:
        return codecs.load(config.tokenizer).with_scale(config.latent_scale)
    if config.name == 'latents':
        return None
    return Codec(Pixels(config.image_size, config.patch, 3, scale=config.scale))


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
    """The data set of a `Config`, checked against the sizes that its model sets.

    Raises:
      UserError: it is not there, is damaged, or does not fit the model.
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
        known = nested.flatten(nested.as_dict(config))
        known |= {
            f'data.{n}': v for n, v in dataclasses.asdict(data.settings or config.data).items()
        }
        named = ', '.join(f'{name} = {known[name]}' for name in misfits)
        flags = ' '.join(f'--config.{name}={value}' for name, value in misfits.items())
        verb = 'does' if len(misfits) == 1 else 'do'
        raise UserError(f'{named} {verb} not fit the data ({why}): say {flags}')
    return data


def _misfits(config, data):
    """Settings that do not fit the data, with values that do."""
    wanted = {name: getattr(data, name) for name in OF_DATA}
    sizes = {f'model.{n}': v for n, v in wanted.items() if getattr(config.model, n) not in (0, v)}
    return {**data.misfits, **sizes}


def _described(data):
    shown = {'digits': ('name', 'patch'), 'latents': ('name', 'path')}
    names = shown.get(data.name, ('name', 'path', 'image_size', 'tokenizer', 'patch'))
    return ', '.join(f'data.{name} = {getattr(data, name)!r}' for name in names)

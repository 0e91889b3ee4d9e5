"""Training data by name: each gives host rows by index and turns them into tokens on the device."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from emigm_jax.data import latents, sources
from emigm_jax.errors import UserError
from emigm_jax.io import files
from emigm_jax.parallel import sharding
from emigm_jax.tokenizers import learned
from emigm_jax.tokenizers.base import Pixels


class Digits:
    """The digits as tokens, held in memory."""

    def __init__(self, config):
        self.source = sources.digits()
        self.tokenizer = tokenizer(config)
        self.grid, self.channels = self.tokenizer.grid, self.tokenizer.spec.channels
        self.classes = len(self.source.class_names)
        self.examples = len(self.source.labels)
        self.fingerprint = 'digits'
        self._tokens = np.asarray(self.tokenizer.encode(self.source.images))

    def take(self, indices, mirrored):
        """Examples by index: {'tokens': (B, N, C) float32, 'labels': (B,) int32}; a mirrored digit
        is none, so `mirrored` is not heeded."""
        return {'tokens': self._tokens[indices], 'labels': self.source.labels[indices]}


class Synthetic:
    """Standard normal latents with random classes: makes latent-space recipes run without data.

    Example i is a function of i alone, as a real example would be.
    """

    tokenizer = None
    fingerprint = 'synthetic'

    def __init__(self, config, model):
        self.examples, self.classes = config.examples, model.classes
        self.grid, self.channels = model.grid, model.channels

    def take(self, indices, mirrored):
        """Examples by index, as `Digits.take`."""
        shape = (self.grid**2, self.channels)
        rngs = [np.random.Generator(np.random.Philox(key=int(i))) for i in indices]
        labels = np.array([rng.integers(self.classes) for rng in rngs], np.int32)
        tokens = np.stack([rng.standard_normal(shape, np.float32) for rng in rngs])
        return {'tokens': tokens, 'labels': labels}


class Latents:
    """A cache of raw latents; moments are sampled afresh, and scaled, on the device."""

    def __init__(self, config):
        path = config.path
        if config.local_copy:
            print(f'copying {path} to {config.local_copy}', flush=True)
            path = latents.copied(path, config.local_copy)
        self.cache, self.flip = latents.Cache(path), config.flip
        if config.verify:
            self.cache.verify()
        manifest = self.cache.manifest
        self.fingerprint = files.text_hash(shard['sha256'] for shard in manifest['shards'])
        self.examples, self.classes = len(self.cache), len(manifest['class_names'])
        self.tokenizer = tokenizer(config)
        made_by = manifest['tokenizer']
        if self.tokenizer and learned.fingerprint(self.tokenizer) != made_by['fingerprint']:
            raise UserError(
                f'{config.path}: was made with another tokenizer ({made_by["name"]} '
                f'{made_by["fingerprint"]}) than data.tokenizer = {config.tokenizer}'
            )
        self._kind = learned.KINDS[made_by['name']]
        self.grid, self.channels = self.cache.shape[0], made_by['channels']

    def take(self, indices, mirrored):
        """{'raw': (B, h, w, c) as cached, 'labels': (B,) int32}."""
        return {'raw': self.cache.take(indices, mirrored), 'labels': self.cache.labels[indices]}

    def to_tokens(self, params, batch, key):
        """Pure: a batch of `take` -> {'tokens', 'labels'}."""
        tokens = learned.to_tokens(self._kind, batch['raw'].astype(jnp.float32), key)
        return {'tokens': tokens, 'labels': batch['labels']}


class Pictures:
    """Pictures that are read, cropped and encoded while training, for those who have no cache."""

    def __init__(self, source, config):
        self.source = source
        self.examples, self.classes = len(source), len(source.class_names)
        self.fingerprint = source.fingerprint()
        self.tokenizer = tokenizer(config)
        self._size, self.flip = config.image_size, config.flip
        spec = self.tokenizer.spec
        if self._size % spec.stride:
            raise UserError(
                f'data.image_size = {self._size} is no multiple of the {spec.stride} '
                f'pixels per token of {spec.name}'
            )
        self.grid, self.channels = self._size // spec.stride, spec.channels
        if isinstance(self.tokenizer, learned.Learned):
            if learned.KINDS[self.tokenizer.name].raw == 'codes':
                raise UserError(
                    f'data.tokenizer: {spec.name} makes codes, which nothing here is '
                    'trained on; use KL-16 or DC-AE'
                )
            self.params = self.tokenizer.params

    def row(self, index, mirrored):
        """One example: {'images': (S, S, 3) uint8, 'labels': () int32}.

        The next readable picture stands in for one that cannot be read, so that a run of days
        does not end at a damaged file and is the same each time.
        """
        from emigm_jax.data.pictures import center_crop

        for stand_in in range(index, index + self.examples):
            try:
                example = self.source.example(stand_in % self.examples)
                image = center_crop(example.image, self._size)
                break
            except sources.Unreadable as error:
                _warn(error.name, error.reason)
        else:
            raise UserError('not one picture of the data can be read')
        image = image[:, ::-1] if mirrored else image
        return {'images': image, 'labels': np.int32(example.label)}

    def to_tokens(self, params, batch, key):
        """Pure: a batch of rows -> {'tokens', 'labels'}; a few pictures at a time on a device."""
        if isinstance(self.tokenizer, Pixels):
            return {'tokens': self.tokenizer.encode(batch['images']), 'labels': batch['labels']}
        name, config = self.tokenizer.name, self.tokenizer.config

        def encode(params, images):
            one = lambda image: learned.encoder(name, config)(params, image[None])[0]
            return jax.lax.map(one, images, batch_size=min(self.tokenizer.batch, len(images)))

        raw = sharding.per_shard(encode)(params, batch['images'])
        tokens = learned.to_tokens(learned.KINDS[name], raw.astype(jnp.float32), key)
        return {'tokens': tokens, 'labels': batch['labels']}


@functools.cache  # once per file
def _warn(name, reason):
    print(f'cannot read {name} ({reason}); the next picture stands in for it', flush=True)


def tokenizer(config):
    """The tokenizer that turns tokens of a `DataConfig` into pictures; None if there is none."""
    if config.name == 'digits':
        source = sources.digits()
        return Pixels(source.images.shape[1], config.patch, 1, source.levels, config.scale)
    if config.name == 'synthetic':
        return None
    if config.tokenizer:
        return learned.load(config.tokenizer)
    return (
        None
        if config.name == 'latents'
        else Pixels(config.image_size, config.patch, 3, scale=config.scale)
    )


def source(config):
    """The `sources.Source` of a `DataConfig` whose data are pictures."""
    if config.name == 'folder':
        from emigm_jax.data.folder import ImageFolder

        return ImageFolder(config.path)
    from emigm_jax.data.tfds_source import TFDS

    return TFDS(config.dataset, config.split, config.path or None)


def dataset(config):
    """The data set of a `Config`, checked against the model's sizes.

    Raises:
      UserError: it is not there, is damaged, or does not fit the model.
    """
    data, model = config.data, config.model
    if data.name in ('folder', 'tfds'):
        made = Pictures(source(data), data)
    elif data.name == 'latents':
        made = Latents(data)
    else:
        made = Digits(data) if data.name == 'digits' else Synthetic(data, model)
    for name in ('grid', 'channels', 'classes'):
        have, want = getattr(model, name), getattr(made, name)
        if have != want:
            raise UserError(
                f'model.{name} = {have} does not fit the data ({_described(data)}): it must be '
                f'{want}'
            )
    return made


def _described(data):
    shown = {'digits': ('name', 'patch'), 'latents': ('name', 'path')}
    names = shown.get(data.name, ('name', 'path', 'image_size', 'tokenizer', 'patch'))
    return ', '.join(f'data.{name} = {getattr(data, name)!r}' for name in names)

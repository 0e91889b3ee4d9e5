"""Training batches as a function of (seed, step): exact order, exact resume, any start."""

import functools

import numpy as np

from emigm_jax.data import sources
from emigm_jax.errors import UserError
from emigm_jax.tokenizers.base import Pixels


class Digits:
    """The digits as tokens, held in memory."""

    def __init__(self, config):
        self.source = sources.digits()
        size = self.source.images.shape[1]
        self.tokenizer = Pixels(size, config.patch, 1, self.source.levels, config.scale)
        self.grid, self.channels = self.tokenizer.grid, self.tokenizer.spec.channels
        self.classes = len(self.source.class_names)
        self.examples = len(self.source.labels)
        self._tokens = np.asarray(self.tokenizer.encode(self.source.images))

    def take(self, indices):
        """Examples by index: {'tokens': (B, N, C) float32, 'labels': (B,) int32}."""
        return {'tokens': self._tokens[indices], 'labels': self.source.labels[indices]}


class Synthetic:
    """Standard normal latents with random classes: makes latent-space recipes run without data.

    Example i is a function of i alone, as a real example would be.
    """

    source = tokenizer = None

    def __init__(self, config, model):
        self.examples, self.classes = config.examples, model.classes
        self.grid, self.channels = model.grid, model.channels

    def take(self, indices):
        """Examples by index, as `Digits.take`."""
        shape = (self.grid**2, self.channels)
        rngs = [np.random.Generator(np.random.Philox(key=int(i))) for i in indices]
        labels = np.array([rng.integers(self.classes) for rng in rngs], np.int32)
        tokens = np.stack([rng.standard_normal(shape, np.float32) for rng in rngs])
        return {'tokens': tokens, 'labels': labels}


def dataset(config):
    """The data set of a `Config`, checked against the model's sizes."""
    if config.data.name == 'digits':
        data = Digits(config.data)
    else:
        data = Synthetic(config.data, config.model)
    for name in ('grid', 'channels', 'classes'):
        have, want = getattr(config.model, name), getattr(data, name)
        if have != want:
            raise UserError(
                f'model.{name} = {have} does not fit data.name = {config.data.name!r} with '
                f'data.patch = {config.data.patch}: it must be {want}'
            )
    return data


def indices(examples, batch, seed, step):
    """Indices of a step's batch (B,): epoch after epoch, each a new permutation.

    The stream of permutations is cut into batches without gaps, so every example is seen once per
    epoch and a step needs nothing but (seed, step).
    """
    position = np.arange(step * batch, (step + 1) * batch)
    epochs = position // examples
    orders = {e: _permutation(examples, seed, int(e)) for e in np.unique(epochs)}
    return np.array([orders[e][p] for e, p in zip(epochs, position % examples, strict=True)])


@functools.lru_cache(maxsize=2)  # a batch meets at most a few epochs, ImageNet's take 20 ms each
def _permutation(examples, seed, epoch):
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(examples)

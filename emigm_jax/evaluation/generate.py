"""Images from a checkpoint in fixed-size batches, for sampling and for evaluation."""

import dataclasses

import numpy as np
import tqdm

from emigm_jax.data import pipeline
from emigm_jax.errors import UserError
from emigm_jax.sampling import Sampler
from emigm_jax.training import checkpoint


@dataclasses.dataclass(frozen=True)
class Generator:
    """A checkpoint ready to make images."""

    params: dict
    sampler: Sampler
    tokenizer: object  # tokenizers.base.Tokenizer
    batch_size: int
    weights: str  # which parameters: an EMA decay, or params

    @property
    def nfe(self):
        """Transformer evaluations per image."""
        return self.sampler.nfe

    def images(self, labels, seeds):
        """uint8 images (M, H, W, colours) of labels (M,) (-1: null class) and seeds (M,)."""
        labels, seeds = np.asarray(labels), np.asarray(seeds)
        batch = min(self.batch_size, len(labels))
        made = []
        for start in tqdm.trange(0, len(labels), batch, desc='batches', disable=None):
            # The last batch is filled up, so that every batch has the shape that was compiled.
            rows = np.arange(start, start + batch) % len(labels)
            tokens = self.sampler(self.params, labels[rows], seeds[rows])
            made.append(np.asarray(self.tokenizer.decode(tokens)))
        return np.concatenate(made)[: len(labels)]


def from_checkpoint(saved, sampling, weights='', batch_size=64):
    """The `Generator` of a `checkpoint.Saved` with `sampling` settings."""
    data = pipeline.dataset(saved.config)
    if data.tokenizer is None:
        raise UserError(
            f'{saved.path} was trained on synthetic latents, which have no pictures to decode'
        )
    params, name = checkpoint.load_params(saved, weights)
    return Generator(
        params, Sampler(saved.config.model, sampling), data.tokenizer, batch_size, name
    )

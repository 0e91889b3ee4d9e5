"""Images from a checkpoint in fixed-size batches, for sampling and for evaluation."""

import dataclasses

import numpy as np
import tqdm

from emigm_jax.checkpoints import runs
from emigm_jax.data import datasets
from emigm_jax.errors import UserError
from emigm_jax.parallel import batches
from emigm_jax.sampling.sampler import Sampler


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

    def batch(self, labels, seeds):
        """One batch as it is: uint8 (B, H, W, colours) of labels (B,) and seeds (B,)."""
        return np.asarray(self.tokenizer.decode(self.sampler(self.params, labels, seeds)))

    def images(self, labels, seeds):
        """uint8 images (M, H, W, colours) of labels (M,) (-1: null class) and seeds (M,)."""
        labels, seeds = np.asarray(labels), np.asarray(seeds)
        batch = min(self.batch_size, len(labels))
        made = []
        for start in tqdm.trange(0, len(labels), batch, desc='batches', disable=None):
            fill = lambda a, at=start: batches.fill(a[at : at + batch], batch)
            made.append(self.batch(fill(labels), fill(seeds)))
        return np.concatenate(made)[: len(labels)]


def while_training(config, data):
    """The function EMA parameters -> `Generator` of a run that evaluates itself.

    Args:
      config: `Config`.
      data: what `datasets.dataset` makes of it.

    Raises:
      UserError: the tokens cannot be decoded.
    """
    if data.tokenizer is None:
        raise UserError(
            'evaluation.every: the tokens of this data cannot be turned into pictures; '
            'name their tokenizer in data.tokenizer'
        )
    sampler, weights = Sampler(config.model, config.sampling), str(config.optimizer.ema_decays[0])
    size = config.evaluation.batch_size
    return lambda params: Generator(params, sampler, data.tokenizer, size, weights)


def from_checkpoint(saved, sampling, weights='', batch_size=64, tokenizer=None, dtype=None):
    """A checkpoint as a `Generator`.

    Args:
      saved: `checkpoint.Saved`.
      sampling: SamplingConfig.
      weights: an EMA decay, 'params', or '' for the first EMA.
      batch_size: images at a time.
      tokenizer: decodes the tokens; None: that of the training data.
      dtype: of the network's matrix products; None: as saved.

    Raises:
      UserError: no tokenizer, or one that does not fit the model.
    """
    model = saved.config.model
    if dtype is not None:
        model = dataclasses.replace(model, dtype=dtype)
    if tokenizer is None:
        tokenizer = datasets.tokenizer(saved.config.data)
    if tokenizer is None:
        raise UserError(
            f'{saved.path} makes latents: `emigm sample --tokenizer DIR` names their '
            "tokenizer's checkpoint, which turns them into pictures"
        )
    if tokenizer.spec.channels != model.channels:
        raise UserError(
            f'the tokenizer {tokenizer.spec.name} has tokens of {tokenizer.spec.channels} numbers, '
            f"this model's tokens have {model.channels}: at 256 pixels it is KL-16, at 512 DC-AE"
        )
    params, name = runs.load_params(saved, weights)
    params = batches.place(params)
    return Generator(params, Sampler(model, sampling), tokenizer, batch_size, name)

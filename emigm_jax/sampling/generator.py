"""A model ready to make images: parameters, a sampler, and what turns tokens into pictures."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, final

import numpy as np
from jaxtyping import UInt8

from emigm_jax.checkpoints.runs import Saved
from emigm_jax.config import together
from emigm_jax.config.settings import IN_PIXELS, Config, SamplingConfig
from emigm_jax.data import datasets
from emigm_jax.data.interface import Dataset
from emigm_jax.errors import UserError
from emigm_jax.io.progress import Bar
from emigm_jax.models.config import ModelConfig
from emigm_jax.nn.functional import Params, fingerprint
from emigm_jax.parallel import batches, compiled, processes
from emigm_jax.sampling.sampler import Integers, Progress, Sampler, sampler
from emigm_jax.sampling.steps import Weights
from emigm_jax.tokenizers.codec import Codec
from emigm_jax.tokenizers.interface import Spec


@final
@dataclasses.dataclass(frozen=True)
class Generator:
    """Makes images in batches of one shape."""

    params: Weights  # of the model, and of its guide if it has one
    sampler: Sampler
    codec: Codec
    batch_size: int
    weights: str  # which parameters: an EMA decay, or params

    @property
    def nfe(self) -> int:
        """Transformer evaluations per image."""
        return self.sampler.nfe

    @property
    def model_params(self) -> Params:
        """The parameters of the model, whatever guides it."""
        return self.params[0] if isinstance(self.params, tuple) else self.params

    def with_sampling(self, config: SamplingConfig) -> 'Generator':
        """The same model with other sampling settings."""
        draw = sampler(self.sampler.model, config, self.sampler.guide)
        return dataclasses.replace(self, sampler=draw)

    def about(self) -> dict[str, Any]:
        """JSON-like: all that decides the image of a class and a seed."""
        guide = {}
        if isinstance(self.params, tuple):
            guide = {'guide': fingerprint(self.params[1])}
        return {
            'weights': self.weights,
            'content': fingerprint(self.model_params),
            **guide,
            # Pixels have no weights to tell apart.
            'tokenizer': self.codec.fingerprint if self.codec.params else self.codec.spec.kind,
            'sampling': dataclasses.asdict(self.sampler.config),
            'dtype': self.sampler.model.dtype,
        }

    def batch(self, labels: Integers, seeds: Integers) -> UInt8[np.ndarray, 'B H W colours']:
        """One batch of images as it is; raises `codec.NonFinite` where there are none."""
        # Tokens stay on the devices between sampler and decoder.
        return self.codec.decode(self.sampler(self.params, labels, seeds))

    def images(self, labels: Integers, seeds: Integers) -> UInt8[np.ndarray, 'M H W colours']:
        """Any number M of images, in batches; label -1 is the null class."""
        labels, seeds = np.asarray(labels), np.asarray(seeds)
        size = min(self.batch_size, len(labels))
        images = []
        for start in Bar(range(0, len(labels), size), unit=' batches', desc='sampling'):
            # The last batch gets the shape that was compiled.
            rows = [batches.fill(a[start : start + size], size) for a in (labels, seeds)]
            images.append(self.batch(*rows))
        return np.concatenate(images)[: len(labels)]

    def steps(
        self, labels: Integers, seeds: Integers
    ) -> Iterator[tuple[UInt8[np.ndarray, 'B H W colours'], Progress]]:
        """As `batch`, but yields (images, `Progress`) after every step that reveals tokens."""
        for progress in self.sampler.steps(self.params, labels, seeds):
            yield self.codec.decode(progress.tokens), progress


def while_training(config: Config, data: Dataset) -> Callable[[Params], Generator]:
    """The function EMA parameters -> `Generator` of a run that evaluates itself.

    Raises:
      UserError: the tokens cannot be decoded.
    """
    codec = data.codec
    if codec is None:
        raise UserError(
            'evaluation.every: the tokens of this data cannot be turned into pictures; '
            'name their tokenizer in data.tokenizer'
        )
    together.check_guidance(config.loss.label_drop, config.sampling.reveal)
    draw, weights = sampler(config.model, config.sampling), str(config.optimizer.ema_decays[0])
    return lambda params: Generator(params, draw, codec, config.evaluation.batch_size, weights)


# What decides what a token is: a guide has it in common with the model that it guides.
_TOKENS = {
    'model': ('head', 'grid', 'channels', 'codes', 'classes'),
    'data': ('latent_scale',),
}
_PIXELS = {'data': ('patch', 'scale', 'levels')}


def _check_tokens(spec: Spec, model: ModelConfig) -> None:
    """Raises UserError unless a tokenizer decodes what a model makes."""
    advice = 'at 256 pixels it is KL-16, at 512 DC-AE'
    if model.codes and not spec.codes:
        raise UserError(
            f"the tokenizer {spec.title} has tokens of {spec.channels} numbers, this model's are "
            f'of {model.codes} codes: it is the tokenizer that made them, as the VQGAN of MaskGIT'
        )
    if spec.codes and not model.codes:
        raise UserError(
            f"the tokenizer {spec.title} has {spec.codes} codes, this model's tokens are of "
            f'{model.channels} numbers: {advice}'
        )
    if spec.codes != model.codes:
        raise UserError(
            f"the tokenizer {spec.title} has {spec.codes} codes, this model's tokens are of "
            f'{model.codes}: it is the tokenizer that made them'
        )
    if spec.channels != model.channels:
        raise UserError(
            f'the tokenizer {spec.title} has tokens of {spec.channels} numbers, this '
            f"model's tokens have {model.channels}: {advice}"
        )


def check_guide(guide: Saved, saved: Saved) -> None:
    """Raises UserError unless two models are of the same tokens and classes."""
    pixels = all(each.config.data.name in IN_PIXELS for each in (guide, saved))
    for group, names in [*_TOKENS.items(), *(_PIXELS.items() if pixels else ())]:
        theirs, ours = getattr(guide.config, group), getattr(saved.config, group)
        for name in names:
            if getattr(theirs, name) != getattr(ours, name):
                raise UserError(
                    f'{guide.path} cannot guide {saved.path}: it has {group}.{name} = '
                    f'{getattr(theirs, name)!r}, not {getattr(ours, name)!r}'
                )
    if guide.class_names and saved.class_names and guide.class_names != saved.class_names:
        raise UserError(f'{guide.path} cannot guide {saved.path}: its classes have other names')


def from_checkpoint(
    saved: Saved,
    sampling: SamplingConfig,
    weights: str = '',
    batch_size: int = 64,
    codec: Codec | None = None,
    dtype: str | None = None,
    guide: Saved | None = None,
) -> Generator:
    """A checkpoint as a `Generator`.

    Args:
      saved: what the checkpoint says about itself.
      sampling: how images are drawn.
      weights: an EMA decay, 'params', or '' for the first EMA.
      batch_size: images at a time.
      codec: decodes the tokens; None: that of the training data.
      dtype: of the networks' matrix products; None: as saved.
      guide: a weaker model whose first EMA guides in place of the null class (arXiv 2406.02507).

    Raises:
      UserError: no tokenizer, or one that does not fit the model, or a guide of other tokens.
    """
    compiled.keep()
    typed = lambda model: dataclasses.replace(model, dtype=dtype or model.dtype)
    model = typed(saved.config.model)
    if guide is not None:
        check_guide(guide, saved)
    codec = codec and codec.with_scale(saved.config.data.latent_scale)
    codec = codec or datasets.codec(saved.config.data)
    if codec is None:
        raise UserError(
            f'{saved.path} makes latents: `emigm sample --tokenizer DIR` names their '
            "tokenizer's checkpoint, which turns them into pictures"
        )
    _check_tokens(codec.spec, model)
    params, name = saved.load_params(weights)
    if processes.is_first() and (remark := saved.remark(name)):
        print(remark, flush=True)
    if guide is None:
        draw, placed = sampler(model, sampling), batches.place(params)
    else:
        draw = sampler(model, sampling, typed(guide.config.model))
        placed = batches.place((params, guide.load_params()[0]))
    return Generator(placed, draw, codec, batch_size, name)

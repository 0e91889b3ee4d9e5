"""The methods that the paper unifies (its Table 1), as rows of changes to one config.

A row says which masks are drawn, how the loss weighs them, what models a token, and how the method
samples. All else is the same, so what is measured between two of them is due to these.
"""

from typing import Any

import ml_collections

from emigm_jax.config import load, nested, recipes
from emigm_jax.config.settings import Config

_CODES = {
    'data.levels': 17,  # the digits have as many grey levels, so nothing is lost
    'model.head': 'categorical',
    'loss.copies': 1,  # nothing is drawn that copies would differ in
}
# method: settings that are not those of eMIGM on the digits.
CHOICES: dict[str, dict[str, Any]] = {
    'emigm': {},
    'mar': {
        'loss.masking.schedule': 'linear',
        'loss.masking.distribution': 'fixed',
        'loss.masking.times': 'truncated_normal',
        'loss.masking.t_min': 0.7,
        'model.shared_null': False,
        'sampling.reveal.schedule': 'cosine',
        'sampling.reveal.rule': 'fixed',
        'sampling.reveal.guidance_schedule': 'linear',
        'sampling.reveal.guidance_from': 0.0,
        'sampling.reveal.guidance_to': 1.0,
        'sampling.solver.name': 'ddpm',
        'sampling.solver.steps': 100,
    },
    'maskgit': {
        **_CODES,
        'loss.masking.schedule': 'cosine',
        'loss.masking.distribution': 'fixed',
        'loss.masking.times': 'range',
        'loss.masking.t_min': 0.0,
        'loss.label_smoothing': 0.1,
        'sampling.reveal.schedule': 'cosine',
        'sampling.reveal.rule': 'fixed',
        'sampling.reveal.order': 'confidence',
    },
    'mdm': {
        **_CODES,
        'loss.masking.schedule': 'linear',
        'loss.masking.weight': 'mdm',
        'loss.masking.least': 0,
        'loss.masking.times': 'range',
        'loss.masking.t_min': 0.0,
        'loss.normalize': 'tokens',
        'sampling.reveal.schedule': 'linear',
        'sampling.reveal.rule': 'ancestral',
    },
}


def config(method: str, variant: str) -> ml_collections.ConfigDict:
    """A method's config, mutable.

    Args:
      method: a key of CHOICES.
      variant: 'digits' or 'smoke', which trains on them for seconds; or as in `recipes.recipe`, at
        256 pixels.
    """
    if 'size=' in variant or variant == 'tiny':
        return recipes.recipe(method, 256, variant)
    if variant not in ('digits', 'smoke'):
        raise ValueError(f"no variant {variant!r}; there are digits, smoke, and 'size=b' or so")
    return nested.mutable(load.config_of(_digits(variant == 'smoke'), CHOICES[method]))


def _digits(smoke):
    """The settings that all methods share: 8x8 digits as 64 tokens, one pixel each."""
    steps, batch = (12, 16) if smoke else (2000, 128)
    return load.config_of(
        Config(),
        {
            'data.patch': 1,
            'data.scale': 1.33,  # 1 / standard deviation of the pixels in [-1, 1]
            'model.width': 32 if smoke else 64,
            'model.heads': 4,
            'model.encoder_depth': 2,
            'model.decoder_depth': 2,
            'model.buffer': 4,
            'model.head_width': 32 if smoke else 64,
            'model.head_depth': 1 if smoke else 3,
            'model.attention_dropout': 0.0,
            'model.projection_dropout': 0.0,
            'model.unroll': True,
            'loss.masking.groups': 2,
            'optimizer.base_learning_rate': 2e-3 * 256 / batch,
            'optimizer.lr_schedule': 'cosine',
            'optimizer.ema_decays': (0.5 if smoke else 0.99,),
            'optimizer.ema_warmup': False,
            'training.batch_size': batch,
            'training.total': f'{steps} steps',
            'training.warmup': f'{steps // 10} steps',
            'training.log_every': f'{steps // 3 if smoke else 50} steps',
            'training.checkpoint_every': f'{steps // 2 if smoke else 500} steps',
            'training.sample_every': f'{steps if smoke else 500} steps',
            'training.sample_images': 20 if smoke else 80,
            'sampling.reveal.steps': 3 if smoke else 16,
            'sampling.reveal.guidance': 2.0,
            'sampling.reveal.guidance_from': 0.1,
            'sampling.reveal.guidance_to': 0.6,
            'sampling.solver.steps': 3 if smoke else 14,
        },
    )

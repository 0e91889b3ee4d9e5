"""Published recipes as configs, with their sampling: eMIGM (paper Tables 6, 7), MAR, MaskGIT."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_collections

from emigm_jax.config import nested, settings
from emigm_jax.config.settings import SamplingConfig
from emigm_jax.core.categorical import CodesConfig
from emigm_jax.core.masking import MaskingConfig
from emigm_jax.core.reveal import RevealConfig
from emigm_jax.core.solvers import SolverConfig
from emigm_jax.models.emigm import MASKGIT, PRESETS, ModelConfig, maskgit, preset, preset_name

# size: global batch, so that lr = 1e-4 * batch / 256 is 4e-4 or 8e-4
BATCH = {'xs': 1024, 's': 1024, 'b': 2048, 'l': 2048, 'h': 2048}

# Guidance intervals, fast and best (bash/evaluate/*.sh; guidance 4 inside them), and K of best.
_INTERVALS = {
    (256, 'xs'): ((0.1, 0.3), (0.18, 0.6)),
    (256, 's'): ((0.1, 0.3), (0.18, 0.6)),
    (256, 'b'): ((0.1, 0.3), (0.05, 0.4)),
    (256, 'l'): ((0.1, 0.3), (0.18, 0.6)),
    (256, 'h'): ((0.2, 0.4), (0.3, 0.7)),
    **{(512, size): ((0.15, 0.35), (0.25, 0.5)) for size in ('xs', 's', 'b', 'l')},
}
_BEST_STEPS = {256: 128, 512: 64}
# Guidance of MAR grows linearly to these; its README samples with K = 256, its training with 64.
_MAR_GUIDANCE = {'b': 2.9, 'l': 3.0, 'h': 3.2}
_MAR_STEPS = {'fast': 64, 'best': 256}

_MASKGIT_STEPS = {256: 8, 512: 12}

Presets = dict[str, SamplingConfig]  # by name, 'fast' among them


def _emigm_sampling(image_size, size):
    fast, best = _INTERVALS[image_size, size]
    rows = {'fast': (16, 8, fast), 'best': (_BEST_STEPS[image_size], 14, best)}
    return {
        name: SamplingConfig(
            reveal=RevealConfig(steps=steps, guidance_from=low, guidance_to=high),
            solver=SolverConfig(steps=solver_steps),
        )
        for name, (steps, solver_steps, (low, high)) in rows.items()
    }


def _mar_sampling(image_size, size):
    reveal = RevealConfig(
        schedule='cosine',
        rule='fixed',
        guidance=_MAR_GUIDANCE[size],
        guidance_schedule='linear',
        guidance_from=0.0,
        guidance_to=1.0,
    )
    return {
        name: SamplingConfig(
            reveal=dataclasses.replace(reveal, steps=steps), solver=SolverConfig('ddpm', 100)
        )
        for name, steps in _MAR_STEPS.items()
    }


def _maskgit_sampling(image_size, size):
    """Unguided, as no class was dropped in training (libml/parallel_decode.py)."""
    reveal = RevealConfig(
        steps=_MASKGIT_STEPS[image_size],
        schedule='cosine',
        rule='fixed',
        order='confidence',
        choice_temperature=4.5,
        guidance=1.0,
    )
    return {'fast': SamplingConfig(reveal=reveal)}


def _mdm_sampling(image_size, size):
    """Of md4/configs/md4/imagenet64.py, which has no classes and so no guidance."""
    reveal = RevealConfig(
        steps=256, schedule='linear', rule='ancestral', times='cosine', guidance=1.0
    )
    return {'fast': SamplingConfig(reveal=reveal, codes=CodesConfig(nucleus=0.98))}


def _emigm_training(size):
    return {
        'optimizer': settings.OptimizerConfig(ema_warmup=False),
        'training': settings.TrainingConfig(batch_size=BATCH[size]),
    }


def _mar_training(size):
    masking = MaskingConfig(
        schedule='linear', distribution='fixed', times='truncated_normal', t_min=0.7
    )
    return {**_emigm_training(size), 'loss': settings.LossConfig(masking=masking)}


def _maskgit_training(size):
    """Of configs/maskgit_class_cond_config.py; the code that trained has not been published."""
    masking = MaskingConfig(schedule='cosine', distribution='fixed', times='range', t_min=0.0)
    return {
        'loss': settings.LossConfig(masking=masking, copies=1, label_drop=0.0, label_smoothing=0.1),
        'optimizer': settings.OptimizerConfig(beta2=0.96, weight_decay=0.045, ema_warmup=False),
        'training': settings.TrainingConfig(batch_size=256, total='2e6 steps', warmup='5000 steps'),
    }


def _mdm_training(size):
    """Of md4/configs/md4/imagenet64.py: AdamW with 2e-4 at 512 images, gradients not clipped."""
    masking = MaskingConfig(schedule='linear', weight='mdm', times='range', t_min=0.0, least=0)
    return {
        'loss': settings.LossConfig(masking=masking, copies=1, normalize='tokens'),
        'optimizer': settings.OptimizerConfig(
            lr_schedule='cosine', beta2=0.99, weight_decay=0.01, clip=1e9, ema_warmup=False
        ),
        'training': settings.TrainingConfig(batch_size=512, total='2e6 steps', warmup='100 steps'),
    }


class _Method(NamedTuple):
    """What is published of a method."""

    sizes: list[tuple[int, str]]  # (image size, size)
    model: Callable[..., ModelConfig]  # (image size, size, **changes)
    changes: dict[str, Any]  # to it
    training: Callable[[str], dict]  # size -> groups of settings
    sampling: Callable[[int, str], Presets]


METHODS = {
    'emigm': _Method(list(_INTERVALS), preset, {}, _emigm_training, _emigm_sampling),
    'mar': _Method(
        [(256, size) for size in _MAR_GUIDANCE],
        preset,
        {'shared_null': False},
        _mar_training,
        _mar_sampling,
    ),
    'maskgit': _Method(list(MASKGIT), maskgit, {}, _maskgit_training, _maskgit_sampling),
    # On the codes of MaskGIT's VQGAN, with the network of eMIGM: nobody has published another.
    'mdm': _Method(
        [(256, size) for image_size, size in PRESETS if image_size == 256],
        preset,
        {'head': 'categorical', 'channels': 0, 'codes': 1024},
        _mdm_training,
        _mdm_sampling,
    ),
}


def sizes(method: str) -> list[tuple[int, str]]:
    """The published (image size, size) of a method."""
    return METHODS[method].sizes


def sampling(method: str, image_size: int, size: str) -> Presets:
    """The published settings of a model: 'fast' and, if there are more, 'best'."""
    return METHODS[method].sampling(image_size, size)


def sampling_of(model: ModelConfig) -> Presets:
    """`sampling` of the published model that has the sizes of `model`, {} if none has."""
    key = preset_name(model)
    return sampling(model.method, *key) if key in sizes(model.method) else {}


def published(method: str, image_size: int, size: str) -> settings.Config:
    """The settings that a published model was trained and is sampled (fast) with."""
    row = METHODS[method]
    return settings.Config(
        data=settings.DataConfig(name='synthetic'),
        model=row.model(image_size, size, dtype='bfloat16', **row.changes),
        sampling=row.sampling(image_size, size)['fast'],
        **row.training(size),
    )


def recipe(method: str, image_size: int, variant: str) -> ml_collections.ConfigDict:
    """`published` as a mutable config.

    Args:
      method: a key of METHODS.
      image_size: 256 or 512.
      variant: 'size=xs|s|b|l|h', optionally with ',tiny' for a run of seconds on a laptop.
    """
    pairs = (part.partition('=') for part in variant.split(','))
    parts = {name: value for name, _, value in pairs}
    size, tiny = parts.pop('size', 'b'), 'tiny' in parts
    if set(parts) - {'tiny'}:
        raise ValueError(f"the variant must look like 'size=b' or 'size=b,tiny', not {variant!r}")
    available = [s for i, s in sizes(method) if i == image_size]
    if size not in available:
        raise ValueError(
            f'{method} at {image_size} has the sizes {", ".join(available)}, not {size!r}'
        )
    config = published(method, image_size, size)
    return nested.mutable(_tiny(config) if tiny else config)


def _tiny(config):
    change = dataclasses.replace
    sampling = change(
        config.sampling,
        solver=change(config.sampling.solver, steps=3),
        reveal=change(config.sampling.reveal, steps=4),
    )
    return change(
        config,
        model=change(
            config.model,
            width=32,
            heads=4,
            encoder_depth=2,
            decoder_depth=2,
            head_width=32,
            head_depth=1,
            dtype='float32',
        ),
        loss=change(config.loss, masking=change(config.loss.masking, groups=2)),
        data=change(config.data, examples=64),
        training=change(
            config.training,
            batch_size=16,
            total='4 steps',
            warmup='2 steps',
            log_every='2 steps',
            checkpoint_every='2 steps',
        ),
        sampling=sampling,
    )

"""The published recipes as configs: eMIGM (paper Tables 6 and 7) and MAR, with their sampling."""

import dataclasses

import ml_collections

from emigm_jax.config import nested, settings
from emigm_jax.config.settings import SamplingConfig
from emigm_jax.core.masking import MaskingConfig
from emigm_jax.core.reveal import RevealConfig
from emigm_jax.core.solvers import SolverConfig
from emigm_jax.models.emigm import ModelConfig, preset, preset_name

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

METHODS = ('emigm', 'mar')


def sizes(method: str) -> list[tuple[int, str]]:
    """The published (image size, size) of a method."""
    return [(256, s) for s in _MAR_GUIDANCE] if method == 'mar' else list(_INTERVALS)


def sampling(method: str, image_size: int, size: str) -> dict[str, SamplingConfig]:
    """The published settings of a model, 'fast' and 'best'."""
    if method == 'mar':
        return {name: _mar_sampling(size, steps) for name, steps in _MAR_STEPS.items()}
    fast, best = _INTERVALS[image_size, size]
    rows = {'fast': (16, 8, fast), 'best': (_BEST_STEPS[image_size], 14, best)}
    return {
        name: SamplingConfig(
            reveal=RevealConfig(steps=steps, guidance_from=low, guidance_to=high),
            solver=SolverConfig(steps=solver_steps),
        )
        for name, (steps, solver_steps, (low, high)) in rows.items()
    }


def _mar_sampling(size, steps):
    reveal = RevealConfig(
        steps=steps,
        schedule='cosine',
        rule='fixed',
        guidance=_MAR_GUIDANCE[size],
        guidance_schedule='linear',
        guidance_from=0.0,
        guidance_to=1.0,
    )
    return SamplingConfig(reveal=reveal, solver=SolverConfig('ddpm', 100))


def sampling_of(model: ModelConfig) -> dict[str, SamplingConfig]:
    """`sampling` of the published model that has the sizes of `model`, {} if none has."""
    key = preset_name(model)
    return sampling(model.method, *key) if key in sizes(model.method) else {}


def published(method: str, image_size: int, size: str) -> settings.Config:
    """The settings that a published model was trained and is sampled (fast) with."""
    shared = method == 'emigm'
    model = preset(image_size, size, shared_null=shared, dtype='bfloat16')
    config = settings.Config(
        data=settings.DataConfig(name='synthetic'),
        model=model,
        optimizer=settings.OptimizerConfig(ema_warmup=False),
        training=settings.TrainingConfig(batch_size=BATCH[size]),
        sampling=sampling(method, image_size, size)['fast'],
    )
    if method == 'mar':
        masking = MaskingConfig(
            schedule='linear', distribution='fixed', times='truncated_normal', t_min=0.7
        )
        loss = dataclasses.replace(config.loss, masking=masking)
        config = dataclasses.replace(config, loss=loss)
    return config


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

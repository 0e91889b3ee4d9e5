"""scikit-learn's real 8x8 digits, class-conditional, 4x4-pixel patches as tokens.

    emigm train --config configs/digits.py --workdir runs/digits
    emigm evaluate --checkpoint runs/digits

Variants (configs/digits.py:NAME), on 2 CPU cores:
  default  about 4 minutes
  best     about 25 to 40 minutes; the README's picture
  smoke    seconds; shows that everything runs, not that it learns
configs/README.md lists the scores they reach.
"""

from emigm_jax.config import nested

# name: (width, encoder and decoder depth, head width, head depth, steps, warmup, lr, ema decays)
VARIANTS = {
    'default': (128, 2, 192, 3, 900, 60, 2e-3, (0.99,)),
    'best': (160, 3, 256, 3, 5000, 200, 1.5e-3, (0.998, 0.9995)),
    'smoke': (32, 2, 32, 1, 12, 2, 1e-3, (0.5,)),
}


def get_config(variant='default'):
    """Settings of a variant."""
    if variant not in VARIANTS:
        raise ValueError(f'no variant {variant!r}; there are {", ".join(VARIANTS)}')
    width, depth, head_width, head_depth, steps, warmup, rate, decays = VARIANTS[variant]
    smoke = variant == 'smoke'
    config = nested.defaults()

    config.data.name = 'digits'
    config.data.patch = 4
    config.data.scale = 1.33  # 1 / standard deviation of the pixels in [-1, 1]

    model = config.model
    model.width, model.heads = width, 4
    model.encoder_depth = model.decoder_depth = depth
    model.buffer = 4
    model.head_width, model.head_depth = head_width, head_depth
    model.attention_dropout = model.projection_dropout = 0.0
    model.unroll = True

    config.loss.masking.groups = 1  # with 4 tokens there is little padding to save
    batch = 16 if smoke else 128
    config.optimizer.base_learning_rate = rate * 256 / batch
    config.optimizer.lr_schedule = 'cosine'
    config.optimizer.ema_decays = decays
    config.optimizer.ema_warmup = False  # these decays suit the length of the runs

    training = config.training
    training.batch_size = batch
    training.total, training.warmup = f'{steps} steps', f'{warmup} steps'
    training.log_every = '4 steps' if smoke else '50 steps'
    training.sample_every = f'{steps // 3} steps' if not smoke else f'{steps} steps'
    training.checkpoint_every = f'{steps // 10} steps' if not smoke else '6 steps'
    training.sample_images = 20 if smoke else 80

    reveal = config.sampling.reveal
    reveal.steps = 4
    reveal.guidance, reveal.guidance_from, reveal.guidance_to = 2.0, 0.1, 0.6
    config.sampling.solver.steps = 4 if smoke else 14
    return config

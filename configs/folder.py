"""A folder of pictures of your own, CLASS/PICTURE.jpg or without classes; sizes follow from it.

    emigm train --config configs/folder.py --config.data.path=PICTURES --workdir runs/mine

It says what it finds and which sizes it takes; each can be set. Tokens are patches of pixels, of
crops of at most 32 x 32, or latents with --config.data.tokenizer=kl16, of crops of the tokenizer's
own size or of what the pictures fill. On the way it is scored in pixels against the pictures.

Variants (configs/folder.py:NAME); hours are for 32 x 32 pixels on 2 CPU cores, told by FLOPs alone:
  default  4.1 million parameters, 0.35 PFLOP: about an hour
  best     9.4 million parameters, 4 PFLOP: about twelve hours, better on a GPU
  smoke    a minute or two; shows that everything runs, not that it learns
No scores are stated: they are those of your pictures.
"""

from emigm_jax.config import nested

# name: (width, encoder and decoder depth, head width, batch, steps, rate, EMA decay)
VARIANTS = {
    'default': (192, 3, 256, 64, 2000, 1e-3, 0.995),
    'best': (256, 4, 384, 64, 10000, 5e-4, 0.999),
    'smoke': (32, 2, 32, 16, 8, 1e-3, 0.5),
}


def get_config(variant='default'):
    """Settings of a variant."""
    if variant not in VARIANTS:
        raise ValueError(f'no variant {variant!r}; there are {", ".join(VARIANTS)}')
    width, depth, head_width, batch, steps, rate, decay = VARIANTS[variant]
    smoke = variant == 'smoke'
    config = nested.defaults()

    config.data.name = 'folder'
    config.data.image_size, config.data.patch, config.data.scale = 0, 0, 0.0  # as it suggests
    config.data.flip = False  # letters and digits are none when mirrored

    model = config.model
    model.width, model.heads = width, 4
    model.encoder_depth = model.decoder_depth = depth
    model.buffer = 4 if smoke else 16
    model.head_width, model.head_depth = head_width, 1 if smoke else 3
    model.unroll = smoke  # compiles sooner
    model.attention_dropout = model.projection_dropout = 0.0 if smoke else 0.1

    config.loss.masking.groups = 1 if smoke else 4
    config.optimizer.base_learning_rate = rate * 256 / batch
    config.optimizer.lr_schedule = 'cosine'
    config.optimizer.ema_decays = (decay,)

    training = config.training
    training.batch_size = batch
    training.total, training.warmup = f'{steps} steps', f'{max(1, steps // 20)} steps'
    training.log_every = f'{max(1, steps // 100)} steps'
    training.checkpoint_every = f'{steps // 10 or steps} steps'
    training.sample_every = f'{max(1, steps // 5)} steps'
    training.sample_images = 10 if smoke else 40

    reveal = config.sampling.reveal
    reveal.steps = 2 if smoke else 16
    reveal.guidance, reveal.guidance_from, reveal.guidance_to = 1.5, 0.1, 0.6
    config.sampling.solver.steps = 3 if smoke else 14

    config.evaluation.every = f'{max(1, steps // 5)} steps'
    config.evaluation.num_images = 16 if smoke else 500
    return config

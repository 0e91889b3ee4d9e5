"""The published training recipes as configs (paper Tables 6 and 7)."""

from emigm_jax import config as configs
from emigm_jax.models.emigm import preset

# size: global batch, so that lr = 1e-4 * batch / 256 is 4e-4 or 8e-4
BATCH = {'xs': 1024, 's': 1024, 'b': 2048, 'l': 2048, 'h': 2048}


def imagenet(image_size, variant):
    """The recipe of 'size=xs|s|b|l|h', optionally ',tiny' for a run of seconds on a laptop."""
    parts = dict(part.partition('=')[::2] for part in variant.split(','))
    size, tiny = parts.pop('size', 'b'), 'tiny' in parts
    if set(parts) - {'tiny'}:
        raise ValueError(f"the variant must look like 'size=b' or 'size=b,tiny', not {variant!r}")
    config = configs.defaults()
    config.data.name = 'synthetic'
    config.model.update(vars(preset(image_size, size)))
    config.model.dtype = 'bfloat16'
    config.training.batch_size = BATCH[size]
    # Online evaluation in the official code: every 50 epochs, checkpoints every 5.
    config.training.sample_every = '50 epochs'
    if image_size == 512:
        reveal = config.sampling.reveal
        reveal.guidance_from, reveal.guidance_to = 0.15, 0.35
    elif size == 'h':
        config.sampling.reveal.guidance_from, config.sampling.reveal.guidance_to = 0.2, 0.4
    if tiny:
        config.model.update(dict(width=32, heads=4, encoder_depth=2, decoder_depth=2,
                                 head_width=32, head_depth=1, dtype='float32'))  # fmt: skip
        config.loss.masking.groups = 2
        config.data.examples = 64
        config.training.batch_size = 8
        config.training.total, config.training.warmup = '4 steps', '2 steps'
        config.training.log_every = config.training.checkpoint_every = '2 steps'
        config.sampling.solver.steps = 3
        config.sampling.reveal.steps = 4
    return config

"""A recipe on latents that compiles in seconds."""

import pathlib

CONFIG = str(pathlib.Path(__file__).parents[2] / 'configs/imagenet256.py:size=xs,tiny')
# Small enough to compile in seconds.
SHORT = tuple(
    f'--config.{name}'
    for name in (
        'model.width=16',
        'model.heads=2',
        'model.head_width=16',
        'model.head_depth=1',
        'model.encoder_depth=1',
        'model.decoder_depth=2',
        'sampling.reveal.steps=2',
        'sampling.solver.steps=2',
        'training.batch_size=16',
        'training.sample_images=4',
        'loss.masking.groups=1',
    )
)

"""MAR at ImageNet 256x256 (arXiv 2406.11838) with its recipe: configs/mar256.py:size=b|l|h.

    emigm train --config configs/mar256.py:size=b --workdir WORKDIR

Expected FID-50K with 256 steps: B 2.31, L 1.78, H 1.55.
Training reads a latent cache with --config.data.name=latents --config.data.path=CACHE (see
`emigm prepare`); without one it runs on synthetic latents.
'size=b,tiny' shrinks it to a run of seconds.
"""

from emigm_jax.config import recipes


def get_config(variant='size=b'):
    """Settings of a variant."""
    return recipes.recipe('mar', 256, variant)

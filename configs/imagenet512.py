"""ImageNet 512x512 with the published recipe: configs/imagenet512.py:size=xs|s|b|l.

    emigm train --config configs/imagenet512.py:size=b --workdir WORKDIR

Expected FID-50K (paper Table 3), fast setting of 16 steps: XS 4.63, S 3.65, B 2.78, L 2.19.
Training reads a latent cache with --config.data.name=latents --config.data.path=CACHE (see
`emigm prepare`); without one it runs on synthetic latents.
'size=b,tiny' shrinks it to a run of seconds.
"""

from emigm_jax.config import recipes


def get_config(variant='size=b'):
    """Settings of a variant."""
    return recipes.recipe('emigm', 512, variant)

"""ImageNet 256x256 with the published recipe: configs/imagenet256.py:size=xs|s|b|l|h.

    emigm train --config configs/imagenet256.py:size=b --workdir WORKDIR

Expected FID-50K (paper Table 2), fast setting of 16 steps: XS 4.23, S 3.44, B 2.79, L 2.22, H 2.02.
Training reads a latent cache with --config.data.name=latents --config.data.path=CACHE (see
`emigm prepare`); without one it runs on synthetic latents.
'size=b,tiny' shrinks it to a run of seconds.
"""

from emigm_jax.config import recipes


def get_config(variant='size=b'):
    """Settings of a variant."""
    return recipes.recipe('emigm', 256, variant)

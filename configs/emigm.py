"""eMIGM (arXiv 2503.07197): an exponential schedule, equal weights, a diffusion head.

    emigm train --config configs/emigm.py:digits --workdir runs/emigm
    emigm train --config configs/emigm.py:size=b --workdir WORKDIR

Variants:
  size=xs|s|b|l|h  ImageNet at 256 pixels; ',tiny' shrinks it to a run of seconds
  digits  8x8 digits as 64 tokens, the same network for all four methods; minutes on 2 CPU cores
  smoke   seconds; shows that everything runs, not that it learns
Expected FID-50K at 256 pixels (paper Table 2), 16 steps: XS 4.23, S 3.44, B 2.79, L 2.22, H 2.02.
What differs from the other methods is a row of emigm_jax/config/family.py.
"""

from emigm_jax.config import family


def get_config(variant='size=b'):
    """Settings of a variant."""
    return family.config('emigm', variant)

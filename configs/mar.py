"""MAR (arXiv 2406.11838): a fixed count of masks, equal weights, a diffusion head.

    emigm train --config configs/mar.py:digits --workdir runs/mar
    emigm train --config configs/mar.py:size=b --workdir WORKDIR

Variants:
  size=b|l|h  ImageNet at 256 pixels; ',tiny' shrinks it to a run of seconds
  digits  8x8 digits as 64 tokens, the same network for all four methods; minutes on 2 CPU cores
  smoke   seconds; shows that everything runs, not that it learns
Expected FID-50K at 256 pixels, 256 steps: B 2.31, L 1.78, H 1.55.
What differs from the other methods is a row of emigm_jax/config/family.py.
"""

from emigm_jax.config import family


def get_config(variant='size=b'):
    """Settings of a variant."""
    return family.config('mar', variant)

"""MaskGIT (arXiv 2202.04200): a fixed count of masks, equal weights, a categorical head.

    emigm train --config configs/maskgit.py:digits --workdir runs/maskgit
    emigm train --config configs/maskgit.py:size=b --workdir WORKDIR

Variants:
  size=b  ImageNet at 256 pixels; ',tiny' shrinks it to a run of seconds
  digits  8x8 digits as 64 tokens, the same network for all four methods; minutes on 2 CPU cores
  smoke   seconds; shows that everything runs, not that it learns
Expected at 256 pixels, 8 steps, of its own weights: FID 6.18, inception score 182.1.
What differs from the other methods is a row of emigm_jax/config/family.py.
"""

from emigm_jax.config import family


def get_config(variant='size=b'):
    """Settings of a variant."""
    return family.config('maskgit', variant)

"""Masked diffusion (MD4, arXiv 2406.04329): the weight of its bound, a categorical head.

    emigm train --config configs/mdm.py:digits --workdir runs/mdm
    emigm train --config configs/mdm.py:size=b --workdir WORKDIR

Variants:
  size=xs|s|b|l|h  ImageNet at 256 pixels; ',tiny' shrinks it to a run of seconds
  digits  8x8 digits as 64 tokens, the same network for all four methods; minutes on 2 CPU cores
  smoke   seconds; shows that everything runs, not that it learns
MD4 reports no class-conditional ImageNet of codes; its optimizer and sampler are taken as they are.
What differs from the other methods is a row of emigm_jax/config/family.py.
"""

from emigm_jax.config import family


def get_config(variant='size=b'):
    """Settings of a variant."""
    return family.config('mdm', variant)

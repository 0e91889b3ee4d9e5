"""eMIGM in JAX: masked image generation with a per-token diffusion head (arXiv 2503.07197)."""

__version__ = '0.1.0'

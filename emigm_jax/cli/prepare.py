"""`emigm prepare`: what is made of pictures before training and evaluation."""

from emigm_jax.cli.main import dispatch

COMMANDS = {
    'latents': ('emigm_jax.cli.prepare_latents', 'pictures -> a cache that training reads'),
    'stats': ('emigm_jax.cli.prepare_stats', 'the scale of a cache, and its error'),
    'reference': ('emigm_jax.cli.prepare_reference', 'statistics of real pictures, for FID'),
}


def run(argv: list[str]) -> int:
    """Runs the command."""
    return dispatch('emigm prepare', COMMANDS, argv)

"""Settings of jax that an environment may have."""

import contextlib

import jax

# Each with a value that would change what a seed draws, or whether it draws at all.
DECIDING = {
    'jax_enable_x64': True,
    'jax_default_prng_impl': 'rbg',
    'jax_threefry_partitionable': False,
    'jax_random_seed_offset': 3,
    'jax_numpy_rank_promotion': 'raise',
}


@contextlib.contextmanager
def changed(**settings):
    """With other settings in the whole process, as environment variables would set them."""
    before = {name: jax.config.values[name] for name in settings}
    try:
        for name, value in settings.items():
            jax.config.update(name, value)
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)

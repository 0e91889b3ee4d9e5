"""A seed gives the same whatever settings of jax the environment has."""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emigm_jax.core import orders, randomness
from emigm_jax.parallel import batches, sharding
from emigm_jax.tokenizers import kl_vae
from support import jax_settings

PACKAGE = pathlib.Path(__file__).parents[2] / 'emigm_jax'


@pytest.mark.parametrize('seed', [0, 7, 2**31, randomness.LAST_SEED])
def test_a_key_is_that_of_jax_without_settings(seed):
    data = jax.random.key_data(jax.random.key(seed))
    np.testing.assert_array_equal(jax.random.key_data(randomness.key(seed)), data)
    with jax_settings.changed(**jax_settings.DECIDING):
        np.testing.assert_array_equal(jax.random.key_data(randomness.key(seed)), data)


@pytest.mark.parametrize('seed', [-1, randomness.LAST_SEED + 1])
def test_a_seed_that_does_not_fit_is_never_cut_off(seed):
    with pytest.raises(OverflowError):
        randomness.key(seed)


def draws(numbers):
    """Draws of every dtype, and sums of what would be another dtype; of numbers (R,)."""
    keys = jax.vmap(lambda i: jax.random.fold_in(randomness.key(3), i))(numbers)
    return (
        jax.vmap(lambda key: orders.random(key, 16))(keys),
        jax.vmap(lambda key: orders.Halton()(key, 4))(keys),
        jax.vmap(lambda key: kl_vae.sample_moments(jnp.zeros((4,)), key))(keys),
        jnp.cumsum(numbers)[:, None] / 2.0 + jnp.arange(3)[None] + np.float64(0.5),
    )


NUMBERS = np.arange(8)
EACH = [{name: value} for name, value in jax_settings.DECIDING.items()]


def programs():
    """What runs a function on a mesh, and what runs one over the devices of a process."""
    mesh = sharding.make_mesh(sharding.MeshConfig())
    trained, sampled = jax.jit(lambda rows: draws(rows)), lambda _, rows: draws(rows)[0]
    return sharding.with_mesh(mesh, trained), batches.OverDevices(sampled)


@pytest.fixture(scope='module')
def before():
    """The programs, and what they give."""
    trained, sampled = programs()
    with jax.numpy_dtype_promotion('standard'):
        return trained, sampled, (trained(NUMBERS), sampled({}, NUMBERS))


@pytest.mark.parametrize('settings', [*EACH, jax_settings.DECIDING], ids=lambda s: '+'.join(s))
def test_programs_know_no_settings(settings, before):
    trained, sampled, expected = before
    with jax_settings.changed(**settings), jax.numpy_dtype_promotion('standard'):
        if len(settings) > 1:
            trained, sampled = programs()  # traced anew
        found = trained(NUMBERS), sampled({}, NUMBERS)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert [a.dtype for a in jax.tree.leaves(found)] == [a.dtype for a in jax.tree.leaves(expected)]


def test_keys_are_made_in_one_place():
    made = re.compile(r'random\.(key|PRNGKey|wrap_key_data)\(')
    files = [f for f in PACKAGE.rglob('*.py') if made.search(f.read_text())]
    assert files == [PACKAGE / 'core/randomness.py']

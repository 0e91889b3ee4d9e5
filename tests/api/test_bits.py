"""Masked diffusion learns to code digits in fewer bits than models that are fitted by counting."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from sklearn import datasets

EVERY = 10  # each tenth digit is held back
ROUNDS = 40  # of expectation maximisation; it has settled by then


def mixture_bits(seen, held, components):
    """Bits per pixel of `held` under a mixture of independent pixels that is fitted to `seen`.

    Args:
      seen, held: (N, pixels), of 0 and 1.
    """
    mean = (seen.sum(0) + 1.0) / (len(seen) + 2.0)
    shares = np.random.default_rng(0).dirichlet(np.ones(components), len(seen))
    for _ in range(ROUNDS):
        counts = shares.sum(0)
        ones = (shares.T @ seen + mean) / (counts[:, None] + 1.0)
        weights = (counts + 1.0) / (len(seen) + components)
        of = lambda x: x @ np.log(ones).T + (1 - x) @ np.log(1 - ones).T + np.log(weights)  # noqa: B023
        joint = of(seen)
        shares = np.exp(joint - np.logaddexp.reduce(joint, axis=1, keepdims=True))
    return -np.logaddexp.reduce(of(held), axis=1) / np.log(2.0) / held.shape[1]


LEARNS = (
    '--config.data.levels=2',
    '--config.data.patch=2',
    f'--config.data.held_back={EVERY}',
    '--config.training.total=1000 steps',
    '--config.training.warmup=100 steps',
    '--config.training.sample_every=0 steps',
)


def emigm(*words):
    """A command as users run it: one device, compiled with all that the compiler can do."""
    environment = {name: value for name, value in os.environ.items() if name != 'XLA_FLAGS'}
    command = [sys.executable, '-m', 'emigm_jax', *map(str, words)]
    subprocess.run(command, env=environment, check=True)


@pytest.mark.slow  # trains for a minute
def test_digits_take_fewer_bits_than_counting(tmp_path):
    digits = datasets.load_digits()
    pixels = np.round(digits.images / 16).reshape(-1, 64)
    back = np.arange(len(pixels)) % EVERY == EVERY - 1
    counted = {
        components: np.mean(
            np.concatenate(
                [
                    mixture_bits(pixels[~back & of], pixels[back & of], components)
                    for of in (digits.target == c for c in range(10))
                ]
            )
        )
        for components in (1, 2, 3)
    }
    assert 0.34 < counted[3] < counted[2] < counted[1] < 0.41
    run, bits = tmp_path / 'run', tmp_path / 'bits.json'
    emigm('train', '--config', 'mdm:digits', '--workdir', run, *LEARNS)
    emigm('evaluate', '--checkpoint', run, '--metrics', 'bits_per_dim', '--json', bits)
    found = json.loads(bits.read_text())
    assert found['dimensions'] == 64
    assert found['bits_per_dim'] < counted[3]

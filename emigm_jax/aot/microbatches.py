"""How much a step of several microbatches sums over devices, as its compiled program says.

`python -m emigm_jax.aot.microbatches` prints it for the devices that there are.
"""

import dataclasses
import math
import os
import subprocess
import sys

import jax

from emigm_jax.aot import collectives, hlo
from emigm_jax.benchmark import steps
from emigm_jax.config.settings import Config
from emigm_jax.core.masking import MaskingConfig
from emigm_jax.models.config import ModelConfig

DEVICES, ACCUMULATE = 8, 4
# As small as shows it.
MODEL = ModelConfig(
    grid=4,
    channels=8,
    classes=5,
    width=32,
    heads=4,
    encoder_depth=2,
    decoder_depth=2,
    buffer=8,
    head_width=32,
    head_depth=2,
)


def summed() -> float:
    """Bytes of all sums over devices in a step of `ACCUMULATE` microbatches, in gradients."""
    config = Config(model=MODEL)
    config = dataclasses.replace(
        config,
        loss=dataclasses.replace(config.loss, masking=MaskingConfig(groups=1)),
        training=dataclasses.replace(config.training, accumulate=ACCUMULATE),
    )
    built = steps.train_program(config, ACCUMULATE * jax.device_count())
    text = built.lower().compile().as_text()
    assert text is not None
    found = collectives.collectives(hlo.parse(text))
    moved = [row.payload for row in found if row.kind == 'all-reduce']
    leaves = jax.tree.leaves(built.state['params'])
    return sum(moved) / sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)


def on_fake_devices() -> float:
    """`summed`, found by another process that has `DEVICES` fake ones."""
    flags = f'--xla_force_host_platform_device_count={DEVICES}'
    told = subprocess.run(
        [sys.executable, '-m', __name__],
        env={**os.environ, 'XLA_FLAGS': flags, 'JAX_PLATFORMS': 'cpu'},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return float(told.stdout)


if __name__ == '__main__':
    print(summed())

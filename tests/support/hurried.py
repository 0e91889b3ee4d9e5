"""No time is lost between two tries; `python -m support.hurried` is an `emigm` of that kind.

Its arguments: a step, a file to make when the values of that step are written, the command's own.
"""

import asyncio
import pathlib
import sys
import types

import gcsfs.retry

from emigm_jax.checkpoints import requests
from emigm_jax.cli import main
from emigm_jax.io import patience
from emigm_jax.training import metrics


async def shortly(seconds):
    """In place of asyncio.sleep."""
    await asyncio.sleep(min(seconds, 0.01))


def hurry(replace=setattr):
    """Leaves the number of tries as it is where nothing waits between them."""
    replace(gcsfs.retry, 'asyncio', types.SimpleNamespace(sleep=shortly))
    replace(patience, 'PAUSE', 0.0)
    replace(patience.Patient, '_told', -patience.PERIOD)
    replace(patience.Patient, '_given_up', -patience.AFTER)
    replace(requests, 'RETRIES', {'max_retries': 5, 'initial_delay': '5ms', 'max_delay': '5ms'})


def at_step(step, act):
    """Calls act() before the values of a step are written."""
    write = metrics.Metrics.write

    def acting(self, at, *values):
        if at == step:
            act()
        write(self, at, *values)

    metrics.Metrics.write = acting


if __name__ == '__main__':
    hurry()
    at_step(int(sys.argv[1]), pathlib.Path(sys.argv[2]).touch)
    sys.exit(main.main(sys.argv[3:]))

"""How fast training data come, and whether a step waits for them."""

import itertools
import resource
import sys
import time

import jax
import numpy as np

from emigm_jax.benchmark import steps
from emigm_jax.config.settings import Config
from emigm_jax.data import datasets, pipeline, sizes
from emigm_jax.parallel import sharding

WARM_UP = 4  # batches: threads start, files are opened, the page cache is met


def measure(config: Config, batch: int, repeats: int, train_steps: int) -> dict[str, float]:
    """Figures of `repeats` batches of `batch` rows, and of `train_steps` real steps if not 0."""
    data, mesh = datasets.dataset(config), sharding.make_mesh(config.mesh)
    config = sizes.fitted(config, data)
    stop = WARM_UP + repeats
    which, order = (data, batch, config.seed, 0, stop), config.data.order
    host = _rate(pipeline.host_rows(*which, order=order))
    device = _rate(map(jax.block_until_ready, pipeline.batches(*which, mesh, order)))
    rows = batch * repeats
    figures = {
        'rows_per_second': rows / host[0],
        'bytes_per_second': host[1] / host[0],
        'rows_per_second_on_device': rows / device[0],
        'peak_host_memory_gb': _peak_memory(),
    }
    if train_steps:
        figures |= _waiting(config, data, batch, train_steps)
    return figures


def _rate(batches):
    """(seconds, bytes) of the batches after the first few."""
    batches = iter(batches)
    for _ in itertools.islice(batches, WARM_UP):
        pass
    start = time.perf_counter()
    size = sum(leaf.nbytes for batch in batches for leaf in jax.tree.leaves(batch))
    return time.perf_counter() - start, size


def _waiting(config, data, batch, count):
    """Share of the time of real training steps that is spent waiting for data."""
    built = steps.train_program(config, batch)
    state, mesh = built.create(), built.mesh
    which = data, batch, config.seed, 0, 1 + count, mesh, config.data.order
    batches = pipeline.Timed(pipeline.batches(*which))
    state, values = built.step(state, next(batches), np.int32(0))
    jax.block_until_ready(values)  # compilation is no step
    start, waited = time.perf_counter(), batches.seconds
    for number, rows in enumerate(batches, 1):
        state, values = built.step(state, rows, np.int32(number))
        jax.block_until_ready(values)
    seconds = time.perf_counter() - start
    return {
        'seconds_per_step': seconds / count,
        'share_waiting_for_data': (batches.seconds - waited) / seconds,
    }


def _peak_memory():
    """GB that this process has held at most."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e9 if sys.platform == 'darwin' else peak * 1024 / 1e9

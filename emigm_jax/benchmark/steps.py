"""Speed, FLOPs, memory and compile time of the train step and of the sampler."""

import dataclasses
import functools
import statistics
import time
from typing import Any, cast

import jax
import numpy as np

from emigm_jax.config.settings import Config
from emigm_jax.core import randomness
from emigm_jax.data import sizes
from emigm_jax.data.interface import Batch
from emigm_jax.models import emigm
from emigm_jax.parallel import sharding
from emigm_jax.sampling.sampler import Sampler
from emigm_jax.training import program
from emigm_jax.training.program import Program


@randomness.pinned()
def measure(what: str, config: Config, batch: int, repeats: int) -> dict[str, Any]:
    """Figures of `what` ('train' or 'sample') with random weights and data: {name: value}.

    Raises:
      UserError: a size of the model is left to data that are not opened here.
    """
    config = sizes.without_data(config)
    build = {'train': _train, 'sample': _sample}[what]
    result = _measure(*build(config, batch), config.model.compute_dtype, repeats)
    return _figures(result, config, batch)


def train_program(config: Config, batch: int) -> Program:
    """The train step of a batch size on all devices."""
    training = dataclasses.replace(config.training, batch_size=batch)
    config = dataclasses.replace(config, training=training)
    return program.build(config, sharding.make_mesh(config.mesh), 0, 1)


def _train(config, batch):
    """(lowering, the program's arguments, next arguments from a result, FLOPs per image)."""
    built = train_program(config, batch)
    rng = np.random.default_rng(0)
    shape = built.batch.tokens.shape
    if config.model.codes:
        tokens = rng.integers(config.model.codes, size=shape).astype(np.int32)
    else:
        tokens = rng.standard_normal(shape, np.float32)
    labels = rng.integers(config.model.classes, size=batch).astype(np.int32)
    data = Batch(
        labels=jax.device_put(labels, built.batch.labels.sharding),
        tokens=jax.device_put(tokens, built.batch.tokens.sharding),
    )
    first, zero = built.create(), np.int32(0)
    return built.lower, (first, data, zero), lambda out: (out[0], data, zero), built.flops


def _sample(config, batch):
    params = jax.jit(emigm.network(config.model).init)(randomness.key(0))
    sampler = Sampler(config.model, config.sampling)
    labels = np.arange(batch) % config.model.classes
    run, arguments = sampler.prepared(params, labels, np.arange(batch))
    lower = functools.partial(cast(jax.stages.Wrapped, run).lower, *arguments)
    return lower, arguments, lambda _: arguments, sampler.flops


def _measure(lower, arguments, following, count, dtype, repeats):
    """Compiles, runs once to warm up, then times `repeats` calls."""
    start = time.perf_counter()
    compiled = lower().compile()
    compile_seconds = time.perf_counter() - start
    memory = compiled.memory_analysis()
    parts = (
        memory.argument_size_in_bytes,
        memory.temp_size_in_bytes,
        memory.output_size_in_bytes,
        -memory.alias_size_in_bytes,
    )
    peak, seconds = _matmul_peak(dtype), []
    for _ in range(1 + repeats):
        start = time.perf_counter()
        out = jax.block_until_ready(compiled(*arguments))
        seconds.append(time.perf_counter() - start)
        arguments = following(out)
    return {
        'seconds_per_step': statistics.median(seconds[1:]),
        'flops_per_image': float(count),
        'program_memory_gb': sum(parts) / 1e9,
        'compile_seconds': compile_seconds,
        'matmul_peak_tflops': peak / 1e12,
    }


def _figures(result, config, batch):
    rate = batch / result['seconds_per_step']
    achieved = rate * result['flops_per_image'] / 1e12
    device = jax.devices()[0]
    stats = device.memory_stats() or {}  # CPUs keep none
    if 'peak_bytes_in_use' in stats:
        result['peak_memory_gb'] = stats['peak_bytes_in_use'] / 1e9
    return {
        'device': f'{device.device_kind} ({device.platform})',
        'devices': jax.device_count(),
        'batch_size': batch,
        'dtype': config.model.dtype,
        'images_per_second': rate,
        **result,
        'of_matmul_peak': achieved / (result['matmul_peak_tflops'] * jax.device_count()),
    }


def _matmul_peak(dtype, repeats=5):
    """FLOP/s of square products in a compute dtype on one device, best of a few."""
    # Accelerators need larger ones, and several in one program, to be busy.
    size, chain = (2048, 1) if jax.default_backend() == 'cpu' else (8192, 8)
    a = jax.random.normal(randomness.key(0), (size, size)).astype(dtype) / size**0.5
    product = jax.jit(lambda a: jax.lax.fori_loop(0, chain, lambda _, x: x @ a, a))
    seconds = []
    for _ in range(1 + repeats):
        start = time.perf_counter()
        product(a).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * chain * size**3 / min(seconds[1:])

"""How long a compiled program takes, again and again, and what it needs."""

import contextlib
import functools
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from emigm_jax.core import randomness
from emigm_jax.nn.functional import Params


class Program(NamedTuple):
    """A program for a batch of images."""

    lower: Callable[[], jax.stages.Lowered]
    arguments: tuple[Any, ...]  # of the first call
    following: Callable[[Any], tuple[Any, ...]]  # a result -> arguments of the next call
    flops: float  # per image, of matrix products; 0: there are none
    dtype: str  # of these products
    # Of these products: how float32 is multiplied where the default is less, on TPUs and GPUs.
    precision: jax.lax.Precision | None = None
    params: Params | None = None  # of the network, if it has some


# What else takes a step after each of ours: its Program -> a function that gives its seconds.
Beside = Callable[[Program], contextlib.AbstractContextManager[Callable[[], float]]]


class TooLarge(Exception):
    """A program needs more memory than it may have."""


@randomness.pinned()
def measure(
    build: Callable[[int], Program],
    batch: int,
    repeats: int,
    memory: float | None = None,
    beside: Beside | None = None,
) -> dict[str, float]:
    """Compiles the program of a batch size, runs it once to warm up, then times `repeats` calls.

    Args:
      build: makes the program of a batch size.
      batch: images per call.
      repeats: calls that count.
      memory: bytes that a device has; None: whatever the program needs.
      beside: what it is compared with, in turns.

    Returns:
      {name: figure}; seconds are the median, the fastest and the slowest of the calls.

    Raises:
      TooLarge: the program would not fit into `memory`; it is not run.
    """
    program = build(batch)
    # First, as it may not run, and compiling takes long.
    with beside(program) if beside else contextlib.nullcontext() as other:
        start = time.perf_counter()
        compiled = program.lower().compile()
        compile_seconds = time.perf_counter() - start
        needs = _bytes(compiled)
        if memory is not None and needs > memory:
            raise TooLarge
        seconds, others = _seconds(compiled, program, repeats, other)
    rate = batch / statistics.median(seconds)
    figures = {
        'images_per_second': rate,
        'seconds_per_step': statistics.median(seconds),
        'fastest_step': min(seconds),
        'slowest_step': max(seconds),
        'program_memory_gb': needs / 1e9,
        'compile_seconds': compile_seconds,
    }
    if others:
        median = statistics.median(others)
        figures |= {
            'official_seconds_per_step': median,
            'official_fastest_step': min(others),
            'official_slowest_step': max(others),
            'times_as_fast': median / figures['seconds_per_step'],
        }
    stats = jax.local_devices()[0].memory_stats() or {}  # CPUs keep none
    if 'peak_bytes_in_use' in stats:  # since the process began, whatever ran before
        figures['peak_memory_gb'] = stats['peak_bytes_in_use'] / 1e9
    if not program.flops:
        return figures
    achieved, peak = rate * program.flops / 1e12, _matmul_peak(program.dtype, program.precision)
    return {
        **figures,
        'flops_per_image': float(program.flops),
        'tflops_per_second': achieved,
        'matmul_peak_tflops': peak / 1e12,
        'of_matmul_peak': achieved * 1e12 / (peak * jax.device_count()),
    }


def _bytes(compiled):
    """What a program holds on a device while it runs."""
    memory = compiled.memory_analysis()
    return (
        memory.argument_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
    )


def _seconds(compiled, program, repeats, other=None):
    arguments, seconds, others = program.arguments, [], []
    for _ in range(1 + repeats):
        start = time.perf_counter()
        out = jax.block_until_ready(compiled(*arguments))
        seconds.append(time.perf_counter() - start)
        arguments = program.following(out)
        others += [other()] if other else []
    return seconds[1:], others[1:]


@functools.cache
def _matmul_peak(dtype, precision, repeats=5):
    """FLOP/s of square products in a compute dtype on one device, best of a few."""
    # Accelerators need larger ones, and several in one program, to be busy.
    size, chain = (2048, 1) if jax.default_backend() == 'cpu' else (8192, 8)
    a = jax.random.normal(randomness.key(0), (size, size)).astype(dtype) / size**0.5
    times = lambda x, a: jax.numpy.matmul(x, a, precision=precision)
    product = jax.jit(lambda a: jax.lax.fori_loop(0, chain, lambda _, x: times(x, a), a))
    seconds = []
    for _ in range(1 + repeats):
        start = time.perf_counter()
        product(a).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * chain * size**3 / min(seconds[1:])
